import dataclasses

import numpy as np

from dpgmm_beam.privacy.lattice import UNIT
from tests.dpgmm_beam.fit.steps import CLASSES, NOTHING, means_stage, moved, shape, sums_of
from tests.strategies import blobs, lattice_rows


def test_the_sensitivity_is_reached():
    # A bound that no row comes near would waste the budget.  Along one axis an int16
    # is one step short; four equal entries are a whole unit.
    row = lattice_rows(np.ones((1, 4)), [0])
    for query, square in moved(means_stage(4), row, NOTHING, 0):
        if query.name != "square":
            assert square == query.l2_sensitivity**2
    # Squares are longest along one axis.
    row = lattice_rows(np.eye(40)[:1], [0])
    for query, square in moved(means_stage(40), row, NOTHING, 0):
        if query.name == "square":
            assert query.l2_sensitivity < 0.5 * 2 ** means_stage(40).SQUARE_BITS
            assert square == query.l2_sensitivity**2


def test_means_without_noise_are_the_means():
    rows = blobs(400, 5, CLASSES)
    stage = means_stage(5)
    advanced = stage.advance(
        NOTHING, sums_of(stage, rows, NOTHING), dict.fromkeys(("count", "sum", "square"), 0.0)
    )
    after = advanced.state.class_means
    for label in range(CLASSES):
        own = rows.values[rows.classes == label].astype(float)
        assert after.counts[label] == len(own)
        np.testing.assert_allclose(after.means[label], own.mean(axis=0), atol=0.5)
    np.testing.assert_allclose(after.centre, rows.values.astype(float).mean(axis=0), atol=0.5)
    residuals = (rows.values - after.means[rows.classes]) / UNIT
    np.testing.assert_allclose(after.residual_square, (residuals**2).sum(axis=1).mean(), rtol=1e-3)
    np.testing.assert_allclose(after.variances, (residuals**2).mean(axis=0), rtol=0.02)


def test_means_under_overwhelming_noise_collapse_and_stay_in_range():
    noisy = {"count": np.array([-500, 20, 3]), "sum": np.arange(15) * 10**8, "square": -np.arange(5)}
    multipliers = {"count": 1000.0, "sum": 1e6, "square": 1e6}
    after = means_stage(5).advance(NOTHING, noisy, multipliers).state.class_means
    assert (after.counts >= 1000).all()
    assert not after.means.any()
    assert 0 < after.residual_square <= 1
    np.testing.assert_allclose(after.variances, after.residual_square / 5, rtol=1e-6)


def test_rows_that_are_clipped_instead_of_normalised_have_a_noisy_mean_square():
    rows = blobs(400, 5, CLASSES)
    short = dataclasses.replace(rows, values=rows.values // 2)
    stage = dataclasses.replace(means_stage(5), shape=dataclasses.replace(shape(5), unit_norm=False))
    none = dict.fromkeys(("count", "sum", "square"), 0.0)
    after = stage.advance(NOTHING, sums_of(stage, short, NOTHING), none).state.class_means
    residuals = (short.values - after.means[short.classes]) / UNIT
    np.testing.assert_allclose(after.residual_square, (residuals**2).sum(axis=1).mean(), rtol=0.01)
