"""dpgmm predict: a network and real embeddings -> their labels, for their owner."""

import csv
import dataclasses
import io
import json
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam.data.rows import embedding_matrix
from dpgmm_beam.data.schema import EMBEDDING, LABEL, PROBABILITIES, SOURCE
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.network import MODEL_FILE, Network, network_from_bytes
from dpgmm_beam.privacy import lattice
from pipelines import cli, labelled_rows, paths
from pipelines.columns import columns_of
from pipelines.parsers.predict import parser
from pipelines.scores import PRIVATE
from transforms.files import finding, inputs, parquet, parquet_schema, tables
from transforms.files.columns import Columns
from transforms.files.publish import exists, join
from transforms.files.small import read_small
from transforms.files.write import write_whole

MAX_NETWORK_BYTES = 2**31
SUFFIXES = (".parquet", ".csv")

_BATCH_ROWS = 4096


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    if arguments.dimension is not None:
        lattice.check_dimension(arguments.dimension)
    for name in ("network", "input"):
        paths.check_path(f"--{name}", getattr(arguments, name))
    # Labels, if there are any, are not asked for.
    columns = dataclasses.replace(columns_of(arguments), label="")
    check_output(arguments.output, arguments.overwrite)
    paths.check_apart({f"--{name}": getattr(arguments, name) for name in ("network", "input", "output")})
    network = read_network(arguments.network)
    described = describe(arguments.input, network, arguments.dimension, columns)
    unnamed = labelled_rows.check_encoder(
        "--input", arguments.input, described.encoder, "--network", network.encoder
    )
    if unnamed:
        cli.note(unnamed)
    named = sources_are_named(arguments.input, columns)
    writer = Writer(network, predictions(arguments.input, network, columns, named), named)
    write = writer.csv if arguments.output.lower().endswith(".csv") else writer.parquet
    with labelled_rows.readable("--input", arguments.input):
        write_whole(finding.absolute(arguments.output), write, private=True)
    cli.report(
        f"{writer.rows} rows are in {arguments.output}, which is as private as they are",
        output=arguments.output,
        rows=writer.rows,
        rows_without_label=writer.without,
    )
    if writer.without:
        cli.warn(f"{writer.without} of {writer.rows} rows have no good embedding and got no label")
    return 0


def check_output(output: str, overwrite: bool) -> None:
    """Raises ConfigError unless the file can appear: its suffix is known and nobody's file is there."""
    paths.check_path("--output", output)
    if not output.lower().endswith(SUFFIXES):
        raise ConfigError("--output", output, f"be a file whose name ends with {' or '.join(SUFFIXES)}")
    paths.check_output_file(output, overwrite)


def read_network(path: str) -> Network:
    """The network of a training, on any file system.

    Raises:
      ConfigError: it is none.
    """
    file = finding.absolute(path)
    if not file.endswith(".pt"):
        file = join(file, MODEL_FILE)
    if not exists(file):
        raise ConfigError("--network", path, f"be a folder in which dpgmm train wrote, or its {MODEL_FILE}")
    try:
        return network_from_bytes(read_small("--network", file, MAX_NETWORK_BYTES), path)
    except ConfigError as error:
        raise ConfigError("--network", path, error.allowed) from None


def describe(
    pattern: str, network: Network, dimension: int | None, columns: Columns
) -> inputs.InputDescription:
    """What the input is, which must be embeddings of the network's length.

    Raises:
      ConfigError: it is something else.
    """
    labelled_rows.check_files("--input", pattern, columns)
    length = len(network.module.centre)
    try:
        found = inputs.describe_input(pattern, "precomputed", dimension or length, columns)
    except ConfigError as error:
        if error.argument == "encoder":
            wanted = "hold embeddings, not images: dpgmm embed makes them"
            raise ConfigError("--input", pattern, wanted) from None
        if error.argument != "dimension" or dimension is not None:
            raise
        raise ConfigError(
            "--input", pattern, f"hold embeddings of length {length}, as --network was trained on"
        ) from None
    if found.dimension != length:
        raise ConfigError(
            "--dimension", dimension, f"be {length}, the length of embeddings that --network was trained on"
        )
    return found


def sources_are_named(pattern: str, columns: Columns) -> bool:
    """Whether every file says in text which image each embedding is of, as the embed cache does."""
    for found in tables.list_files(finding.absolute(pattern), columns):
        if finding.is_array(found.path):
            return False
        with parquet.open_parquet(found.path) as file:
            place = file.schema_arrow.get_field_index(SOURCE)
            if place < 0 or not parquet_schema.is_text(file.schema_arrow.field(place).type):
                return False
    return True


@dataclasses.dataclass(frozen=True, eq=False)
class Predicted:
    """A batch of rows.

    Attributes:
      indices: (n,) class indices; -1 where no class can be told.
      probabilities: (n, C) float32, zeros where no class can be told.
      sources: (n,) of text, if the input has them.
    """

    indices: np.ndarray
    probabilities: np.ndarray
    sources: pa.Array | None


def predictions(pattern: str, network: Network, columns: Columns, named: bool) -> Iterator[Predicted]:
    """What the network says of all rows, in their order; a batch is in memory at a time."""
    length = len(network.module.centre)
    for batch in _batches(pattern, length, columns, named):
        with np.errstate(all="ignore"):
            matrix, kept = embedding_matrix(batch.column(EMBEDDING), length)
            # Those that a release or a test would take.
            _, good = lattice.quantise_rows(matrix, network.module.clip_norm)
        kept = kept.copy()
        kept[kept] = good
        indices = np.full(len(batch), -1)
        probabilities = np.zeros((len(batch), len(network.classes)), np.float32)
        if len(matrix := matrix[good]):
            probabilities[kept] = network.predict_proba(matrix)
            indices[kept] = network.predict(matrix)
        yield Predicted(indices, probabilities, batch.column(SOURCE) if named else None)


def _batches(pattern: str, dimension: int, columns: Columns, named: bool) -> Iterator[pa.RecordBatch]:
    """Embeddings of all files, with the sources where they are named."""
    for found in tables.list_files(finding.absolute(pattern), columns):
        if named:
            with parquet.open_rows(found.path) as file:
                (where,) = parquet_schema.find(file.schema_arrow, columns.embedding)
                for batch in file.iter_batches(_BATCH_ROWS, columns=[where.path[0], SOURCE]):
                    yield pa.record_batch({EMBEDDING: where.of(batch), SOURCE: batch.column(SOURCE)})
        else:
            groups = range(len(tables.row_counts(found.path, columns)))
            yield from tables.embeddings(found.path, groups, _BATCH_ROWS, dimension, columns, labelled=False)


class Writer:
    """Writes predictions as they come, and counts them.

    Attributes:
      rows: how many there were.
      without: of them without a class.

    Args:
      network: whose predictions they are.
      batches: the predictions.
      named: whether they have sources.
    """

    def __init__(self, network: Network, batches: Iterator[Predicted], named: bool):
        self._classes, self._named = network.classes, named
        self._batches = batches
        self.rows = self.without = 0

    def parquet(self, file: BinaryIO) -> None:
        """As Parquet: label and label_probabilities, which are null where there is no class."""
        labels = pa.array(self._classes, pa.string())
        fields = [(LABEL, pa.string()), (PROBABILITIES, pa.list_(pa.float32()))]
        metadata = {"dpgmm.private": PRIVATE, "dpgmm.classes": json.dumps(self._classes)}
        schema = pa.schema([(SOURCE, pa.string())] * self._named + fields, metadata=metadata)
        with pq.ParquetWriter(file, schema) as writer:
            for batch in self._counted():
                none = batch.indices < 0
                count = len(self._classes)
                ends = pa.array(np.arange(len(none) + 1, dtype=np.int32) * count)
                # Lists of fixed size with nulls among them are not read by every reader.
                lists = pa.ListArray.from_arrays(
                    ends, pa.array(batch.probabilities.ravel()), mask=pa.array(none)
                )
                columns = [labels.take(pa.array(batch.indices, mask=none)), lists]
                if batch.sources is not None:
                    columns.insert(0, batch.sources.cast(pa.string(), safe=False))
                writer.write_batch(pa.record_batch(columns, schema))

    def csv(self, file: BinaryIO) -> None:
        """As CSV in UTF-8: label, and a column "p(CLASS)" for each class; empty where there is no class."""
        text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([*[SOURCE] * self._named, LABEL, *(f"p({label})" for label in self._classes)])
        for batch in self._counted():
            sources: list[list[str]] = [[]] * len(batch.indices)
            if batch.sources is not None:
                sources = [[source] for source in batch.sources.to_pylist()]
            for source, index, row in zip(sources, batch.indices, batch.probabilities, strict=True):
                if index < 0:
                    rows.writerow([*source, *[""] * (1 + len(self._classes))])
                else:
                    rows.writerow([*source, self._classes[index], *(f"{value:.7g}" for value in row)])
        # The file is the caller's to close.
        text.detach()

    def _counted(self) -> Iterator[Predicted]:
        for batch in self._batches:
            self.rows += len(batch.indices)
            self.without += int((batch.indices < 0).sum())
            yield batch


if __name__ == "__main__":
    sys.exit(cli.run(main))
