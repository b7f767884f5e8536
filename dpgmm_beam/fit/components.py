"""The last step: the released mixture from what the steps before it have released."""

import numpy as np

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.fit.covariance import BASIS_BITS
from dpgmm_beam.fit.state import Covariance, FitState
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.mixture import Mixture
from dpgmm_beam.privacy import lattice

MIN_VARIANCE = 0.001
"""Least variance of a component, as a share of the pooled one in that direction."""

RELEASED_BITS = 26
"""Covariances and basis are released in steps of 2**-26."""


def mixture_of(config: ReleaseConfig, state: FitState, pooled: Covariance) -> Mixture:
    """The released mixture.

    Args:
      state: after the last stage.
      pooled: the covariance that the fit found.
    """
    assert state.class_means is not None
    clip_norm = config.clip_norm or 1.0
    basis = pooled.basis * 2.0**-BASIS_BITS
    class_weights = state.class_means.counts / state.class_means.counts.sum()
    count, r = len(class_weights), min(config.method.subspace_dim, config.dimension)
    means = state.class_means.means[:, None, :] / lattice.UNIT
    weights, covariance = np.ones((count, 1)), np.eye(r)
    if state.components is not None:
        weights = state.components.counts / state.components.counts.sum(axis=1, keepdims=True)
        offsets = state.components.means / lattice.UNIT - means
        means = means + offsets
        shares = class_weights[:, None] * weights
        covariance, basis = within_covariance(offsets, shares, basis, r, state.components.residual_square)
    return Mixture(
        classes=config.classes,
        class_weights=class_weights,
        weights=weights,
        means=means * clip_norm,
        covariances=np.broadcast_to(covariance, (count, weights.shape[1], r, r)),
        basis=basis * clip_norm,
        normalized=config.clip_norm is None,
        clip_norm=clip_norm,
    )


def within_covariance(
    offsets: np.ndarray, shares: np.ndarray, basis: np.ndarray, subspace_dim: int, residual_square: float
) -> tuple[np.ndarray, np.ndarray]:
    """What is left of the pooled covariance B B^T when the centres have explained their part.

    In the coordinates of B the centres explain E = sum of share x offset offset^T;
    I - E is taken as a full matrix on the first r coordinates and as a diagonal
    one on the rest.  Differences of noisy figures say little where nearly all is
    explained, so variances are held above one floor (as in water-filling), the one
    at which the trace is the released mean squared residual.

    Args:
      offsets: (C, K, d), of the components from their class's mean.
      shares: (C, K), summing to 1.
      basis: (d, d), orthogonal columns.

    Returns:
      The covariance on the first coordinates (r, r), and the basis with its
      other columns scaled.
    """
    with one_thread():
        variances = np.maximum((basis**2).sum(axis=0), np.finfo(float).tiny)
        whitened = (offsets.reshape(-1, len(basis)) @ (basis / variances)) * np.sqrt(shares.reshape(-1, 1))
        first = whitened[:, :subspace_dim]
        values, vectors = np.linalg.eigh(np.eye(subspace_dim) - first.T @ first)
        sizes = np.concatenate([variances[:subspace_dim] @ vectors**2, variances[subspace_dim:]])
        values = np.concatenate([values, 1.0 - (whitened[:, subspace_dim:] ** 2).sum(axis=0)])
        low, high = MIN_VARIANCE, 1.0
        for _ in range(30):
            middle = np.sqrt(low * high)
            above = sizes @ np.clip(values, middle, 1.0) > residual_square
            low, high = (low, middle) if above else (middle, high)
        values = np.clip(values, low, 1.0)
        # Where even the least floor leaves too much, all of it is scaled.
        values *= np.clip(residual_square / (sizes @ values), MIN_VARIANCE, 1.0)
        values = np.maximum(values, MIN_VARIANCE)
        covariance = (vectors * values[:subspace_dim]) @ vectors.T
        scales = np.concatenate([np.ones(subspace_dim), np.sqrt(values[subspace_dim:])])
    return _rounded(covariance), _rounded(basis * scales)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Without the last bits, which are the processor's, and the sign of what is zero without them."""
    return np.rint(values * 2.0**RELEASED_BITS) * 2.0**-RELEASED_BITS + 0.0
