"""`dpgmm train`: a release -> a two-layer network, tested on real embeddings.

Plain Python over Parquet; nothing here runs on Beam but its file systems.
"""

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Sequence

from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.config import check_clip_norm
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.network import Network, train_network
from dpgmm_beam.privacy import lattice
from dpgmm_beam.recipe import METRICS_FILE, MODEL_FILE, TrainConfig
from pipelines import cli, paths
from pipelines.columns import columns_of
from pipelines.labelled_rows import (
    LabelledRows,
    Source,
    check_encoder,
    check_files,
    check_sizes,
    describe,
    good,
    read_rows,
)
from pipelines.parsers.train import parser
from pipelines.progress import Steps, device
from pipelines.scores import PRIVATE, Account, Confusion
from pipelines.synthetic_rows import describe_synthetic
from transforms.files.private import is_local
from transforms.files.publish import exists, join
from transforms.files.write import swap, write_whole


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
        described = describe("--test", arguments.test, dimension, columns)
    except ConfigError as error:
        if error.argument != "dimension":
            raise
        raise ConfigError(
            "--test", arguments.test, f"hold embeddings of length {dimension}, as --synthetic does"
        ) from None
    unnamed = check_encoder("--test", arguments.test, described.encoder, "--synthetic", source.encoder)
    tested = Source(arguments.test, source.row_format, soft=False, columns=columns)
    check_sizes("--synthetic", source)
    check_sizes("--test", tested)
    train = read_rows("--synthetic", source)
    if not len(train.targets):
        raise ConfigError("--synthetic", arguments.synthetic, f"hold a row with {good(source)}")
    account = Account(source.row_format.classes)
    test = read_rows("--test", tested, account)
    if not len(test.targets):
        raise ConfigError("--test", arguments.test, f"hold a row with {good(source)}")
    if unnamed:
        cli.note(unnamed)
    with Steps(f"training {device()}", config.epochs, "epochs") as progress:
        network = train_network(
            train.embeddings,
            train.targets if train.probabilities is None else train.probabilities,
            source.row_format.classes,
            config,
            source.row_format.clip_norm,
            lambda epoch, loss: progress.add(detail=f"loss {loss:.4f}"),
            source.encoder,
        )
    metrics = measure(network, test, account, len(train.targets))
    write_output(arguments.output, network, metrics)
    cli.report(
        f"accuracy {metrics['accuracy']:.4f} on {_tested(metrics)} real test rows, trained on "
        f"{metrics['train_rows']} rows with {metrics['labels']} labels; written to {arguments.output}",
        output=arguments.output,
        **{
            name: metrics[name]
            for name in ("accuracy", "test_rows", "test_rows_found", "train_rows", "labels")
        },
    )
    if warning := account.warning():
        if account.undeclared_rows:
            wrong = metrics["accuracy_of_all_labelled"]
            warning += f"; accuracy {wrong:.4f} if those of no class count as wrong"
        cli.warn(warning)
    return 0


def _tested(metrics: dict) -> str:
    tested, found = metrics["test_rows"], metrics["test_rows_found"]
    return str(tested) if tested == found else f"{tested} of {found}"


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


def measure(network: Network, test: LabelledRows, account: Account, train_rows: int) -> dict:
    """What `metrics.json` holds; a class without test rows has the accuracy null."""
    confusion = Confusion.of(network.classes, test.targets, network.predict(test.embeddings))
    return {
        "private": True,
        "private_because": PRIVATE,
        "accuracy": confusion.right / account.tested,
        "accuracy_of_all_labelled": confusion.right / (account.tested + account.undeclared_rows),
        **account.to_dict(),
        "per_class_accuracy": confusion.accuracy_by_class(),
        "classes": list(network.classes),
        "confusion_matrix": confusion.matrix(),
        "most_frequent_errors": confusion.most_frequent_errors(),
        "train_rows": train_rows,
        "labels": "soft" if network.soft else "hard",
        "encoder": network.encoder,
        "seed": network.config.seed,
        "hyper_parameters": dataclasses.asdict(network.config),
    }


def write_output(output: str, network: Network, metrics: dict) -> None:
    """Writes model and metrics: on a local disk both appear at once, elsewhere the metrics come last.

    The metrics are about private rows, so nobody else may read that file.
    """
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
    try:
        for name, data in files.items():
            write_whole(os.path.join(staging, name), data, private=name == METRICS_FILE)
        swap(staging, output, f"{staging}-replaced", old=os.path.exists(output))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
