"""What a fit of several components finds, from rows to the released mixture."""

import numpy as np
import pytest

from dpgmm_beam.fit import chain
from tests.dpgmm_beam.fit.clusters import KEY, plan_of, rows_of, separated


def mixture_of(plan, *blocks):
    return chain.released_mixture(chain.fit(plan, lambda: blocks, KEY))


def test_a_separated_mixture_is_found():
    # Two or three of a hundred data sets and keys end in a local optimum; these are not among them.
    values, _, centres = separated(6000, 24, 12, 0.2, seed=1)
    mixture = mixture_of(plan_of(dimension=24, components=12, epsilon=4.0), *rows_of(values).blocks(1000))
    distances = np.linalg.norm(mixture.means[0][:, None] - centres, axis=2)
    assert sorted(distances.argmin(axis=1)) == list(range(12))
    assert distances.min(axis=0).max() < 0.02
    np.testing.assert_allclose(mixture.weights, 1 / 12, atol=0.01)
    # The covariance of a component: its trace is that of the clusters.
    drawn = mixture.sample(20_000, 0).embeddings
    nearest = ((drawn[:, None] - centres) ** 2).sum(axis=2).min(axis=1)
    assert np.mean(nearest) == pytest.approx(0.2**2, rel=0.05)


def test_a_class_without_rows_yields_components():
    values, _, _ = separated(500, 12, 4, 0.3)
    mixture = mixture_of(plan_of(classes=2), rows_of(values))
    assert np.isfinite(mixture.means).all()
    assert np.isfinite(mixture.sample(100, 0)).all()
