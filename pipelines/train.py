"""`dpgmm train`: a release -> a two-layer network, tested on real embeddings.

Plain Python over Parquet; nothing here runs on Beam but its file systems.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.config import MAX_CLASSES, MAX_LABEL, check_classes, check_clip_norm
from dpgmm_beam.data.rows import RowFormat, embedding_matrix, rows_of_batch
from dpgmm_beam.data.schema import EMBEDDING, LABEL, PROBABILITIES
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.network import Network, train_network
from dpgmm_beam.privacy import lattice
from dpgmm_beam.recipe import METRICS_FILE, MODEL_FILE, TrainConfig
from dpgmm_beam.release import manifest
from pipelines import cli, paths
from pipelines.columns import columns_of
from pipelines.parsers.train import parser
from pipelines.progress import Steps, device
from transforms.files import finding, inputs, parquet, parquet_schema, tables
from transforms.files.columns import DEFAULT_COLUMNS, Columns
from transforms.files.private import is_local
from transforms.files.publish import exists, join
from transforms.files.small import read_small
from transforms.files.write import write_whole

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
    """

    pattern: str
    row_format: RowFormat
    soft: bool
    released: bool = False
    columns: Columns = DEFAULT_COLUMNS


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


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    config = TrainConfig(
        **{field.name: getattr(arguments, field.name) for field in dataclasses.fields(TrainConfig)}
    )
    check_clip_norm(arguments.clip_norm)
    if arguments.dimension is not None:
        lattice.check_dimension(arguments.dimension)
    for name in ("synthetic", "test"):
        paths.check_path(f"--{name}", getattr(arguments, name))
    paths.check_writable_place("--output", arguments.output)
    check_output(arguments.output, arguments.overwrite)
    paths.check_apart({f"--{name}": getattr(arguments, name) for name in ("synthetic", "test", "output")})
    source = describe_synthetic(arguments)
    dimension = source.row_format.dimension
    columns = columns_of(arguments)
    check_files("--test", arguments.test, columns)
    try:
        _describe("--test", arguments.test, dimension, columns)
    except ConfigError as error:
        if error.argument != "dimension":
            raise
        raise ConfigError(
            "--test", arguments.test, f"hold embeddings of length {dimension}, as --synthetic does"
        ) from None
    tested = Source(arguments.test, source.row_format, soft=False, columns=columns)
    check_sizes("--synthetic", source)
    check_sizes("--test", tested)
    train = read_rows("--synthetic", source)
    if not len(train.targets):
        raise ConfigError("--synthetic", arguments.synthetic, f"hold a row with {_good(source)}")
    test = read_rows("--test", tested)
    if not len(test.targets):
        raise ConfigError("--test", arguments.test, f"hold a row with {_good(source)}")
    with Steps(f"training {device()}", config.epochs, "epochs") as progress:
        network = train_network(
            train.embeddings,
            train.targets if train.probabilities is None else train.probabilities,
            source.row_format.classes,
            config,
            source.row_format.clip_norm,
            lambda epoch, loss: progress.add(detail=f"loss {loss:.4f}"),
        )
    metrics = measure(network, test, len(train.targets), source.soft)
    write_output(arguments.output, network, metrics)
    cli.report(
        f"accuracy {metrics['accuracy']:.4f} on {metrics['test_rows']} real test rows, trained on "
        f"{metrics['train_rows']} rows with {metrics['labels']} labels; written to {arguments.output}",
        output=arguments.output,
        **{name: metrics[name] for name in ("accuracy", "test_rows", "train_rows", "labels")},
    )
    return 0


def check_output(output: str, overwrite: bool) -> None:
    """Raises ConfigError unless the folder is new, empty, or holds a training that may go."""
    if is_local(output):
        held = set(os.listdir(output)) if os.path.isdir(output) else set()
        if held - {MODEL_FILE, METRICS_FILE}:
            raise ConfigError("--output", output, "be an empty or a new folder, or hold a training only")
    else:
        held = {name for name in (MODEL_FILE, METRICS_FILE) if exists(join(output, name))}
    if held and not overwrite:
        raise ConfigError("--output", output, "not hold a training already, unless --overwrite is given")


def check_files(argument: str, pattern: str, columns: Columns = DEFAULT_COLUMNS) -> None:
    """Raises ConfigError unless the pattern matches files that can be read without surprise."""
    try:
        found = tables.list_files(finding.absolute(pattern), columns)
    except ConfigError as error:
        raise _renamed(error, argument) from None
    if not found:
        what = "a release, or " if argument == "--synthetic" else ""
        raise ConfigError(argument, pattern, f"match {what}Parquet files, by file, folder or glob")
    for file in found:
        with _readable(argument, pattern):
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
        with _readable(argument, source.pattern):
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
def _readable(argument: str, pattern: str) -> Iterator[None]:
    """While entered, what a damaged file raises is a refusal; what a reader says of it may be private."""
    try:
        yield
    except ConfigError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError):
        raise ConfigError(argument, pattern, "be readable Parquet throughout") from None


def describe_synthetic(arguments: argparse.Namespace) -> Source:
    """What `--synthetic` is, from its manifest or its schema; labels alone are read.

    Raises:
      ConfigError: see the sentences below.
    """
    folder = arguments.synthetic
    if exists(join(folder, manifest.FILE_NAME)):
        return _describe_release(arguments)
    check_files("--synthetic", folder)
    if arguments.labels == "soft":
        raise ConfigError(
            "--labels", "soft", f"be hard or auto, for --synthetic={folder} has no {manifest.FILE_NAME}"
        )
    found = _describe("--synthetic", folder, arguments.dimension)
    assert found.dimension is not None
    classes = distinct_labels(folder)
    _check_classes(folder, classes)
    return Source(folder, RowFormat(classes, found.dimension, arguments.clip_norm), soft=False)


def _describe_release(arguments: argparse.Namespace) -> Source:
    folder = arguments.synthetic
    for name in ("clip_norm", "dimension"):
        if getattr(arguments, name) is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')}",
                getattr(arguments, name),
                f"be left out: --synthetic={folder} is a release, which states its own",
            )
    row_format, files = _stated(folder)
    pattern = join(folder, "synthetic")
    check_files("--synthetic", pattern)
    if files != {file.path.rpartition("/")[2] for file in finding.list_parquet(finding.absolute(pattern))}:
        raise ConfigError(
            "--synthetic", folder, "hold in synthetic/ the files that its manifest names, and no others"
        )
    try:
        _describe("--synthetic", pattern, row_format.dimension)
    except ConfigError as error:
        if error.argument != "dimension":
            raise
        raise ConfigError(
            "--synthetic", folder, f"hold embeddings of length {row_format.dimension}, as its manifest states"
        ) from None
    with parquet.open_parquet(finding.list_parquet(finding.absolute(pattern))[0].path) as file:
        soft = PROBABILITIES in file.schema_arrow.names
    if arguments.labels == "soft" and not soft:
        raise ConfigError("--labels", "soft", f"be hard: --synthetic={folder} has no {PROBABILITIES}")
    return Source(pattern, row_format, soft and arguments.labels != "hard", released=True)


def _stated(folder: str) -> tuple[RowFormat, set[str]]:
    """What a release's manifest says of its rows, and the names of their files."""
    data = read_small("--synthetic", join(folder, manifest.FILE_NAME), manifest.MAX_BYTES)
    try:
        content = manifest.parse(data, folder)
        # Only what is needed: the rest of a configuration may differ between versions.
        config = content["config"]
        classes, dimension, clip_norm = config["classes"], config["dimension"], config["clip_norm"]
        if not (isinstance(classes, list) and isinstance(dimension, int)):
            raise TypeError
        check_classes(classes)
        lattice.check_dimension(dimension)
        check_clip_norm(clip_norm)
        named = [file["path"] for file in content["files"]]
        files = {path.removeprefix("synthetic/") for path in named if path.startswith("synthetic/")}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        reason = f" ({error.allowed})" if isinstance(error, ConfigError) else ""
        raise ConfigError(
            "--synthetic",
            folder,
            f"hold a {manifest.FILE_NAME} that states classes, dimension, clip norm and files{reason}",
        ) from None
    _check_classes(folder, classes)
    return RowFormat(tuple(classes), dimension, clip_norm), files


def _check_classes(folder: str, classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise ConfigError(
            "--synthetic", folder, "have two classes at least, or there is nothing to tell apart"
        )


def _describe(
    argument: str, pattern: str, dimension: int | None, columns: Columns = DEFAULT_COLUMNS
) -> inputs.InputDescription:
    try:
        with _readable(argument, pattern):
            found = inputs.describe_input(pattern, "precomputed", dimension, columns)
    except ConfigError as error:
        if error.argument == "encoder":
            raise ConfigError(argument, pattern, "hold embeddings, not images") from None
        raise _renamed(error, argument) from None
    if not found.labelled:
        raise ConfigError(argument, pattern, f"have a column '{columns.label or LABEL}'")
    return found


def _renamed(error: ConfigError, argument: str) -> ConfigError:
    """What a reader refused, by the name of the option that named it here."""
    return ConfigError(argument if error.argument == "input" else error.argument, error.value, error.allowed)


def _good(source: Source) -> str:
    return (
        "a declared label and a finite embedding, not zero, of length "
        f"{source.row_format.dimension}; the labels are {', '.join(source.row_format.classes)}"
    )


def distinct_labels(pattern: str) -> tuple[str, ...]:
    """All labels of a pattern's files, as text, sorted; nulls are left out.

    Raises:
      ConfigError: there are more than a release may have.
    """
    seen: set[str] = set()
    with _readable("--synthetic", pattern):
        for file in tables.list_files(finding.absolute(pattern), DEFAULT_COLUMNS):
            for labels in tables.labels(file.path, parquet.EMBEDDING_PARQUET, DEFAULT_COLUMNS):
                if pa.types.is_dictionary(labels.type):
                    labels = labels.dictionary_decode()
                seen.update(pc.unique(labels.cast(pa.string(), safe=False)).drop_null().to_pylist())
                if len(seen) > MAX_CLASSES:
                    raise ConfigError("--synthetic", pattern, f"have at most {MAX_CLASSES} different labels")
    return tuple(sorted(seen))


def read_rows(argument: str, source: Source) -> LabelledRows:
    """Rows with a declared label and a good embedding, treated as a release treats its rows.

    One array is filled from batch to batch; there is no second copy of it.

    Args:
      argument: the option that names the rows.
      source: where they are.

    Raises:
      ConfigError: a file is damaged, or a row of a release is not good.
    """
    with _readable(argument, source.pattern):
        return _read_rows(argument, source)


def _read_rows(argument: str, source: Source) -> LabelledRows:
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
        if source.released and len(rows) < len(batch):
            raise ConfigError(argument, pattern, f"have in every row {_good(source)}")
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


def measure(network: Network, test: LabelledRows, train_rows: int, soft: bool) -> dict:
    """What `metrics.json` holds; a class without test rows has the accuracy null."""
    right = network.predict(test.embeddings) == test.targets
    by_class = {}
    for index, label in enumerate(network.classes):
        of_class = right[test.targets == index]
        by_class[label] = float(of_class.mean()) if len(of_class) else None
    return {
        "accuracy": float(right.mean()),
        "per_class_accuracy": by_class,
        "test_rows": len(right),
        "train_rows": train_rows,
        "labels": "soft" if soft else "hard",
        "seed": network.config.seed,
        "hyper_parameters": dataclasses.asdict(network.config),
    }


def write_output(output: str, network: Network, metrics: dict) -> None:
    """Writes model and metrics: on a local disk both appear at once, elsewhere the metrics come last."""
    files = {
        MODEL_FILE: network.to_bytes(),
        METRICS_FILE: (json.dumps(metrics, indent=2) + "\n").encode(),
    }
    if not is_local(output):
        if exists(join(output, METRICS_FILE)):
            FileSystems.delete([join(output, METRICS_FILE)])
        for name, data in files.items():
            write_whole(join(output, name), data)
        return
    output = os.path.abspath(output)
    parent, name = os.path.split(output)
    staging = os.path.join(parent, f".{name}.partial-{uuid.uuid4().hex}")
    replaced = f"{staging}-replaced"
    try:
        for name, data in files.items():
            write_whole(os.path.join(staging, name), data)
        if os.path.exists(output):
            os.rename(output, replaced)
        try:
            os.rename(staging, output)
        except BaseException:
            if os.path.exists(replaced) and not os.path.exists(output):
                os.rename(replaced, output)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
