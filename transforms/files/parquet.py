"""Parquet of images or embeddings: footers, schemas that agree, rows.

`read_footers` is called inside workers, the rest by the driver, too; it never reads a row.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam.data.schema import EMBEDDING, IMAGE, LABEL
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy import lattice
from transforms.files.opening import open_file, open_ranges
from transforms.files.private import is_local

IMAGE_PARQUET = "image_parquet"

EMBEDDING_PARQUET = "embedding_parquet"

# Key of the Parquet schema metadata that names the encoder of the embeddings.
ENCODER_KEY = b"dpgmm.encoder"

# What a row group may hold, by its footer: one row may be as large as all the
# others together, but not so large that a worker dies of it.
MAX_EXTRA_VALUES = 2**25
"""Values in the embeddings of a row group, beyond the dimension's for each row."""

MAX_LABEL_CHUNK, MAX_LABEL_CHUNK_ROW = 2**27, 2**4
"""Bytes of a row group's labels, uncompressed, and as many more for each row."""

MAX_IMAGE_CHUNKS = (2**27, 2**24), (2**30, 2**20)
"""Bytes of a row group's images, uncompressed, and as many more for each row; both hold."""

# Of labels, and of values that are too many, in row groups that are read as one stream.
_STREAM_BYTES = 2**26

# Footers are small and may be far away: they are read side by side.
_NEAR_READERS, _FAR_READERS = 4, 64

_NEAR_BUFFER, _FAR_BUFFER = 2**20, 2**24

# The driver looks at so many files; a worker looks at all of them.
DRIVER_FOOTERS = 256


@dataclasses.dataclass(frozen=True)
class RowGroups:
    """A Parquet file, what pins it, and the number of rows of each of its row groups."""

    path: str
    pin: str
    rows: tuple[int, ...]


def read_footers(
    pattern: str, pins: Mapping[str, str], encoder: str, dimension: int | None = None
) -> list[RowGroups]:
    """Row counts of all row groups of Parquet files, sorted by path; a file of two names is there once.

    Args:
      pattern: the input, as the sentence of an error names it.
      pins: of the files, by path.
      encoder: the encoder's spec.
      dimension: length of an embedding; None for images.

    Raises:
      ConfigError: the files' schemas do not agree, or a row group or all of
        them are beyond what is stated in this module and in `lattice.MAX_ROWS`.
    """
    named = {pin if is_local(path) else path: path for path, pin in reversed(list(pins.items()))}
    groups = []
    for path, columns, footer in agreeing(pattern, sorted(named.values()), encoder):
        check_sizes(pattern, path, columns, footer, dimension)
        rows = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
        groups.append(RowGroups(path, pins[path], rows))
    check_rows(pattern, sum(sum(group.rows) for group in groups))
    return groups


def open_parquet(path: str) -> pq.ParquetFile:
    """Opens a Parquet file on any file system; reads its footer only."""
    if is_local(path):
        return pq.ParquetFile(path)
    return pq.ParquetFile(pa.PythonFile(open_file(path), mode="r"))


def open_rows(path: str) -> pq.ParquetFile:
    """Opens a Parquet file for reading rows: fixed-size lists come as plain lists.

    pyarrow fails on a null in a fixed-size list column, and a bad row must not
    fail a job.  It knows the list's size from the Arrow schema in the footer
    only, so a footer in which that schema goes by another name reads as lists.
    Labels of text come as dictionaries: a long one that many rows share is
    there once.
    """
    file = open_ranges(path)
    size = file.size()
    length = int.from_bytes(file.read_at(4, size - 8), "little")
    footer = file.read_at(length, size - 8 - length).replace(b"ARROW:schema", b"arrow:schema")
    tail = length.to_bytes(4, "little") + b"PAR1"
    metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + footer + tail))
    # By default a reader holds a whole row group, however large.
    buffer = _NEAR_BUFFER if is_local(path) else _FAR_BUFFER
    schema = metadata.schema.to_arrow_schema()
    label = metadata.schema.column(_leaf(schema, LABEL)) if LABEL in schema.names else None
    text = [label.path] if label and label.physical_type == "BYTE_ARRAY" else []
    return pq.ParquetFile(file, metadata=metadata, buffer_size=buffer, pre_buffer=False, read_dictionary=text)


def streams(footer: pq.FileMetaData, row_groups: Sequence[int], dimension: int) -> Iterator[list[int]]:
    """Row groups of embeddings that are read as one stream: those with enormous lists or labels one by one.

    A reader takes a slice of so many rows, whatever the row groups they are in.
    """
    schema = footer.schema.to_arrow_schema()
    value, label = _leaf(schema, EMBEDDING), _leaf(schema, LABEL) if LABEL in schema.names else None
    together: list[int] = []
    size = 0
    for index in row_groups:
        group = footer.row_group(index)
        extra = 8 * max(0, group.column(value).num_values - group.num_rows * dimension)
        extra += group.column(label).total_uncompressed_size if label is not None else 0
        if together and size + extra > _STREAM_BYTES:
            yield together
            together, size = [], 0
        together.append(index)
        size += extra
    if together:
        yield together


@dataclasses.dataclass(frozen=True)
class _Columns:
    """What the files of one input must agree on.

    Attributes:
      label: "string", "integer", `_ANY` where every label is null, or None without labels.
      type: of the images or embeddings; null, or a list of nulls, where every one is null.
    """

    kind: str
    label: str | None
    type: pa.DataType
    encoder: str | None

    def __str__(self) -> str:
        label = f"{self.label} labels" if self.label else "no labels"
        return f"{label}, column {_value_column(self.kind)!r} of {self.type}, encoder {self.encoder}"

    def and_also(self, other: "_Columns") -> "_Columns | None":
        """What both say together; None if they do not agree.  A column of nulls agrees with any."""
        label = other.label if self.label == _ANY and other.label else self.label
        kind = other.type if _is_unknown(self.type) else self.type
        labels_agree = other.label == label or (label is not None and other.label == _ANY)
        types_agree = other.type == kind or _is_unknown(other.type)
        if not labels_agree or not types_agree or (other.kind, other.encoder) != (self.kind, self.encoder):
            return None
        return dataclasses.replace(self, label=label, type=kind)


_ANY = "null"


def _value_column(kind: str) -> str:
    return IMAGE if kind == IMAGE_PARQUET else EMBEDDING


def _is_unknown(column_type: pa.DataType) -> bool:
    """Whether a type says no more than that every value is null."""
    return pa.types.is_null(column_type) or (
        _is_list(column_type) and pa.types.is_null(column_type.value_type)
    )


def agreeing(
    pattern: str, paths: Sequence[str], encoder: str
) -> Iterator[tuple[str, _Columns, pq.FileMetaData]]:
    """Each file with its footer and the columns of all files so far, which must agree.

    Footers are read side by side; files don't stay open.
    """

    def read(path: str) -> tuple[_Columns, pq.FileMetaData]:
        try:
            with open_parquet(path) as file:
                return _columns(pattern, path, file.schema_arrow, encoder), file.metadata
        except (pa.ArrowException, OSError, UnicodeError) as error:
            # A library's message may quote what it read.
            number = error.errno if isinstance(error, OSError) else None
            reason = os.strerror(number) if number else type(error).__name__
            raise ConfigError(
                "input", pattern, f"be readable Parquet only; {path} is not ({reason})"
            ) from None

    near = all(map(is_local, paths))
    together = None
    with ThreadPoolExecutor(_NEAR_READERS if near else _FAR_READERS) as readers:
        for path, (columns, footer) in zip(paths, readers.map(read, paths), strict=True):
            before, together = together, together.and_also(columns) if together else columns
            if together is None:
                raise ConfigError(
                    "input",
                    pattern,
                    f"have one schema in all files; {paths[0]} has {before}, but {path} has {columns}",
                )
            yield path, together, footer


def check_sizes(
    pattern: str, path: str, columns: _Columns, footer: pq.FileMetaData, dimension: int | None
) -> None:
    """Refuses row groups of which a worker could die, by what the footer says of them."""
    schema = footer.schema.to_arrow_schema()
    value = _leaf(schema, _value_column(columns.kind))
    label = _leaf(schema, LABEL) if columns.label else None
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        rows, values = group.num_rows, group.column(value)
        images = min(most + each * rows for most, each in MAX_IMAGE_CHUNKS)
        labels = MAX_LABEL_CHUNK + MAX_LABEL_CHUNK_ROW * rows
        if columns.kind == IMAGE_PARQUET and values.total_uncompressed_size > images:
            allowed = (
                "hold at most 128 MiB and 16 MiB a row, and at most 1 GiB and 1 MiB a row, of images in a row"
                " group"
            )
        elif dimension and values.num_values > rows * dimension + MAX_EXTRA_VALUES:
            allowed = f"hold at most {dimension} values a row and {MAX_EXTRA_VALUES:,} in a row group"
        elif label is not None and group.column(label).total_uncompressed_size > labels:
            allowed = "hold at most 128 MiB and 16 bytes a row of labels in a row group"
        else:
            continue
        raise ConfigError("input", pattern, f"{allowed}; {path} holds more")


def check_rows(pattern: str, rows: int) -> None:
    if rows > lattice.MAX_ROWS:
        raise ConfigError("input", pattern, f"have at most {lattice.MAX_ROWS:,} rows")


def _leaf(schema: pa.Schema, name: str) -> int:
    """The first leaf of a column, by its place: names may have dots, as paths of leaves have."""
    return sum(_leaves(kind) for kind in schema.types[: schema.get_field_index(name)])


def _leaves(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _leaves(kind.storage_type)
    return sum(_leaves(kind.field(i).type) for i in range(kind.num_fields)) if kind.num_fields else 1


def _columns(pattern: str, path: str, schema: pa.Schema, encoder: str) -> _Columns:
    label = None
    for name in (LABEL, IMAGE, EMBEDDING):
        if schema.names.count(name) > 1:
            raise ConfigError("input", pattern, f"have one column {name!r}; {path} has several")
    if LABEL in schema.names:
        label = _label_kind(pattern, path, schema.field(LABEL).type)
    stored = (schema.metadata or {}).get(ENCODER_KEY)
    stored_encoder = stored.decode(errors="replace") if stored else None
    has_image, has_embedding = IMAGE in schema.names, EMBEDDING in schema.names
    if has_embedding and not (has_image and encoder not in ("precomputed", stored_encoder)):
        column_type = schema.field(EMBEDDING).type
        if not _is_embedding(column_type):
            raise ConfigError(
                "input",
                pattern,
                f"hold a list or fixed-size list of float16, float32 or float64 in column 'embedding';"
                f" {path} holds {column_type}",
            )
        return _Columns(EMBEDDING_PARQUET, label, column_type, stored_encoder)
    if has_image:
        column_type = schema.field(IMAGE).type
        kinds = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_null
        if not any(is_kind(column_type) for is_kind in kinds):
            raise ConfigError(
                "input",
                pattern,
                f"hold encoded images as binary in column 'image'; {path} holds {column_type}",
            )
        return _Columns(IMAGE_PARQUET, label, column_type, None)
    raise ConfigError(
        "input",
        pattern,
        f"have a column 'image' (binary) or 'embedding' (list of float);"
        f" {path} has {', '.join(schema.names) or 'no columns'}",
    )


def _label_kind(pattern: str, path: str, label_type: pa.DataType) -> str:
    plain = label_type.value_type if pa.types.is_dictionary(label_type) else label_type
    if pa.types.is_string(plain) or pa.types.is_large_string(plain):
        return "string"
    if pa.types.is_integer(plain):
        return "integer"
    if pa.types.is_null(plain):
        return _ANY
    raise ConfigError(
        "input", pattern, f"hold strings or integers in column 'label'; {path} holds {label_type}"
    )


def _is_list(column_type: pa.DataType) -> bool:
    return (
        pa.types.is_list(column_type)
        or pa.types.is_large_list(column_type)
        or pa.types.is_fixed_size_list(column_type)
    )


def _is_embedding(column_type: pa.DataType) -> bool:
    return _is_unknown(column_type) or (
        _is_list(column_type) and pa.types.is_floating(column_type.value_type)
    )


def embedding_length(
    pattern: str, column_type: pa.DataType, footers: Sequence[pq.FileMetaData], dimension: int | None
) -> int:
    if pa.types.is_fixed_size_list(column_type):
        if dimension not in (None, column_type.list_size):
            raise ConfigError(
                "dimension", dimension, f"be {column_type.list_size}, the length of the embeddings"
            )
        return column_type.list_size
    if dimension is not None:
        return dimension
    lengths = {length for footer in footers for length in _list_lengths(footer)}
    if len(lengths) == 1 and (length := lengths.pop()) == int(length) and length >= 1:
        return int(length)
    raise ConfigError(
        "input",
        pattern,
        "hold embeddings of one length, which its footers do not show; state the dimension,"
        " and rows of another length are set aside",
    )


def _list_lengths(footer: pq.FileMetaData) -> Iterator[float]:
    """Mean length of the lists of each row group, from the footer alone.

    The mean is all that it has: lists of 3 and 5 values look like two of 4.
    Row groups that are known to have no value at all show nothing.
    """
    schema = footer.schema.to_arrow_schema()
    if _is_unknown(schema.field(EMBEDDING).type):
        return
    leaf = _leaf(schema, EMBEDDING)
    for index in range(footer.num_row_groups):
        rows, column = footer.row_group(index).num_rows, footer.row_group(index).column(leaf)
        statistics = column.statistics
        if rows and not (statistics and statistics.null_count == column.num_values):
            yield column.num_values / rows
