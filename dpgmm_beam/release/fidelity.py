"""How alike two samples of rows are, and how sure labels are: measures on arrays.

Nothing here is private by itself: measures of synthetic rows alone are as public as the
rows, and whatever is given a real row returns an exact statistic of it, for its owner only.
Rows are (n, d) arrays and are taken in double precision.  Distances are computed a
block of rows at a time, so that memory grows with n, not with its square.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from dpgmm_beam.errors import ConfigError

NEIGHBOURS = 5
"""Of a ball in `neighbour_measures`, as in the paper."""

WHITENED_DIMENSION = 64
"""Of `Whitening`: beyond a few dozen directions distances concentrate and say little."""

_BLOCK_VALUES = 2**22
_NEWTON_STEPS, _RIDGE = 12, 1e-3


@dataclasses.dataclass(frozen=True)
class Whitening:
    """Rows in the leading principal directions of others, each of variance 1.

    Attributes:
      centre: (d,) mean of the rows that it was made from.
      axes: (d, r), directions over their standard deviations.
    """

    centre: np.ndarray
    axes: np.ndarray

    @staticmethod
    def of(rows: np.ndarray, dimension: int = WHITENED_DIMENSION) -> "Whitening":
        """From the rows themselves; directions without variance are left out.

        Args:
          rows: (n, d), n > 1.
          dimension: how many directions, at most.
        """
        rows = _rows(rows, 2)
        centre = rows.mean(axis=0)
        values, vectors = np.linalg.eigh(covariance(rows))
        values, vectors = values[::-1][:dimension], vectors[:, ::-1][:, :dimension]
        kept = values > max(float(values[0]), 0.0) * rows.shape[1] * np.finfo(float).eps
        return Whitening(centre, vectors[:, kept] / np.sqrt(values[kept]))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The rows (n, d) in these directions, (n, r)."""
        return (np.asarray(rows, np.float64) - self.centre) @ self.axes


@dataclasses.dataclass(frozen=True)
class NeighbourMeasures:
    """What `neighbour_measures` finds; all but density are shares.

    Attributes:
      precision: of the other rows, how many lie within a ball of the real ones.
      recall: of the real rows, how many lie within a ball of the other ones.
      density: within how many real balls another row lies, over how many it should.
      coverage: of the real balls, in how many another row lies.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_measures(real: np.ndarray, other: np.ndarray, k: int = NEIGHBOURS) -> NeighbourMeasures:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The ball of a row has as its radius the distance to the row's k-th nearest neighbour
    in its own sample; its surface is not in it.

    Args:
      real: (n, d), n > k.
      other: (m, d), m > k.

    Raises:
      ConfigError: the shapes do not fit or there are too few rows.
    """
    real, other = _pair(real, other, k + 1)
    real_radii, other_radii = _radii(real, k), _radii(other, k)
    inside = np.zeros(len(other), np.int64)
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for block, squares in _square_distances(real, other):
        within = squares < real_radii[block, None]
        inside += within.sum(axis=0)
        covered[block] = within.any(axis=1)
        recalled[block] = (squares < other_radii).any(axis=1)
    return NeighbourMeasures(
        float((inside > 0).mean()), float(recalled.mean()), float(inside.mean() / k), float(covered.mean())
    )


def frechet_distance(rows: np.ndarray, other: np.ndarray) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians with the samples' means and covariances.

    The measure of Heusel et al. 2017, in whatever space the rows are.  Small samples make
    it too large, so only samples of one size can be compared by it.

    Args:
      rows, other: (n, d) and (m, d), two rows at least.
    """
    rows, other = _pair(rows, other, 2)
    return gaussian_frechet_distance(
        rows.mean(axis=0), covariance(rows), other.mean(axis=0), covariance(other)
    )


def gaussian_frechet_distance(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    """Squared 2-Wasserstein distance of two Gaussians (Dowson and Landau 1982).

    The trace of (A B)^(1/2) is taken as that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric.

    >>> gaussian_frechet_distance(np.zeros(2), np.eye(2), np.array([3.0, 4.0]), 4 * np.eye(2))
    27.0
    """
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ other_covariance @ root)
    cross = np.sqrt(np.maximum(product, 0.0)).sum()
    offset = mean - other_mean
    return float(max(0.0, offset @ offset + np.trace(covariance) + np.trace(other_covariance) - 2 * cross))


def nearest_neighbour_accuracy(rows: np.ndarray, other: np.ndarray) -> float:
    """How often a row's nearest neighbour is of its own sample: a classifier two-sample test.

    Leave-one-out accuracy of the nearest-neighbour classifier (Lopez-Paz and Oquab 2017;
    Xu et al. 2018): one half where both come from one distribution, 1 where they lie apart,
    and less than one half where one sample holds copies of the other.

    Args:
      rows, other: (n, d) each, as many of both, or chance would not be one half.
    """
    rows, other = _pair(rows, other, 2)
    if len(rows) != len(other):
        raise ConfigError("other", f"{len(other)} rows", f"have {len(rows)} rows, as the first sample")
    own = [_nearest(sample, sample) for sample in (rows, other)]
    cross = [_nearest(rows, other), _nearest(other, rows)]
    # Equal distances are no sign of anything: half of them count.
    wins = [(a < b).mean() + 0.5 * (a == b).mean() for a, b in zip(own, cross, strict=True)]
    return float(np.mean(wins))


def linear_accuracy(rows: np.ndarray, other: np.ndarray, folds: int = 5) -> float:
    """Held-out accuracy of a linear classifier that tells the samples apart.

    Ridge logistic regression by Newton's method (Lopez-Paz and Oquab 2017 with the plainest
    of classifiers); fold i tests the rows i, i + folds, ... of both samples.  One half: it
    cannot tell them apart.  It sees differences of means only.

    Args:
      rows, other: (n, d) each, whitened or of some such scale; n of both and at least `folds`.
    """
    rows, other = _pair(rows, other, folds)
    right = []
    for fold in range(folds):
        tests = [np.arange(len(sample)) % folds == fold for sample in (rows, other)]
        weights = _logistic(rows[~tests[0]], other[~tests[1]])
        for sample, test, sign in ((rows, tests[0], -1), (other, tests[1], 1)):
            scores = sign * (sample[test] @ weights[:-1] + weights[-1])
            right.append((scores > 0).mean() + 0.5 * (scores == 0).mean())
    return float(np.mean(right))


def entropies(probabilities: np.ndarray) -> np.ndarray:
    """Entropy of each row of probabilities in bits, (n, C) -> (n,).

    >>> entropies(np.array([[0.5, 0.5], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    positive = np.maximum(np.asarray(probabilities, np.float64), 0.0)
    logs = np.log2(np.where(positive > 0, positive, 1.0))
    return -(positive * logs).sum(axis=1) + 0.0


def effective_numbers(weights: np.ndarray) -> np.ndarray:
    """How many equal weights are as spread as these, (n, K) -> (n,): two to the power of the entropy.

    >>> effective_numbers(np.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])).tolist()
    [4.0, 1.0]
    """
    return 2.0 ** entropies(weights)


def covariance(rows: np.ndarray) -> np.ndarray:
    """Unbiased covariance of rows, (n, d) -> (d, d)."""
    rows = _rows(rows, 2)
    residuals = rows - rows.mean(axis=0)
    return residuals.T @ residuals / (len(rows) - 1)


def _rows(rows: np.ndarray, least: int = 1) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or len(rows) < least:
        raise ConfigError("rows", f"an array of shape {rows.shape}", f"have shape (n, d) with n >= {least}")
    return rows


def _pair(rows: np.ndarray, other: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    rows, other = _rows(rows, least), _rows(other, least)
    if rows.shape[1] != other.shape[1]:
        raise ConfigError("other", f"an array of shape {other.shape}", f"have shape (m, {rows.shape[1]})")
    return rows, other


def _square_distances(rows: np.ndarray, other: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows and their squared distances to all of the others, (b, m)."""
    squares, other_squares = (rows**2).sum(axis=1), (other**2).sum(axis=1)
    step = max(1, _BLOCK_VALUES // len(other))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        found = squares[block, None] + other_squares - 2 * (rows[block] @ other.T)
        yield block, np.maximum(found, 0.0, out=found)


def _within(rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """As `_square_distances` in one sample, where a row is no neighbour of its own."""
    for block, squares in _square_distances(rows, rows):
        own = np.arange(len(squares))
        squares[own, block.start + own] = np.inf
        yield block, squares


def _radii(rows: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each row to its k-th nearest neighbour."""
    return np.concatenate([np.partition(squares, k - 1, axis=1)[:, k - 1] for _, squares in _within(rows)])


def _nearest(rows: np.ndarray, other: np.ndarray) -> np.ndarray:
    blocks = _within(rows) if other is rows else _square_distances(rows, other)
    return np.concatenate([squares.min(axis=1) for _, squares in blocks])


def _logistic(negative: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Weights and bias, (d + 1,), of which a positive score means the second sample."""
    from scipy.special import expit

    rows = np.concatenate([negative, positive])
    design = np.column_stack([rows, np.ones(len(rows))])
    targets = np.concatenate([np.zeros(len(negative)), np.ones(len(positive))])
    ridge = np.full(design.shape[1], _RIDGE * len(rows))
    ridge[-1] = _RIDGE
    weights = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        chances = expit(design @ weights)
        gradient = design.T @ (chances - targets) + ridge * weights
        curvature = (design * np.maximum(chances * (1 - chances), 1e-9)[:, None]).T @ design
        weights = weights - np.linalg.solve(curvature + np.diag(ridge), gradient)
    return weights
