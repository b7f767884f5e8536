import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.release import fidelity


def samples(seed=0, n=120, m=90, d=5, shift=0.5):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)), generator.normal(size=(m, d)) * 0.8 + shift


def by_definition(real, other, k):
    """The formulas of Naeem et al. 2020, section 3, with all distances at once."""
    real_radii = np.sort(cdist(real, real), axis=1)[:, k]
    other_radii = np.sort(cdist(other, other), axis=1)[:, k]
    cross = cdist(real, other)
    inside = cross < real_radii[:, None]
    return fidelity.NeighbourMeasures(
        precision=inside.any(axis=0).mean(),
        recall=(cross < other_radii).any(axis=1).mean(),
        density=inside.sum() / (k * len(other)),
        coverage=(cross.min(axis=1) < real_radii).mean(),
    )


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(8, 60),
    m=st.integers(8, 60),
    d=st.integers(1, 6),
    k=st.integers(1, 5),
    shift=st.floats(0, 3),
)
def test_neighbour_measures_are_those_of_the_paper(seed, n, m, d, k, shift):
    real, other = samples(seed, n, m, d, shift)
    found, due = fidelity.neighbour_measures(real, other, k), by_definition(real, other, k)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name) == pytest.approx(getattr(due, name), abs=1e-12)


def test_measures_do_not_depend_on_how_rows_are_cut_into_blocks(monkeypatch):
    real, other = samples()
    whole = fidelity.neighbour_measures(real, other), fidelity.nearest_neighbour_accuracy(real[:90], other)
    monkeypatch.setattr(fidelity, "_BLOCK_VALUES", 7 * 90)
    again = fidelity.neighbour_measures(real, other), fidelity.nearest_neighbour_accuracy(real[:90], other)
    assert whole == again


def test_samples_that_lie_apart_share_nothing():
    real, other = samples(n=90, shift=100)
    assert fidelity.neighbour_measures(real, other) == fidelity.NeighbourMeasures(0, 0, 0, 0)
    assert fidelity.nearest_neighbour_accuracy(real, other) == 1
    assert fidelity.linear_accuracy(real, other) == 1


def test_samples_of_one_distribution_cannot_be_told_apart():
    generator = np.random.default_rng(1)
    real, other = generator.normal(size=(2, 2000, 6))
    found = fidelity.neighbour_measures(real, other)
    # Naeem et al.: coverage is 1 - (1/2)^5 in the limit of one distribution and k = 5.
    assert found.coverage == pytest.approx(1 - 0.5**5, abs=0.03)
    assert found.density == pytest.approx(1, abs=0.1)
    # 4,000 trials, whose deviation is .008 if they were independent; the bound is 6 of twice that.
    for accuracy in (fidelity.nearest_neighbour_accuracy, fidelity.linear_accuracy):
        assert abs(accuracy(real, other) - 0.5) < 0.095


def test_copies_are_found_out():
    real, _ = samples(n=200)
    # Each row's nearest neighbour is its copy, of the other sample.
    assert fidelity.nearest_neighbour_accuracy(real, real + 1e-9) == 0


def test_a_linear_classifier_sees_a_shift():
    """Two normal distributions whose means are 2 apart: the best accuracy is Phi(1) = .841."""
    generator = np.random.default_rng(2)
    one, two = generator.normal(size=(2, 3000, 4))
    two[:, 0] += 2
    assert fidelity.linear_accuracy(one, two) == pytest.approx(0.8413, abs=0.03)


def test_frechet_distance_of_gaussians():
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=(2, 7, 7))
    one, two = a @ a.T, b @ b.T
    offset = generator.normal(size=7)
    due = offset @ offset + np.trace(one + two - 2 * sqrtm(one @ two).real)
    assert fidelity.gaussian_frechet_distance(offset, one, np.zeros(7), two) == pytest.approx(due, rel=1e-9)
    # Commuting covariances, some of which are 0: sum of squared differences of deviations.
    first, second = np.array([4.0, 1.0, 0.0]), np.array([1.0, 9.0, 0.0])
    found = fidelity.gaussian_frechet_distance(np.zeros(3), np.diag(first), np.zeros(3), np.diag(second))
    assert found == pytest.approx(1 + 4)


def test_frechet_distance_of_samples():
    real, other = samples()
    due = fidelity.gaussian_frechet_distance(
        real.mean(axis=0), np.cov(real.T), other.mean(axis=0), np.cov(other.T)
    )
    assert fidelity.frechet_distance(real, other) == pytest.approx(due, rel=1e-9)
    assert fidelity.frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    # A shift moves it by its square.
    assert fidelity.frechet_distance(real, real + np.array([3, 0, 4, 0, 0])) == pytest.approx(25, rel=1e-9)


def test_whitening_gives_unit_variance_and_leaves_out_what_has_none():
    generator = np.random.default_rng(4)
    rows = generator.normal(size=(300, 3)) @ generator.normal(size=(3, 8)) + 5
    white = fidelity.Whitening.of(rows)(rows)
    assert white.shape == (300, 3)
    np.testing.assert_allclose(np.cov(white.T), np.eye(3), atol=1e-8)
    assert fidelity.Whitening.of(rows, 2)(rows).shape == (300, 2)
    assert fidelity.Whitening.of(np.ones((5, 4)))(np.ones((5, 4))).shape == (5, 0)


def test_entropies_and_effective_numbers():
    weights = np.array([[1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(fidelity.entropies(weights), [0, 1, np.log2(3)])
    np.testing.assert_allclose(fidelity.effective_numbers(weights), [1, 2, 3])


@pytest.mark.parametrize(
    "call",
    [
        lambda real, other: fidelity.neighbour_measures(real[:5], other),
        lambda real, other: fidelity.neighbour_measures(real, other[:, :2]),
        lambda real, other: fidelity.nearest_neighbour_accuracy(real, other[:50]),
        lambda real, other: fidelity.frechet_distance(real[0], other),
        lambda real, other: fidelity.covariance(real[:1]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call):
    with pytest.raises(ConfigError):
        call(*samples())
