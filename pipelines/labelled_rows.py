"""Labelled embeddings in files, as `train`, `predict` and `report` read them: checked, described, read."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam.config import MAX_LABEL
from dpgmm_beam.data.rows import RowFormat, embedding_matrix, rows_of_batch
from dpgmm_beam.data.schema import EMBEDDING, LABEL, PROBABILITIES
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy import lattice
from pipelines.scores import Account
from transforms.files import finding, inputs, parquet, parquet_schema, tables
from transforms.files.columns import DEFAULT_COLUMNS, Columns

_BATCH_ROWS = 1024
_FEW_VALUES, _LABEL_BYTES = 2**24, 2**20
# Of a row's probabilities, which are single precision.
_SUM_ERROR = 1e-3


@dataclasses.dataclass(frozen=True)
class Source:
    """Training rows, described but not read.

    Attributes:
      pattern: their files.
      row_format: what a row must look like.
      soft: whether to train on probabilities.
      released: whether they are a release's: then every row must be good.
      columns: names of the columns.
      encoder: what made the embeddings, where the rows say so.
    """

    pattern: str
    row_format: RowFormat
    soft: bool
    released: bool = False
    columns: Columns = DEFAULT_COLUMNS
    encoder: str | None = None


@dataclasses.dataclass(frozen=True)
class LabelledRows:
    """Rows that were read and accepted.

    Attributes:
      embeddings: (n, d) float32, brought to the norm that the release has.
      targets: (n,) class indices.
      probabilities: (n, C) float32, or None where they were not asked for.
    """

    embeddings: np.ndarray
    targets: np.ndarray
    probabilities: np.ndarray | None


def check_encoder(argument: str, path: str, encoder: str | None, other: str, trained: str | None) -> str:
    """Compares the encoders of two sets of embeddings.

    Args:
      argument, path: the option, and what it was given.
      encoder: that its files name, or None.
      other: the option, or whatever says which encoder is wanted.
      trained: that encoder, or None.

    Returns:
      A sentence where one of them is not known, "" where they are the same.

    Raises:
      ConfigError: they are different.
    """
    if encoder and trained:
        if encoder != trained:
            raise ConfigError(
                argument, path, f"hold embeddings by {trained}, as {other} does, not by {encoder}"
            )
        return ""
    silent = [name for name, known in ((argument, encoder), (other, trained)) if not known]
    return f"no encoder is named by {' and '.join(silent)}: only lengths of embeddings could be compared"


def check_files(argument: str, pattern: str, columns: Columns = DEFAULT_COLUMNS) -> None:
    """Raises ConfigError unless the pattern matches files that can be read without surprise."""
    try:
        found = tables.list_files(finding.absolute(pattern), columns)
    except ConfigError as error:
        raise _renamed(error, argument) from None
    if not found:
        what = "a release, or " if argument == "--synthetic" else ""
        raise ConfigError(
            argument,
            pattern,
            f"match {what}embeddings in Parquet or arrays, by file, folder or glob;"
            " dpgmm embed makes them of images",
        )
    for file in found:
        with readable(argument, pattern):
            if not finding.is_array(file.path):
                with parquet.open_parquet(file.path) as opened:
                    _check_columns(argument, pattern, opened, columns)


def _check_columns(argument: str, pattern: str, file: pq.ParquetFile, columns: Columns) -> None:
    for name in (columns.label, columns.embedding, PROBABILITIES):
        if (found := len(parquet_schema.find(file.schema_arrow, name))) > 1:
            raise ConfigError(argument, pattern, f"have one column '{name}', not {found}")


def check_sizes(argument: str, source: Source) -> None:
    """Raises ConfigError where, as footers say, rows would not fit into memory, together or one of them."""
    row_format, total = source.row_format, 0
    for found in tables.list_files(finding.absolute(source.pattern), source.columns):
        with readable(argument, source.pattern):
            total += sum(tables.row_counts(found.path, source.columns))
            if not finding.is_array(found.path):
                with parquet.open_parquet(found.path) as file:
                    _check_row_groups(argument, source, file)
    needed = 4 * total * (row_format.dimension + (len(row_format.classes) if source.soft else 0) + 1)
    if needed > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise ConfigError(
            argument,
            source.pattern,
            f"fit into this machine's memory; its rows take {needed / 2**30:.0f} GiB",
        )


def _check_row_groups(argument: str, source: Source, file: pq.ParquetFile) -> None:
    row_format, footer = source.row_format, file.metadata
    columns = {
        name: found[0].leaf
        for name in (source.columns.embedding, source.columns.label, PROBABILITIES)
        if (found := parquet_schema.find(file.schema_arrow, name))
    }
    lengths = {source.columns.embedding: row_format.dimension, PROBABILITIES: len(row_format.classes)}
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for name, leaf in columns.items():
            column = group.column(leaf)
            if name in lengths and column.num_values > max(group.num_rows * lengths[name], _FEW_VALUES):
                raise ConfigError(
                    argument, source.pattern, f"hold lists of {lengths[name]} values in '{name}'"
                )
            # In memory a batch of labels has the length of its longest, times its rows, at worst.
            if name == source.columns.label and column.total_uncompressed_size > max(
                group.num_rows * MAX_LABEL, _LABEL_BYTES
            ):
                raise ConfigError(argument, source.pattern, f"hold labels of at most {MAX_LABEL} characters")


@contextlib.contextmanager
def readable(argument: str, pattern: str) -> Iterator[None]:
    """While entered, what a damaged file raises is a refusal; what a reader says of it may be private."""
    try:
        yield
    except ConfigError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError):
        raise ConfigError(argument, pattern, "be readable Parquet throughout") from None


def describe(
    argument: str, pattern: str, dimension: int | None, columns: Columns = DEFAULT_COLUMNS
) -> inputs.InputDescription:
    try:
        with readable(argument, pattern):
            found = inputs.describe_input(pattern, "precomputed", dimension, columns)
    except ConfigError as error:
        if error.argument == "encoder":
            raise ConfigError(argument, pattern, "hold embeddings, not images") from None
        if error.argument == "label_column" and argument == "--synthetic":
            # The options for columns are of the test rows.
            raise ConfigError(argument, pattern, f"have a column '{LABEL}'") from None
        raise _renamed(error, argument) from None
    if not found.labelled:
        raise ConfigError(argument, pattern, f"have a column '{columns.label or LABEL}'")
    return found


def _renamed(error: ConfigError, argument: str) -> ConfigError:
    """What a reader refused, by the name of the option that named it here."""
    return ConfigError(argument if error.argument == "input" else error.argument, error.value, error.allowed)


def good(source: Source) -> str:
    return (
        "a declared label and a finite embedding, not zero, of length "
        f"{source.row_format.dimension}; the labels are {', '.join(source.row_format.classes)}"
    )


def read_rows(argument: str, source: Source, account: Account | None = None) -> LabelledRows:
    """Rows with a declared label and a good embedding, treated as a release treats its rows.

    One array is filled from batch to batch; there is no second copy of it.

    Args:
      argument: the option that names the rows.
      source: where they are.
      account: counts what became of all rows.

    Raises:
      ConfigError: a file is damaged, or a row of a release is not good.
    """
    with readable(argument, source.pattern):
        return _read_rows(argument, source, account)


def _read_rows(argument: str, source: Source, account: Account | None) -> LabelledRows:
    pattern, row_format = source.pattern, source.row_format
    total = 0
    for file in tables.list_files(finding.absolute(pattern), source.columns):
        total += sum(tables.row_counts(file.path, source.columns))
    classes = len(row_format.classes)
    embeddings = np.empty((total, row_format.dimension), np.float32)
    targets = np.empty(total, np.int32)
    probabilities = np.empty((total, classes), np.float32) if source.soft else None
    norm = row_format.clip_norm or 1.0
    done = 0
    for batch in _soft_batches(pattern) if source.soft else _batches(source):
        rows = rows_of_batch(batch, row_format)
        if account is not None:
            account.add(batch.column(LABEL), len(rows))
        if source.released and len(rows) < len(batch):
            raise ConfigError(argument, pattern, f"have in every row {good(source)}")
        block = slice(done, done + len(rows))
        embeddings[block] = rows.values * (norm / lattice.UNIT)
        targets[block] = rows.classes
        if probabilities is not None:
            probabilities[block] = _probabilities(argument, pattern, batch, classes)
        done += len(rows)
    return LabelledRows(
        embeddings[:done], targets[:done], None if probabilities is None else probabilities[:done]
    )


def _probabilities(argument: str, pattern: str, batch: pa.RecordBatch, classes: int) -> np.ndarray:
    matrix, kept = embedding_matrix(batch.column(PROBABILITIES), classes)
    if not (kept.all() and (matrix >= 0).all() and (abs(matrix.sum(axis=1) - 1) <= _SUM_ERROR).all()):
        raise ConfigError(
            argument, pattern, f"have in '{PROBABILITIES}' of every row {classes} probabilities that sum to 1"
        )
    return matrix


def _batches(source: Source) -> Iterator[pa.RecordBatch]:
    columns = source.columns
    for found in tables.list_files(finding.absolute(source.pattern), columns):
        groups = range(len(tables.row_counts(found.path, columns)))
        yield from tables.embeddings(
            found.path, groups, _BATCH_ROWS, source.row_format.dimension, columns, labelled=True
        )


def _soft_batches(pattern: str) -> Iterator[pa.RecordBatch]:
    for found in finding.list_parquet(finding.absolute(pattern)):
        with parquet.open_rows(found.path) as file:
            yield from file.iter_batches(_BATCH_ROWS, columns=[LABEL, EMBEDDING, PROBABILITIES])
