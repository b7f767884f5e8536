import dataclasses

import numpy as np

from dpgmm_beam.config import Method
from dpgmm_beam.data.rows import rows_of
from dpgmm_beam.encoders.dct import PictureForm
from dpgmm_beam.fit.means import Means
from dpgmm_beam.privacy.lattice import UNIT
from tests.dpgmm_beam.fit.steps import (
    CLASSES,
    NOTHING,
    counted,
    counts_stage,
    counts_state,
    means_stage,
    moved,
    shape,
    sums_of,
)
from tests.strategies import blobs, lattice_rows


def test_a_count_says_how_many_rows_there_are():
    row = lattice_rows(np.ones((1, 4)), [0])
    assert [square for _, square in moved(counts_stage(4), row, NOTHING, 0)] == [1.0]
    rows = blobs(400, 5, CLASSES)
    stage = counts_stage(5)
    found = stage.advance(NOTHING, sums_of(stage, rows, NOTHING), {"count": 30.0})
    assert found.counted == 400
    assert found.state.class_counts.noisy.tolist() == np.bincount(rows.classes).tolist()
    # None is under its noise.
    few = counts_state([-500, 20, 3000], 1000.0).class_counts
    assert few.counts.tolist() == [1000.0, 1000.0, 3000.0]
    assert few.noisy.tolist() == [-500, 20, 3000]


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
        counted(rows), sums_of(stage, rows, NOTHING), dict.fromkeys(("sum", "square"), 0.0)
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
    before = counts_state([-500, 20, 3], 1000.0)
    noisy = {"sum": np.arange(15) * 10**8, "square": -np.arange(5)}
    multipliers = {"sum": 1e6, "square": 1e6}
    after = means_stage(5).advance(before, noisy, multipliers).state.class_means
    assert (after.counts >= 1000).all()
    assert not after.means.any()
    assert 0 < after.residual_square <= 1
    np.testing.assert_allclose(after.variances, after.residual_square / 5, rtol=1e-6)


def test_rows_that_are_clipped_instead_of_normalised_have_a_noisy_mean_square():
    rows = blobs(400, 5, CLASSES)
    short = dataclasses.replace(rows, values=rows.values // 2)
    stage = dataclasses.replace(means_stage(5), shape=dataclasses.replace(shape(5), unit_norm=False))
    none = dict.fromkeys(("sum", "square"), 0.0)
    after = stage.advance(counted(short), sums_of(stage, short, NOTHING), none).state.class_means
    residuals = (short.values - after.means[short.classes]) / UNIT
    np.testing.assert_allclose(after.residual_square, (residuals**2).sum(axis=1).mean(), rtol=0.01)


def pictures_stage():
    whole = dataclasses.replace(shape(64), unit_norm=False)
    return Means(whole, Method(picture_side=8))


def picture_rows(n=3000, seed=0):
    """Coefficients whose variance falls with frequency, in three classes of one mean each."""
    generator = np.random.default_rng(seed)
    frequencies = np.rint(PictureForm(8, 1).frequencies)
    deviations = 0.05 / (1 + frequencies)
    means = np.zeros((CLASSES, 64))
    means[:, :3] = 0.3 * np.eye(CLASSES)
    classes = np.arange(n) % CLASSES
    values = means[classes] + deviations * generator.standard_normal((n, 64))
    return rows_of(values, classes, clip_norm=1.0), means, deviations


def test_the_sensitivity_of_pictures_is_reached():
    row = lattice_rows(np.eye(64)[:1], [0])
    for query, square in moved(pictures_stage(), row, NOTHING, 0):
        if query.name == "square":
            assert square == query.l2_sensitivity**2 == (0.5 * 2**20) ** 2


def test_pictures_have_variances_by_frequency():
    rows, means, deviations = picture_rows()
    stage = pictures_stage()
    none = dict.fromkeys(("sum", "square"), 0.0)
    after = stage.advance(counted(rows), sums_of(stage, rows, NOTHING), none).state.class_means
    np.testing.assert_allclose(after.means / UNIT, means, atol=0.01)
    frequencies = np.rint(PictureForm(8, 1).frequencies)
    for band in np.unique(frequencies):
        assert len(np.unique(after.variances[frequencies == band])) == 1
    np.testing.assert_allclose(after.residual_square, (deviations**2).sum(), rtol=0.05)
    np.testing.assert_allclose(after.variances, deviations**2, rtol=0.3)


def test_noise_in_the_means_of_pictures_is_taken_out_by_frequency():
    """High frequencies, which hold noise only, go to zero; with one factor for all they would stay."""
    rows, means, _ = picture_rows()
    stage = pictures_stage()
    sums = sums_of(stage, rows, NOTHING)
    noise = np.random.default_rng(1).normal(0, 5 * UNIT, sums["sum"].shape)
    sums["sum"] = sums["sum"] + np.rint(noise).astype(np.int64)
    multipliers = {"sum": 5.0, "square": 0.1}
    found = stage.advance(counted(rows, 0.1), sums, multipliers).state.class_means.means / UNIT
    unbanded = dataclasses.replace(stage, method=Method())
    other = unbanded.advance(counted(rows, 0.1), sums, multipliers).state.class_means.means / UNIT
    assert ((found - means) ** 2).sum() < 0.5 * ((other - means) ** 2).sum()
