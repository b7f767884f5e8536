"""What a known noise level says about a noisy statistic.

Every noise here was added by us, so its variance is known exactly; estimates
are moved towards what the noise cannot explain.
"""

import numpy as np

from dpgmm_beam.algebra import one_thread


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


def shrink_moment(moment: np.ndarray, deviation: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and vectors of a covariance, from a noisy second moment.

    The noise is a symmetric Gaussian matrix of standard deviation `deviation`
    on the diagonal and deviation / sqrt 2 off it: its spectrum fills a
    semicircle of radius 2 v, v^2 = d deviation^2 / 2 (Wigner 1955).  An
    eigenvalue w inside it carries nothing.  One outside it comes from a true
    l with w = l + v^2 / l, along a direction that keeps 1 - v^2 / l^2 of the
    truth (Benaych-Georges and Nadakuditi 2011), so l is damped by that much.
    What is left of the trace is spread evenly over all directions.

    Args:
      moment: (d, d) symmetric.
      deviation: noise on a diagonal entry.

    Returns:
      Eigenvalues (d,), descending and positive, and eigenvectors (d, d) in columns.
    """
    dimension = len(moment)
    with one_thread():
        observed, vectors = np.linalg.eigh(moment)
    observed, vectors = observed[::-1], vectors[:, ::-1]
    variance = dimension * deviation**2 / 2
    outside = observed > 2 * np.sqrt(variance)
    corrected = np.zeros(dimension)
    w = observed[outside]
    true = (w + np.sqrt(w**2 - 4 * variance)) / 2
    corrected[outside] = true - variance / true
    trace = np.trace(moment)
    # The trace itself is noisy; never less than what its noise could hide.
    floor = max(deviation * np.sqrt(dimension), np.finfo(float).eps)
    left = max(trace - corrected.sum(), 1e-3 * max(trace, floor))
    return corrected + left / dimension, vectors


def shrink_towards_identity(moments: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """Class second moments in whitened coordinates, moved towards the identity.

    The kept share is what the noise cannot explain of the distance from the
    identity, in the Frobenius norm of the isometric vector; then eigenvalues
    are held within [1/8, 8], for a whitened class is not far from the identity.

    Args:
      moments: (C, r, r) noisy.
      deviations: (C,) noise on a diagonal entry.
    """
    r = moments.shape[1]
    identity = np.eye(r)
    offsets = moments - identity
    energy = np.maximum((offsets**2).sum(axis=(1, 2)), np.finfo(float).tiny)
    kept = np.maximum(0.0, 1.0 - r * (r + 1) / 2 * deviations**2 / energy)
    result = identity + offsets * kept[:, None, None]
    with one_thread():
        values, vectors = np.linalg.eigh(result)
    values = np.clip(values, 0.125, 8.0)
    return (vectors * values[:, None, :]) @ vectors.transpose(0, 2, 1)
