"""Parquet of images or embeddings: footers, what a row group may hold, rows.

`read_footers` is called inside workers, the rest by the driver, too; it never reads a row.
Rows come under the names of `dpgmm_beam.data.schema`, whatever columns they were in.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dpgmm_beam.data.schema import EMBEDDING, IMAGE, LABEL, PICTURE, UNIT
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy import lattice
from transforms.files import parquet_schema
from transforms.files.columns import DEFAULT_COLUMNS, Columns
from transforms.files.opening import open_file, open_ranges
from transforms.files.parquet_schema import (
    EMBEDDING_PARQUET,
    ENCODER_KEY,
    IMAGE_PARQUET,
    Agreed,
    FileColumns,
    is_text,
    is_unknown,
    locate,
    look,
)
from transforms.files.private import is_local
from transforms.files.row_groups import RowGroups

__all__ = ["EMBEDDING_PARQUET", "ENCODER_KEY", "IMAGE_PARQUET"]

# What a row group may hold, by its footer: one row may be as large as all the
# others together, but not so large that a worker dies of it.
MAX_EXTRA_VALUES = 2**25
"""Values in the embeddings of a row group, beyond the dimension's for each row."""

MAX_LABEL_CHUNK, MAX_LABEL_CHUNK_ROW = 2**27, 2**4
"""Bytes of a row group's labels, uncompressed, and as many more for each row."""

MAX_UNIT_CHUNK_ROW = 2**6
"""The same for ids of privacy units."""

MAX_IMAGE_CHUNKS = (2**27, 2**24), (2**30, 2**20)
"""Bytes of a row group's images, uncompressed, and as many more for each row; both hold."""

# Of labels, and of values that are too many, in row groups that are read as one stream.
_STREAM_BYTES = 2**26

# Of labels within structs that are read at once, were all as long as all of a row group's together.
_NESTED_LABEL_BYTES = 2**28

# Footers are small and may be far away: they are read side by side.
_NEAR_READERS, _FAR_READERS = 4, 64

_NEAR_BUFFER, _FAR_BUFFER = 2**20, 2**24

# The driver looks at so many files; a worker looks at all of them.
DRIVER_FOOTERS = 256


def read_footers(
    pattern: str,
    pins: Mapping[str, str],
    encoder: str,
    dimension: int | None = None,
    columns: Columns = DEFAULT_COLUMNS,
) -> list[RowGroups]:
    """Row counts of all row groups of Parquet files, sorted by path; a file of two names is there once.

    Args:
      pattern: the input, as the sentence of an error names it.
      pins: of the files, by path.
      encoder: the encoder's spec.
      dimension: length of an embedding; None for images.
      columns: names of the columns.

    Raises:
      ConfigError: the files' schemas do not agree, or a row group or all of
        them are beyond what is stated in this module and in `lattice.MAX_ROWS`.
    """
    # Folders that are named by ids: a file of two people is a file of each of them.
    named = {
        (pin if is_local(path) else path, parquet_schema.id_in_path(path, columns)): path
        for path, pin in reversed(list(pins.items()))
    }
    groups = []
    for footer, agreed in agreeing(pattern, sorted(named.values()), encoder, columns):
        check_sizes(pattern, footer, agreed.kind, dimension)
        groups.append(RowGroups(footer.path, pins[footer.path], footer.rows))
    check_rows(pattern, sum(sum(group.rows) for group in groups))
    return groups


def open_parquet(path: str) -> pq.ParquetFile:
    """Opens a Parquet file on any file system; reads its footer only."""
    if is_local(path):
        return pq.ParquetFile(path)
    return pq.ParquetFile(pa.PythonFile(open_file(path), mode="r"))


def open_rows(path: str, label: str = LABEL) -> pq.ParquetFile:
    """Opens a Parquet file for reading rows: fixed-size lists come as plain lists.

    pyarrow fails on a null in a fixed-size list column, and a bad row must not
    fail a job.  It knows the list's size from the Arrow schema in the footer
    only, so a footer in which that schema goes by another name reads as lists.
    Views, too, and what extension types hold, come as Parquet has them.
    Labels of text come as dictionaries: a long one that many rows share is
    there once.  Not so within structs, where Arrow can't join dictionaries.
    """
    file = open_ranges(path)
    size = file.size()
    length = int.from_bytes(file.read_at(4, size - 8), "little")
    footer = file.read_at(length, size - 8 - length).replace(b"ARROW:schema", b"arrow:schema")
    tail = length.to_bytes(4, "little") + b"PAR1"
    metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + footer + tail))
    # By default a reader holds a whole row group, however large.
    buffer = _NEAR_BUFFER if is_local(path) else _FAR_BUFFER
    found = parquet_schema.find(_schema(metadata), label) if label else []
    flat = (column for column in found if is_text(column.type) and len(column.path) == 1)
    text = [metadata.schema.column(column.leaf).path for column in flat]
    return pq.ParquetFile(file, metadata=metadata, buffer_size=buffer, pre_buffer=False, read_dictionary=text)


def _schema(footer: pq.FileMetaData) -> pa.Schema:
    return footer.schema.to_arrow_schema()


def embeddings(
    path: str, row_groups: Sequence[int], rows: int, dimension: int, columns: Columns, labelled: bool
) -> Iterator[pa.RecordBatch]:
    """Embeddings, and labels and ids of units if there are any, of some row groups, so many rows at once."""
    columns = columns if labelled else dataclasses.replace(columns, label="")
    with open_rows(path, columns.label) as file:
        where = locate(path, path, _schema(file.metadata), columns, EMBEDDING_PARQUET)
        for groups in streams(file.metadata, where, row_groups, dimension):
            yield from _batches(file, groups, rows, where, EMBEDDING, labelled, bool(columns.unit))


def images(
    file: pq.ParquetFile, row_group: int, rows: int, path: str, columns: Columns, labelled: bool
) -> Iterator[pa.RecordBatch]:
    """Encoded images, and labels and ids where there are any, of a row group of a file of `open_rows`."""
    columns = columns if labelled else dataclasses.replace(columns, label="")
    where = locate(path, path, _schema(file.metadata), columns, IMAGE_PARQUET)
    yield from _batches(file, [row_group], rows, where, IMAGE, labelled, bool(columns.unit))


def labels(path: str, kind: str, rows: int, columns: Columns) -> Iterator[pa.Array]:
    """The labels of a file, at most so many at a time: text (perhaps as dictionaries), integers or nulls."""
    with open_rows(path, columns.label) as file:
        where = locate(path, path, _schema(file.metadata), columns, kind)
        for group in range(file.metadata.num_row_groups):
            if where.label is None:
                count = file.metadata.row_group(group).num_rows
                batches = (min(rows, count - start) for start in range(0, count, rows))
                yield from (_one_label(where.partition, each) for each in batches)
            else:
                few = _at_once(file, [group], rows, where)
                for batch in file.reader.iter_batches(few, [group], [where.label.leaf]):
                    yield _labels(batch, where)


def _batches(
    file: pq.ParquetFile,
    groups: Sequence[int],
    rows: int,
    where: FileColumns,
    name: str,
    labelled: bool,
    units: bool,
) -> Iterator[pa.RecordBatch]:
    # By numbers: a dotted name that pyarrow is given may mean several columns.
    rows = _at_once(file, groups, rows, where)
    for batch in file.reader.iter_batches(rows, row_groups=list(groups), column_indices=where.leaves):
        found = {name: where.value.of(batch)}
        if where.picture:
            found[PICTURE] = where.picture.of(batch)
        if labelled:
            found[LABEL] = _labels(batch, where)
        if units:
            found[UNIT] = where.unit.of(batch) if where.unit else _one_label(where.unit_partition, len(batch))
        yield pa.record_batch(found)


def _at_once(file: pq.ParquetFile, groups: Sequence[int], rows: int, where: FileColumns) -> int:
    """How many rows to read at once: fewer where each may have a copy of the longest label."""
    if where.label is None or len(where.label.path) == 1:
        return rows
    sizes = (file.metadata.row_group(group).column(where.label.leaf) for group in groups)
    longest = max((column.total_uncompressed_size for column in sizes), default=0)
    return max(1, min(rows, _NESTED_LABEL_BYTES // max(longest, 1)))


def _labels(batch: pa.RecordBatch, where: FileColumns) -> pa.Array:
    if where.label is None:
        return _one_label(where.partition, len(batch))
    labels = where.label.of(batch)
    if where.names is None or not pa.types.is_integer(labels.type):
        return labels
    # What overflows, or has no name, is as good as null.
    codes = labels.cast(pa.int64(), safe=False)
    named = pc.and_(pc.greater_equal(codes, 0), pc.less(codes, len(where.names)))
    return pa.DictionaryArray.from_arrays(
        pc.if_else(named, codes, pa.scalar(None, pa.int64())), pa.array(where.names, pa.string())
    )


def _one_label(label: str | None, rows: int) -> pa.Array:
    if label is None:
        return pa.nulls(rows, pa.string())
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([label], pa.string()))


def streams(
    footer: pq.FileMetaData, where: FileColumns, row_groups: Sequence[int], dimension: int
) -> Iterator[list[int]]:
    """Row groups of embeddings that are read as one stream: those with enormous lists or labels one by one.

    A reader takes a slice of so many rows, whatever the row groups they are in.
    """
    together: list[int] = []
    size = 0
    for index in row_groups:
        group = footer.row_group(index)
        extra = 8 * max(0, group.column(where.value.leaf).num_values - group.num_rows * dimension)
        extra += group.column(where.label.leaf).total_uncompressed_size if where.label else 0
        if together and size + extra > _STREAM_BYTES:
            yield together
            together, size = [], 0
        together.append(index)
        size += extra
    if together:
        yield together


@dataclasses.dataclass(frozen=True)
class Footer:
    """What is known of a file without a row of it."""

    path: str
    columns: FileColumns
    metadata: pq.FileMetaData

    @property
    def rows(self) -> tuple[int, ...]:
        """Of each row group."""
        return tuple(self.metadata.row_group(i).num_rows for i in range(self.metadata.num_row_groups))


def agreeing(
    pattern: str, paths: Sequence[str], encoder: str, columns: Columns = DEFAULT_COLUMNS
) -> Iterator[tuple[Footer, Agreed]]:
    """Each file's footer and what all files so far agree on, which they must.

    Footers are read side by side; files don't stay open.
    """

    def read(path: str) -> tuple[Footer, Agreed]:
        try:
            with open_parquet(path) as file:
                agreed, where = look(pattern, path, file.schema_arrow, encoder, columns)
                return Footer(path, where, file.metadata), agreed
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
        for path, (footer, found) in zip(paths, readers.map(read, paths), strict=True):
            before, together = together, together.and_also(found) if together else found
            if together is None:
                raise ConfigError(
                    "input",
                    pattern,
                    f"have one schema in all files; {paths[0]} has {before}, but {path} has {found}",
                )
            yield footer, together


def check_sizes(pattern: str, footer: Footer, kind: str, dimension: int | None) -> None:
    """Refuses row groups of which a worker could die, by what the footer says of them."""
    value, label, unit = footer.columns.value.leaf, footer.columns.label, footer.columns.unit
    picture = footer.columns.picture
    for index in range(footer.metadata.num_row_groups):
        group = footer.metadata.row_group(index)
        rows, values = group.num_rows, group.column(value)
        images = min(most + each * rows for most, each in MAX_IMAGE_CHUNKS)
        longest = rows * lattice.MAX_DIMENSION + MAX_EXTRA_VALUES
        labels, ids = (MAX_LABEL_CHUNK + each * rows for each in (MAX_LABEL_CHUNK_ROW, MAX_UNIT_CHUNK_ROW))
        if kind == IMAGE_PARQUET and values.total_uncompressed_size > images:
            allowed = (
                "hold at most 128 MiB and 16 MiB a row, and at most 1 GiB and 1 MiB a row, of images in a row"
                " group"
            )
        elif dimension and values.num_values > rows * dimension + MAX_EXTRA_VALUES:
            allowed = f"hold at most {dimension} values a row and {MAX_EXTRA_VALUES:,} in a row group"
        elif picture is not None and group.column(picture.leaf).num_values > longest:
            allowed = (
                f"hold at most {lattice.MAX_DIMENSION} values a picture and {MAX_EXTRA_VALUES:,} in a row"
                " group"
            )
        elif label is not None and group.column(label.leaf).total_uncompressed_size > labels:
            allowed = "hold at most 128 MiB and 16 bytes a row of labels in a row group"
        elif unit is not None and group.column(unit.leaf).total_uncompressed_size > ids:
            allowed = "hold at most 128 MiB and 64 bytes a row of ids in a row group"
        else:
            continue
        raise ConfigError("input", pattern, f"{allowed}; {footer.path} holds more")


def check_rows(pattern: str, rows: int) -> None:
    if rows > lattice.MAX_ROWS:
        raise ConfigError("input", pattern, f"have at most {lattice.MAX_ROWS:,} rows")


def embedding_length(
    pattern: str, column_type: pa.DataType, footers: Sequence[Footer], dimension: int | None
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


def _list_lengths(footer: Footer) -> Iterator[float]:
    """Mean length of the lists of each row group, from the footer alone.

    The mean is all that it has: lists of 3 and 5 values look like two of 4.
    Row groups that are known to have no value at all show nothing.
    """
    if is_unknown(footer.columns.value.type):
        return
    for index in range(footer.metadata.num_row_groups):
        group = footer.metadata.row_group(index)
        rows, column = group.num_rows, group.column(footer.columns.value.leaf)
        statistics = column.statistics
        if rows and not (statistics and statistics.null_count == column.num_values):
            yield column.num_values / rows
