"""Embeddings and labels in numpy's own files: `.npz`, or `embeddings.npy` beside `labels.npy`.

Headers are read by numpy, data by ranges; nothing is unpickled.  An array can be
read from any row on, so it is cut into groups of rows as Parquet is; but one that
is compressed only from its beginning, so all of it is one group.
"""

import contextlib
import dataclasses
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.data.schema import EMBEDDING, LABEL, UNIT
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy import lattice
from transforms.files import finding
from transforms.files.columns import EMBEDDING_WORDS, LABEL_WORDS, NO_LABEL, Columns, likely
from transforms.files.finding import InputFile
from transforms.files.opening import open_ranges
from transforms.files.private import is_local
from transforms.files.row_groups import RowGroups

EMBEDDING_ARRAYS = "embedding_arrays"

GROUP_ROWS = 4096

MAX_LABEL_ITEM = 2**27
"""Bytes that numpy gives to a label: to each as many as to the longest."""

# Of a label array, held at once.
_LABEL_BYTES = 2**26

# Headers are small and may be far away: they are read side by side.
_NEAR_READERS, _FAR_READERS = 4, 64

_NPY, _NPZ = ".npy", ".npz"

# Before the names in a zip file's header of a member, whose lengths are its last four bytes.
_ZIP_HEADER = 30


@dataclasses.dataclass(frozen=True)
class _Array:
    """An array as its header says.

    Attributes:
      shown: names it in a sentence.
      path: of the file.
      member: of the zip file; "" for a file of its own.
      start: where the data begins, in the file; or in the member's stream, if that is compressed.
    """

    shown: str
    path: str
    member: str
    compressed: bool
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Embeddings (n, d), and their labels (n,) and ids of privacy units (n,), if there are any."""

    embeddings: _Array
    labels: _Array | None
    units: _Array | None = None

    @property
    def dimension(self) -> int:
        return self.embeddings.shape[1]

    @property
    def label_kind(self) -> str | None:
        if self.labels is None:
            return None
        return "integer" if self.labels.dtype.kind in "iu" else "string"

    @property
    def row_groups(self) -> tuple[int, ...]:
        """Rows of each group."""
        rows = self.embeddings.shape[0]
        if any(each.compressed for each in (self.embeddings, self.labels, self.units) if each is not None):
            return (rows,)
        return tuple(min(GROUP_ROWS, rows - start) for start in range(0, rows, GROUP_ROWS))


def names(chosen: str, default: str) -> tuple[str, ...]:
    """Of an array: its default name is right in the plural, too."""
    return (chosen,) if chosen != default else (default, f"{default}s")


def embedding_files(files: Iterable[InputFile], columns: Columns) -> list[InputFile]:
    """Those of some files that hold embeddings: every `.npz`, and each `.npy` that is named for them."""
    stems = names(columns.embedding, EMBEDDING)
    return [
        file
        for file in files
        if file.path.lower().endswith(_NPZ)
        or (file.path.lower().endswith(_NPY) and os.path.basename(file.path)[: -len(_NPY)] in stems)
    ]


def labels_beside(path: str, columns: Columns) -> str | None:
    """The `.npy` of labels in the folder of one of embeddings, if there is one.

    Raises:
      ConfigError: there are two.
    """
    if path.lower().endswith(_NPZ) or not columns.label:
        return None
    folder = path.rpartition("/")[0]
    paths = [f"{folder}/{stem}{path[-len(_NPY) :]}" for stem in names(columns.label, LABEL)]
    found = [each for each in paths if FileSystems.exists(each)]
    if len(found) > 1:
        raise ConfigError(
            "input", path, f"have one file of labels beside it; there are {' and '.join(found)}"
        )
    return found[0] if found else None


def units_beside(path: str, columns: Columns) -> str | None:
    """The `.npy` of ids beside a `.npy` of embeddings, whether it is there or not; None if none is meant."""
    if path.lower().endswith(_NPZ) or not columns.unit:
        return None
    return f"{path.rpartition('/')[0]}/{columns.unit}{path[-len(_NPY) :]}"


def pin_of(path: str, columns: Columns) -> str:
    """Pins the embeddings, their labels and ids; empty where they are gone."""
    beside = labels_beside(path, columns), units_beside(path, columns)
    pins = [finding.pin_of(each) for each in (path, *beside) if each]
    return " ".join(pins) if all(pins) else ""


def look(pattern: str, path: str, columns: Columns) -> Arrays:
    """What a file of embeddings is, by the headers in it and in its labels' file.

    Raises:
      ConfigError: it can't be read, or holds something else.
    """
    try:
        beside = labels_beside(path, columns)
        if not path.lower().endswith(_NPZ):
            if columns.label and not beside:
                folder, ending = path.rpartition("/")[0], path[-len(_NPY) :]
                others = [
                    name for name in sorted(LABEL_WORDS) if FileSystems.exists(f"{folder}/{name}{ending}")
                ]
                _refuse_other_labels(folder, others, columns)
            ids = units_beside(path, columns)
            if ids and not FileSystems.exists(ids):
                raise ConfigError(
                    "privacy_unit_column", columns.unit, f"be an array of the input; there is no {ids}"
                )
            found = Arrays(
                _header_of(path),
                _header_of(beside) if beside else None,
                _header_of(ids) if ids else None,
            )
        else:
            found = _look_into_zip(pattern, path, columns)
    except ConfigError:
        raise
    except Exception as error:
        # numpy reads a header as a literal of Python's, and raises whatever that does.
        number = error.errno if isinstance(error, OSError) else None
        reason = os.strerror(number) if number else type(error).__name__
    else:
        _check(pattern, found, columns)
        return found
    raise ConfigError("input", pattern, f"be readable arrays only; {path} is not ({reason})")


def _look_into_zip(pattern: str, path: str, columns: Columns) -> Arrays:
    with open_ranges(path) as file, zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(_NPY): info for info in archive.infolist()}

        def one(chosen: str, default: str) -> _Array | None:
            found = [name for name in names(chosen, default) if name in members]
            if len(found) > 1:
                raise ConfigError("input", pattern, f"have one array of {found}; {path} has several")
            return _header_in_zip(path, file, archive, members[found[0]]) if found else None

        embeddings = one(columns.embedding, EMBEDDING)
        labels = one(columns.label, LABEL) if columns.label else None
        units = one(columns.unit, "") if columns.unit else None
    if embeddings is None:
        raise _no_embeddings(pattern, path, list(members), columns)
    if labels is None and columns.label:
        _refuse_other_labels(path, list(members), columns)
    if units is None and columns.unit:
        held = ", ".join(members) or "none"
        raise ConfigError("privacy_unit_column", columns.unit, f"be an array of the input; {path} has {held}")
    return Arrays(embeddings, labels, units)


def _no_embeddings(pattern: str, path: str, held: Sequence[str], columns: Columns) -> ConfigError:
    if columns.embedding == EMBEDDING and not likely(held, EMBEDDING_WORDS):
        return ConfigError(
            "input", pattern, f"have an array 'embeddings'; {path} has {', '.join(held) or 'none'}"
        )
    found = likely(held, EMBEDDING_WORDS)
    which = f"'{found[0]}', which may be meant" if found else ", ".join(held)
    return ConfigError("embedding_column", columns.embedding, f"be an array of the input; {path} has {which}")


def _refuse_other_labels(path: str, held: Sequence[str], columns: Columns) -> None:
    """As with a column of Parquet: without labels all rows would be one class."""
    if columns.label != LABEL:
        raise ConfigError(
            "label_column", columns.label, f"be an array of the input; {path} has {', '.join(held) or 'none'}"
        )
    if found := likely(held, LABEL_WORDS):
        raise ConfigError("label_column", columns.label, NO_LABEL.format(path=path, name=found[0]))


def _header_of(path: str) -> _Array:
    with open_ranges(path) as file:
        header = _header(file)
        found = _Array(path, path, "", False, file.tell(), *header)
        return _whole(found, file.size())


def _header_in_zip(path: str, file: pa.NativeFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Array:
    compressed = info.compress_type != zipfile.ZIP_STORED
    with archive.open(info) as member:
        header, start = _header(member), member.tell()
    if not compressed:
        head = file.read_at(_ZIP_HEADER, info.header_offset)
        lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        begin = info.header_offset + _ZIP_HEADER + lengths
        found = _Array(f"{path}: {info.filename}", path, info.filename, False, begin + start, *header)
        return _whole(found, begin + info.file_size)
    found = _Array(f"{path}: {info.filename}", path, info.filename, True, start, *header)
    return _whole(found, info.file_size)


def _header(file: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], bool]:
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        # The third is for names of fields, which no array here has.
        raise ValueError("version")
    shape, fortran, dtype = readers[version](file)
    return dtype, shape, fortran


def _whole(array: _Array, end: int) -> _Array:
    size = array.dtype.itemsize * int(np.prod(array.shape, dtype=object))
    # Objects are pickled, and refused for that.
    if not array.dtype.hasobject and array.start + size > end:
        raise ValueError("cut short")
    return array


def _check(pattern: str, found: Arrays, columns: Columns) -> None:
    def refuse(array: _Array, allowed: str) -> ConfigError:
        # No shape and no width of texts: how many rows there are is a fact about them, and so is the longest.
        name = array.dtype.type.__name__ if array.dtype.kind in "US" else array.dtype
        kind = f"{name} of {len(array.shape)} dimension{'s' * (len(array.shape) != 1)}"
        return ConfigError("input", pattern, f"{allowed}; {array.shown} holds {kind}")

    values, labels = found.embeddings, found.labels
    if values.dtype.kind != "f" or values.dtype.itemsize > 8 or len(values.shape) != 2:
        raise refuse(values, "hold float16, float32 or float64 of shape (rows, dimension) as its embeddings")
    lattice.check_dimension(found.dimension)
    if values.fortran and values.compressed:
        raise refuse(values, "be saved in the order of rows, or uncompressed")
    for what, array in (("labels", labels), ("ids of privacy units", found.units)):
        if array is None:
            continue
        if array.dtype.kind not in "iuUS" or array.shape[1:] not in ((), (1,)):
            raise refuse(array, f"hold text or integers of shape (rows,) as its {what}")
        if array.dtype.itemsize > MAX_LABEL_ITEM:
            raise refuse(array, f"hold {what} of at most {MAX_LABEL_ITEM:,} bytes")
        if array.shape[0] != values.shape[0]:
            raise ConfigError(
                "input",
                pattern,
                f"have as many {what} as embeddings; {array.shown} and {values.shown} differ",
            )


def agreeing(pattern: str, paths: Sequence[str], columns: Columns) -> Iterator[Arrays]:
    """What each file is; all have labels of one kind and embeddings of one length.

    Raises:
      ConfigError: they have not, or see `look`.
    """
    first = None
    with ThreadPoolExecutor(_NEAR_READERS if all(map(is_local, paths)) else _FAR_READERS) as readers:
        for found in readers.map(lambda path: look(pattern, path, columns), paths):
            first = first or found
            if (first.label_kind, first.dimension) != (found.label_kind, found.dimension):
                said = [
                    f"{each.embeddings.shown} has {each.label_kind or 'no'} labels and length"
                    f" {each.dimension}"
                    for each in (first, found)
                ]
                raise ConfigError(
                    "input",
                    pattern,
                    f"have one kind of labels and one length in all files; {', but '.join(said)}",
                )
            yield found


def read_footers(pattern: str, pins: Mapping[str, str], dimension: int, columns: Columns) -> list[RowGroups]:
    """As `parquet.read_footers`: row counts of all files' groups, by path; a file of two names is once."""
    named = {pin if is_local(path) else path: path for path, pin in reversed(list(pins.items()))}
    paths = sorted(named.values())
    groups = []
    for path, found in zip(paths, agreeing(pattern, paths, columns), strict=True):
        if found.dimension != dimension:
            raise ConfigError("dimension", dimension, f"be {found.dimension}, the length of the embeddings")
        groups.append(RowGroups(path, pins[path], found.row_groups))
    return groups


def embeddings(
    path: str, row_groups: Sequence[int], rows: int, columns: Columns, labelled: bool
) -> Iterator[pa.RecordBatch]:
    """As `parquet.embeddings`."""
    found = look(path, path, columns if labelled else dataclasses.replace(columns, label=""))
    assert not labelled or found.labels is not None
    others = {
        name: array for name, array in ((LABEL, found.labels), (UNIT, found.units)) if array is not None
    }
    for array in others.values():
        rows = max(1, min(rows, _LABEL_BYTES // max(array.row_bytes, 1)))
    with contextlib.ExitStack() as stack:
        values = stack.enter_context(_opened(found.embeddings))
        texts = {name: stack.enter_context(_opened(array)) for name, array in others.items()}
        for start, count in _slices(found.row_groups, row_groups, rows):
            block = values.rows(start, count)
            # Arrow has the machine's own order of bytes only.
            flat = np.ascontiguousarray(block, block.dtype.newbyteorder("=")).reshape(-1)
            columns_read: dict[str, pa.Array] = {
                EMBEDDING: pa.FixedSizeListArray.from_arrays(pa.array(flat), found.dimension)
            }
            for name, reader in texts.items():
                columns_read[name] = _to_arrow(reader.rows(start, count).reshape(-1))
            yield pa.record_batch(columns_read)


def labels(path: str, rows: int, columns: Columns) -> Iterator[pa.Array]:
    """The labels of a file, at most so many rows at a time."""
    found = look(path, path, columns)
    if found.labels is None:
        return
    rows = max(1, min(rows, _LABEL_BYTES // max(found.labels.row_bytes, 1)))
    with _opened(found.labels) as texts:
        for start in range(0, found.labels.shape[0], rows):
            block = texts.rows(start, min(rows, found.labels.shape[0] - start))
            yield _to_arrow(block.reshape(-1))


def _slices(groups: Sequence[int], chosen: Sequence[int], rows: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of what is read at once, of some groups."""
    starts = np.concatenate([[0], np.cumsum(groups)])
    for group in chosen:
        for start in range(int(starts[group]), int(starts[group + 1]), rows):
            yield start, min(rows, int(starts[group + 1]) - start)


class _Reader:
    """Rows of an open array, from `start` on."""

    def __init__(self, array: _Array, file: pa.NativeFile, stream: IO[bytes] | None):
        self._array, self._file, self._stream = array, file, stream
        self._next = 0

    def rows(self, start: int, count: int) -> np.ndarray:
        """Rows as an array (count, ...), of the file's own dtype.

        Raises:
          RuntimeError: the data ends before.
        """
        array = self._array
        shape = (count, *array.shape[1:])
        if self._stream is not None:
            assert start == self._next, "a compressed array is read from its beginning"
            self._next += count
            return self._as(self._stream.read(count * array.row_bytes), shape)
        if not array.fortran or len(array.shape) == 1:
            offset = array.start + start * array.row_bytes
            return self._as(self._file.read_at(count * array.row_bytes, offset), shape)
        # Columns lie one after the other: of each the same rows are wanted.
        width, size = array.shape[1], array.dtype.itemsize
        result = np.empty(shape, array.dtype)
        for column in range(width):
            offset = array.start + (column * array.shape[0] + start) * size
            result[:, column] = self._as(self._file.read_at(count * size, offset), (count,))
        return result

    def _as(self, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        if len(data) != self._array.dtype.itemsize * int(np.prod(shape)):
            raise RuntimeError("rows are missing")
        return np.frombuffer(data, self._array.dtype).reshape(shape)


@contextlib.contextmanager
def _opened(array: _Array) -> Iterator[_Reader]:
    with open_ranges(array.path) as file:
        if not array.compressed:
            yield _Reader(array, file, None)
            return
        with zipfile.ZipFile(file) as archive, archive.open(array.member) as stream:
            stream.read(array.start)
            yield _Reader(array, file, stream)


def _to_arrow(labels: np.ndarray) -> pa.Array:
    """Labels as integers or text; what is no text is a null."""
    labels = np.ascontiguousarray(labels, labels.dtype.newbyteorder("="))
    if labels.dtype.kind in "iu":
        return pa.array(labels)
    if labels.dtype.itemsize == 0:
        return pa.array([""] * len(labels), pa.string())
    if labels.dtype.kind == "S":
        return pa.array(labels.tolist(), pa.binary())
    try:
        return pa.array(labels.tolist(), pa.string())
    except (UnicodeError, ValueError, SystemError):
        return pa.array([_text(labels[row : row + 1]) for row in range(len(labels))], pa.string())


def _text(label: np.ndarray) -> str | None:
    try:
        text = label.tolist()[0]
        text.encode()
    except (UnicodeError, ValueError, SystemError):
        return None
    return text
