"""dpgmm demo: Fashion-MNIST end to end, and one table."""

import hashlib
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.accounting import check_privacy_parameters
from dpgmm_beam.privacy.noise import KEY_BYTES
from pipelines import cli, embed, fashion_mnist, paths, release, runner, train
from pipelines.parsers.demo import parser
from transforms.files.private import is_local
from transforms.files.write import write_whole

ENCODER = "efficientnet_lite0"
DELTA = 1e-5
MAX_KEYS = 100


def main(argv: Sequence[str]) -> int:
    arguments, beam_arguments = parser().parse_known_args(argv)
    epsilons = [_epsilon(text) for text in arguments.epsilons.split(",")]
    if not 1 <= arguments.keys <= MAX_KEYS:
        raise ConfigError("--keys", arguments.keys, f"be a whole number from 1 to {MAX_KEYS}")
    # Whatever else would be refused after minutes of embedding.
    runner.job_options(beam_arguments, arguments.verbose)
    work = check_work(arguments.work)
    source = fashion_mnist.find(arguments.data, work)
    images = {split: os.path.join(work, "images", f"{split}.parquet") for split in fashion_mnist.SPLITS}
    missing = {split: path for split, path in images.items() if not os.path.exists(path)}
    # All of the data before anything is written.
    data = {split: fashion_mnist.read(source, split) for split in missing}
    for split, path in missing.items():
        _say(f"{split} images")
        fashion_mnist.write_parquet(*data.pop(split), path)
    embeddings = {split: os.path.join(work, "private", f"{split}-embeddings") for split in images}
    for split, path in images.items():
        _say(f"embeddings of {split} images")
        embed.main(["--input", path, "--encoder", ENCODER, "--output", embeddings[split], *beam_arguments])
    _say("network on the real embeddings")
    real = _train(embeddings["train"], embeddings["test"], os.path.join(work, "networks", "real"))
    rows = []
    for epsilon in epsilons:
        for number in range(1, arguments.keys + 1):
            _say(f"epsilon {epsilon:g}, key {number} of {arguments.keys}")
            rows.append(_release_and_train(epsilon, number, work, embeddings, beam_arguments))
    print_table(epsilons, rows, real)
    return 0


def _epsilon(text: str) -> float:
    try:
        epsilon = float(text)
    except ValueError:
        raise ConfigError("--epsilons", text, "be numbers with commas between") from None
    try:
        check_privacy_parameters(epsilon, DELTA)
    except ConfigError as error:
        raise ConfigError("--epsilons", text, error.allowed) from None
    return epsilon


def check_work(work: str) -> str:
    """The folder as an absolute path; it need not exist, and is not made.

    Raises:
      ConfigError: it can't be made or written, or what is to be private in it is not.
    """
    paths.check_path("--work", work)
    if not is_local(work) or (os.path.lexists(work) and not os.path.isdir(work)):
        raise ConfigError("--work", work, "be a local folder, or a new one")
    work = os.path.abspath(work)
    paths.check_writable_folder("--work", os.path.join(work, "private"))
    return work


def _say(text: str) -> None:
    cli.say(f"== {text}", sys.stderr)


def demo_key(number: int, work: str) -> str:
    """A key file for a public data set: fixed, so that the table can be had again.

    Never do this with data that is not public: a key must be secret.
    """
    path = os.path.join(work, "private", f"key-{number}")
    secret = hashlib.sha256(f"dpgmm demo {number}".encode()).digest()[:KEY_BYTES]
    write_whole(path, secret, private=True)
    return path


def _release_and_train(
    epsilon: float, number: int, work: str, embeddings: dict[str, str], beam_arguments: Sequence[str]
) -> dict:
    name = f"epsilon-{epsilon:g}-key-{number}"
    output = os.path.join(work, "releases", name)
    started = time.monotonic()
    release.main(
        [
            *("--input", embeddings["train"], "--encoder", ENCODER, "--output", output, "--overwrite"),
            *("--classes", ",".join(fashion_mnist.CLASSES)),
            *("--epsilon", repr(epsilon), "--delta", repr(DELTA)),
            *("--noise-key-file", demo_key(number, work), "--release-id", f"demo-{name}"),
            *("--private-dir", os.path.join(work, "private")),
            *beam_arguments,
        ]
    )
    released = time.monotonic() - started
    metrics = _train(output, embeddings["test"], os.path.join(work, "networks", name))
    return {"epsilon": epsilon, "release_seconds": released, **metrics}


def _train(synthetic: str, test: str, output: str) -> dict:
    started = time.monotonic()
    shutil.rmtree(output, ignore_errors=True)
    train.main(["--synthetic", synthetic, "--test", test, "--output", output])
    with open(os.path.join(output, train.METRICS_FILE)) as file:
        return {**json.load(file), "train_seconds": time.monotonic() - started}


def print_table(epsilons: Sequence[float], rows: Sequence[dict], real: dict) -> None:
    """One line an epsilon: mean and spread over keys, beside the same network on real rows."""
    cli.say("")
    cli.say(f"Fashion-MNIST, {ENCODER}, delta {DELTA:g}; accuracy of the two-layer network on real test rows")
    cli.say("epsilon   synthetic (min-max over keys)   real      rows   release s   train s")
    for epsilon in epsilons:
        own = [row for row in rows if row["epsilon"] == epsilon]
        accuracies = [row["accuracy"] for row in own]
        seconds = [statistics.mean(row[name] for row in own) for name in ("release_seconds", "train_seconds")]
        spread = f"{statistics.mean(accuracies):.4f} ({min(accuracies):.4f}-{max(accuracies):.4f})"
        cli.say(
            f"{epsilon:<9g} {spread:<31} {real['accuracy']:.4f} {own[0]['train_rows']:>8}"
            f" {seconds[0]:>11.0f} {seconds[1]:>9.0f}"
        )


if __name__ == "__main__":
    sys.exit(cli.run(main))
