"""What pictures of a release are worth: classifiers that saw drawn pictures only, on real test pictures.

    python benchmarks/images.py [--data FOLDER] [--epsilons 1,10] [--keys 1,2,3] [--pictures 30000]

Fashion-MNIST, 60,000 rows, delta 1e-5.  Two releases of the same rows share one budget: pictures
(`dct:28`, components by default) and a teacher (`scattering:28`).  Both
are Gaussian mechanisms, so with a part s of 1/z^2 for one and 1 - s for the other the two together
are (epsilon, delta)-private; what each is alone is printed.  No encoder here was trained on any data.

Classifiers (picture_classifiers.py) learn from drawn pictures with

- hard labels: the class in which each was drawn (half as many epochs: more of them gain nothing);
- soft labels: the teacher's probabilities of the picture as it is drawn.

Each drawn picture is learnt from as it is or with a part of what the mixture has beyond its own
shapes (`Drawn.loose`), with the label of the plain one; of those with soft labels half are `Drawn.mixed`.
With hard labels they are varied on every visit (`picture_classifiers.varied`), as real ones are, with soft
labels only moved.  Beside them stand, for
whoever takes a teacher for pictures, the **controls**: the same teacher's soft labels on noise and
on public pictures of something else; and ceilings: real pictures with the teacher's labels and
their own, and pictures of a mixture without noise.  Measures of drawn and real test pictures
(5,000 of each): squared Frechet distance of efficientnet-lite0's features (ImageNet, used for this
only) of norm 1, precision and recall in their 64 whitened leading directions.

Figures go to benchmarks/results/images.json as soon as they are there (run again, it goes on) and
to images.md.  Fitting takes most of the time before the first figure: --releases FOLDER keeps what was
fitted, for other classifiers of the same releases by the same code.
"""

import argparse
import dataclasses
import fcntl
import functools
import json
import pickle
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import picture_classifiers as classifiers
import picture_mixes as mixes
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.data.rows import Rows, rows_of
from dpgmm_beam.decoders.rectified import Rectifier
from dpgmm_beam.encoders import dct
from dpgmm_beam.encoders.encoder import Encoder
from dpgmm_beam.encoders.registry import load_encoder
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.fit.stage import Stage
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.mixture import Mixture, Sampler
from dpgmm_beam.privacy.accounting import epsilon_of_part
from dpgmm_beam.privacy.allocation import MIN_SHARE, with_shares
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release.fidelity import Whitening, frechet_distance, neighbour_measures
from dpgmm_beam.release.labels import Labeller
from pipelines import fashion_mnist

T = TypeVar("T")
RESULTS = Path(__file__).resolve().parent / "results"
DELTA, SIDE, CLASSES = 1e-5, 28, 10
PICTURES, TEACHER = f"dct:{SIDE}", f"scattering:{SIDE}"
GRAY = dct.PictureForm(SIDE, 1)
HELD_OUT = 50_000
"""Training rows from here on are tested on with --development."""

PARTS = ("first", "beside", "likeness", "ceilings", "others")
"""Drawn pictures by the first kind of classifier; controls and real pictures; measures of likeness; what
there is without privacy; the other kinds of classifiers."""

TEMPERATURE, COMPARED = 2.0, 5000
RESIDUALS = (0.0, 0.3, 0.6, 1.0)
NEXT_TO_NONE = 1e-3


class WithoutNoise(Plan):
    """A plan that adds next to no noise: not private."""

    def multipliers(self, stage: Stage) -> dict[str, float]:
        return dict.fromkeys(super().multipliers(stage), NEXT_TO_NONE)


def embedded(encoder: Encoder, pictures: np.ndarray) -> np.ndarray:
    """Embeddings of pictures, (n, h, w) or (n, h, w, 3) uint8."""
    blocks = np.array_split(pictures, max(1, len(pictures) // 1000))
    return np.concatenate(
        [encoder.embed(encoder.prepare([Image.fromarray(picture) for picture in block])) for block in blocks]
    )


@dataclasses.dataclass(frozen=True)
class Views:
    """The two views of a row.

    Attributes:
      classes: declared labels.
      pictures, teacher: encoder specs.
      share: of 1/z^2, for the teacher.
    """

    classes: tuple[str, ...]
    pictures: str
    teacher: str
    share: float

    @property
    def form(self) -> dct.PictureForm:
        """Form of the pictures."""
        return dct.PictureForm.of(self.pictures.partition(":")[2])


class Private:
    """Both releases of one budget and key.

    Args:
      pictures, features: the rows in both views.
      make: Plan, or one without noise.
      components: of a class in the pictures' release; None: found.
    """

    def __init__(
        self,
        views: Views,
        pictures: Rows,
        features: Rows,
        epsilon: float,
        key: int,
        make: type[Plan] = Plan,
        components: int | None = None,
    ):
        self.views = views
        parts = 1 - views.share, views.share
        self.epsilons = tuple(epsilon_of_part(epsilon, DELTA, part) for part in parts)
        of_pictures = ReleaseConfig(
            *(views.pictures, views.classes, pictures.values.shape[1], self.epsilons[0], DELTA),
            method=Method(teacher_steps=0),
            components=components,
        )
        # Its mixture is not wanted.
        least = [f"scatter/{what}={MIN_SHARE}" for what in ("moment", "square")]
        of_labels = ReleaseConfig(
            *(views.teacher, views.classes, features.values.shape[1], self.epsilons[1], DELTA),
            components=1,
            shares=with_shares(least),
        )
        secret = NoiseKey(bytes([key]) * 32)
        final = chain.fit(make(of_pictures, "pictures"), lambda: pictures.blocks(2048), secret)
        self.mixture = chain.released_mixture(final)
        self.labeller = Labeller.of(
            chain.fit(make(of_labels, "labels"), lambda: features.blocks(2048), secret)
        )


class Drawn:
    """Pictures of a mixture, the classes in turns.

    Attributes:
      classes: (n,) in which each was drawn.
      plain: (n, side, side), or (n, side, side, 3) in colour, uint8, as `Rectifier` draws them by default.
      loose: the same, some with a part of what the mixture has beyond its own shapes.
      mixed: more pictures, half of them from wider draws, mixed and warped; of no class, but a
        teacher's probabilities of them say what a classifier is to make of them.
    """

    def __init__(self, mixture: Mixture, form: dct.PictureForm, count: int, seed: int):
        classes = len(mixture.classes)
        generator = np.random.default_rng(seed)
        self.classes = np.arange(count) % classes
        rows, components = Sampler(mixture).draw_with_components(self.classes, generator)
        chosen = generator.integers(0, len(RESIDUALS), count)
        rectifier, every = Rectifier(mixture, form), np.arange(count)

        def pixels(rectifier: Rectifier, rows: np.ndarray, own: np.ndarray) -> np.ndarray:
            with one_thread():
                found = rectifier.pixels(rows[own], self.classes[own], components[own])
            return _squeezed(np.rint(255 * found).astype(np.uint8))

        self.plain = pixels(rectifier, rows, every)
        self.loose = self.plain.copy()
        for number, residual in enumerate(RESIDUALS[1:], start=1):
            own = np.flatnonzero(chosen == number)
            self.loose[own] = pixels(Rectifier(mixture, form, residual=residual), rows, own)
        means = mixture.means[self.classes, components]
        wide = pixels(rectifier, means + mixes.WIDER**0.5 * (rows - means), every)
        second = self._chosen(np.arange(count) // (2 * classes) % 2 == 1)
        some = np.where(second, wide, self.plain)
        self.mixed = mixes.mixed(some, some, generator)

    def _chosen(self, rows: np.ndarray) -> np.ndarray:
        """Of rows (n,), to choose among pictures."""
        return rows.reshape(-1, *[1] * (self.plain.ndim - 1))

    def learnt(self, soft: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Pictures for soft labels, half of them mixed, and these labels.

        Args:
          soft: a teacher's probabilities of pictures.
        """
        half = np.arange(len(self.plain)) // (self.classes.max() + 1) % 2 == 0
        pictures = np.where(self._chosen(half), self.loose, self.mixed)
        seen = np.where(self._chosen(half), self.plain, self.mixed)
        return pictures, soft(seen)


def noise(count: int, form: dct.PictureForm = GRAY) -> np.ndarray:
    """Pictures of nothing: half of them white noise, half clouds of the frequencies of pictures."""
    generator = np.random.default_rng(0)
    white = generator.random((count, form.side, form.side, form.channels))
    clouds = generator.standard_normal((count, form.dimension)) * 3 / (1 + form.frequencies)
    clouds = dct.pixels_of(clouds, form)
    found = np.where(np.arange(count)[:, None, None, None] % 2, white, clouds)
    return _squeezed(np.rint(255 * found).astype(np.uint8))


def unrelated(count: int, form: dct.PictureForm = GRAY) -> np.ndarray:
    """Public pictures that come with scikit-learn: pieces of two photographs, and digits."""
    generator = np.random.default_rng(0)
    mode = "RGB" if form.channels == 3 else "L"
    photographs = [Image.fromarray(image).convert(mode) for image in load_sample_images().images]
    digits = [Image.fromarray(np.uint8(255 / 16 * image)).convert(mode) for image in load_digits().images]
    result = np.empty((count, form.side, form.side, form.channels), np.uint8)
    for row in range(count):
        if row % 2:
            picture = digits[generator.integers(len(digits))]
        else:
            picture = photographs[row // 2 % len(photographs)]
            side = int(generator.integers(form.side, min(picture.size)))
            left, top = (int(generator.integers(length - side + 1)) for length in picture.size)
            picture = picture.crop((left, top, left + side, top + side))
        resized = picture.resize((form.side, form.side), Image.Resampling.BICUBIC)
        result[row] = np.asarray(resized).reshape(result.shape[1:])
    return _squeezed(result)


def _squeezed(pictures: np.ndarray) -> np.ndarray:
    """Gray pictures without an axis for their channel."""
    return pictures[..., 0] if pictures.shape[-1] == 1 else pictures


def sheet(drawn: Drawn, path: Path, columns: int = 16) -> None:
    """A contact sheet, a row a class."""
    rows = [
        np.concatenate(list(drawn.plain[drawn.classes == label][:columns]), axis=1)
        for label in range(drawn.classes.max() + 1)
    ]
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path, optimize=True)


def softened(probabilities: np.ndarray) -> np.ndarray:
    """A teacher's probabilities at the temperature from which classifiers learn."""
    powers = probabilities.astype(np.float64) ** (1 / TEMPERATURE)
    return powers / powers.sum(axis=1, keepdims=True)


class Results:
    """Figures by name, in a JSON file that is always whole.

    Epsilons may be run side by side: what others have put there stays.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def cells(self) -> dict[str, float]:
        """What is there by now."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def put(self, name: str, make: Callable[[], float]) -> None:
        if name in self.cells:
            return
        value = round(make(), 4)
        print(f"{name}: {value}", flush=True)
        self.path.parent.mkdir(exist_ok=True)
        with (Path(tempfile.gettempdir()) / f"{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            cells = dict(sorted({**self.cells, name: value}.items()))
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(cells, indent=1) + "\n")
            new.replace(self.path)

    def line(self, *parts: str) -> str:
        """Mean of the keys' figures, and each; parts without a key."""
        found = [value for name, value in self.cells.items() if name.split(" | ")[:-1] == list(parts)]
        if not found:
            return "-"
        each = f" ({', '.join(f'{value:.3f}' for value in found)})" if len(found) > 1 else ""
        return f"{statistics.mean(found):.3f}{each}"


class Ruler:
    """Real pictures, and what drawn ones are held against."""

    def __init__(self, given: argparse.Namespace, results: Results):
        self.given, self.results = given, results
        with tempfile.TemporaryDirectory() as work:
            folder = fashion_mnist.find(given.data, work)
            (self.train, labels), (self.test, test_labels) = (
                fashion_mnist.read(folder, split) for split in fashion_mnist.SPLITS
            )
        self.labels, self.test_labels = labels.astype(np.int64), test_labels.astype(np.int64)
        if given.development:
            self.test, self.test_labels = self.train[HELD_OUT:], self.labels[HELD_OUT:]
            self.train, self.labels = self.train[:HELD_OUT], self.labels[:HELD_OUT]
        self.encoder = load_encoder(TEACHER)
        features = self.kept(f"train-{len(self.train)}", lambda: embedded(self.encoder, self.train))
        self.test_features = self.kept(f"test-{len(self.train)}", lambda: embedded(self.encoder, self.test))
        clip = ReleaseConfig(PICTURES, ("a",), SIDE**2, 1.0, DELTA).clip_norm
        self.rows = rows_of(embedded(load_encoder(PICTURES), self.train), self.labels, clip)
        self.feature_rows = rows_of(features, self.labels)

    def private(self, epsilon: float, key: int, make: type[Plan] = Plan) -> Private:
        """Both releases: fitted, or as they are kept."""
        views = Views(
            tuple(map(str, range(CLASSES))),
            PICTURES,
            TEACHER,
            self.given.label_share,
        )

        name = f"{make.__name__}-{len(self.train)}-{epsilon:g}-{key}-{views.share:g}"
        return self.kept(name, lambda: Private(views, self.rows, self.feature_rows, epsilon, key, make))

    def kept(self, name: str, make: Callable[[], T]) -> T:
        """What took long to make, from the folder for that if there is one."""
        if self.given.releases is None:
            return make()
        path = Path(self.given.releases) / f"{name}.pickle"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(make()))
        return pickle.loads(path.read_bytes())

    def soft(self, labeller: Labeller, pictures: np.ndarray) -> np.ndarray:
        """The teacher's probabilities of pictures, at the temperature from which classifiers learn."""
        return softened(labeller.probabilities(embedded(self.encoder, pictures)))

    def classify(self, name: str, kind: str, make: Callable[[], tuple[np.ndarray, np.ndarray]]) -> None:
        """Accuracy on real test pictures of a classifier.

        Args:
          make: pictures and targets, where they are wanted.
        """
        *front, key = name.split(" | ")

        def trained() -> float:
            pictures, targets = make()
            epochs = self.given.epochs * classifiers.EPOCHS[kind] / (2 if classifiers.hard(targets) else 1)
            seed, changed = int(key.split()[1]), classifiers.usual(targets)
            module = classifiers.train(kind, pictures, targets, max(1, int(epochs)), seed, changed)
            return classifiers.accuracy(module, self.test, self.test_labels)

        self.results.put(" | ".join([*front, kind, key]), trained)

    @functools.cache  # noqa: B019 - one ruler a process
    def drawn(self, epsilon: float, key: int) -> tuple[Private, Drawn, tuple[np.ndarray, np.ndarray]]:
        """Both releases, their pictures, and pictures with soft labels; what is measured of these is kept."""
        private = self.private(epsilon, key)
        name, of_key = f"epsilon {epsilon:g}", f"key {key}"
        print(f"{name}: pictures alone {private.epsilons[0]}, teacher alone {private.epsilons[1]}")
        on_real = private.labeller.probabilities(self.test_features)
        self.results.put(
            f"{name} | teacher | on real test pictures | {of_key}",
            lambda: _agreement(on_real, self.test_labels),
        )
        drawn = Drawn(private.mixture, private.views.form, self.given.pictures, key)
        if key == 1:
            sheet(drawn, RESULTS / f"images-epsilon-{epsilon:g}.png")
        pictures, labels = self.learnt(private, drawn)
        plain = np.arange(len(labels)) // CLASSES % 2 == 0
        self.results.put(
            f"{name} | teacher | agrees with the class drawn | {of_key}",
            lambda: _agreement(labels[plain], drawn.classes[plain]),
        )
        return private, drawn, (pictures, labels)

    def learnt(self, private: Private, drawn: Drawn) -> tuple[np.ndarray, np.ndarray]:
        """Pictures for soft labels, and these."""
        return drawn.learnt(functools.partial(self.soft, private.labeller))

    def released(self, epsilon: float, key: int, kind: str) -> None:
        """What classifiers of a kind make of one key's pictures at one epsilon."""
        name, of_key = f"epsilon {epsilon:g}", f"key {key}"

        def hard() -> tuple[np.ndarray, np.ndarray]:
            drawn = self.drawn(epsilon, key)[1]
            return drawn.loose, np.eye(CLASSES)[drawn.classes]

        self.classify(f"{name} | soft | {of_key}", kind, lambda: self.drawn(epsilon, key)[2])
        self.classify(f"{name} | hard | {of_key}", kind, hard)

    def beside(self, epsilon: float, kind: str) -> None:
        """The labels of the first key's teacher on noise, on unrelated and (not private) on real pictures."""

        def labelled(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return pictures, self.soft(self.private(epsilon, 1).labeller, pictures)

        count = self.given.pictures
        for name, make in (
            ("control: noise", lambda: labelled(noise(count))),
            ("control: unrelated pictures", lambda: labelled(unrelated(count))),
            ("ceiling: real pictures, the teacher's labels", lambda: labelled(self.train[self._some()])),
        ):
            self.classify(f"epsilon {epsilon:g} | {name} | key 1", kind, make)

    def _some(self) -> np.ndarray:
        return np.random.default_rng(1).permutation(len(self.train))[: self.given.pictures]

    def alike(self, epsilon: float, key: int) -> None:
        """How much drawn pictures are like real test pictures."""
        name, of_key = f"epsilon {epsilon:g}", f"key {key}"
        wanted = ("frechet", "precision", "recall")
        names = {what: f"{name} | likeness | {what} | {of_key}" for what in wanted}
        if all(each in self.results.cells for each in names.values()):
            return
        network, pictures = load_encoder("efficientnet_lite0:64"), self.drawn(epsilon, key)[1].plain
        real, drawn = (_unit(embedded(network, each[:COMPARED])) for each in (self.test, pictures))
        whitening = Whitening.of(real)
        near = neighbour_measures(whitening(real), whitening(drawn))
        values = {
            "frechet": frechet_distance(real, drawn),
            "precision": near.precision,
            "recall": near.recall,
        }
        for what, value in values.items():
            self.results.put(names[what], lambda value=value: value)

    def ceilings(self, kind: str) -> None:
        """What there is without privacy."""

        @functools.cache
        def drawn() -> tuple[Private, Drawn]:
            private = self.private(10.0, 1, WithoutNoise)
            return private, Drawn(private.mixture, private.views.form, self.given.pictures, 1)

        def real() -> tuple[np.ndarray, np.ndarray]:
            some = self._some()
            return self.train[some], np.eye(CLASSES)[self.labels[some]]

        for name, make in (
            ("real pictures, real labels", real),
            ("no noise, soft labels", lambda: self.learnt(*drawn())),
            ("no noise, hard labels", lambda: (drawn()[1].loose, np.eye(CLASSES)[drawn()[1].classes])),
        ):
            self.classify(f"ceiling | {name} | key 1", kind, make)


def _agreement(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float((probabilities.argmax(axis=1) == labels).mean())


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


PUBLISHED = """| | epsilon 1 | 10 |
|---|---|---|
| DP-MERF | .622 | .622 |
| DP-Kernel | .684 | .700 |
| PE | .479 | .578 |
| DP-GAN | .718 | .703 |
| DPDM | .764 | .856 |
| PrivImage (public pre-training) | .799 | .871 |
| DP-FETA; FETA-Pro (no public data) | .815; .823 | |
"""


def tables(results: Results, epsilons: list[float]) -> str:
    """All figures as tables in Markdown."""
    heads = [f"epsilon {epsilon:g}" for epsilon in epsilons]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]

    def add(title: str, *parts: str) -> None:
        cells = [results.line(head, *parts) for head in heads]
        if set(cells) == {"-"}:
            return
        lines.append(f"| {title} | " + " | ".join(cells) + " |")

    for labels in ("soft", "hard"):
        for kind in classifiers.KINDS:
            add(f"{kind}, {labels} labels", labels, kind)
    for what in ("noise", "unrelated pictures"):
        for kind in classifiers.KINDS:
            add(f"control: {kind}, the teacher's labels on {what}", f"control: {what}", kind)
    ceiling = "ceiling: real pictures, the teacher's labels"
    add(f"{ceiling}, ResNet", ceiling, "ResNet")
    for what in ("on real test pictures", "agrees with the class drawn"):
        add(f"the teacher {what}", "teacher", what)
    for what in ("frechet", "precision", "recall"):
        add(f"likeness: {what}", "likeness", what)
    ceilings = [
        f"| {kind}: {what} | {found} |"
        for what in ("real pictures, real labels", "no noise, soft labels", "no noise, hard labels")
        for kind in classifiers.KINDS
        if (found := results.line("ceiling", what, kind)) != "-"
    ]
    if ceilings:
        lines += ["", "| without privacy | |", "|---|---|", *ceilings]
    return "\n".join(lines) + "\n"


def report(results: Results, given: argparse.Namespace) -> str:
    """The page of results."""
    settings = f"--keys {given.keys} --pictures {given.pictures} --epochs {given.epochs}"
    parts = (
        f"pictures (`{PICTURES}`) {1 - given.label_share:.0%} of 1/z^2, the teacher (`{TEACHER}`) the rest"
    )
    return f"""# What decoded pictures are worth

`python benchmarks/images.py {settings} --label-share {given.label_share:g}`:
Fashion-MNIST, 60,000 rows, delta 1e-5; accuracy on all 10,000 real test pictures of classifiers that saw
{given.pictures:,} drawn pictures and nothing else: a ResNet sees each {given.epochs} times, the others about
half as often, for they take twice as long; with hard labels all half as often. The mean, and in brackets
each key.
Two releases share a budget: {parts}.
Neither encoder was made from any data. A dash, or no line: not run. The script says what each figure is.

{tables(results, [float(text) for text in given.epsilons.split(",")])}
## Published

DPImageBench's figures for Fashion-MNIST (README, section 6), the best of its three classifiers, which are
larger and trained longer on more pictures; its labels are hard, of the class that a picture was made for:

{PUBLISHED}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", help="folder with Fashion-MNIST's files (default: by apt)")
    parser.add_argument("--epsilons", default="1,10")
    parser.add_argument("--keys", default="1,2,3")
    parser.add_argument("--pictures", type=int, default=30_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--kinds", default=",".join(classifiers.KINDS), help="of classifiers")
    parser.add_argument("--label-share", type=float, default=0.4, help="of 1/z^2, for the teacher")
    parser.add_argument("--releases", help="folder in which fitted releases are kept (default: none)")
    parser.add_argument(
        "--parts",
        default=",".join(PARTS),
        help="to be run, those that are not there yet; none: only the page is written",
    )
    parser.add_argument("--threads", type=int, default=2, help="of classifiers")
    parser.add_argument("--development", action="store_true", help="hold out training rows, read no test row")
    given = parser.parse_args()
    epsilons = [float(text) for text in given.epsilons.split(",")]
    torch.set_num_threads(given.threads)
    results = Results(RESULTS / ("images-development.json" if given.development else "images.json"))
    ruler = Ruler(given, results)
    first, parts = classifiers.KINDS[0], given.parts.split(",")
    others = [kind for kind in classifiers.KINDS[1:] if kind in given.kinds.split(",")]
    keys = [int(key) for key in given.keys.split(",")]
    # Should time run out, the nets after the first go short, and of them all but the first key.
    if "first" in parts:
        for key in keys:
            for epsilon in epsilons:
                ruler.released(epsilon, key, first)
    for epsilon in epsilons:
        if "beside" in parts:
            ruler.beside(epsilon, first)
        if "likeness" in parts:
            ruler.alike(epsilon, 1)
    if "ceilings" in parts:
        ruler.ceilings(first)
    if "others" in parts:
        for key in keys:
            for kind in others:
                for epsilon in epsilons:
                    ruler.released(epsilon, key, kind)
    results.path.with_suffix(".md").write_text(report(results, given))
    print(tables(results, epsilons))


if __name__ == "__main__":
    main()
