"""Files of embeddings, of whatever format: the one place that tells which reader a file has."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from transforms.files import arrays, finding, parquet
from transforms.files.columns import Columns
from transforms.files.finding import InputFile
from transforms.files.row_groups import RowGroups

# Labels that are read at once, where nothing else is.
_LABEL_ROWS = 8192


def list_files(pattern: str, columns: Columns) -> list[InputFile]:
    """The files of rows of a file, folder or glob, by path.

    Raises:
      ConfigError: see `finding.list_tables`.
    """
    found = finding.list_tables(pattern)
    parquet_files = [file for file in found if not finding.is_array(file.path)]
    return parquet_files or arrays.embedding_files(found, columns)


def pins_of(files: Sequence[InputFile], columns: Columns) -> dict[str, str]:
    """What pins each file, and with it a file of labels that belongs to it, by path."""
    return {
        file.path: arrays.pin_of(file.path, columns) if finding.is_array(file.path) else file.pin
        for file in files
    }


def pin_of(path: str, columns: Columns) -> str:
    """The pin of a file as it is now; empty where it is gone."""
    return arrays.pin_of(path, columns) if finding.is_array(path) else finding.pin_of(path)


def read_footers(
    pattern: str, pins: Mapping[str, str], encoder: str, dimension: int, columns: Columns
) -> list[RowGroups]:
    """Row counts of all row groups of files of embeddings, sorted by path; a file of two names is there once.

    Raises:
      ConfigError: see `parquet.read_footers` and `arrays.look`.
    """
    if any(map(finding.is_array, pins)):
        groups = arrays.read_footers(pattern, dict(pins), dimension, columns)
        parquet.check_rows(pattern, sum(sum(group.rows) for group in groups))
        return groups
    return parquet.read_footers(pattern, pins, encoder, dimension, columns)


def row_counts(path: str, columns: Columns) -> tuple[int, ...]:
    """Rows of each of a file's row groups."""
    if finding.is_array(path):
        return arrays.look(path, path, columns).row_groups
    with parquet.open_parquet(path) as file:
        groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
        return tuple(group.num_rows for group in groups)


def embeddings(
    path: str, row_groups: Sequence[int], rows: int, dimension: int, columns: Columns, labelled: bool
) -> Iterator[pa.RecordBatch]:
    """Rows of some row groups of a file, as columns `embedding` and, if labelled, `label`.

    Args:
      rows: of a batch, at most.
      dimension: of a good embedding; others come, too.
    """
    if finding.is_array(path):
        return arrays.embeddings(path, row_groups, rows, columns, labelled)
    return parquet.embeddings(path, row_groups, rows, dimension, columns, labelled)


def labels(path: str, kind: str, columns: Columns) -> Iterator[pa.Array]:
    """The labels of a file of images or embeddings, some thousands at a time."""
    if finding.is_array(path):
        return arrays.labels(path, _LABEL_ROWS, columns)
    return parquet.labels(path, kind, _LABEL_ROWS, columns)
