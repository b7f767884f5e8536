"""Recovery of known Gaussian mixtures: error of weights, means and covariances against n.

    python benchmarks/recovery.py [--full] [--figure docs/figures/recovery.png]

Mixtures have k spherical components of standard deviation s a coordinate; centres are
random directions, all of one length, scaled so that the least distance between two is
a stated multiple of s; weights are between half and one and a half of 1/k.  Components
are matched by the Hungarian method on distances of means.  Errors: means, root mean
square distance over s sqrt(d); covariances, Frobenius norm over the truth's; weights,
sum of absolute differences.  The sampling share is the error of the same fit without
noise; the privacy share is the distance between the fits with and without noise.
Weights need several draws: the error of a draw's own label counts varies by half its
size, and is nearly the whole sampling share.

Found: a component with a released mean within half the least distance of its own.
Kamath, Sheffet, Singhal and Ullman (2019) prove recovery by private PCA and clustering
for separations of the order of sqrt(k) + sqrt(log n) standard deviations.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.fit.stage import Stage
from dpgmm_beam.mixture import Mixture
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.noise import NoiseKey

EPSILON, DELTA, BLOCK = 1.0, 1e-5, 16384
NO_NOISE = 1e-3
"""Multiplier that the fit without noise is told of."""


class Truth:
    """A mixture scaled so that nearly all rows have norm under 1."""

    def __init__(self, k: int, d: int, separation: float, seed: int):
        generator = np.random.default_rng(seed)
        directions = generator.standard_normal((k, d))
        directions /= np.linalg.norm(directions, axis=1)[:, None]
        gaps = np.linalg.norm(directions[:, None] - directions, axis=2) + 2 * np.eye(k)
        length = separation / gaps.min()
        self.deviation = 0.9 / np.sqrt(length**2 + (np.sqrt(d) + 2) ** 2)
        self.means = directions * length * self.deviation
        weights = generator.uniform(0.5, 1.5, k)
        self.weights = weights / weights.sum()
        self.separation = separation
        self.generator = generator

    def draw(self, n: int) -> np.ndarray:
        labels = self.generator.choice(len(self.weights), n, p=self.weights)
        noise = self.generator.standard_normal((n, self.means.shape[1]), dtype=np.float32)
        return (self.means[labels] + self.deviation * noise).astype(np.float32)

    def matched(self, mixture: Mixture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights, means and covariance of a release, in the truth's order."""
        distances = np.linalg.norm(self.means[:, None] - mixture.means[0], axis=2)
        _, order = linear_sum_assignment(distances)
        r = mixture.covariances.shape[2]
        inner = np.eye(mixture.dimension)
        inner[:r, :r] = mixture.covariances[0, 0]
        return mixture.weights[0][order], mixture.means[0][order], mixture.basis @ inner @ mixture.basis.T

    def distances(self, one, other) -> tuple[float, float, float]:
        """(weights, means, covariance) distances of two matched mixtures."""
        d = self.means.shape[1]
        scale = self.deviation * np.sqrt(d)
        return (
            float(np.abs(one[0] - other[0]).sum()),
            float(np.sqrt(((one[1] - other[1]) ** 2).sum(axis=1).mean()) / scale),
            float(np.linalg.norm(one[2] - other[2]) / (self.deviation**2 * np.sqrt(d))),
        )

    def itself(self):
        return self.weights, self.means, self.deviation**2 * np.eye(self.means.shape[1])

    def found(self, mixture: Mixture) -> int:
        distances = np.linalg.norm(self.means[:, None] - mixture.means[0], axis=2)
        return int((distances.min(axis=1) < self.separation * self.deviation / 2).sum())


def release(plan: Plan, rows: Rows, key: int | None) -> Mixture:
    """The released mixture; key None: the same stages without noise."""
    secret = NoiseKey(bytes([key or 0]) * 32)
    if key is None:
        plan = WithoutNoise(plan.config, plan.release_id)
    return chain.released_mixture(chain.fit(plan, lambda: rows.blocks(BLOCK), secret))


class WithoutNoise(Plan):
    """A plan that adds next to no noise: not private."""

    def multipliers(self, stage: Stage) -> dict[str, float]:
        return dict.fromkeys(super().multipliers(stage), NO_NOISE)


def plan_of(k: int, d: int) -> Plan:
    config = ReleaseConfig(
        "recovery", ("all",), d, EPSILON, DELTA, clip_norm=1.0, components=k, method=Method(teacher_steps=0)
    )
    return Plan(config, "recovery")


def rows_of(values: np.ndarray) -> Rows:
    lattice_values, kept = lattice.quantise_rows(values, 1.0)
    return Rows(lattice_values.astype(np.int16), np.zeros(int(kept.sum()), np.int32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="k to 64, d to 256, n to a million")
    parser.add_argument("--draws", type=int, default=8, help="mixtures averaged at each size")
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/recovery.png"))
    arguments = parser.parse_args()
    cases = [(4, 32, 8.0), (16, 32, 8.0)]
    sizes = [10_000, 30_000, 100_000]
    scans = [(16, 32, 30_000)]
    if arguments.full:
        cases = [(4, 32, 8.0), (16, 64, 12.0), (64, 256, 16.0)]
        sizes = [10_000, 30_000, 100_000, 300_000, 1_000_000]
        scans = [(4, 32, 10_000), (16, 64, 100_000), (64, 256, 300_000)]

    curves = {}
    for k, d, separation in cases:
        plan, results = plan_of(k, d), []
        for n in sizes:
            errors, found = [], []
            for repeat in range(arguments.draws):
                truth = Truth(k, d, separation, repeat)
                rows = rows_of(truth.draw(n))
                noisy, quiet = release(plan, rows, repeat), release(plan, rows, None)
                pair = truth.matched(noisy), truth.matched(quiet)
                errors.append(
                    [
                        truth.distances(pair[0], truth.itself()),
                        truth.distances(pair[1], truth.itself()),
                        truth.distances(*pair),
                    ]
                )
                found.append(truth.found(noisy))
            results.append(np.mean(errors, axis=0))
            text = "  ".join(f"{total:.4f}={s:.4f}+{p:.4f}" for total, s, p in results[-1].T)
            print(
                f"k {k} d {d} separation {separation} n {n}: found {min(found)}+; weights means cov {text}",
                flush=True,
            )
        curves[k, d, separation] = np.array(results)
        for column, part in ((1, "sampling"), (2, "privacy")):
            slopes = [
                np.polyfit(np.log(sizes), np.log(np.array(results)[:, column, item]), 1)[0]
                for item in range(3)
            ]
            print(f"  slope of the {part} share: " + " ".join(f"{slope:.2f}" for slope in slopes), flush=True)

    for k, d, n in scans:
        plan = plan_of(k, d)
        for separation in (2, 3, 4, 5, 6, 8, 12):
            found = []
            for repeat in range(2):
                truth = Truth(k, d, separation, 10 + repeat)
                found.append(truth.found(release(plan, rows_of(truth.draw(n)), repeat)))
            print(f"k {k} d {d} n {n} separation {separation}: found {found} of {k}", flush=True)
    plot(sizes, curves, arguments.figure)


def plot(sizes: list[int], curves: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharex=True)
    for item, name in enumerate(("weights", "means", "covariance")):
        for colour, ((k, d, separation), results) in enumerate(curves.items()):
            label = f"k {k}, d {d}, separation {separation:g}"
            axes[item].loglog(sizes, results[:, 1, item], "--", color=f"C{colour}")
            axes[item].loglog(sizes, results[:, 2, item], ":", color=f"C{colour}")
            axes[item].loglog(sizes, results[:, 0, item], "o-", color=f"C{colour}", label=label)
        axes[item].set(title=f"error of {name}", xlabel="rows")
    axes[0].legend(fontsize=8)
    figure.suptitle("Recovery at epsilon 1: whole error (solid), sampling (dashed), privacy (dotted)")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
