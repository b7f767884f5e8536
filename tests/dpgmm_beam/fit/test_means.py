import numpy as np

from dpgmm_beam.privacy.lattice import UNIT
from tests.dpgmm_beam.fit.steps import CLASSES, NOTHING, means_stage, moved, sums_of
from tests.strategies import blobs, lattice_rows


def test_the_sensitivity_is_reached():
    # A bound that no row comes near would waste the budget.  Along one axis an int16
    # is one step short; four equal entries are a whole unit.
    row = lattice_rows(np.ones((1, 4)), [0])
    for query, square in moved(means_stage(4), row, NOTHING, 0):
        assert square == query.l2_sensitivity**2


def test_means_without_noise_are_the_means():
    rows = blobs(400, 5, CLASSES)
    stage = means_stage(5)
    advanced = stage.advance(NOTHING, sums_of(stage, rows, NOTHING), {"count": 0.0, "sum": 0.0})
    after = advanced.state.class_means
    for label in range(CLASSES):
        own = rows.values[rows.classes == label].astype(float)
        assert after.counts[label] == len(own)
        np.testing.assert_allclose(after.means[label], own.mean(axis=0), atol=0.5)
    np.testing.assert_allclose(after.centre, rows.values.astype(float).mean(axis=0), atol=0.5)
    residuals = (rows.values - after.means[rows.classes]) / UNIT
    np.testing.assert_allclose(
        after.residual_radius, 1.2 * np.sqrt((residuals**2).sum(axis=1).mean()), rtol=1e-3
    )


def test_means_under_overwhelming_noise_collapse_and_stay_in_range():
    noisy = {"count": np.array([-500, 20, 3]), "sum": np.arange(15) * 10**8}
    after = means_stage(5).advance(NOTHING, noisy, {"count": 1000.0, "sum": 1e6}).state.class_means
    assert (after.counts >= 1000).all()
    assert not after.means.any()
    assert 0 < after.residual_radius <= 1.2
