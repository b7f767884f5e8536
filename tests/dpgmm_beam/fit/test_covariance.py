import dataclasses

import numpy as np
import pytest

from dpgmm_beam.config import Method
from dpgmm_beam.fit.covariance import BASIS_BITS
from dpgmm_beam.privacy.lattice import UNIT
from tests.dpgmm_beam.fit.steps import (
    CLASSES,
    NONE,
    means_state,
    moment_stage,
    moved,
    sums_of,
    with_means,
)
from tests.strategies import blobs, lattice_rows


def test_the_sensitivity_is_reached():
    state = means_state([[0, -UNIT, 0]] * CLASSES, 1.0)
    ((query, square),) = moved(moment_stage(3), lattice_rows(np.eye(3)[1:2], [0]), state, 0)
    assert square == query.l2_sensitivity**2


def test_the_moment_without_noise_is_the_covariance_within_classes():
    rows = blobs(3000, 5, CLASSES, spread=0.2)
    # Nothing is clipped.
    method = Method(residual_radius=10.0)
    stage, before = dataclasses.replace(moment_stage(5), method=method), with_means(rows)
    advanced = stage.advance(before, sums_of(stage, rows, before), NONE)
    # Only the step after it makes the released one.
    assert advanced.covariance is None
    basis = advanced.state.rough.basis / 2.0**BASIS_BITS
    residuals = (rows.values - before.class_means.means[rows.classes]) / UNIT
    np.testing.assert_allclose(basis @ basis.T, residuals.T @ residuals / len(rows), atol=0.001)
    # Axes by falling size.
    np.testing.assert_allclose(basis.T @ basis, np.diag((basis**2).sum(axis=0)), atol=1e-5)
    assert (np.diff((basis**2).sum(axis=0)) <= 0).all()


def test_what_the_clip_takes_from_the_trace_is_put_back():
    rows = blobs(3000, 5, CLASSES, spread=0.2)
    stage, before = moment_stage(5), with_means(rows)
    rough = stage.advance(before, sums_of(stage, rows, before), NONE).state.rough
    basis = rough.basis / 2.0**BASIS_BITS
    assert (basis**2).sum() == pytest.approx(before.class_means.residual_square, rel=1e-3)


def test_under_overwhelming_noise_the_coordinates_keep_their_variances():
    dimension, generator = 60, np.random.default_rng(0)
    stage, variances = moment_stage(dimension), np.geomspace(1, 0.01, dimension)
    state = means_state(np.zeros((CLASSES, dimension)))
    variances *= state.class_means.residual_square / variances.sum()
    state = dataclasses.replace(
        state, class_means=dataclasses.replace(state.class_means, variances=variances)
    )
    (query,) = stage.queries
    noisy = {"moment": query.noise_stddevs(1e5) * generator.standard_normal(query.size)}
    basis = stage.advance(state, noisy, {"moment": 1e5}).state.rough.basis / 2.0**BASIS_BITS
    found = np.diag(basis @ basis.T)
    assert np.corrcoef(np.log(found), np.log(variances))[0, 1] > 0.9
