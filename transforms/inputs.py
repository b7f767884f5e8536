"""Finding and describing inputs, through Beam's file systems (any scheme).

`describe_input` is what the driver calls before anything runs: it reads
listings, Parquet schemas and some footers, never a row.  `read_footers` and
`list_images` are called inside workers.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.errors import ConfigError
from transforms.private_files import is_local

IMAGE_FOLDER = "image_folder"
IMAGE_PARQUET = "image_parquet"
EMBEDDING_PARQUET = "embedding_parquet"

LABEL, IMAGE, EMBEDDING, SOURCE = "label", "image", "embedding", "source"

# Key of the Parquet schema metadata that names the encoder of the embeddings.
ENCODER_KEY = b"dpgmm.encoder"

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

# Footers are small and may be far away: they are read side by side.
_NEAR_READERS, _FAR_READERS = 4, 64

_NEAR_BUFFER, _FAR_BUFFER = 2**20, 2**24

# The driver looks at so many files; a worker looks at all of them.
DRIVER_FOOTERS = 256

_WANTED = "be a folder of LABEL/*.png|jpg|jpeg images, or Parquet by file, folder or glob"


@dataclasses.dataclass(frozen=True)
class InputDescription:
    """What an input was found to be.

    Attributes:
      kind: IMAGE_FOLDER, IMAGE_PARQUET or EMBEDDING_PARQUET.
      pattern: the input as workers may use it (an absolute path, where local).
      dimension: length of an embedding; None for images.
      labelled: whether there are labels.  An unlabelled data set is one class.
      encoder: the encoder named inside the files, where they name one.
      rows: how many there are, bad ones included, where the driver knows.  Never shown.
    """

    kind: str
    pattern: str
    dimension: int | None
    labelled: bool
    encoder: str | None = None
    rows: int | None = None


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A listed file: path, size in bytes, modification time (0 where there is none)."""

    path: str
    size: int
    modified: float

    @property
    def pin(self) -> str:
        """What tells the file as it is now from the file after a change, as far as its system says."""
        if not is_local(self.path):
            return f"{self.size} {self.modified}"
        found = os.stat(self.path)
        return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def pin_of(path: str) -> str:
    """The pin of a file as it is now; empty where it is gone."""
    if is_local(path):
        return InputFile(path, 0, 0.0).pin if os.path.exists(path) else ""
    (result,) = FileSystems.match([path])
    pins = [
        InputFile(found.path, found.size_in_bytes, found.last_updated_in_seconds or 0.0).pin
        for found in result.metadata_list
    ]
    return pins[0] if pins else ""


@dataclasses.dataclass(frozen=True)
class ImageFile(InputFile):
    """An image in a folder that is named by its label."""

    label: str


@dataclasses.dataclass(frozen=True)
class RowGroups:
    """A Parquet file, what pins it, and the number of rows of each of its row groups."""

    path: str
    pin: str
    rows: tuple[int, ...]


def describe_input(pattern: str, encoder: str, dimension: int | None = None) -> InputDescription:
    """Finds out what `--input` is.

    Args:
      pattern: a folder of images, or a Parquet file, folder or glob.
      encoder: the `--encoder` spec.
      dimension: `--dimension`, needed only for embeddings in plain lists whose
        length the footers can't tell.

    Raises:
      ConfigError: see the sentences below.
    """
    if not pattern:
        raise ConfigError("--input", pattern, _WANTED)
    pattern = absolute(pattern)
    parquet = list_parquet(pattern)
    images = _has_images(pattern)
    if parquet and images:
        raise ConfigError("--input", pattern, "hold either Parquet files or LABEL/*.png|jpg|jpeg, not both")
    if images:
        _refuse_precomputed(pattern, encoder)
        _refuse_dimension(dimension)
        return InputDescription(IMAGE_FOLDER, pattern, None, labelled=True)
    if not parquet:
        raise ConfigError("--input", pattern, f"match something: {_WANTED}")
    return _describe_parquet(pattern, [file.path for file in parquet], encoder, dimension)


def list_parquet(pattern: str) -> list[InputFile]:
    """Parquet files of a file, folder or glob, sorted; none if nothing matches.

    A folder means the *.parquet directly in it.  Names that start with "." or
    "_" are left out, as other readers of Parquet folders do.

    Raises:
      ConfigError: no file system for the pattern's scheme, or it can't be listed.
    """
    found = _match(pattern, literal(pattern.rstrip("/")) + "/*.parquet")
    if not found and not _is_folder(pattern):
        found = _match(pattern, literal(pattern))
    parquet = (
        file
        for file in found
        if os.path.basename(file.path)[:1] not in (".", "_", "") and not os.path.isdir(file.path)
    )
    return sorted(parquet, key=lambda file: file.path)


def list_images(folder: str) -> list[ImageFile]:
    """The images LABEL/*.png|jpg|jpeg of a folder, sorted by path; hidden names are left out."""
    images = []
    for file in _match(folder, literal(folder.rstrip("/")) + "/*/*"):
        head, name = os.path.split(file.path)
        label = os.path.basename(head)
        if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".") and not label.startswith("."):
            images.append(ImageFile(file.path, file.size, file.modified, label))
    return sorted(images, key=lambda image: image.path)


def read_footers(pattern: str, pins: Mapping[str, str], encoder: str) -> list[RowGroups]:
    """Row counts of all row groups of Parquet files, sorted by path; a file of two names is there once.

    Args:
      pattern: the input, as the sentence of an error names it.
      pins: of the files, by path.
      encoder: the `--encoder` spec.

    Raises:
      ConfigError: the files' schemas do not agree.
    """
    named = {pin if is_local(path) else path: path for path, pin in reversed(pins.items())}
    paths = sorted(named.values())
    return [
        RowGroups(path, pins[path], tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups)))
        for path, _, footer in _agreeing(pattern, _footers(paths), encoder)
    ]


def open_parquet(path: str) -> pq.ParquetFile:
    """Opens a Parquet file on any file system; reads its footer only."""
    if is_local(path):
        return pq.ParquetFile(path)
    return pq.ParquetFile(pa.PythonFile(_open(path), mode="r"))


def open_rows(path: str) -> pq.ParquetFile:
    """Opens a Parquet file for reading rows: fixed-size lists come as plain lists.

    pyarrow fails on a null in a fixed-size list column, and a bad row must not
    fail a job.  It knows the list's size from the Arrow schema in the footer
    only, so a footer in which that schema goes by another name reads as lists.
    """
    file = open_ranges(path)
    size = file.size()
    length = int.from_bytes(file.read_at(4, size - 8), "little")
    footer = file.read_at(length, size - 8 - length).replace(b"ARROW:schema", b"arrow:schema")
    tail = length.to_bytes(4, "little") + b"PAR1"
    metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + footer + tail))
    # By default a reader holds a whole row group, however large.
    buffer = _NEAR_BUFFER if is_local(path) else _FAR_BUFFER
    return pq.ParquetFile(file, metadata=metadata, buffer_size=buffer, pre_buffer=False)


def open_ranges(path: str) -> pa.NativeFile:
    """Opens any file for `read_at` and `size`.

    Google's and Amazon's stores are read by Arrow's own file systems: Beam's
    readers fetch 16 MiB for whatever is asked.
    """
    if is_local(path):
        return pa.OSFile(path)
    if path.startswith(("gs://", "s3://")):
        import pyarrow.fs

        system, name = pyarrow.fs.FileSystem.from_uri(path)
        return system.open_input_file(name)
    return pa.PythonFile(_open(path), mode="r")


def _open(path: str):
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def read_bytes(path: str) -> bytes:
    """The bytes of a file on any file system."""
    if is_local(path):
        with open(path, "rb") as file:
            return file.read()
    with _open(path) as file:
        return file.read()


def absolute(pattern: str) -> str:
    return os.path.abspath(pattern) if pattern and is_local(pattern) else pattern


def literal(path: str) -> str:
    """A pattern for a path that exists, which may itself hold [, * or ?; patterns stay as they are."""
    if not any(character in path for character in "[*?") or not FileSystems.exists(path):
        return path
    return "".join(f"[{character}]" if character in "[*?" else character for character in path)


def _is_folder(path: str) -> bool:
    """Whether anything lies below a path; some file systems call folders files."""
    if is_local(path):
        return os.path.isdir(path)
    return bool(_match(path, literal(path.rstrip("/")) + "/**", limit=1))


def _match(shown: str, pattern: str, limit: int | None = None) -> list[InputFile]:
    try:
        (result,) = FileSystems.match([pattern], limits=[limit])
    except (ValueError, ImportError):
        raise ConfigError(
            "--input",
            shown,
            "lie on a file system that Beam can open (gs://, s3:// and others need an extra)",
        ) from None
    except BeamIOError as error:
        reasons = "; ".join(sorted({str(reason) for reason in (error.exception_details or {}).values()}))
        raise ConfigError("--input", shown, f"be listable ({reasons})") from None
    return [
        InputFile(found.path, found.size_in_bytes, found.last_updated_in_seconds or 0.0)
        for found in result.metadata_list
    ]


def _has_images(pattern: str) -> bool:
    folder = literal(pattern.rstrip("/"))
    cases = ("".join(f"[{c}{c.upper()}]" for c in suffix[1:]) for suffix in IMAGE_SUFFIXES)
    return any(_match(pattern, f"{folder}/*/*.{case}", limit=1) for case in cases)


def _refuse_precomputed(pattern: str, encoder: str) -> None:
    if encoder == "precomputed":
        raise ConfigError("--encoder", encoder, f"name a model, because --input={pattern} holds images")


def _refuse_dimension(dimension: int | None) -> None:
    if dimension is not None:
        raise ConfigError("--dimension", dimension, "be left out for images: the encoder sets it")


def _footers(paths: Sequence[str]) -> Iterator[tuple[str, pa.Schema, pq.FileMetaData]]:
    """Schema and footer of each file, read side by side; files don't stay open."""

    def read(path):
        with open_parquet(path) as file:
            return path, file.schema_arrow, file.metadata

    near = all(map(is_local, paths))
    with ThreadPoolExecutor(_NEAR_READERS if near else _FAR_READERS) as readers:
        yield from readers.map(read, paths)


@dataclasses.dataclass(frozen=True)
class _Columns:
    """What the files of one input must agree on."""

    kind: str
    label: str | None
    type: pa.DataType
    encoder: str | None

    def __str__(self) -> str:
        label = f"{self.label} labels" if self.label else "no labels"
        return f"{label}, column {_value_column(self.kind)!r} of {self.type}, encoder {self.encoder}"


def _value_column(kind: str) -> str:
    return IMAGE if kind == IMAGE_PARQUET else EMBEDDING


def _describe_parquet(
    pattern: str, paths: Sequence[str], encoder: str, dimension: int | None
) -> InputDescription:
    footers = []
    for _, columns, footer in _agreeing(pattern, _footers(paths[:DRIVER_FOOTERS]), encoder):
        first = columns
        footers.append(footer)
    rows = sum(footer.num_rows for footer in footers) if len(footers) == len(paths) else None
    if first.kind == IMAGE_PARQUET:
        _refuse_precomputed(pattern, encoder)
        _refuse_dimension(dimension)
        return InputDescription(IMAGE_PARQUET, pattern, None, first.label is not None)
    if encoder not in ("precomputed", first.encoder):
        stored = f" or {first.encoder}, which the files name" if first.encoder else ""
        raise ConfigError(
            "--encoder", encoder, f"be precomputed{stored}, because --input={pattern} holds embeddings"
        )
    length = _embedding_length(pattern, first.type, footers, dimension)
    return InputDescription(EMBEDDING_PARQUET, pattern, length, first.label is not None, first.encoder, rows)


def _agreeing(
    pattern: str, footers: Iterable[tuple[str, pa.Schema, pq.FileMetaData]], encoder: str
) -> Iterator[tuple[str, _Columns, pq.FileMetaData]]:
    """The files with their columns, which must be the same in all of them."""
    first = None
    try:
        for path, schema, footer in footers:
            columns = _columns(pattern, path, schema, encoder)
            first = first or (path, columns)
            if columns != first[1]:
                raise ConfigError(
                    "--input",
                    pattern,
                    f"have one schema in all files; {first[0]} has {first[1]}, but {path} has {columns}",
                )
            yield path, columns, footer
    except (pa.ArrowException, OSError) as error:
        raise ConfigError("--input", pattern, f"be readable Parquet only ({error})") from None


def _columns(pattern: str, path: str, schema: pa.Schema, encoder: str) -> _Columns:
    label = None
    if LABEL in schema.names:
        label = _label_kind(pattern, path, schema.field(LABEL).type)
    stored = (schema.metadata or {}).get(ENCODER_KEY)
    stored_encoder = stored.decode(errors="replace") if stored else None
    has_image, has_embedding = IMAGE in schema.names, EMBEDDING in schema.names
    if has_embedding and not (has_image and encoder not in ("precomputed", stored_encoder)):
        column_type = schema.field(EMBEDDING).type
        if not _is_embedding(column_type):
            raise ConfigError(
                "--input",
                pattern,
                f"hold a list or fixed-size list of float16, float32 or float64 in column 'embedding';"
                f" {path} holds {column_type}",
            )
        return _Columns(EMBEDDING_PARQUET, label, column_type, stored_encoder)
    if has_image:
        column_type = schema.field(IMAGE).type
        if not (pa.types.is_binary(column_type) or pa.types.is_large_binary(column_type)):
            raise ConfigError(
                "--input",
                pattern,
                f"hold encoded images as binary in column 'image'; {path} holds {column_type}",
            )
        return _Columns(IMAGE_PARQUET, label, column_type, None)
    raise ConfigError(
        "--input",
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
    raise ConfigError(
        "--input", pattern, f"hold strings or integers in column 'label'; {path} holds {label_type}"
    )


def _is_embedding(column_type: pa.DataType) -> bool:
    is_list = (
        pa.types.is_list(column_type)
        or pa.types.is_large_list(column_type)
        or pa.types.is_fixed_size_list(column_type)
    )
    return is_list and pa.types.is_floating(column_type.value_type)


def _embedding_length(
    pattern: str, column_type: pa.DataType, footers: Sequence[pq.FileMetaData], dimension: int | None
) -> int:
    if pa.types.is_fixed_size_list(column_type):
        if dimension not in (None, column_type.list_size):
            raise ConfigError(
                "--dimension", dimension, f"be {column_type.list_size}, the length of --input's embeddings"
            )
        return column_type.list_size
    if dimension is not None:
        return dimension
    lengths = {length for footer in footers for length in _list_lengths(footer)}
    if len(lengths) == 1 and (length := lengths.pop()) == int(length) and length >= 1:
        return int(length)
    raise ConfigError(
        "--input",
        pattern,
        "hold embeddings of one length, which its footers do not show; give --dimension D,"
        " and rows of another length are set aside",
    )


def _list_lengths(footer: pq.FileMetaData) -> Iterable[float]:
    """Mean length of the lists of each row group, from the footer alone."""
    leaves = [i for i in range(footer.num_columns) if footer.schema.column(i).path.split(".")[0] == EMBEDDING]
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        if group.num_rows:
            yield group.column(leaves[0]).num_values / group.num_rows
