"""k-means of weighted integer points, the same on any machine."""

import numpy as np

from dpgmm_beam.privacy import lattice

RESTARTS, ITERATIONS, TRIALS = 20, 15, 8
"""Starts, steps for each, candidates for each seed."""


def nearest(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Index of the nearest centre, (n, d), (K, d) -> (n,); ties to the lowest, exact for integers."""
    return (lattice.square_norms(centres) - 2.0 * (values @ centres.T)).argmin(axis=1)


def nearest_of_class(values: np.ndarray, classes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """c K + k of the nearest centre of each row's own class, (n, d), (n,), (C, K, d) -> (n,)."""
    components = centres.shape[1]
    cells = classes.astype(np.int64) * components
    for label in np.unique(classes):
        chosen = classes == label
        cells[chosen] += nearest(values[chosen], centres[label].astype(np.float64))
    return cells


def weighted_k_means(
    points: np.ndarray, weights: np.ndarray, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Lloyd's algorithm from the best of several greedy k-means++ starts.

    Arthur and Vassilvitskii 2007.  Points and centres are integers, distances
    exact and sums taken in order: the result is the same on any machine.

    Args:
      points: (n, r) integers, see `lattice`.
      weights: (n,) positive.

    Returns:
      (count, r) integers; some are equal if there are fewer points than that.
    """
    best, best_cost = points[:0], np.inf
    for _ in range(RESTARTS):
        centres = _seeds(points, weights, count, generator)
        for _ in range(ITERATIONS):
            cells = nearest(points, centres)
            mass = np.bincount(cells, weights, minlength=count)
            totals = np.zeros_like(centres)
            np.add.at(totals, cells, points * weights[:, None])
            centres = np.where(mass[:, None] > 0, np.rint(totals / np.maximum(mass, 1)[:, None]), centres)
        cells = nearest(points, centres)
        cost = np.cumsum(weights * lattice.square_norms(points - centres[cells]))[-1]
        if cost < best_cost:
            best, best_cost = centres, cost
    return best


def _seeds(points: np.ndarray, weights: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """k-means++ seeds, each the best of a few candidates."""
    squares = lattice.square_norms(points)

    def distances(index: int) -> np.ndarray:
        return squares + squares[index] - 2.0 * (points @ points[index])

    def draw(masses: np.ndarray, size: int) -> np.ndarray:
        cumulative = np.cumsum(masses)
        drawn = np.searchsorted(cumulative, generator.random(size) * cumulative[-1], side="right")
        return np.minimum(drawn, len(points) - 1)

    seeds = [int(draw(weights, 1)[0])]
    nearest = distances(seeds[0])
    for _ in range(1, count):
        candidates = draw(weights * nearest, TRIALS)
        options = [np.minimum(nearest, distances(index)) for index in candidates]
        chosen = int(np.argmin([np.cumsum(weights * option)[-1] for option in options]))
        seeds.append(int(candidates[chosen]))
        nearest = options[chosen]
    return points[seeds].copy()
