"""What a known noise level says about a noisy statistic.

Every noise here was added by us, so its variance is known exactly; estimates
are moved towards what the noise cannot explain.
"""

import itertools

import numpy as np

from dpgmm_beam.linalg import one_thread


def shrink_rows(rows: np.ndarray, target: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Moves noisy vectors towards a target by the share that the noise explains.

    Positive-part James and Stein (1961): row i is kept by the factor
    max(0, 1 - d v_i / |row_i - target|^2).

    Args:
      rows: (n, d) noisy vectors.
      target: (d,) or (n, d).
      variances: (n,) noise variance of each coordinate of each row.
    """
    offsets = rows - target
    energy = np.maximum((offsets**2).sum(axis=1), np.finfo(float).tiny)
    kept = np.maximum(0.0, 1.0 - rows.shape[1] * variances / energy)
    return target + offsets * kept[:, None]


def shrink_by_blocks(moves: np.ndarray, weights: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Noisy moves of many centres, times t / (t + v): v a move's noise, t the variance of true moves.

    Empirical Bayes (Efron and Morris 1973): t is what the moves of all centres show
    beyond noise, block by block of the coordinates (2, 2, 4, 8, ...).

    Args:
      moves: (n, r), coordinates in the order of their spread.
      weights: (n,) of the centres, where t is estimated.
      variances: (n,) noise variance of each coordinate of each move.
    """
    r = moves.shape[1]
    edges = [0, *(2**power for power in range(1, 14) if 2**power < r), r]
    shrunk = moves.copy()
    for low, high in itertools.pairwise(edges):
        squares = (moves[:, low:high] ** 2).mean(axis=1)
        shrunk[:, low:high] *= shared_factors(squares, weights, variances)[:, None]
    return shrunk


def shared_factors(squares: np.ndarray, weights: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """The factors t / (t + v) of `shrink_by_blocks`, (n,), from mean squares of noisy coordinates, (n,)."""
    true = max(float((weights * (squares - variances)).sum() / weights.sum()), 0.0)
    return true / (true + variances)


EDGE = 2.0
"""How far an eigenvalue must lie beyond the noise's edge to be seen, in its fluctuations."""

LEAST_EIGENVALUE = 0.02
"""Of an estimated covariance, as a share of the mean one."""


def shrink_moment(
    moment: np.ndarray, stddev: float, trace: float, prior: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and vectors of a covariance, from a noisy second moment.

    The noise is a symmetric Gaussian matrix of standard deviation `stddev`
    on the diagonal and stddev / sqrt 2 off it: a Wigner matrix of variance
    v = d stddev^2 / 2, whose spectrum fills a semicircle of radius
    2 sqrt(v).  The best estimate that keeps the noisy eigenvectors has
    eigenvalues w - 2 v Re g(w), g the resolvent's trace just off the real axis
    (Bun, Allez, Bouchaud and Potters 2016, table 1).  For an isolated
    eigenvalue that is l (1 - v / l^2) with w = l + v / l; inside the semicircle
    the spectrum is flattened smoothly instead of being cut.  Then the estimate
    is made monotone, held above a fiftieth of the mean and given its trace.  With a
    prior all this is done to what the moment says beyond it.

    Args:
      moment: (d, d) symmetric.
      stddev: noise on a diagonal entry.
      trace: what the eigenvalues must sum to.
      prior: (d,) variances of the coordinates that are known without the moment.

    Returns:
      Eigenvalues (d,), descending and positive, and eigenvectors (d, d) in columns, each
      with its largest entry positive.
    """
    dimension = len(moment)
    if prior is None:
        values, vectors = _denoised(moment, stddev)
    else:
        with one_thread():
            beyond = moment - np.diag(prior)
            values, vectors = _denoised(beyond, stddev)
            # The edge of a matrix's noise fluctuates by its radius over d^(2/3) (Tracy and Widom 1994);
            # where nothing lies clearly beyond it, the prior is all that is known.
            edge = noise_radius(dimension, stddev) * (1 + EDGE * dimension ** (-2 / 3))
            if np.abs(np.linalg.eigvalsh(beyond)).max() <= edge:
                values = np.zeros(dimension)
            values, vectors = np.linalg.eigh((vectors * values) @ vectors.T + np.diag(prior))
    return _kept_spectrum(values, vectors, trace)


def spectrum(matrix: np.ndarray, trace: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and vectors of a covariance as `shrink_moment` gives them."""
    with one_thread():
        return _kept_spectrum(*np.linalg.eigh(matrix), trace)


def _kept_spectrum(values: np.ndarray, vectors: np.ndarray, trace: float) -> tuple[np.ndarray, np.ndarray]:
    """Descending, positive and of this trace, from eigenvalues ascending."""
    # LAPACK leaves the sign to the processor: the largest entry is positive.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(vectors))])
    values = np.maximum(values, LEAST_EIGENVALUE * trace / len(values))
    values *= trace / values.sum()
    return values[::-1], vectors[:, ::-1]


def _denoised(moment: np.ndarray, stddev: float) -> tuple[np.ndarray, np.ndarray]:
    """Estimated eigenvalues, ascending and of either sign, and the noisy eigenvectors."""
    dimension = len(moment)
    with one_thread():
        observed, vectors = np.linalg.eigh(moment)
    variance = dimension * stddev**2 / 2
    offset = 2 * np.sqrt(variance / dimension)
    resolvent = np.empty(dimension)
    for index, value in enumerate(observed):
        differences = value - observed
        resolvent[index] = (differences / (differences**2 + offset**2)).sum() / dimension
    return np.maximum.accumulate(observed - 2 * variance * resolvent), vectors


def noise_radius(dimension: int, stddev: float) -> float:
    """Largest eigenvalue of the symmetric noise of `shrink_moment`."""
    return float(np.sqrt(2.0 * dimension) * stddev)
