"""Accuracy of the two-layer network on our release, beside every private baseline, on the same embeddings.

    python benchmarks/utility.py --train EMBEDDINGS --test EMBEDDINGS [--quick]

EMBEDDINGS are what `dpgmm embed` wrote of Fashion-MNIST's two parts (`dpgmm demo`
leaves them in its work folder).  Prints the tables and writes
benchmarks/results/utility.json and .md and docs/figures/utility.png.  Every
figure is kept in the JSON as soon as it is there: run again, it goes on.

Ours is the release's own code: the chain of stages over blocks in memory, the
synthetic files' bytes, the default training.  Nothing of ours was chosen here.
Baselines are tuned, which flatters them: for each data set, the setting of a stated
small grid (GRIDS) with the best *test* accuracy, for key 1, at epsilon 1 serves .5
and 1, those at 2, 4 and 8 serve themselves, that at 8 also "none".  Neither search nor
choice is charged to their budget.
"""

import argparse
import functools
import hashlib
import io
import itertools
import json
import math
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import baselines
import numpy as np
import problems
import pyarrow.parquet as pq
import torch
from problems import Dataset

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.data.rows import label_indices
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.checkpoint import Checkpoint
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.fit.stage import Stage
from dpgmm_beam.network import TrainConfig, train_network
from dpgmm_beam.privacy.noise import KEY_BYTES, NoiseKey
from dpgmm_beam.release import manifest
from dpgmm_beam.release.in_memory import files_of
from dpgmm_beam.release.labels import Labeller

ROOT = Path(__file__).resolve().parent.parent
DELTA = 1e-5
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, math.inf)
KEYS = (1, 2, 3)
TUNED_AT = (1.0, 2.0, 4.0, 8.0)
LABELS_AT = (1.0, 8.0)

# Our own fit divides by its noise, so that "none" is next to none.
NEXT_TO_NONE = 1e-3

REAL, OURS = "network on real rows", "network on our release"
LABEL_KINDS = {
    "teacher": "the teacher itself, on real test rows",
    "soft": "its probabilities kept as soft labels",
    "drawn": "one label drawn from them",
    "likeliest": "its most likely label",
    "own": "the mixture's own classes",
}

Setting = dict[str, float | int | str]


def grid(**choices: Sequence) -> list[Setting]:
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


GRIDS: dict[str, list[Setting]] = {
    "DP-SGD linear probe": [
        # The first two are for small data, where noise forbids larger steps.
        {"clip": 0.5, "steps": 20, "rate": 16.0},
        {"clip": 0.5, "steps": 40, "rate": 64.0},
        {"clip": 0.25, "steps": 40, "rate": 512.0},
        {"clip": 0.5, "steps": 40, "rate": 256.0},
        {"clip": 0.25, "steps": 80, "rate": 512.0},
        {"clip": 0.5, "steps": 80, "rate": 256.0},
        {"clip": 0.5, "steps": 160, "rate": 512.0},
        {"clip": 1.0, "steps": 160, "rate": 256.0},
    ],
    "DP least squares": grid(share=(0.3, 0.5, 0.8), ridge=(0.03, 0.1, 0.3, 1.0)),
    "private class means": grid(by=("cosine", "euclidean")),
    "DP-SGD two-layer network": [
        *grid(clip=(0.5, 1.0), steps=(40,), rate=(8.0, 32.0, 128.0)),
        {"clip": 0.5, "steps": 160, "rate": 128.0},
        {"clip": 1.0, "steps": 160, "rate": 32.0},
        {"clip": 1.0, "steps": 160, "rate": 128.0},
    ],
    "one private Gaussian a class": grid(floor=(1.0,)),
    "dp-learning-ff prototypes": grid(dist=("exp",), steps=(3, 10), by=("cosine", "euclidean")),
    "diffprivlib GaussianNB": grid(bound=(3.0, 10.0), smoothing=(0.01, 1.0)),
}

# What matters most comes first; within a tier, keys are outermost.
TIERS = (
    (OURS, "DP-SGD linear probe", "DP least squares", "private class means", REAL),
    (
        "DP-SGD two-layer network",
        "one private Gaussian a class",
        "dp-learning-ff prototypes",
        "diffprivlib GaussianNB",
    ),
)


def tuned_at(epsilon: float) -> float:
    """The epsilon whose tuning serves this one."""
    return next((at for at in TUNED_AT if epsilon <= at), TUNED_AT[-1])


def predictions(method: str, problem: baselines.Problem) -> Callable[..., np.ndarray]:
    """The baseline by its name: (epsilon, delta, generator, **setting) -> test predictions."""
    if method == "DP least squares":
        return baselines.LeastSquares(problem)
    functions = {
        "DP-SGD linear probe": baselines.linear_probe,
        "DP-SGD two-layer network": baselines.two_layers,
        "private class means": baselines.class_means,
        "one private Gaussian a class": baselines.gaussian_per_class,
        "dp-learning-ff prototypes": baselines.dp_learning_ff,
        "diffprivlib GaussianNB": baselines.diffprivlib_naive_bayes,
    }
    return functools.partial(functions[method], problem)


class WithoutNoise(Plan):
    """A plan that spends no budget and adds next to no noise: not private."""

    def multipliers(self, stage: Stage) -> dict[str, float]:
        return dict.fromkeys(super().multipliers(stage), NEXT_TO_NONE)


class Results:
    """Accuracies by data set, method, epsilon and key, in a JSON file that is always whole."""

    def __init__(self, path: Path):
        self._path = path
        self._content = json.loads(path.read_text()) if path.exists() else {"cells": {}, "tuned": {}}

    @staticmethod
    def name(dataset: str, method: str, epsilon: float, key: int, setting: Setting | None = None) -> str:
        parts = [dataset, method, f"epsilon {epsilon:g}", f"key {key}"]
        return " | ".join(parts + [f"{name}={value}" for name, value in sorted((setting or {}).items())])

    def cell(self, name: str) -> dict | None:
        return self._content["cells"].get(name)

    def put_cell(self, name: str, **cell) -> None:
        self._content["cells"][name] = cell
        self._write()

    def tuned(self, dataset: str, method: str, epsilon: float) -> Setting | None:
        """The setting chosen for this epsilon, if it was chosen already."""
        if len(GRIDS[method]) == 1:
            return GRIDS[method][0]
        return self._content["tuned"].get(f"{dataset} | {method} | epsilon {tuned_at(epsilon):g}")

    def put_tuned(self, dataset: str, method: str, epsilon: float, setting: Setting) -> None:
        self._content["tuned"][f"{dataset} | {method} | epsilon {tuned_at(epsilon):g}"] = setting
        self._write()

    def accuracies(self, dataset: str, method: str, epsilon: float) -> list[float]:
        """Those that are there, by key."""
        setting = None
        if method in GRIDS:
            setting = self.tuned(dataset, method, epsilon)
            if setting is None:
                return []
        cells = (self.cell(self.name(dataset, method, epsilon, key, setting)) for key in KEYS)
        return [cell["accuracy"] for cell in cells if cell]

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._content, indent=1, sort_keys=True) + "\n")
        partial.replace(self._path)


class Run:
    """One run over all that is asked for.

    Args:
      results: what is there already.
      datasets: functions that load a data set, by its name.
      work: folder for fitted states.
    """

    def __init__(self, results: Results, datasets: dict[str, Callable[[], Dataset]], work: Path):
        self.results = results
        self.loaders = datasets
        self.work = work

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one data set in memory at a time
    def dataset(self, name: str) -> Dataset:
        return self.loaders[name]()

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def baseline(self, dataset: str, method: str) -> Callable[..., np.ndarray]:
        return predictions(method, self.dataset(dataset).problem)

    def cell(self, dataset: str, method: str, epsilon: float, key: int) -> dict | None:
        """One figure, computed unless it is there; None where a baseline's package is missing."""
        try:
            return self._cell(dataset, method, epsilon, key)
        except ImportError as error:
            print(f"{dataset} | {method}: left out ({error})", file=sys.stderr)
            return None

    def _cell(self, dataset: str, method: str, epsilon: float, key: int) -> dict:
        if method == OURS:
            return self.ours(dataset, epsilon, key)
        if method == REAL:
            return self._kept(
                Results.name(dataset, REAL, math.inf, key), lambda: {"accuracy": self.real(dataset, key)}
            )
        setting = self.tuned(dataset, method, epsilon)
        return self.measured(dataset, method, epsilon, key, setting)

    def tuned(self, dataset: str, method: str, epsilon: float) -> Setting:
        """The setting of the grid that is best on the test rows at the epsilon of `tuned_at`."""
        setting = self.results.tuned(dataset, method, epsilon)
        if setting is None:
            at = tuned_at(epsilon)
            setting = max(
                GRIDS[method],
                key=lambda tried: self.measured(dataset, method, at, KEYS[0], tried)["accuracy"],
            )
            self.results.put_tuned(dataset, method, epsilon, setting)
        return setting

    def measured(self, dataset: str, method: str, epsilon: float, key: int, setting: Setting) -> dict:
        def compute():
            seed = zlib.crc32(f"{dataset} {method} {epsilon} {key}".encode())
            predicted = self.baseline(dataset, method)(epsilon, DELTA, np.random.default_rng(seed), **setting)
            return {"accuracy": float((predicted == self.dataset(dataset).test.classes).mean())}

        return self._kept(Results.name(dataset, method, epsilon, key, setting), compute)

    def real(self, dataset: str, seed: int) -> float:
        """The network on the real rows, with as many steps as on 60,000."""
        problem = self.dataset(dataset).problem
        epochs = max(TrainConfig.epochs, round(TrainConfig.epochs * 60_000 / len(problem.y)))
        config = TrainConfig(epochs=epochs, seed=seed)
        network = train_network(problem.x, problem.y, problems.TEN, config)
        return float((network.predict(problem.test_x) == problem.test_y).mean())

    def plan(self, dataset: str, epsilon: float) -> Plan:
        dimension = self.dataset(dataset).dimension
        private = not math.isinf(epsilon)
        config = ReleaseConfig(
            "precomputed", problems.TEN, dimension, epsilon if private else max(TUNED_AT), DELTA
        )
        return (Plan if private else WithoutNoise)(config, f"benchmark {dataset}")

    def secret(self, key: int) -> NoiseKey:
        # The data are public: a fixed key makes the table repeatable.
        return NoiseKey(hashlib.sha256(f"dpgmm benchmark {key}".encode()).digest()[:KEY_BYTES])

    def final_state(self, dataset: str, epsilon: float, key: int) -> Checkpoint:
        """The fitted state; kept, for the table of labels wants it again."""
        plan = self.plan(dataset, epsilon)
        path = self.work / f"{dataset}-{epsilon:g}-{key}-{plan.config.digest[:12]}.npz"
        if not path.exists():
            rows = self.dataset(dataset).train
            final = chain.fit(plan, lambda: rows.blocks(1024), self.secret(key))
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial.npz")
            partial.write_bytes(final.to_bytes())
            partial.replace(path)
        return Checkpoint.from_bytes(path.read_bytes())

    def ours(self, dataset: str, epsilon: float, key: int) -> dict:
        def compute():
            return {
                "accuracy": self.with_labels(dataset, epsilon, key, "soft"),
                "teacher": self.with_labels(dataset, epsilon, key, "teacher"),
            }

        return self._kept(Results.name(dataset, OURS, epsilon, key), compute)

    def labels(self, dataset: str, epsilon: float, key: int, kind: str) -> dict:
        """A figure of the table of labels."""
        if kind in ("soft", "teacher"):
            cell = self.ours(dataset, epsilon, key)
            return {"accuracy": cell["accuracy" if kind == "soft" else "teacher"]}
        name = Results.name(dataset, f"labels: {kind}", epsilon, key)
        return self._kept(name, lambda: {"accuracy": self.with_labels(dataset, epsilon, key, kind)})

    def with_labels(self, dataset: str, epsilon: float, key: int, kind: str) -> float:
        problem = self.dataset(dataset).problem
        if kind == "teacher":
            labeller = Labeller.of(self.final_state(dataset, epsilon, key))
            return float((labeller.probabilities(problem.test_x).argmax(axis=1) == problem.test_y).mean())
        embeddings, own, probabilities = self.synthetic(dataset, epsilon, key)
        if kind == "soft":
            targets = probabilities
        elif kind == "likeliest":
            targets = probabilities.argmax(axis=1)
        elif kind == "own":
            targets = own
        else:
            uniforms = np.random.default_rng(key).random((len(own), 1))
            targets = (uniforms > probabilities.cumsum(axis=1)).sum(axis=1).clip(max=len(problems.TEN) - 1)
        network = train_network(embeddings, targets, problems.TEN)
        return float((network.predict(problem.test_x) == problem.test_y).mean())

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def synthetic(self, dataset: str, epsilon: float, key: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows of the release's files: embeddings, own class indices, probabilities."""
        return read_synthetic(self.final_state(dataset, epsilon, key), self.secret(key))

    def _kept(self, name: str, compute: Callable[[], dict]) -> dict:
        cell = self.results.cell(name)
        if cell is None:
            start = time.monotonic()
            cell = compute()
            seconds = time.monotonic() - start
            self.results.put_cell(name, **cell, seconds=round(seconds, 1))
            print(f"{time.strftime('%X')} {name}: {cell['accuracy']:.4f}, {seconds:.0f} s", file=sys.stderr)
        return cell


def read_synthetic(final: Checkpoint, secret: NoiseKey) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The synthetic files of a release, made and read in memory: embeddings, class indices, probabilities."""
    classes = final.plan.config.classes
    embeddings, own, probabilities = [], [], []
    for path, _, data in files_of(final, secret):
        if path.startswith(manifest.SYNTHETIC):
            table = pq.read_table(io.BytesIO(data))
            embeddings.append(_matrix(table, "embedding"))
            probabilities.append(_matrix(table, "label_probabilities"))
            own.append(label_indices(table.column("component_class"), classes))
    return np.concatenate(embeddings), np.concatenate(own), np.concatenate(probabilities)


def _matrix(table, column: str) -> np.ndarray:
    return table.column(column).combine_chunks().flatten().to_numpy().reshape(len(table), -1)


def work_list(
    datasets: Sequence[str], epsilons: Sequence[float], keys: Sequence[int], methods: Sequence[str]
) -> Iterator[tuple[str, str, float, int]]:
    """Data set, method, epsilon and key of every figure, in order of importance."""
    for tier in TIERS:
        for key, dataset, method in itertools.product(keys, datasets, tier):
            if method in methods:
                for epsilon in (math.inf,) if method == REAL else epsilons:
                    yield dataset, method, epsilon, key


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and half the range, without leading zeros."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}".removeprefix("0")
    half = f"{(max(values) - min(values)) / 2:.{digits}f}".removeprefix("0")
    return f"{mean} ± {half}" if len(values) > 1 else mean


def tables(results: Results, datasets: dict[str, str], epsilons: Sequence[float]) -> str:
    """Markdown: a table for each data set and the table of labels.

    Args:
      datasets: what the rows are, by name.
    """
    lines = []
    methods = (REAL, OURS, *GRIDS)
    heads = ["none" if math.isinf(epsilon) else f"{epsilon:g}" for epsilon in epsilons]
    for name, about in datasets.items():
        rows = []
        for method in methods:
            cells = [spread(results.accuracies(name, method, epsilon)) for epsilon in epsilons]
            if any(cell != "-" for cell in cells):
                rows.append(f"| {method} | {' | '.join(cells)} |")
        if rows:
            lines += ["", f"**{name}** ({about}), test accuracy, mean ± half the range over keys", ""]
            lines += [f"| epsilon | {' | '.join(heads)} |", "|---|" + "---|" * len(heads), *rows]
    for name in datasets:
        rows = []
        for kind, text in LABEL_KINDS.items():
            cells = [spread(label_accuracies(results, name, epsilon, kind)) for epsilon in LABELS_AT]
            if any(cell != "-" for cell in cells):
                rows.append(f"| {text} | {' | '.join(cells)} |")
        if rows:
            heads = " | ".join(f"epsilon {epsilon:g}" for epsilon in LABELS_AT)
            lines += ["", f"| {name}, labels of the synthetic rows | {heads} |", "|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def label_accuracies(results: Results, dataset: str, epsilon: float, kind: str) -> list[float]:
    method = OURS if kind in ("soft", "teacher") else f"labels: {kind}"
    cells = (results.cell(Results.name(dataset, method, epsilon, key)) for key in KEYS)
    return [cell["teacher" if kind == "teacher" else "accuracy"] for cell in cells if cell]


def plot(results: Results, dataset: str, path: Path) -> None:
    """Accuracy against epsilon for one data set; bars span the keys."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.6))
    finite = [epsilon for epsilon in EPSILONS if not math.isinf(epsilon)]
    for method in (OURS, *GRIDS):
        points = [(e, values) for e in finite if (values := results.accuracies(dataset, method, e))]
        # What is far below would squeeze the rest; the table has it.
        points = [(e, values) for e, values in points if statistics.mean(values) > 0.7]
        if points:
            means = [statistics.mean(values) for _, values in points]
            bars = [
                [mean - min(values) for mean, (_, values) in zip(means, points, strict=True)],
                [max(values) - mean for mean, (_, values) in zip(means, points, strict=True)],
            ]
            style = (
                {"linewidth": 2.5, "color": "black", "zorder": 5} if method == OURS else {"linewidth": 1.2}
            )
            axes.errorbar(
                [e for e, _ in points],
                means,
                yerr=bars,
                marker="o",
                markersize=4,
                capsize=3,
                label=method,
                **style,
            )
    real = results.accuracies(dataset, REAL, math.inf)
    if real:
        axes.axhline(statistics.mean(real), color="gray", linestyle="--", label=f"{REAL}, not private")
    axes.set_xscale("log", base=2)
    axes.set_xticks(finite, [f"{epsilon:g}" for epsilon in finite])
    axes.set_xlabel(f"epsilon (delta {DELTA:g})")
    axes.set_ylabel("accuracy on real test rows")
    axes.set_title(f"{dataset}, efficientnet-lite0 embeddings")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", required=True, help="embeddings of Fashion-MNIST's training images")
    parser.add_argument("--test", required=True, help="embeddings of its test images")
    parser.add_argument("--work", default=str(ROOT / "build" / "utility"), help="fitted states are kept here")
    parser.add_argument("--results", default=str(ROOT / "benchmarks" / "results"))
    parser.add_argument("--figure", default=str(ROOT / "docs" / "figures" / "utility.png"))
    parser.add_argument("--quick", action="store_true", help="one key, epsilon 1 and 8, the first tier")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; BLAS has OMP_NUM_THREADS")
    parser.add_argument(
        "--datasets", nargs="+", choices=("Fashion-MNIST", "MNIST-5k", "digits"), help="only these"
    )
    parser.add_argument("--methods", nargs="+", choices=(REAL, OURS, *GRIDS), help="only these")
    parser.add_argument("--print", action="store_true", help="only print what is there")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    loaders = {
        "Fashion-MNIST": lambda: problems.fashion_mnist(arguments.train, arguments.test),
        "MNIST-5k": lambda: problems.mnist_5k(arguments.work),
        "digits": problems.digits,
    }
    results = Results(Path(arguments.results) / "utility.json")
    run = Run(results, loaders, Path(arguments.work))
    names = arguments.datasets or list(loaders)
    keys, epsilons = (KEYS[:1], LABELS_AT) if arguments.quick else (KEYS, EPSILONS)
    methods = arguments.methods or (TIERS[0] if arguments.quick else (REAL, OURS, *GRIDS))
    if not arguments.print:
        for dataset, method, epsilon, key in work_list(names, epsilons, keys, methods):
            run.cell(dataset, method, epsilon, key)
        for key, dataset, epsilon, kind in itertools.product(keys, names, LABELS_AT, LABEL_KINDS):
            if OURS in methods:
                run.labels(dataset, epsilon, key, kind)
    text = tables(results, {name: problems.ABOUT[name] for name in names}, EPSILONS)
    print(text)
    if not arguments.quick:
        (Path(arguments.results) / "utility.md").write_text(text)
        plot(results, names[0], Path(arguments.figure))
    return 0


if __name__ == "__main__":
    sys.exit(main())
