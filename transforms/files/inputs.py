"""Finding and describing inputs, on the local disk or through Beam's file systems (any other scheme).

`describe_input` is what the driver calls before anything runs: it reads
listings, Parquet schemas and some footers, never a row.  `read_footers` and
`list_images` are called inside workers.

Local folders are listed here and not by Beam, whose local file system walks
everything below them and leaves out in silence what it may not read.
"""

import contextlib
import dataclasses
import errno
import fnmatch
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.data.schema import EMBEDDING, IMAGE, LABEL
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy import lattice
from transforms.files.private import is_local

IMAGE_FOLDER = "image_folder"
IMAGE_PARQUET = "image_parquet"
EMBEDDING_PARQUET = "embedding_parquet"

# Key of the Parquet schema metadata that names the encoder of the embeddings.
ENCODER_KEY = b"dpgmm.encoder"

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

NO_FILE = -1
"""The size of what has an image's name and is no regular file: a fifo, a device, a link to nothing."""

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
    """Finds out what an input is.

    A folder in which nothing is found is a data set without rows: to refuse it
    would tell nothing from one row.

    Args:
      pattern: a folder of images, or a Parquet file, folder or glob.
      encoder: the encoder's spec.
      dimension: needed only for embeddings in plain lists whose
        length the footers can't tell.

    Raises:
      ConfigError: see the sentences below.
    """
    if not pattern:
        raise ConfigError("input", pattern, _WANTED)
    pattern = absolute(pattern)
    parquet = list_parquet(pattern)
    images = _has_images(pattern)
    if parquet and images:
        raise ConfigError("input", pattern, "hold either Parquet files or LABEL/*.png|jpg|jpeg, not both")
    if parquet:
        return _describe_parquet(pattern, [file.path for file in parquet], encoder, dimension)
    if images:
        _refuse_precomputed(pattern, encoder)
    elif not _is_folder(pattern):
        raise ConfigError("input", pattern, f"match something: {_WANTED}")
    elif encoder == "precomputed":
        if dimension is None:
            raise ConfigError(
                "input", pattern, "hold Parquet files, or be an empty data set: state its dimension then"
            )
        return InputDescription(EMBEDDING_PARQUET, pattern, dimension, labelled=True, rows=0)
    _refuse_dimension(dimension)
    return InputDescription(IMAGE_FOLDER, pattern, None, labelled=True)


def list_parquet(pattern: str) -> list[InputFile]:
    """Parquet files of a file, folder or glob, sorted; none if nothing matches.

    A folder means the *.parquet directly in it.  Names that start with "." or
    "_" are left out, as other readers of Parquet folders do.

    Raises:
      ConfigError: no file system for the pattern's scheme, or it can't be
        listed, or what matches is no regular file.
    """
    if is_local(pattern):
        with _listing(pattern):
            found = list(_local_files(pattern))
    else:
        found = _match(pattern, literal(pattern.rstrip("/")) + "/*.parquet")
        if not found and not _is_folder(pattern):
            found = _match(pattern, literal(pattern))
    parquet = (file for file in found if _is_shown(file.path))
    return sorted(parquet, key=lambda file: file.path)


def list_images(folder: str) -> list[ImageFile]:
    """The images LABEL/*.png|jpg|jpeg of a folder, sorted by path; hidden names are left out.

    Links are followed, also those of label folders.  A file that is there by
    several names (links, or two labels that are one folder) is one row, and as
    such there once, under the first of its paths: twice it would be two.

    Raises:
      ConfigError: the folder, or one of its labels', can't be listed.
    """
    if is_local(folder):
        with _listing(folder):
            return list(_local_images(folder.rstrip("/") or "/"))
    images = []
    for file in _match(folder, literal(folder.rstrip("/")) + "/*/*"):
        head, name = os.path.split(file.path)
        label = os.path.basename(head)
        if _is_image_name(name) and not label.startswith("."):
            images.append(ImageFile(file.path, file.size, file.modified, label))
    return sorted(images, key=lambda image: image.path)


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
    for path, columns, footer in _agreeing(pattern, sorted(named.values()), encoder):
        _check_sizes(pattern, path, columns, footer, dimension)
        rows = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
        groups.append(RowGroups(path, pins[path], rows))
    _check_rows(pattern, sum(sum(group.rows) for group in groups))
    return groups


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


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """While a file's rows are read: what a library says of them may quote them, so its words go no further.

    Raises:
      OSError: the system's own word, about the file.
      RuntimeError: anything else.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, os.strerror(error.errno), path) from None
        raise RuntimeError(f"{path} could not be read ({type(error).__name__})") from None


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
    if not _is_glob(path) or not FileSystems.exists(path):
        return path
    return "".join(f"[{character}]" if character in "[*?" else character for character in path)


def _is_folder(path: str) -> bool:
    """Whether anything lies below a path; some file systems call folders files."""
    if is_local(path):
        return os.path.isdir(path)
    folder = literal(path.rstrip("/"))
    return (folder != path.rstrip("/") or not _is_glob(path)) and bool(_match(path, folder + "/**", limit=1))


@contextlib.contextmanager
def _listing(shown: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError("input", shown, f"be listable ({error.filename}: {error.strerror})") from None


def _stat(path: str) -> os.stat_result | None:
    """What is at a path, links followed; None for nothing."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _leads_to_folder(entry: os.DirEntry) -> bool:
    if not entry.is_symlink():
        return entry.is_dir()
    found = _stat(entry.path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _local_files(pattern: str) -> Iterator[InputFile]:
    """The regular files of a local folder (*.parquet), a path or a glob.

    Raises:
      ConfigError: something else is there by such a name.
      OSError: a folder can't be listed.
    """
    if os.path.isdir(pattern):
        with os.scandir(pattern) as entries:
            paths = [entry.path for entry in entries if entry.name.endswith(".parquet")]
    elif os.path.lexists(pattern):
        paths = [pattern]
    elif _is_glob(pattern):
        # It may be one of folders.
        paths = _matching(pattern + "/*.parquet") or _matching(pattern)
    else:
        paths = []
    for path in filter(_is_shown, paths):
        found = _stat(path)
        if found is None or not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise ConfigError("input", pattern, f"be regular files; {path} is none")
        if stat.S_ISREG(found.st_mode):
            yield InputFile(path, found.st_size, found.st_mtime)


def _matching(pattern: str) -> list[str]:
    """Local paths that match a glob; no folders."""
    if "**" in pattern:
        return [file.path for file in _match(pattern, pattern)]
    return [path for path in _glob("/", absolute(pattern).split("/")) if not os.path.isdir(path)]


def _is_shown(path: str) -> bool:
    return os.path.basename(path)[:1] not in (".", "_", "")


def _glob(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """Paths below a folder that match, one part of a glob for each level.

    Unlike Python's own it raises what it meets: a folder that can't be listed
    is data that would be left out.
    """
    part, *rest = parts
    if _is_glob(part):
        with os.scandir(folder) as entries:
            paths = [entry.path for entry in entries if fnmatch.fnmatchcase(entry.name, part)]
    else:
        paths = [os.path.join(folder, part)]
    for path in paths:
        if not rest:
            if os.path.lexists(path):
                yield path
        elif os.path.isdir(path):
            yield from _glob(path, rest)


def _is_glob(pattern: str) -> bool:
    return any(character in pattern for character in "[*?")


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _label_folders(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and _leads_to_folder(entry):
                yield entry.path


def _image_entries(label: str) -> Iterator[os.DirEntry]:
    with os.scandir(label) as entries:
        for entry in entries:
            if _is_image_name(entry.name) and not _leads_to_folder(entry):
                yield entry


def _local_images(folder: str) -> Iterator[ImageFile]:
    entries = [entry for label in _label_folders(folder) for entry in _image_entries(label)]
    seen = set()
    for entry in sorted(entries, key=lambda entry: entry.path):
        label = os.path.basename(os.path.dirname(entry.path))
        found = _stat(entry.path)
        if found is None:
            # What is no link has just been deleted, as if it had been so before.
            if entry.is_symlink():
                yield ImageFile(entry.path, NO_FILE, 0.0, label)
            continue
        identity = found.st_dev, found.st_ino
        if identity not in seen:
            seen.add(identity)
            size = found.st_size if stat.S_ISREG(found.st_mode) else NO_FILE
            yield ImageFile(entry.path, size, found.st_mtime, label)


def _match(shown: str, pattern: str, limit: int | None = None) -> list[InputFile]:
    try:
        (result,) = FileSystems.match([pattern], limits=[limit])
    except (ValueError, ImportError):
        raise ConfigError(
            "input",
            shown,
            "lie on a file system that Beam can open (gs://, s3:// and others need an extra)",
        ) from None
    except BeamIOError as error:
        reasons = "; ".join(sorted({str(reason) for reason in (error.exception_details or {}).values()}))
        raise ConfigError("input", shown, f"be listable ({reasons})") from None
    return [
        InputFile(found.path, found.size_in_bytes, found.last_updated_in_seconds or 0.0)
        for found in result.metadata_list
    ]


def _has_images(pattern: str) -> bool:
    if is_local(pattern):
        if not os.path.isdir(pattern):
            return False
        with _listing(pattern):
            # Every label's folder is opened, so that one that can't be is named before the job runs.
            labels = [any(_image_entries(label)) for label in _label_folders(pattern)]
            return any(labels)
    if not _is_folder(pattern):
        return False
    folder = literal(pattern.rstrip("/"))
    cases = ("".join(f"[{c}{c.upper()}]" for c in suffix[1:]) for suffix in IMAGE_SUFFIXES)
    return any(_match(pattern, f"{folder}/*/*.{case}", limit=1) for case in cases)


def _refuse_precomputed(pattern: str, encoder: str) -> None:
    if encoder == "precomputed":
        raise ConfigError("encoder", encoder, f"name a model, because the input {pattern} holds images")


def _refuse_dimension(dimension: int | None) -> None:
    if dimension is not None:
        raise ConfigError("dimension", dimension, "be left out for images: the encoder sets it")


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


def _describe_parquet(
    pattern: str, paths: Sequence[str], encoder: str, dimension: int | None
) -> InputDescription:
    found = list(_agreeing(pattern, paths[:DRIVER_FOOTERS], encoder))
    columns = found[-1][1]
    rows = sum(footer.num_rows for _, _, footer in found)
    _check_rows(pattern, rows)
    labelled = columns.label is not None
    if columns.kind == IMAGE_PARQUET:
        _refuse_precomputed(pattern, encoder)
        _refuse_dimension(dimension)
        length = None
    else:
        if encoder not in ("precomputed", columns.encoder):
            stored = f" or {columns.encoder}, which the files name" if columns.encoder else ""
            raise ConfigError(
                "encoder", encoder, f"be precomputed{stored}, because the input {pattern} holds embeddings"
            )
        length = _embedding_length(pattern, columns.type, [footer for _, _, footer in found], dimension)
    for path, _, footer in found:
        _check_sizes(pattern, path, columns, footer, length)
    if columns.kind == IMAGE_PARQUET:
        return InputDescription(IMAGE_PARQUET, pattern, None, labelled)
    known = rows if len(found) == len(paths) else None
    return InputDescription(EMBEDDING_PARQUET, pattern, length, labelled, columns.encoder, known)


def _agreeing(
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


def _check_sizes(
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


def _check_rows(pattern: str, rows: int) -> None:
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


def _embedding_length(
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
