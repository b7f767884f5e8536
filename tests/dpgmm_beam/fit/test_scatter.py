"""Shapes of classes and components: what they are without noise, and that noise flattens them."""

import dataclasses

import numpy as np
import pytest

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.fit import chain, scatter
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.noise import NoiseKey
from tests.dpgmm_beam.fit.clusters import rows_of

KEY = NoiseKey(bytes(range(32)))


def ellipses(n, d, seed=0):
    """Two classes of Gaussians with one centre and other shapes, and a third with two of its own sizes."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    scales = np.full((3, d), 0.1)
    scales[0, : d // 2] *= 2
    scales[1, d // 2 :] *= 2
    values = generator.standard_normal((n, d)) * scales[labels]
    values[labels == 2, 0] += 0.3 * np.sign(generator.standard_normal((labels == 2).sum()))
    inner = (labels == 2) & (values[:, 0] > 0)
    values[inner, 1:] *= 0.5
    return values, labels


def fitted(epsilon, **others):
    values, labels = ellipses(60_000, 8)
    config = ReleaseConfig("test", ("a", "b", "c"), 8, epsilon, 1e-5, clip_norm=1.0, **others)
    final = chain.fit(Plan(config, "test"), lambda: rows_of(values, labels).blocks(4096), KEY)
    return chain.released_mixture(final), values, labels, final


def covariance_of(mixture, label, component):
    r = mixture.covariances.shape[2]
    whole = np.eye(mixture.dimension)
    whole[:r, :r] = mixture.covariances[label, component]
    return mixture.basis @ whole @ mixture.basis.T


def test_classes_have_shapes_of_their_own():
    mixture, values, labels, _ = fitted(20.0, components=1)
    for label in (0, 1):
        own = np.cov(values[labels == label].T)
        np.testing.assert_allclose(covariance_of(mixture, label, 0), own, atol=0.006)


def test_components_have_sizes_of_their_own():
    mixture, _, _, _ = fitted(20.0, components=2)
    right = int(mixture.means[2, :, 0].argmax())
    sizes = [np.trace(covariance_of(mixture, 2, each)[1:, 1:]) for each in (right, 1 - right)]
    assert sizes[0] / sizes[1] == pytest.approx(0.25, abs=0.1)


def test_noise_flattens_shapes_to_the_pooled_one():
    mixture, values, labels, _ = fitted(0.02, components=1)
    one, two = (covariance_of(mixture, label, 0) for label in (0, 1))
    truth = np.cov(values[labels == 0].T) - np.cov(values[labels == 1].T)
    assert np.linalg.norm(one - two) < 0.5 * np.linalg.norm(truth)


def test_covariances_are_positive_whatever_the_noise_was():
    config = ReleaseConfig("test", ("a", "b"), 8, 0.01, 1e-5, components=3, rounds=2)
    generator = np.random.default_rng(0)
    rows = rows_of(generator.standard_normal((50, 8)), np.arange(50) % 2)
    for number in range(5):
        final = chain.fit(Plan(config, str(number)), lambda: [rows], KEY)
        mixture = chain.released_mixture(final)
        assert np.linalg.eigvalsh(mixture.covariances).min() > 0
        assert np.isfinite(mixture.log_prob(mixture.sample(20, 0))).all()


def test_directions_that_are_not_used_are_left_as_they_are():
    *_, final = fitted(1.0, components=1)
    state = final.state
    variances = state.subspace.variances.copy()
    variances[5:] = 0
    state = dataclasses.replace(state, subspace=dataclasses.replace(state.subspace, variances=variances))
    np.testing.assert_array_equal(scatter.left_by_centres(state)[5:], 1)
