"""Errors that `dpgmm plan` predicts, against those of real releases of public data.

    python benchmarks/forecast.py [--fashion-mnist EMBEDDINGS TEST_EMBEDDINGS] [--keys 6]
    python benchmarks/forecast.py --geometry [--fashion-mnist ...]

Data: scikit-learn's digits, clusters drawn at two sizes, and Fashion-MNIST's
embeddings as `dpgmm embed` wrote them (`dpgmm demo` leaves them in its work folder),
of which 5,000 and all rows are released.  A fit is the release's own chain of stages,
with keyed noise; its errors are to exact figures of the same rows.  A prediction has
the numbers that `plan` is given and the data's geometry (second moments; --geometry
prints those that dpgmm_beam/release/references.py holds).

Prints a table and the largest deviation; ends with status 1 if one is above a quarter.
"""

import argparse
import dataclasses
import math
import sys
import time

import numpy as np
import problems

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.data.rows import Rows, rows_of
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.fit.state import FitState
from dpgmm_beam.privacy.noise import KEY_BYTES, NoiseKey
from dpgmm_beam.privacy.queries import add_noise
from dpgmm_beam.release import geometry, simulation

DELTA, LIMIT = 1e-5, 0.4
EPSILONS = (0.5, 1.0, 4.0)
COUNT_KEYS = 40


def clusters(rows: int, dimension: int, classes: int, separation: float) -> tuple[Rows, Rows]:
    """Gaussian classes with variances that fall as 1, 1/2, 1/3, ..., turned at random, to fit and to test."""
    generator = np.random.default_rng(0)
    deviations = (1 + np.arange(dimension)) ** -0.5
    deviations /= math.sqrt((deviations**2).sum())
    centres = generator.standard_normal((classes, dimension))
    centres *= separation / np.linalg.norm(centres, axis=1)[:, None]
    labels = generator.integers(0, classes, rows + 2000)
    values = centres[labels] + deviations * generator.standard_normal((len(labels), dimension))
    values @= np.linalg.qr(generator.standard_normal((dimension, dimension)))[0]
    return rows_of(values[:rows], labels[:rows]), rows_of(values[rows:], labels[rows:])


def some(rows: Rows, count: int) -> Rows:
    chosen = np.random.default_rng(0).permutation(len(rows))[:count]
    return Rows(rows.values[chosen], rows.classes[chosen])


def cases(fashion_mnist: list[str] | None) -> dict[str, tuple[Rows, Rows, tuple[float, ...]]]:
    found = {
        "digits": (problems.digits().train, problems.digits().test, EPSILONS),
        "clusters": (*clusters(20_000, 128, 10, 1.0), EPSILONS),
        "more clusters": (*clusters(5_000, 256, 20, 0.5), EPSILONS),
        "many clusters": (*clusters(30_000, 128, 100, 1.0), EPSILONS),
    }
    if fashion_mnist:
        data = problems.fashion_mnist(*fashion_mnist)
        found["Fashion-MNIST, 5,000 rows"] = (some(data.train, 5000), data.test, EPSILONS)
        found["Fashion-MNIST"] = (data.train, data.test, (1.0,))
    return found


def plan_of(classes: int, dimension: int, epsilon: float, rows: int) -> Plan:
    """As `dpgmm plan` has it, of a public number of rows."""
    names = tuple(map(str, range(classes)))
    return Plan(ReleaseConfig("precomputed", names, dimension, epsilon, DELTA), "forecast", counted=rows)


def measure(plan: Plan, train: Rows, test: Rows, keys: int) -> simulation.Errors:
    """Over so many keys."""
    before = dataclasses.replace(plan, counted=None)
    secrets = (NoiseKey(bytes([key + 1]) * KEY_BYTES) for key in range(keys))
    fits = (chain.fit(before, lambda: train.blocks(8192), secret) for secret in secrets)
    found = ((final.state, final.covariance) for final in fits)
    exact = geometry.moments(train, plan.shape.classes)
    return simulation.errors_of(found, exact, test, count_error(plan, train))


def count_error(plan: Plan, train: Rows) -> float:
    """Of class counts, over many keys: the first step takes no time, and few counts say little."""
    stage, classes = plan.stages[0], plan.shape.classes
    exact, multipliers = np.bincount(train.classes, minlength=classes), plan.multipliers(stage)
    sums = {"count": exact}
    squares = []
    for key in range(COUNT_KEYS):
        secret = NoiseKey(key.to_bytes(KEY_BYTES, "little"))
        noisy = add_noise(stage.queries, sums, multipliers, secret)
        counts = stage.advance(FitState(), noisy, multipliers).state.class_counts.counts
        squares.append(((counts - exact) ** 2).mean())
    return math.sqrt(np.mean(squares))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fashion-mnist", nargs=2, metavar=("TRAIN", "TEST"))
    parser.add_argument("--keys", type=int, default=6)
    parser.add_argument("--geometry", action="store_true", help="print the geometries and end")
    parser.add_argument("--only", help="of the cases, the one of this name")
    arguments = parser.parse_args()
    worst = 0.0
    if not arguments.geometry:
        print("| data | epsilon | class count | class mean | covariance | a logit | its size |")
        print("|---|---|---|---|---|---|---|", flush=True)
    for name, (train, test, epsilons) in cases(arguments.fashion_mnist).items():
        if arguments.only not in (None, name):
            continue
        classes, dimension = int(train.classes.max()) + 1, train.values.shape[1]
        found = geometry.measured(train, classes)
        if arguments.geometry:
            print(name, found, flush=True)
            continue
        for epsilon in epsilons:
            plan = plan_of(classes, dimension, epsilon, len(train))
            keys = arguments.keys if len(train) * dimension < 1e6 else min(arguments.keys, 3)
            start = time.perf_counter()
            real = measure(plan, train, test, keys)
            middle = time.perf_counter()
            predicted = simulation.simulate(plan, len(train), found)
            took = middle - start, time.perf_counter() - middle
            pairs = [
                (predicted.counts, real.counts),
                (predicted.means, real.means),
                (predicted.covariance, real.covariance),
                (predicted.logit, real.logit),
            ]
            cells = [f"{ours:.3g} / {theirs:.3g} ({ours / theirs - 1:+.0%})" for ours, theirs in pairs]
            cells.append(f"{predicted.logit_size:.3g} / {real.logit_size:.3g}")
            print("| " + " | ".join([name, f"{epsilon:g}", *cells]) + " |", flush=True)
            print(f"{took[0]:.1f} s measured, {took[1]:.1f} s predicted", file=sys.stderr, flush=True)
            worst = max(worst, *(abs(ours / theirs - 1) for ours, theirs in pairs))
    print(f"\nlargest deviation {worst:.0%}", file=sys.stderr)
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
