"""What coloured pictures of few rows are worth: emoji, 32 x 32, in eight groups.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 --pack-destination FOLDER
    python benchmarks/colour_pictures.py --packages FOLDER [--epsilons 1,10] [--pictures 8000] [--epochs 6]
        [--components 1]

As benchmarks/images.py, with `dct:32:rgb` and `scattering:32:rgb`; a row is one picture.  Groups are of
very different sizes, so accuracy is the mean of the groups' own.  One key.  Figures go to
benchmarks/results/colour-pictures.json as soon as they are there, and to colour-pictures.md; with
`--components 1` to colour-pictures-1.
"""

import argparse

import emoji
import images
import numpy as np
import picture_classifiers as classifiers
import torch

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.data.rows import rows_of
from dpgmm_beam.encoders.registry import load_encoder
from dpgmm_beam.fit.plan import Plan

SIDE = 32
VIEWS = images.Views(emoji.CLASSES, f"dct:{SIDE}:rgb", f"scattering:{SIDE}:rgb", 0.4)
KIND, KEY = "ResNet", 1


class Ruler:
    """Emoji, and what drawn ones are held against."""

    def __init__(self, given: argparse.Namespace, results: images.Results):
        self.given, self.results = given, results
        pictures, classes, tested = emoji.read(given.packages, SIDE)
        self.train, self.labels = pictures[~tested], classes[~tested]
        self.test, self.test_labels = pictures[tested], classes[tested]
        self.encoder = load_encoder(VIEWS.teacher)
        dimension = VIEWS.form.dimension
        clip = ReleaseConfig(VIEWS.pictures, ("a",), dimension, 1.0, images.DELTA).clip_norm
        self.rows = rows_of(images.embedded(load_encoder(VIEWS.pictures), self.train), self.labels, clip)
        self.features = rows_of(images.embedded(self.encoder, self.train), self.labels)
        self.test_features = images.embedded(self.encoder, self.test)

    def balanced(self, found: np.ndarray) -> float:
        """Mean of the classes' accuracies on test pictures."""
        right = found == self.test_labels
        return float(
            np.mean([right[self.test_labels == label].mean() for label in range(len(emoji.CLASSES))])
        )

    def classify(self, name: str, pictures: np.ndarray, targets: np.ndarray, epochs: int) -> None:
        def trained() -> float:
            module = classifiers.train(KIND, pictures, targets, epochs, KEY, classifiers.usual(targets))
            return self.balanced(classifiers.classified(module, self.test))

        self.results.put(name, trained)

    def released(self, head: str, epsilon: float, make: type[Plan] = Plan) -> None:
        """What classifiers make of one release's pictures, and of its teacher's labels on others."""
        components = self.given.components
        private = images.Private(VIEWS, self.rows, self.features, epsilon, KEY, make, components)
        labeller = private.labeller

        def soft(pictures: np.ndarray) -> np.ndarray:
            return images.softened(labeller.probabilities(images.embedded(self.encoder, pictures)))

        self.results.put(
            f"{head} | the teacher on real test pictures",
            lambda: self.balanced(labeller.probabilities(self.test_features).argmax(axis=1)),
        )
        count, epochs = self.given.pictures, self.given.epochs
        drawn = images.Drawn(private.mixture, VIEWS.form, count, KEY)
        path = self.results.path
        images.sheet(drawn, path.with_name(f"{path.stem}-{head.replace(' ', '-')}.png"))
        eye = np.eye(len(emoji.CLASSES))
        self.classify(f"{head} | hard labels", drawn.loose, eye[drawn.classes], max(1, epochs // 2))
        self.classify(f"{head} | soft labels", *drawn.learnt(soft), epochs)
        if make is Plan:
            for what, found in (("noise", images.noise), ("unrelated pictures", images.unrelated)):
                others = found(count, VIEWS.form)
                name = f"{head} | control: the teacher's labels on {what}"
                self.classify(name, others, soft(others), epochs)

    def real(self) -> None:
        """Without privacy: real pictures, each class as often as the others."""
        generator = np.random.default_rng(KEY)
        chosen = [
            generator.choice(np.flatnonzero(self.labels == label), self.given.pictures // len(emoji.CLASSES))
            for label in range(len(emoji.CLASSES))
        ]
        rows = np.concatenate(chosen)
        eye = np.eye(len(emoji.CLASSES))
        self.classify("no privacy | hard labels", self.train[rows], eye[self.labels[rows]], self.given.epochs)


def report(results: images.Results, ruler: Ruler, heads: list[str]) -> str:
    """The page of results."""
    sizes = ", ".join(
        f"{name} {count:,}" for name, count in zip(emoji.CLASSES, np.bincount(ruler.labels), strict=True)
    )
    titles = sorted({name.split(" | ")[1] for name in results.cells})
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for title in titles:
        cells = [results.cells.get(f"{head} | {title}") for head in heads]
        shown = " | ".join("-" if cell is None else f"{cell:.3f}" for cell in cells)
        lines.append(f"| {title} | {shown} |")
    table = "\n".join(lines)
    given = ruler.given
    settings = f"--pictures {given.pictures} --epochs {given.epochs}"
    if given.components:
        settings += f" --components {given.components}"
    return f"""# Coloured pictures of few rows

`python benchmarks/colour_pictures.py --packages FOLDER {settings}`:
emoji of two makers (Noto, Apache-2.0; Twemoji, CC BY 4.0; npm's `emoji-datasource-google` and `-twitter`),
{SIDE} x {SIDE} in colour on black, {len(ruler.labels):,} rows ({sizes});
tested on {len(ruler.test_labels):,} pictures of other emoji. Delta 1e-5, one key, a {KIND};
the mean of the groups' accuracies (chance is {1 / len(emoji.CLASSES):.3f}). "No noise": pictures of a
mixture without noise; "no privacy": real pictures. A dash: not run.

{table}

At epsilon 1 there are too few rows: drawn pictures are little more than the colours of a group. At 10 they
show shapes. A row is one picture, in one skin tone, of one maker; none was turned, moved or mixed before it
was counted.

![Drawn at epsilon 10, a row a group]({results.path.stem}-epsilon-10.png)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--packages", required=True, help="folder with both packages of npm")
    parser.add_argument("--epsilons", default="1,10")
    parser.add_argument("--pictures", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--components", type=int, help="of a group in the pictures' release (default: found)")
    parser.add_argument("--threads", type=int, default=2, help="of classifiers")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    name = "colour-pictures" + (f"-{given.components}" if given.components else "")
    results = images.Results(images.RESULTS / f"{name}.json")
    ruler = Ruler(given, results)
    epsilons = [float(text) for text in given.epsilons.split(",")]
    heads = [f"epsilon {epsilon:g}" for epsilon in epsilons]
    ruler.real()
    runs = [*zip(heads, epsilons, [Plan] * len(heads), strict=True), ("no noise", 10.0, images.WithoutNoise)]
    for head, epsilon, make in runs:
        ruler.released(head, epsilon, make)
        page = report(results, ruler, [*heads, "no noise", "no privacy"])
        results.path.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
