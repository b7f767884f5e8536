"""The last step: the released mixture from what the steps before it have released."""

import numpy as np

from dpgmm_beam import linalg
from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.fit import scatter
from dpgmm_beam.fit.covariance import BASIS_BITS
from dpgmm_beam.fit.state import Covariance, FitState
from dpgmm_beam.mixture import Mixture
from dpgmm_beam.privacy import lattice

RELEASED_BITS = 26
"""Covariances are released in steps of 2**-26."""

MOST_FOUND = 1.5
"""Most that the variance beyond the shapes may be of what the pooled covariance has there."""


def mixture_of(config: ReleaseConfig, state: FitState, pooled: Covariance) -> Mixture:
    """The released mixture.

    With B the pooled basis and, in its first directions, L what centres leave of the pooled
    variance, A the root of a class's shape, s and F scale and own shape of a component, its covariance
    is B diag(S, I) B^T with S = sqrt(L) A diag(s F F, s I) A sqrt(L).

    Args:
      state: after the last stage.
      pooled: the covariance that the fit found.
    """
    assert state.class_means is not None
    assert state.subspace is not None
    assert state.components is not None
    assert state.shapes is not None
    clip_norm = config.clip_norm or 1.0
    basis = pooled.basis * 2.0**-BASIS_BITS
    counts, shapes = state.components.counts, state.shapes
    used = shapes.roots.shape[1]
    # A direction of the view is a column of the basis, over its length.
    columns = basis[:, : len(state.subspace.steps)]
    directions = columns / np.sqrt((columns**2).sum(axis=0))
    real = state.components.centres * state.subspace.steps
    means = state.class_means.means[:, None, :] / lattice.UNIT + lattice.exact_product(real, directions.T)
    if state.components.beyond is not None:
        means = means + state.components.beyond / lattice.UNIT
    covariances = np.empty((*counts.shape, used, used))
    for label, root in enumerate(shapes.roots.astype(np.float64)):
        left = np.sqrt(shapes.left[:used].astype(np.float64))[:, None] * root
        for component in range(counts.shape[1]):
            own = left.copy()
            if shapes.factors is not None:
                h = shapes.own_directions
                own[:, :h] = left[:, :h] @ shapes.factors[label, component].astype(np.float64)
            scale = 1.0 if shapes.scales is None else float(shapes.scales[label, component])
            covariances[label, component] = scale * (own @ own.T)
    # Beyond the shapes only the axes shrink by what the centres explain.
    lengths = np.ones(len(basis))
    lengths[used : len(shapes.left)] = np.sqrt(shapes.left[used:].astype(np.float64))
    shares = state.class_means.counts / state.class_means.counts.sum()
    weights = counts / counts.sum(axis=1, keepdims=True)
    if state.components.whole_square is not None:
        squares = (basis**2).sum(axis=0) * lengths**2
        shaped = np.einsum("c,ck,ckrr,r->", shares, weights, covariances, squares[:used])
        lengths[used:] *= _kept(state.components.whole_square - float(shaped), float(squares[used:].sum()))
    return Mixture(
        classes=config.classes,
        class_weights=shares,
        weights=weights,
        means=means * clip_norm,
        covariances=linalg.rounded(covariances, RELEASED_BITS),
        basis=basis * lengths * clip_norm,
        normalized=config.clip_norm is None,
        clip_norm=clip_norm,
    )


def _kept(found: float, expected: float) -> float:
    """By what deviations beyond the shapes are multiplied, for their variances to sum to what was found."""
    if expected <= 0:
        return 1.0
    return float(scatter.rounded(np.sqrt(np.clip(found / expected, scatter.LEAST_LEFT, MOST_FOUND))))
