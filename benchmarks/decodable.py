"""What pictures of embeddings are worth, by the map that a decodable release holds (`private_linear`).

    python benchmarks/decodable.py [--data FOLDER] [--embeddings FILE.npz] [--epsilons 1,10] [--keys 2]

Fashion-MNIST, 60,000 rows, delta 1e-5, encoder efficientnet_lite0 (ImageNet), `--decodable 28`.  A
classifier (ResNet of picture_classifiers.py) learns from drawn pictures only, with hard labels (the class in
which each was drawn) or soft ones (the release's teacher, softened by temperature 2), and is tested on
all real test pictures.  `explained` is the share of the variance of real test pictures within their classes
that the map predicts from their embeddings.  Beside them: a release without noise, and no residual.

Embeddings are made first, half an hour of two cores, and kept in FILE.  Figures go to
benchmarks/results/decodable.md, the first key's pictures beside it.  With --development the last 10,000
training rows are held out and tested on instead, and nothing is written: knobs were chosen so.
"""

import argparse
import functools
import statistics
import tempfile
from pathlib import Path

import numpy as np
import picture_classifiers as classifiers
import torch
from PIL import Image

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.data.rows import rows_of
from dpgmm_beam.decoders.decoder import Drawn, pictures
from dpgmm_beam.decoders.linear import RESIDUAL, LinearDecoder
from dpgmm_beam.decoders.picture_map import PictureMap
from dpgmm_beam.encoders import dct
from dpgmm_beam.encoders.registry import load_encoder
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.pictures import picture_map_of
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.fit.stage import Stage
from dpgmm_beam.mixture import Mixture, Sampler
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release.labels import Labeller
from pipelines import fashion_mnist

RESULTS = Path(__file__).resolve().parent / "results"
ENCODER, SIDE, CLASSES, DELTA = "efficientnet_lite0", 28, 10, 1e-5
HELD_OUT, TEMPERATURE, NEXT_TO_NONE, COLUMNS = 50_000, 2.0, 1e-3, 16
FORM = dct.PictureForm(SIDE, 1)


class WithoutNoise(Plan):
    """A plan that adds next to no noise: not private."""

    def multipliers(self, stage: Stage) -> dict[str, float]:
        return dict.fromkeys(super().multipliers(stage), NEXT_TO_NONE)


class Data:
    """Embeddings, pictures and labels of rows to fit to and to test on."""

    def __init__(self, given: argparse.Namespace):
        with tempfile.TemporaryDirectory() as work:
            folder = fashion_mnist.find(given.data, work)
            (train, labels), (test, test_labels) = (
                fashion_mnist.read(folder, split) for split in fashion_mnist.SPLITS
            )
        if not given.embeddings.exists():
            np.savez(
                given.embeddings,
                **{name: embedded(each) for name, each in (("train", train), ("test", test))},
            )
        with np.load(given.embeddings) as file:
            rows, test_rows = file["train"], file["test"]
        if given.development:
            test, test_rows, test_labels = train[HELD_OUT:], rows[HELD_OUT:], labels[HELD_OUT:]
            train, rows, labels = train[:HELD_OUT], rows[:HELD_OUT], labels[:HELD_OUT]
        self.test, self.test_labels = test, test_labels.astype(np.int64)
        self.test_rows = test_rows / np.linalg.norm(test_rows, axis=1, keepdims=True)
        self.dimension = rows.shape[1]
        self.rows = rows_of(rows, labels, pictures=coefficients(train), picture_norm=FORM.usual_norm)


def embedded(images: np.ndarray) -> np.ndarray:
    """Embeddings of gray pictures, (n, h, w) uint8."""
    encoder = load_encoder(ENCODER)
    blocks = np.array_split(images, max(1, len(images) // 512))
    return np.concatenate(
        [encoder.embed(encoder.prepare([Image.fromarray(picture) for picture in block])) for block in blocks]
    )


def coefficients(images: np.ndarray) -> np.ndarray:
    """Cosine coefficients of gray pictures, (n, h, w) uint8 -> (n, h * w)."""
    return dct.coefficients_of(images[..., None] / 255.0, FORM)


@functools.cache
def released(
    data: Data, epsilon: float, key: int, make: type[Plan] = Plan
) -> tuple[Mixture, Labeller, PictureMap]:
    """What a release holds."""
    names = tuple(map(str, range(CLASSES)))
    config = ReleaseConfig(ENCODER, names, data.dimension, epsilon, DELTA, decodable=str(SIDE))
    secret = NoiseKey(bytes([key]) * 32)
    final = chain.fit(make(config, "decodable"), lambda: data.rows.blocks(2048), secret)
    return chain.released_mixture(final), Labeller.of(final), picture_map_of(config, final.state)


def explained(data: Data, found: PictureMap) -> float:
    """Share of the test pictures' variance within classes that embeddings say by the map."""
    within = coefficients(data.test) - found.means[data.test_labels]
    numbers = (data.test_rows - found.centres[data.test_labels]) @ found.directions.T
    return 1 - float(((within - numbers @ found.slopes) ** 2).sum() / (within**2).sum())


def figures(
    data: Data, given: argparse.Namespace, release: tuple, residual: float, key: int
) -> dict[str, float]:
    """Accuracies of a release's pictures."""
    mixture, labeller, found = release
    count = given.pictures
    classes = np.arange(count) % CLASSES
    rows, components = Sampler(mixture).draw_with_components(classes, np.random.default_rng(key))
    generators = [np.random.default_rng([key, row]) for row in range(count)]
    drawn = pictures(LinearDecoder(mixture, found, residual), Drawn(rows, classes, components), generators)[
        ..., 0
    ]
    soft = labeller.probabilities(rows).astype(np.float64) ** (1 / TEMPERATURE)
    targets = {"hard": np.eye(CLASSES)[classes], "soft": soft / soft.sum(axis=1, keepdims=True)}
    made = {"explained": explained(data, found)}
    for name, goal in targets.items():
        # The teacher has seen embeddings and no pictures: what is wrong with these must not be learnt.
        module = classifiers.train("ResNet", drawn, goal, given.epochs, key, classifiers.varied)
        made[name] = classifiers.accuracy(module, data.test, data.test_labels)
    if key == 1 and given.sheet:
        sheet = [np.concatenate(list(drawn[classes == label][:COLUMNS]), axis=1) for label in range(CLASSES)]
        Image.fromarray(np.concatenate(sheet)).save(given.sheet, optimize=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", help="folder with Fashion-MNIST's files (default: by apt)")
    parser.add_argument("--embeddings", type=Path, default=Path("fashion-mnist-efficientnet.npz"))
    parser.add_argument("--epsilons", default="1,10")
    parser.add_argument("--keys", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--residuals", default=f"{RESIDUAL:g},0", help="of the deviation, that are drawn")
    parser.add_argument("--development", action="store_true", help="hold out training rows, read no test row")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, lines = Data(given), []
    first, *_ = residuals = [float(text) for text in given.residuals.split(",")]
    settings = [(f"epsilon {text}", float(text), Plan) for text in given.epsilons.split(",")]
    for name, epsilon, make in [*settings, ("no noise", 10.0, WithoutNoise)]:
        for residual in residuals:
            keys = range(1, given.keys + 1 if make is Plan and residual == first else 2)
            given.sheet = None
            if residual == first and not given.development:
                given.sheet = RESULTS / f"decodable-{name.replace(' ', '-')}.png"
            each = [figures(data, given, released(data, epsilon, key, make), residual, key) for key in keys]
            cells = [
                f"{statistics.mean(one[what] for one in each):.3f}"
                + (f" ({', '.join(f'{one[what]:.3f}' for one in each)})" if len(each) > 1 else "")
                for what in ("hard", "soft", "explained")
            ]
            lines.append(f"| {name}, residual {residual:g} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    if given.development:
        return
    shown = " ".join(
        f"--{name} {getattr(given, name)}" for name in ("epsilons", "keys", "pictures", "epochs", "residuals")
    )
    rows = "\n".join(lines)
    (RESULTS / "decodable.md").write_text(f"""# What pictures by `private_linear` are worth

`python benchmarks/decodable.py {shown}`: Fashion-MNIST, 60,000
rows, {ENCODER}, delta 1e-5. A ResNet that saw {given.pictures:,} drawn pictures and nothing else, on all
real test pictures; labels hard (the class drawn) or soft (the release's teacher); the share of the variance
of real test pictures within classes that the map explains. The mean, and in brackets each key; no noise:
not private.

| | hard | soft | explained |
|---|---|---|---|
{rows}

`decodable-*.png`: the first key's pictures, a row a class.
""")


if __name__ == "__main__":
    main()
