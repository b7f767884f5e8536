"""k-means cost of private clustering over that of k-means without privacy.

    python benchmarks/clustering.py [--embeddings train.npy --labels train_y.npy] [--baselines]

Runs the release's own code (`Plan`, `chain.fit`) in memory.  The cost is the sum of
squared distances of the rows, as they were given (real ones normalised), to the
nearest released centre of their class, in the full space; the baseline is
scikit-learn's k-means++, the best of five starts, on the same rows.

The separated mixtures are those of the usual generator, google/differential-privacy
`learning/clustering/demo/data_generation.py`: k centres uniform in the ball of radius
1 - 1/s, rows normal round them with variance 1/(s^2 d) a coordinate, so that a row
lies about 1/s from its centre, clipped to norm 1; equal sizes.  s, 8 or 2 here, is its
"ratio of the intercluster to the intracluster distance".  clip_norm is 1.

The baseline is plain private Lloyd (Su et al. 2016): random starts in the unit ball,
as many rounds of noisy counts and sums at half the budget each; diffprivlib's
k-means (pure epsilon) runs where it is installed, with --baselines.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.noise import NoiseKey

DELTA = 1e-5
BLOCK = 4096


def separated_mixture(n: int, d: int, k: int, ratio: float, seed: int = 0) -> np.ndarray:
    """Rows of the generator described above, (n, d) float32."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((k, d))
    radii = (1 - 1 / ratio) * generator.random(k) ** (1 / d)
    centres *= (radii / np.linalg.norm(centres, axis=1))[:, None]
    rows = centres[np.arange(n) % k] + generator.standard_normal((n, d)) / (ratio * np.sqrt(d))
    return (rows / np.maximum(1.0, np.linalg.norm(rows, axis=1))[:, None]).astype(np.float32)


def cost(rows: np.ndarray, labels: np.ndarray, centres: np.ndarray) -> float:
    """Sum of squared distances to the nearest centre, of (C, K, d), of each row's class."""
    total = 0.0
    for start in range(0, len(rows), BLOCK):
        part, classes = rows[start : start + BLOCK].astype(np.float64), labels[start : start + BLOCK]
        for c in np.unique(classes):
            own, chosen = centres[c], part[classes == c]
            squares = (chosen**2).sum(axis=1)[:, None] + (own**2).sum(axis=1) - 2 * chosen @ own.T
            total += squares.min(axis=1).sum()
    return total


def private_centres(
    rows: np.ndarray,
    labels: np.ndarray,
    k: int,
    epsilon: float,
    clip_norm: float | None,
    key: int,
    rounds: int | None,
) -> np.ndarray:
    """Centres (C, K, d) of a release of which clustering is all that is wanted."""
    classes = tuple(str(c) for c in range(int(labels.max()) + 1))
    config = ReleaseConfig(
        "benchmark",
        classes,
        rows.shape[1],
        epsilon,
        DELTA,
        clip_norm=clip_norm,
        components=k,
        rounds=rounds,
        method=Method(teacher_steps=0),
    )
    values, kept = lattice.quantise_rows(rows, clip_norm)
    block = Rows(values.astype(np.int16), labels[kept].astype(np.int32))
    plan = Plan(config, "benchmark")
    final = chain.fit(plan, lambda: block.blocks(BLOCK), NoiseKey(bytes([key]) * 32))
    return chain.released_mixture(final).means


def plain_private_lloyd(
    rows: np.ndarray, labels: np.ndarray, k: int, epsilon: float, key: int, rounds: int
) -> np.ndarray:
    """Su et al. 2016 with Gaussian noise: rows in the unit ball, half of each round for counts."""
    import dp_accounting

    generator = np.random.default_rng(key)
    multiplier = dp_accounting.get_sigma_gaussian(epsilon, DELTA) * np.sqrt(2 * rounds)
    result = []
    for c in range(int(labels.max()) + 1):
        own = rows[labels == c].astype(np.float64)
        centres = generator.standard_normal((k, rows.shape[1]))
        centres *= (generator.random(k) ** (1 / rows.shape[1]) / np.linalg.norm(centres, axis=1))[:, None]
        for _ in range(rounds):
            nearest = ((centres**2).sum(axis=1) - 2 * own @ centres.T).argmin(axis=1)
            one_hot = np.eye(k)[nearest]
            counts = one_hot.sum(axis=0) + multiplier * generator.standard_normal(k)
            totals = one_hot.T @ own + multiplier * generator.standard_normal(centres.shape)
            moved = totals / np.maximum(counts, 1)[:, None]
            moved /= np.maximum(1, np.linalg.norm(moved, axis=1))[:, None]
            centres = np.where(counts[:, None] > 0, moved, centres)
        result.append(centres)
    return np.stack(result)


def diffprivlib_centres(rows: np.ndarray, labels: np.ndarray, k: int, epsilon: float, key: int) -> np.ndarray:
    """diffprivlib's k-means, pure epsilon, in the cube of side 2; rows summed by the box's bounds."""
    from diffprivlib.models import KMeans

    bounds = (-np.ones(rows.shape[1]), np.ones(rows.shape[1]))
    return np.stack(
        [
            KMeans(k, epsilon=epsilon, bounds=bounds, random_state=key)
            .fit(rows[labels == c])
            .cluster_centers_
            for c in range(int(labels.max()) + 1)
        ]
    )


def reference(name: str, rows: np.ndarray, labels: np.ndarray, k: int, cache: Path | None) -> float:
    """Cost of k-means++ without privacy, kept in the cache."""
    known = json.loads(cache.read_text()) if cache and cache.exists() else {}
    if name not in known:
        from sklearn.cluster import KMeans

        known[name] = sum(
            float(KMeans(k, n_init=5, random_state=0).fit(rows[labels == c]).inertia_)
            for c in range(int(labels.max()) + 1)
        )
        if cache:
            cache.write_text(json.dumps(known))
    return known[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embeddings", help=".npy of real rows")
    parser.add_argument("--labels", help=".npy of their labels")
    parser.add_argument("--keys", type=int, default=3)
    parser.add_argument("--rounds", type=int, help="the release's default unless given")
    parser.add_argument("--only", default="", help="part of a problem's name")
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--cache", type=Path, help="JSON of costs without privacy")
    arguments = parser.parse_args()

    problems = []
    for n, d, k in ((60_000, 128, 10), (60_000, 128, 64), (5_000, 512, 10)):
        for ratio in (8, 2):
            problems.append((f"mixture {n} x {d}, k = {k}, ratio {ratio}", n, d, k, ratio))
    if arguments.embeddings:
        problems = [("real, k = 10 a class", 0, 0, 10, 0), ("real, k = 64", 0, 0, 64, 0), *problems]
    print("cost over k-means without privacy: mean and spread (max - min) over keys; seconds a fit")
    for name, n, d, k, ratio in problems:
        if arguments.only not in name:
            continue
        if n:
            rows, labels, clip_norm = separated_mixture(n, d, k, ratio), np.zeros(n, np.int64), 1.0
        else:
            rows, clip_norm = np.load(arguments.embeddings), None
            rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
            labels = np.load(arguments.labels) if "class" in name else np.zeros(len(rows), np.int64)
        base = reference(name, rows, labels, k, arguments.cache)
        for epsilon in (1, 10) if n else (1, 8):
            began = time.monotonic()
            costs = [
                cost(
                    rows, labels, private_centres(rows, labels, k, epsilon, clip_norm, key, arguments.rounds)
                )
                / base
                for key in range(arguments.keys)
            ]
            seconds = (time.monotonic() - began) / arguments.keys
            line = f"{name:40s} epsilon {epsilon:2d}  ours {np.mean(costs):.4f} ({np.ptp(costs):.4f})"
            line += f"  {seconds:.0f} s"
            if arguments.baselines:
                baseline = cost(rows, labels, plain_private_lloyd(rows, labels, k, epsilon, 0, 4)) / base
                line += f"  plain private Lloyd {baseline:.2f}"
                try:
                    baseline = cost(rows, labels, diffprivlib_centres(rows, labels, k, epsilon, 0)) / base
                    line += f"  diffprivlib {baseline:.2f}"
                except ImportError:
                    line += "  diffprivlib not installed"
            print(line, flush=True)


if __name__ == "__main__":
    main()
