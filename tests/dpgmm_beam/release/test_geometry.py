import numpy as np
import pytest

from dpgmm_beam.data.rows import rows_of
from dpgmm_beam.release.geometry import measured, moments


@pytest.fixture(scope="module")
def rows():
    """Classes at known places, with known variances, on a sphere nearly."""
    generator = np.random.default_rng(0)
    labels = np.arange(6000) % 3
    centres = np.array([[0.6, 0.3, 0, 0, 0], [0.6, -0.3, 0, 0, 0], [0.6, 0, 0.3, 0, 0]])
    values = centres[labels] + generator.normal(size=(6000, 5)) * [0.02, 0.05, 0.05, 0.4, 0.2]
    return rows_of(values, labels, clip_norm=2.0)


def test_moments_are_those_of_the_rows(rows):
    means, covariance = moments(rows, 3)
    values = rows.values / 2**15
    for label in range(3):
        assert np.allclose(means[label], values[rows.classes == label].mean(axis=0), atol=1e-12)
    residuals = values - means[rows.classes]
    assert np.allclose(covariance, residuals.T @ residuals / len(values), atol=1e-12)


def test_totals_and_directions(rows):
    found = measured(rows, 3)
    means, covariance = moments(rows, 3)
    centre = means.mean(axis=0)
    assert found.within[-1] == pytest.approx(np.trace(covariance), rel=1e-3)
    assert found.centre[-1] == pytest.approx((centre**2).sum(), rel=1e-3)
    assert found.between[-1] == pytest.approx(((means - centre) ** 2).sum(axis=1).mean(), rel=1e-3)
    assert found.class_distance == pytest.approx(found.between[-1] ** 0.5)
    within, between, along_centre = found.along(5)
    assert np.allclose(within, np.linalg.eigvalsh(covariance)[::-1], rtol=1e-2, atol=1e-5)
    # The widest two directions do not tell the classes apart, and the centre lies in the narrowest.
    assert between[:2].sum() < 0.01 * between.sum()
    assert along_centre[4] > 0.95 * along_centre.sum()


@pytest.mark.parametrize("directions", [1, 2, 3, 5, 7, 64, 1280])
def test_any_number_of_directions_has_the_same_totals(rows, directions):
    found = measured(rows, 3)
    for along, sums in zip(found.along(directions), (found.within, found.between, found.centre), strict=True):
        assert along.shape == (directions,)
        assert (along >= 0).all()
        assert along.sum() == pytest.approx(sums[-1])


def test_a_class_without_rows_counts_for_nothing(rows):
    assert measured(rows, 4) == measured(rows, 3)
