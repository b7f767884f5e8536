import dataclasses

import numpy as np

from dpgmm_beam.fit.covariance import BASIS_BITS
from dpgmm_beam.fit.projection import VIEW_UNIT
from dpgmm_beam.fit.teacher import FEATURES
from dpgmm_beam.privacy.lattice import UNIT
from tests.dpgmm_beam.fit.steps import (
    CLASSES,
    NOTHING,
    means_stage,
    means_state,
    moment_stage,
    moved,
    sums_of,
)
from tests.strategies import blobs, lattice_rows


def test_the_sensitivity_is_reached():
    state = means_state([[0, -UNIT, 0]] * CLASSES, 1.0)
    ((query, square),) = moved(moment_stage(3), lattice_rows(np.eye(3)[1:2], [0]), state, 0)
    assert square == query.l2_sensitivity**2


def test_the_moment_without_noise_is_the_covariance_within_classes():
    rows = blobs(3000, 5, CLASSES, spread=0.2)
    first, second = means_stage(5), moment_stage(5)
    none = {"count": 0.0, "sum": 0.0, "moment": 1e-6}
    found = first.advance(NOTHING, sums_of(first, rows, NOTHING), none).state.class_means
    # Nothing is clipped.
    before = dataclasses.replace(NOTHING, class_means=dataclasses.replace(found, residual_radius=1.2))
    advanced = second.advance(before, sums_of(second, rows, before), none)
    basis = advanced.covariance.basis / 2.0**BASIS_BITS
    residuals = (rows.values - found.means[rows.classes]) / UNIT
    covariance = residuals.T @ residuals / len(rows)
    # Its trace is not under a tenth of the public bound, which is where it would be raised to.
    scale = max(np.trace(covariance), 0.1) / np.trace(covariance)
    np.testing.assert_allclose(basis @ basis.T, covariance * scale, atol=0.002)
    np.testing.assert_array_equal(basis, basis.T)
    several = moment_stage(5, components=2).advance(before, sums_of(second, rows, before), none)
    axes = several.covariance.basis / 2.0**BASIS_BITS
    np.testing.assert_allclose(axes @ axes.T, basis @ basis.T, atol=1e-5)
    assert (np.diff((axes**2).sum(axis=0)) <= 0).all()
    # Features are white: their mean squared norm is one in units of the effective dimension.
    features = FEATURES.of(advanced.state).apply(rows).values / VIEW_UNIT
    assert 0.5 < (features.astype(float) ** 2).sum(axis=1).mean() < 1.5


def test_only_a_fit_of_several_components_has_a_subspace():
    rows = blobs(300, 5, CLASSES)
    state, multipliers = means_state(np.zeros((CLASSES, 5))), {"moment": 1.0}
    for components in (1, 2):
        stage = moment_stage(5, components)
        after = stage.advance(state, sums_of(stage, rows, state), multipliers).state
        assert (after.subspace is None) == (after.components is None) == (components == 1)
        assert after.teacher is not None
