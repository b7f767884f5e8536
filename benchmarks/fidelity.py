"""How much synthetic rows are like real ones: the ruler of a release's rows, not of its labels.

    python benchmarks/fidelity.py --train CACHE --test CACHE [--epsilons 1,8] [--keys 3] [--project 512]
    python benchmarks/fidelity.py --data mnist-5k|digits

CACHE is what `dpgmm embed` wrote, of Fashion-MNIST.  Measured in the 64 whitened leading directions
of real test rows, 4,000 against 4,000 (of the small sets, as many as there are):

- precision, recall, coverage: Naeem et al. 2020, k = 5;
- trees: accuracy of gradient-boosted trees that tell real from synthetic; .5 is perfect;

and in the embeddings' own space:

- frechet: squared Frechet distance of the Gaussians of real and synthetic rows;
- knn: 10 nearest of 20,000 synthetic rows and the classes that they were drawn from, and with the
  teacher's labels, tested on 4,000 real rows;
- kmeans: cost on real rows of 50 centres fitted on synthetic ones, over those fitted on real ones;
- teacher: its accuracy on real test rows.

Beside the default release stand one of a component a class, two private rivals (a Gaussian of its own
noisy covariance for each class, and DP-MERF), real rows themselves, and mixtures
fitted without noise or privacy: Gaussians with a covariance of their own for each class or
component, and with one for all.
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
from baselines import Problem, gaussian_rows, merf_rows
from problems import Dataset, digits, fashion_mnist, mnist_5k
from sklearn.cluster import KMeans
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.neighbors import KNeighborsClassifier

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.data.rows import rows_of
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.mixture import Sampler
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release.fidelity import Whitening, frechet_distance, neighbour_measures
from dpgmm_beam.release.labels import Labeller

SAMPLE, DRAWN, CENTRES = 4000, 20_000, 50
DELTA = 1e-5
MEASURES = ("precision", "recall", "coverage", "trees", "frechet", "knn", "knn soft", "kmeans", "teacher")

Rows = tuple[np.ndarray, np.ndarray]
Drawn = tuple[np.ndarray, np.ndarray, Labeller | None]


class Ruler:
    """What real rows are, once; `measure` holds synthetic ones against them."""

    def __init__(self, train: Rows, test: Rows):
        self.train, self.test = train, test
        self.whitening = Whitening.of(test[0])
        picked = np.random.default_rng(0).permutation(len(test[0]))[:SAMPLE]
        self.real, self.real_labels = test[0][picked], test[1][picked]
        self.white = self.whitening(self.real)
        self.base = self._cost(train[0])

    def measure(self, rows: np.ndarray, classes: np.ndarray, labeller: Labeller | None) -> dict[str, float]:
        few = rows[: len(self.real)]
        white = self.whitening(few)
        found = neighbour_measures(self.white, white)
        result = {
            "precision": found.precision,
            "recall": found.recall,
            "coverage": found.coverage,
            "trees": self._trees(white),
            "frechet": frechet_distance(self.real, few),
            "knn": self._neighbours(rows, classes),
            "kmeans": self._cost(rows) / self.base,
        }
        if labeller is not None:
            result["knn soft"] = self._neighbours(rows, labeller.probabilities(rows).argmax(axis=1))
            likeliest = labeller.probabilities(self.test[0]).argmax(axis=1)
            result["teacher"] = float((likeliest == self.test[1]).mean())
        return result

    def _trees(self, white: np.ndarray) -> float:
        rows = np.concatenate([self.white, white])
        which = np.repeat([0, 1], [len(self.white), len(white)])
        order = np.random.default_rng(1).permutation(len(rows))
        learnt, told = order[: len(rows) // 2], order[len(rows) // 2 :]
        model = HistGradientBoostingClassifier(random_state=0).fit(rows[learnt], which[learnt])
        return float(model.score(rows[told], which[told]))

    def _neighbours(self, rows: np.ndarray, classes: np.ndarray) -> float:
        model = KNeighborsClassifier(10, algorithm="brute").fit(rows[:DRAWN], classes[:DRAWN])
        return float(model.score(self.real, self.real_labels))

    def _cost(self, rows: np.ndarray) -> float:
        centres = KMeans(CENTRES, n_init=1, random_state=0).fit(rows[:DRAWN]).cluster_centers_
        squares = (centres**2).sum(axis=1) - 2 * self.real @ centres.T
        return float((squares.min(axis=1) + (self.real**2).sum(axis=1)).sum())


def released(train: Rows, epsilon: float, key: int, components: int | None) -> Drawn:
    """Rows of a release with default options, drawn from its mixture."""
    rows, classes = rows_of(*train), int(train[1].max()) + 1
    names = tuple(map(str, range(classes)))
    config = ReleaseConfig("benchmark", names, train[0].shape[1], epsilon, DELTA, components=components)
    final = chain.fit(Plan(config, "fidelity"), lambda: rows.blocks(2048), NoiseKey(bytes([key]) * 31 + b"k"))
    which = np.arange(DRAWN) % classes
    drawn = Sampler(chain.released_mixture(final)).draw(which, np.random.default_rng(key))
    return drawn, which, Labeller.of(final)


def without_noise(train: Rows, components: int, pooled: bool) -> Drawn:
    """Rows of mixtures of k-means' cells, each with its own covariance or one for all."""
    rows, labels = train
    classes, generator = int(labels.max()) + 1, np.random.default_rng(0)
    cells = labels.astype(np.int64) * components
    if components > 1:
        for label in range(classes):
            own = labels == label
            cells[own] += KMeans(components, n_init=1, random_state=0).fit(rows[own]).labels_
    means = np.stack([rows[cells == cell].mean(axis=0) for cell in range(classes * components)])
    residuals = rows - means[cells]
    which = np.arange(DRAWN) % classes
    share = [np.bincount(cells[labels == c] - c * components, minlength=components) for c in range(classes)]
    chosen = which * components + np.array(
        [generator.choice(components, p=share[label] / share[label].sum()) for label in which]
    )
    drawn = np.empty((DRAWN, rows.shape[1]))
    roots: dict[int, np.ndarray] = {}
    for cell in np.unique(chosen):
        of = residuals if pooled else residuals[cells == cell]
        if not pooled or not roots:
            values, vectors = np.linalg.eigh(of.T @ of / len(of))
            root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
            roots[0] = root
        own = np.flatnonzero(chosen == cell)
        drawn[own] = means[cell] + generator.standard_normal((len(own), rows.shape[1])) @ roots[0]
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn.astype(np.float32), which, None


def rival(train: Rows, epsilon: float, key: int, name: str) -> Drawn:
    """Rows of a private rival, in turn of all classes."""
    rows, labels = train
    problem = Problem(
        rows.astype(np.float32), labels, rows[:1].astype(np.float32), labels[:1], int(labels.max()) + 1
    )
    generator, each = np.random.default_rng(key), DRAWN // problem.classes
    if name == "DP-MERF":
        drawn, classes = merf_rows(problem, epsilon, DELTA, generator, each)
    else:
        drawn, classes = gaussian_rows(problem, epsilon, DELTA, generator, RIVAL_FLOOR, each)
    order = np.argsort(np.arange(len(classes)) % each, kind="stable")
    return drawn[order], classes[order], None


RIVAL_FLOOR = 1.0
"""Of the rival's covariance, as in benchmarks/utility.py."""


def show(name: str, found: list[dict[str, float]]) -> None:
    """A line of the table: means, and spreads (max - min) where there are several keys."""
    cells = []
    for measure in MEASURES:
        values = [each[measure] for each in found if measure in each]
        spread = f" ({max(values) - min(values):.3f})" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "")
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def real_rows(dataset: Dataset, project: int) -> tuple[Rows, Rows]:
    """Training and test rows of norm 1; with `project`, by a public random matrix to fewer dimensions."""
    problem = dataset.problem
    pairs = (problem.x, problem.y), (problem.test_x, problem.test_y)
    if not project:
        return pairs
    matrix = np.random.default_rng(0).standard_normal((dataset.dimension, project)) / np.sqrt(project)
    moved = [(rows @ matrix, labels) for rows, labels in pairs]
    return tuple((rows / np.linalg.norm(rows, axis=1, keepdims=True), labels) for rows, labels in moved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--train")
    parser.add_argument("--test")
    parser.add_argument("--data", choices=("fashion-mnist", "mnist-5k", "digits"), default="fashion-mnist")
    parser.add_argument("--work", default="build/fidelity", help="where embedded images of MNIST-5k are kept")
    parser.add_argument("--epsilons", default="0.5,1,2,4,8")
    parser.add_argument("--keys", type=int, default=3)
    parser.add_argument("--project", type=int, default=0, help="to so many dimensions, by a public matrix")
    parser.add_argument("--only-releases", action="store_true")
    given = parser.parse_args()
    if given.data == "fashion-mnist" and not (given.train and given.test):
        parser.error("--train and --test are needed")
    make = {"mnist-5k": lambda: mnist_5k(given.work), "digits": digits}
    found = make.get(given.data, lambda: fashion_mnist(given.train, given.test))()
    train, test = real_rows(found, given.project)
    ruler = Ruler(train, test)
    print("| | " + " | ".join(MEASURES) + " |\n|---" * 1 + "|---" * len(MEASURES) + "|")
    if not given.only_releases:
        order = np.random.default_rng(2).permutation(len(train[0]))[:DRAWN]
        show("real rows", [ruler.measure(train[0][order], train[1][order], None)])
        structures: dict[str, Callable[[], Drawn]] = {
            "no noise: 1 a class, pooled covariance": lambda: without_noise(train, 1, True),
            "no noise: 1 a class, own covariance": lambda: without_noise(train, 1, False),
            "no noise: 10 a class, own covariances": lambda: without_noise(train, 10, False),
        }
        for name, make in structures.items():
            show(name, [ruler.measure(*make())])
    for epsilon in map(float, given.epsilons.split(",")):
        for name, components in (("default", None), ("--components 1", 1)):
            drawn = (released(train, epsilon, key, components) for key in range(1, given.keys + 1))
            show(f"{name}, epsilon {epsilon:g}", [ruler.measure(*each) for each in drawn])
        for name in () if given.only_releases else ("one private Gaussian a class", "DP-MERF"):
            drawn = (rival(train, epsilon, key, name) for key in range(1, given.keys + 1))
            show(f"{name}, epsilon {epsilon:g}", [ruler.measure(*each) for each in drawn])


if __name__ == "__main__":
    main()
