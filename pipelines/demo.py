"""dpgmm demo: Fashion-MNIST end to end, and one table."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence

from dpgmm_beam.encoders.registry import check_encoder
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.accounting import check_privacy_parameters
from dpgmm_beam.privacy.noise import KEY_BYTES
from dpgmm_beam.recipe import METRICS_FILE
from dpgmm_beam.release.picture_files import SHEET_FILE
from pipelines import cli, decode, demo_data, embed, fashion_mnist, paths, release, runner, train
from pipelines.output import Facts
from pipelines.parsers.demo import SIZE, parser
from transforms.files.private import is_local
from transforms.files.write import write_whole

ENCODER, PICTURES = "efficientnet_lite0", "dct:28"
DELTA = 1e-5
FULL_KEYS, MAX_KEYS = 3, 100


def main(argv: Sequence[str]) -> int:
    arguments, beam_arguments = parser().parse_known_args(argv)
    epsilons = [_epsilon(text) for text in arguments.epsilons.split(",")]
    keys = arguments.keys if arguments.keys is not None else FULL_KEYS if arguments.full else 1
    if not 1 <= keys <= MAX_KEYS:
        raise ConfigError("--keys", keys, f"be a whole number from 1 to {MAX_KEYS}")
    encoder = _encoder(arguments.size, arguments.full)
    # Whatever else would be refused after minutes of embedding.
    runner.job_options(beam_arguments, arguments.verbose)
    work = check_work(arguments.work)
    data = demo_data.find(arguments.data, work)
    place = Place(work, data, encoder, beam_arguments)
    started = time.monotonic()
    place.write_images()
    place.embed()
    rows = []
    for epsilon in epsilons:
        for number in range(1, keys + 1):
            rows.append(row := place.release_and_train(epsilon, number))
            of_several = f", key {number} of {keys}" if keys > 1 else ""
            cli.say(
                f"epsilon {epsilon:g}{of_several}: accuracy {row['accuracy']:.4f} on {row['test_rows']} real"
                f" test rows, trained on {row['train_rows']} synthetic ones (after"
                f" {time.monotonic() - started:.0f} s)"
            )
    real = place.train_on_real()
    cli.say(f"without privacy: accuracy {real['accuracy']:.4f}, trained on the real rows")
    print_table(f"{data.title}, {encoder}", epsilons, rows, real)
    sheet = place.pictures(epsilons[0])
    cli.say("")
    cli.report(f"pictures of a release at epsilon {epsilons[0]:g}, {PICTURES}: {sheet}", sheet=sheet)
    return 0


def _encoder(size: int | None, full: bool) -> str:
    """The encoder's spec, checked; with --full as `dpgmm embed` has it by default."""
    if full:
        if size is not None:
            raise ConfigError("--size", size, "be left out with --full, which has its own")
        return ENCODER
    spec = f"{ENCODER}:{SIZE if size is None else size}"
    try:
        check_encoder(spec)
    except ConfigError:
        raise ConfigError("--size", size, "be a whole number of pixels from 32 to 1024") from None
    return spec


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


def demo_key(number: int, work: str) -> str:
    """A key file for a public data set: fixed, so that the table can be had again.

    Never do this with data that is not public: a key must be secret.
    """
    path = os.path.join(work, "private", f"key-{number}")
    secret = hashlib.sha256(f"dpgmm demo {number}".encode()).digest()[:KEY_BYTES]
    write_whole(path, secret, private=True)
    return path


@dataclasses.dataclass(frozen=True)
class Place:
    """The demo's folder, and what is made in it.

    Attributes:
      work: the folder.
      data: what it runs on.
      encoder: spec.
      beam_arguments: options that go to Beam.
    """

    work: str
    data: demo_data.DataSet
    encoder: str
    beam_arguments: Sequence[str]

    def _name(self, name: str) -> str:
        """Apart for each data set and size; what --full makes has plain names."""
        return f"{self.data.prefix}{name}" + self.encoder.removeprefix(ENCODER).replace(":", "-")

    def _images(self, split: str) -> str:
        return os.path.join(self.work, "images", f"{self.data.prefix}{split}.parquet")

    def embeddings(self, split: str) -> str:
        return os.path.join(self.work, "private", self._name(f"{split}-embeddings"))

    def write_images(self) -> None:
        missing = [split for split in fashion_mnist.SPLITS if not os.path.exists(self._images(split))]
        # All of the data before anything is written.
        read = {split: self.data.read(split) for split in missing}
        for split in missing:
            cli.note(f"== {split} images")
            fashion_mnist.write_parquet(*read.pop(split), self._images(split), self.data.classes)

    def embed(self) -> None:
        for split in ("test", "train"):
            cli.note(f"== embeddings of {split} images")
            where = ["--input", self._images(split), "--output", self.embeddings(split)]
            with _unsaid():
                embed.main([*where, "--encoder", self.encoder, *self.beam_arguments])

    def release_and_train(self, epsilon: float, number: int) -> dict:
        """Metrics and seconds."""
        cli.note(f"== epsilon {epsilon:g}, key {number}")
        name = self._name(f"epsilon-{epsilon:g}-key-{number}")
        started = time.monotonic()
        with _unsaid():
            output = self._release(self.embeddings("train"), self.encoder, epsilon, number, name)
        released = time.monotonic() - started
        return {"epsilon": epsilon, "release_seconds": released, **self._train(output, name)}

    def pictures(self, epsilon: float) -> str:
        """Releases the images in a space that has an inverse, and decodes; path of the contact sheet."""
        cli.note(f"== pictures at epsilon {epsilon:g}")
        name = f"{self.data.prefix}pictures-epsilon-{epsilon:g}"
        output = os.path.join(self.work, "pictures", name)
        shutil.rmtree(output, ignore_errors=True)
        with _unsaid():
            made = self._release(self._images("train"), PICTURES, epsilon, 1, name, "--components", "1")
            decode.main(
                [
                    *("--release", made, "--decoder", PICTURES, "--output", output),
                    *("--images-per-class", "100"),
                    *self.beam_arguments,
                ]
            )
        return os.path.join(output, SHEET_FILE)

    def train_on_real(self) -> dict:
        """As `release_and_train` gives, of the same network without a release between."""
        cli.note("== network on the real embeddings")
        return self._train(self.embeddings("train"), self._name("real"))

    def _release(
        self, source: str, encoder: str, epsilon: float, number: int, name: str, *options: str
    ) -> str:
        """Releases an input; the folder of the release."""
        output = os.path.join(self.work, "releases", name)
        release.main(
            [
                *("--input", source, "--encoder", encoder),
                *("--output", output, "--overwrite"),
                *("--classes", ",".join(self.data.classes)),
                *("--epsilon", repr(epsilon), "--delta", repr(DELTA)),
                *("--noise-key-file", demo_key(number, self.work), "--release-id", f"demo-{name}"),
                *("--private-dir", os.path.join(self.work, "private")),
                *options,
                *self.beam_arguments,
            ]
        )
        return output

    def _train(self, rows: str, name: str) -> dict:
        """The metrics of a network that is trained on these rows."""
        started = time.monotonic()
        output = os.path.join(self.work, "networks", name)
        shutil.rmtree(output, ignore_errors=True)
        with _unsaid():
            train.main(["--synthetic", rows, "--test", self.embeddings("test"), "--output", output])
        with open(os.path.join(output, METRICS_FILE)) as file:
            return {**json.load(file), "train_seconds": time.monotonic() - started}


def _unsaid() -> contextlib.AbstractContextManager:
    """While entered, what the verbs say of their results is kept back: the demo says it in a line."""
    return contextlib.redirect_stdout(Facts())


def print_table(title: str, epsilons: Sequence[float], rows: Sequence[dict], real: dict) -> None:
    """One line an epsilon: mean and spread over keys, beside the same network on real rows."""
    cli.say("")
    kept = ("epsilon", "accuracy", "train_rows", "test_rows", "release_seconds", "train_seconds")
    cli.report(
        f"{title}, delta {DELTA:g}; accuracy of the two-layer network on real test rows",
        data=title,
        delta=DELTA,
        real_accuracy=real["accuracy"],
        releases=[{name: row[name] for name in kept} for row in rows],
    )
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
