"""Which columns of a Parquet file hold labels, images and embeddings, and what files must agree on.

Columns are found by their place in the schema.  A leaf's dotted path is no name:
names may have dots, too.
"""

import dataclasses
import json
import urllib.parse
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from dpgmm_beam.data.schema import EMBEDDING, IMAGE, LABEL
from dpgmm_beam.data.units import is_id
from dpgmm_beam.errors import ConfigError
from transforms.files.columns import EMBEDDING_WORDS, IMAGE_WORDS, LABEL_WORDS, NO_LABEL, Columns, likely

IMAGE_PARQUET = "image_parquet"

EMBEDDING_PARQUET = "embedding_parquet"

# Key of the Parquet schema metadata that names the encoder of the embeddings.
ENCODER_KEY = b"dpgmm.encoder"

# And one of the form of the pictures beside them, SIDE or SIDE:rgb.
PICTURE_KEY = b"dpgmm.picture"

HUGGING_FACE_KEY = b"huggingface"

# Of an image in Hugging Face's datasets: struct<bytes, path>.
_BYTES = "bytes"

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"

_NULLS = "null"


@dataclasses.dataclass(frozen=True)
class Found:
    """A column of one leaf.

    Attributes:
      path: names from the top-level column through structs.
      leaf: its number among the leaves of the file.
      type: by its storage; what extension types hold.
    """

    path: tuple[str, ...]
    leaf: int
    type: pa.DataType

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        """The column of a batch that was read with this leaf; null where a struct above it is."""
        column = batch.column(batch.schema.get_field_index(self.path[0]))
        if len(self.path) > 1:
            column = pc.struct_field(column, list(self.path[1:]))
        return column.storage if isinstance(column, pa.ExtensionArray) else column


@dataclasses.dataclass(frozen=True)
class FileColumns:
    """Where one file has what.

    Attributes:
      value: the images or embeddings.
      label: None where the file has no such column.
      names: of integer labels, where the file's metadata has them.
      partition: the label of all rows, where the file's folder is named by it; None is a null.
      partitioned: whether it is.
      unit: the ids of privacy units; None where units are rows, or the file's folder is named by the id.
      unit_partition: that id; None is a null.
      picture: of each embedding; None where it is not read.
    """

    value: Found
    label: Found | None
    names: tuple[str, ...] | None = None
    partition: str | None = None
    partitioned: bool = False
    unit: Found | None = None
    unit_partition: str | None = None
    picture: Found | None = None

    @property
    def leaves(self) -> list[int]:
        """Numbers of the columns that are read."""
        read = (self.value, self.label, self.unit, self.picture)
        return sorted({column.leaf for column in read if column is not None})


@dataclasses.dataclass(frozen=True)
class Agreed:
    """What the files of one input must agree on.

    Attributes:
      column: name of the images or embeddings.
      label: "string", "integer", "null" where every label is null, or None without labels.
      type: of the images or embeddings; null, or a list of nulls, where every one is null.
      unit: as `label`, of the ids of privacy units; "bytes" too.
      picture: form of the pictures beside embeddings, where these are read; None where there are none.
    """

    kind: str
    column: str
    label: str | None
    type: pa.DataType
    encoder: str | None
    unit: str | None = None
    picture: str | None = None

    def __str__(self) -> str:
        label = f"{self.label} labels" if self.label else "no labels"
        unit = f", {self.unit} ids" if self.unit else ""
        picture = f", pictures {self.picture}" if self.picture else ""
        return f"{label}{unit}, column {self.column!r} of {self.type}, encoder {self.encoder}{picture}"

    def and_also(self, other: "Agreed") -> "Agreed | None":
        """What both say together; None if they do not agree.  A column of nulls agrees with any."""
        label = other.label if self.label == _NULLS and other.label else self.label
        unit = other.unit if self.unit == _NULLS and other.unit else self.unit
        kind = other.type if is_unknown(self.type) else self.type
        labels_agree = other.label == label or (label is not None and other.label == _NULLS)
        labels_agree &= other.unit == unit or (unit is not None and other.unit == _NULLS)
        types_agree = other.type == kind or is_unknown(other.type)
        one, another = ((each.kind, each.encoder, each.picture) for each in (self, other))
        if not labels_agree or not types_agree or one != another:
            return None
        return dataclasses.replace(self, label=label, type=kind, unit=unit)


def look(
    pattern: str, path: str, schema: pa.Schema, encoder: str, columns: Columns
) -> tuple[Agreed, FileColumns]:
    """What a file is, by its schema and its folder's name.

    Raises:
      ConfigError: naming the columns that it has not, or has of other types.
    """
    stored = (schema.metadata or {}).get(ENCODER_KEY)
    stored_encoder = stored.decode(errors="replace") if stored else None
    has_image, has_embedding = find(schema, columns.image), find(schema, columns.embedding)
    for field, name, default, found, other in (
        ("image_column", columns.image, IMAGE, has_image, columns.embedding == EMBEDDING),
        ("embedding_column", columns.embedding, EMBEDDING, has_embedding, columns.image == IMAGE),
    ):
        if name != default and not found and other:
            raise ConfigError(field, name, f"be a column of the input; {path} has {_names(schema)}")
    if has_embedding and not (has_image and encoder not in ("precomputed", stored_encoder)):
        kind, name, of_encoder = EMBEDDING_PARQUET, columns.embedding, stored_encoder
    elif has_image:
        kind, name, of_encoder = IMAGE_PARQUET, columns.image, None
    else:
        raise _neither(pattern, path, schema, columns)
    where = locate(pattern, path, schema, columns, kind)
    value = where.value.type
    if kind == EMBEDDING_PARQUET and not _is_embedding(value):
        allowed = f"hold a list or fixed-size list of float16, float32 or float64 in column '{name}'"
    elif kind == IMAGE_PARQUET and not (_is_bytes(value) or pa.types.is_null(value)):
        allowed = f"hold encoded images as binary, or as struct<bytes: binary, path>, in column '{name}'"
    else:
        label = _label_kind(pattern, path, columns.label, where)
        if label is None and columns.label:
            _refuse_another_label(path, schema, columns)
        unit = _unit_kind(pattern, path, schema, columns.unit, where) if columns.unit else None
        picture = _picture_form(schema, where)
        return Agreed(kind, name, label, value, of_encoder, unit, picture), where
    raise ConfigError("input", pattern, f"{allowed}; {path} holds {value}")


def locate(pattern: str, path: str, schema: pa.Schema, columns: Columns, kind: str) -> FileColumns:
    """Where a file has the columns of a kind of rows.

    Args:
      schema: of the file; that of its bare Parquet types does, too.

    Raises:
      ConfigError: a name means several columns, or there are labels in two places.
    """

    def one(name: str) -> Found | None:
        found = find(schema, name)
        if len(found) > 1:
            raise ConfigError("input", pattern, f"have one column '{name}'; {path} has several")
        return found[0] if found else None

    # Whatever the input is: a name that means two columns is a mistake.
    image, embedding = one(columns.image), one(columns.embedding)
    value = image if kind == IMAGE_PARQUET else embedding
    assert value is not None
    if kind == IMAGE_PARQUET:
        value = _bytes_of(value)
    beside = one(columns.picture) if columns.picture and kind == EMBEDDING_PARQUET else None
    where = FileColumns(value, None, picture=beside)
    if columns.unit:
        unit, (by_folder, of_folder) = one(columns.unit), _partition(pattern, path, columns.unit)
        if unit and by_folder:
            raise _in_two_places(pattern, path, "ids", columns.unit)
        where = dataclasses.replace(where, unit=unit, unit_partition=of_folder)
    if not columns.label:
        return where
    label = one(columns.label)
    partitioned, partition = _partition(pattern, path, columns.label)
    if label and partitioned:
        raise _in_two_places(pattern, path, "labels", columns.label)
    names = None
    if label and pa.types.is_integer(_plain(label.type)):
        names = _class_names(schema.metadata or {}, label.path)
    return dataclasses.replace(where, label=label, names=names, partition=partition, partitioned=partitioned)


def _in_two_places(pattern: str, path: str, what: str, name: str) -> ConfigError:
    return ConfigError(
        "input",
        pattern,
        f"have {what} in column '{name}' or in folders '{name}=...', not in both; {path} has both",
    )


def find(schema: pa.Schema, name: str) -> list[Found]:
    """The columns that a name may mean: top-level ones of just that name, else paths through structs."""
    exact: list[Found] = []
    nested: list[Found] = []
    leaf = 0
    for field in schema:
        if field.name == name:
            exact.append(Found((name,), leaf, _storage(field.type)))
        elif name.startswith(field.name + "."):
            nested.extend(_below(field, leaf, (), name))
        leaf += leaves(field.type)
    return exact or nested


def _below(field: pa.Field, leaf: int, above: tuple[str, ...], name: str) -> Iterator[Found]:
    """The fields at a path, from a field on whose name begins it."""
    path, kind = (*above, field.name), _storage(field.type)
    if field.name == name:
        yield Found(path, leaf, kind)
    rest = name.removeprefix(field.name + ".")
    if rest == name or not pa.types.is_struct(kind):
        return
    for inner in kind.fields:
        if rest == inner.name or rest.startswith(inner.name + "."):
            yield from _below(inner, leaf, path, rest)
        leaf += leaves(inner.type)


def leaves(kind: pa.DataType) -> int:
    """How many columns of Parquet a type is stored as."""
    kind = _storage(kind)
    return sum(leaves(kind.field(i).type) for i in range(kind.num_fields)) if kind.num_fields else 1


def _storage(kind: pa.DataType) -> pa.DataType:
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_unknown(column_type: pa.DataType) -> bool:
    """Whether a type says no more than that every value is null."""
    return pa.types.is_null(column_type) or (
        _is_list(column_type) and pa.types.is_null(column_type.value_type)
    )


def _is_list(column_type: pa.DataType) -> bool:
    kinds = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    views = pa.types.is_list_view, pa.types.is_large_list_view
    return any(is_kind(column_type) for is_kind in (*kinds, *views))


def _is_embedding(column_type: pa.DataType) -> bool:
    return is_unknown(column_type) or (_is_list(column_type) and pa.types.is_floating(column_type.value_type))


def _is_bytes(column_type: pa.DataType) -> bool:
    kinds = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view
    return any(is_kind(column_type) for is_kind in kinds)


def is_text(column_type: pa.DataType) -> bool:
    """Whether a type is one of text, dictionaries of it included."""
    kinds = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
    return any(is_kind(_plain(column_type)) for is_kind in kinds)


def _bytes_of(image: Found) -> Found:
    """The bytes of an image that is a struct of them and its path; any other column as it is."""
    if not pa.types.is_struct(image.type):
        return image
    leaf = image.leaf
    for field in image.type.fields:
        if field.name == _BYTES:
            return Found((*image.path, _BYTES), leaf, _storage(field.type))
        leaf += leaves(field.type)
    return image


def _label_kind(pattern: str, path: str, name: str, where: FileColumns) -> str | None:
    if where.label is None:
        if not where.partitioned:
            return None
        return _NULLS if where.partition is None else "string"
    plain = _plain(where.label.type)
    if is_text(plain) or where.names is not None:
        return "string"
    if pa.types.is_integer(plain):
        return "integer"
    if pa.types.is_null(plain):
        return _NULLS
    raise ConfigError(
        "input", pattern, f"hold strings or integers in column '{name}'; {path} holds {where.label.type}"
    )


def _picture_form(schema: pa.Schema, where: FileColumns) -> str | None:
    """Form of a file's pictures, as `dpgmm embed` states it; None where it does not, or there are none."""
    stated = (schema.metadata or {}).get(PICTURE_KEY)
    if where.picture is None or stated is None or not _is_embedding(where.picture.type):
        return None
    return stated.decode(errors="replace")


def _unit_kind(pattern: str, path: str, schema: pa.Schema, name: str, where: FileColumns) -> str:
    if where.unit is None:
        by_folder, value = _partition(pattern, path, name)
        if by_folder:
            return _NULLS if value is None else "string"
        raise ConfigError(
            "privacy_unit_column", name, f"be a column of the input; {path} has {_names(schema)}"
        )
    plain = _plain(where.unit.type)
    if not is_id(plain):
        raise ConfigError(
            "input",
            pattern,
            f"hold text, bytes or integers in column '{name}'; {path} holds {where.unit.type}",
        )
    if pa.types.is_null(plain):
        return _NULLS
    return "string" if is_text(plain) else "integer" if pa.types.is_integer(plain) else "bytes"


def _neither(pattern: str, path: str, schema: pa.Schema, columns: Columns) -> ConfigError:
    """Of a file without images and embeddings: what may be them goes by another name, or nothing may."""
    for field, name, names, is_kind in (
        ("embedding_column", columns.embedding, EMBEDDING_WORDS, _is_embedding),
        (
            "image_column",
            columns.image,
            IMAGE_WORDS,
            lambda kind: _is_bytes(kind) or pa.types.is_struct(kind),
        ),
    ):
        may_be = [each for each in likely(schema.names, names) if is_kind(_storage(schema.field(each).type))]
        if may_be:
            return ConfigError(
                field, name, f"be a column of the input; {path} has '{may_be[0]}', which may be meant"
            )
    return ConfigError(
        "input",
        pattern,
        f"have a column '{columns.image}' (binary) or '{columns.embedding}' (list of float);"
        f" {path} has {_names(schema)}",
    )


def _names(schema: pa.Schema) -> str:
    return ", ".join(schema.names) or "no columns"


def _refuse_another_label(path: str, schema: pa.Schema, columns: Columns) -> None:
    """Refuses rows without labels where another column has the name of one: all would be one class."""
    if columns.label != LABEL:
        raise ConfigError(
            "label_column", columns.label, f"be a column of the input; {path} has {_names(schema)}"
        )
    for name in likely(dict(_folders(path)), LABEL_WORDS):
        raise ConfigError("label_column", columns.label, NO_LABEL.format(path=path, name=name))
    for name in likely(schema.names, LABEL_WORDS):
        plain = _plain(_storage(schema.field(name).type))
        if is_text(plain) or pa.types.is_integer(plain):
            raise ConfigError("label_column", columns.label, NO_LABEL.format(path=path, name=name))


def _class_names(metadata: Mapping[bytes, bytes], path: tuple[str, ...]) -> tuple[str, ...] | None:
    """Names of the integers of a ClassLabel, which Hugging Face's datasets keep in a schema's metadata."""
    try:
        feature = json.loads(metadata[HUGGING_FACE_KEY])["info"]["features"]
        for name in path:
            feature = feature[name]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    # Escapes of JSON can make text that is none.
    return tuple(name.encode(errors="replace").decode() for name in names)


def _folders(path: str) -> list[tuple[str, str]]:
    """Names and values, as written, of the folders `NAME=VALUE` in a file's path."""
    parts = (part.partition("=") for part in path.split("/")[:-1])
    return [(urllib.parse.unquote(key), value) for key, equals, value in parts if equals]


def id_in_path(path: str, columns: Columns) -> str:
    """What folders on the way to a file say of its privacy unit; empty where they say nothing."""
    return "/".join(value for key, value in _folders(path) if columns.unit and key == columns.unit)


def _partition(pattern: str, path: str, name: str) -> tuple[bool, str | None]:
    """Whether a folder in a file's path is named `NAME=VALUE`, and the value, as Hive writes it."""
    values = [value for key, value in _folders(path) if key == name]
    if len(values) > 1:
        raise ConfigError("input", pattern, f"have one folder '{name}=...' in a path; {path} has several")
    if not values:
        return False, None
    value = urllib.parse.unquote(values[0], errors="replace")
    # Names of files need not be text.
    text = value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return True, None if value == _HIVE_NULL else text
