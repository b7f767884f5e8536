"""k-means of weighted integer points, the same on any machine."""

import numpy as np

from dpgmm_beam.privacy import lattice

STARTS, SWAPS, ITERATIONS, TRIALS = 5, 2, 15, 8
"""Starts; for each swaps tried, for each centre, and steps of Lloyd's; candidates for each seed."""


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
    """Lloyd's algorithm from greedy k-means++ seeds bettered by local search; the best of several.

    Arthur and Vassilvitskii 2007; Lattanzi and Sohler 2019.  Points and centres are integers, distances
    exact and sums taken in order: the result is the same on any machine.

    Args:
      points: (n, r) integers, see `lattice`.
      weights: (n,) positive.

    Returns:
      (count, r) integers; some are equal if there are fewer points than that.
    """
    best, best_cost = points[:0], np.inf
    for _ in range(STARTS):
        seeds = _seeds(points, weights, count, generator)
        centres = points[_swapped(points, weights, seeds, generator)]
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


def _distances(points: np.ndarray, squares: np.ndarray, index: int) -> np.ndarray:
    """Squared distances of all points to one, given their square norms."""
    return squares + squares[index] - 2.0 * (points @ points[index])


def _draw(masses: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Indices drawn in proportion to the masses."""
    cumulative = np.cumsum(masses)
    drawn = np.searchsorted(cumulative, generator.random(size) * cumulative[-1], side="right")
    return np.minimum(drawn, len(masses) - 1)


def _seeds(points: np.ndarray, weights: np.ndarray, count: int, generator: np.random.Generator) -> list[int]:
    """Indices of k-means++ seeds, each the best of a few candidates."""
    squares = lattice.square_norms(points)
    seeds = [int(_draw(weights, 1, generator)[0])]
    nearest = _distances(points, squares, seeds[0])
    for _ in range(1, count):
        candidates = _draw(weights * nearest, TRIALS, generator)
        options = [np.minimum(nearest, _distances(points, squares, index)) for index in candidates]
        chosen = int(np.argmin([np.cumsum(weights * option)[-1] for option in options]))
        seeds.append(int(candidates[chosen]))
        nearest = options[chosen]
    return seeds


def _swapped(
    points: np.ndarray, weights: np.ndarray, seeds: list[int], generator: np.random.Generator
) -> list[int]:
    """Seeds of lower cost: points drawn by their share in it take the place of the seed that is missed least.

    Greedy seeds leave clusters without a seed, and others with two, which Lloyd's steps don't mend.
    """
    squares, seeds = lattice.square_norms(points), list(seeds)
    distances = np.stack([_distances(points, squares, index) for index in seeds], axis=1)
    owner, first, second = _two_nearest(distances)
    for _ in range(SWAPS * len(seeds) if len(seeds) > 1 else 0):
        drawn = int(_draw(weights * first, 1, generator)[0])
        new = _distances(points, squares, drawn)
        with_it = np.minimum(first, new)
        without_owner = weights * (np.minimum(second, new) - with_it)
        costs = np.cumsum(weights * with_it)[-1] + np.bincount(owner, without_owner, minlength=len(seeds))
        missed = int(costs.argmin())
        if costs[missed] < np.cumsum(weights * first)[-1]:
            seeds[missed], distances[:, missed] = drawn, new
            owner, first, second = _two_nearest(distances)
    return seeds


def _two_nearest(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The least column of each row, its distance, and that of the next; (n, K) -> three times (n,).

    Not by a partition, whose order among equals is the processor's.
    """
    everyone, owner = np.arange(len(distances)), distances.argmin(axis=1)
    first = distances[everyone, owner]
    distances[everyone, owner] = np.inf
    second = distances.min(axis=1)
    distances[everyone, owner] = first
    return owner, first, second
