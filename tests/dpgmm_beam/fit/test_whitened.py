"""The covariance, whitened by a rough one."""

import dataclasses

import numpy as np
import pytest

from dpgmm_beam.fit.covariance import BASIS_BITS, covariance_of
from dpgmm_beam.fit.projection import VIEW_UNIT
from dpgmm_beam.fit.teacher import FEATURES
from dpgmm_beam.privacy.lattice import UNIT
from tests.dpgmm_beam.fit.steps import (
    CLASSES,
    NONE,
    means_state,
    moment_stage,
    moved,
    sums_of,
    whitened_stage,
    with_means,
)
from tests.strategies import blobs, lattice_rows


def with_rough(state, values, vectors=None):
    """The state with a rough covariance of these eigenvalues."""
    vectors = np.eye(len(values)) if vectors is None else vectors
    return dataclasses.replace(state, rough=covariance_of(np.asarray(values, float), vectors))


def covariance_found(rough_values, rough_vectors=None):
    """(B B^T that the stage finds from rows and a rough covariance, the rows' own, the state after, rows)."""
    rows = blobs(3000, 5, CLASSES, spread=0.2)
    stage, before = whitened_stage(5), with_rough(with_means(rows), rough_values, rough_vectors)
    advanced = stage.advance(before, sums_of(stage, rows, before), NONE)
    basis = advanced.covariance.basis / 2.0**BASIS_BITS
    residuals = (rows.values - before.class_means.means[rows.classes]) / UNIT
    return basis @ basis.T, residuals.T @ residuals / len(rows), advanced.state, rows


def test_the_sensitivity_is_reached():
    state = with_rough(means_state([[0, -UNIT, 0]] * CLASSES, 1.0), [0.3, 0.2, 0.1])
    ((query, square),) = moved(whitened_stage(3), lattice_rows(np.eye(3)[1:2], [0]), state, 0)
    assert square == pytest.approx(query.l2_sensitivity**2, rel=1e-3)
    assert square <= query.l2_sensitivity**2


@pytest.mark.parametrize("seed", range(3))
def test_without_noise_the_covariance_is_found_whatever_the_rough_one_was(seed):
    generator = np.random.default_rng(seed)
    values = np.sort(generator.uniform(0.01, 0.06, 5))[::-1]
    vectors = np.linalg.qr(generator.standard_normal((5, 5)))[0]
    found, true, state, rows = covariance_found(values, vectors)
    # Up to its trace, which the means' step states.
    np.testing.assert_allclose(found / np.trace(found), true / np.trace(true), atol=0.005)
    assert np.trace(found) == pytest.approx(state.class_means.residual_square, rel=1e-3)
    # Nobody reads the rough one after this.
    assert state.rough is None
    # Features are white: their mean squared norm is one in units of the effective dimension.
    features = FEATURES.of(state).apply(rows).values / VIEW_UNIT
    assert 0.5 < (features.astype(float) ** 2).sum(axis=1).mean() < 1.5


def test_axes_are_kept_by_falling_size():
    _, _, state, _ = covariance_found([0.05, 0.04, 0.03, 0.02, 0.01])
    used = state.subspace.variances * state.subspace.steps**2
    assert (np.diff(used) <= 1e-9).all()


def test_under_overwhelming_noise_the_rough_covariance_is_kept():
    dimension, generator = 60, np.random.default_rng(0)
    stage, values = whitened_stage(dimension), np.geomspace(1, 0.01, dimension)
    state = means_state(np.zeros((CLASSES, dimension)))
    values *= state.class_means.residual_square / values.sum()
    (query,) = stage.queries
    noisy = {"moment": query.noise_stddevs(1e5) * generator.standard_normal(query.size)}
    advanced = stage.advance(with_rough(state, values), noisy, {"moment": 1e5})
    basis = advanced.covariance.basis / 2.0**BASIS_BITS
    found = np.diag(basis @ basis.T)
    assert np.corrcoef(np.log(found), np.log(values))[0, 1] > 0.9


def test_middling_directions_are_told_better_than_by_one_moment_of_the_same_budget():
    """Two of a quarter and three quarters of the budget, against one of all of it.

    Of 60 directions eight are large, and eight are 3 times as large as the rest; their part of the
    covariance is looked at.  Draws of noise are fixed.
    """
    dimension, count = 60, 3000
    values = np.repeat([40.0, 3.0, 1.0], [8, 8, dimension - 16])
    generator = np.random.default_rng(5)
    residuals = generator.standard_normal((count, dimension)) * np.sqrt(values)
    residuals *= 0.4 / np.sqrt(values.sum())
    rows = lattice_rows(residuals, np.arange(count) % CLASSES)
    means = means_state(np.zeros((CLASSES, dimension)))
    known = dataclasses.replace(
        means.class_means,
        counts=np.full(CLASSES, count / CLASSES),
        residual_square=0.16,
        variances=np.full(dimension, 0.16 / dimension, np.float32),
    )
    means = dataclasses.replace(means, class_means=known)
    z = 8.0

    def noisy(stage, state, multiplier, seed):
        (query,) = stage.queries
        exact = sums_of(stage, rows, state)["moment"]
        noise = query.noise_stddevs(multiplier) * np.random.default_rng(seed).standard_normal(query.size)
        return stage.advance(state, {"moment": exact + noise}, {"moment": multiplier})

    def error(covariance):
        basis = covariance.basis / 2.0**BASIS_BITS
        middling = (basis @ basis.T)[8:16, 8:16] / (0.16 / values.sum() * 3.0)
        return np.linalg.norm(middling - np.eye(8))

    one, two = [], []
    first, second = moment_stage(dimension), whitened_stage(dimension)
    for seed in range(8):
        one.append(error(noisy(first, means, z, seed).state.rough))
        state = noisy(first, means, 2 * z, seed).state
        two.append(error(noisy(second, state, z / np.sqrt(0.75), 100 + seed).covariance))
    assert np.mean(two) < 0.9 * np.mean(one)


@pytest.mark.parametrize("exact", [False, True])
def test_components_and_directions_follow_from_the_noisy_number_of_rows(exact):
    stage = whitened_stage(30, components=6)
    stage = dataclasses.replace(stage, shape=dataclasses.replace(stage.shape, exact_components=exact))
    found = []
    for count in (10, 400, 100_000):
        state = with_rough(means_state(np.zeros((CLASSES, 30))), np.full(30, 1 / 30))
        state = dataclasses.replace(
            state, class_means=dataclasses.replace(state.class_means, counts=np.full(CLASSES, float(count)))
        )
        after = stage.advance(state, sums_of(stage, blobs(30, 30, CLASSES), state), {"moment": 2.0}).state
        found.append((after.components.centres.shape[1], int((after.subspace.variances > 0).sum())))
    assert found == [(6, 8), (6, 28), (6, 30)] if exact else [(1, 8), (3, 28), (6, 30)]
