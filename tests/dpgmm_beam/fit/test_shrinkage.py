import numpy as np
import pytest

from dpgmm_beam.fit.shrinkage import noise_radius, shrink_moment, shrink_rows


def wigner(dimension, stddev, generator):
    """Symmetric noise: `stddev` on the diagonal, less by sqrt 2 off it."""
    upper = np.triu(generator.standard_normal((dimension, dimension)), 1) * stddev / np.sqrt(2)
    return upper + upper.T + np.diag(generator.standard_normal(dimension) * stddev)


@pytest.mark.parametrize("stddev", [0.003, 0.01, 0.05])
def test_a_shrunk_covariance_is_nearer_to_the_truth(stddev):
    generator = np.random.default_rng(0)
    truth = 1.0 / np.arange(1, 61) ** 1.2
    truth /= truth.sum()
    axes = np.linalg.qr(generator.standard_normal((60, 60)))[0]
    covariance = (axes * truth) @ axes.T
    noisy = covariance + wigner(60, stddev, generator)
    values, vectors = shrink_moment(noisy, stddev, trace=1.0)
    shrunk = (vectors * values) @ vectors.T
    assert np.linalg.norm(shrunk - covariance) < 0.8 * np.linalg.norm(noisy - covariance)
    np.testing.assert_allclose(values.sum(), 1.0)
    assert (values > 0).all()
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(60), atol=1e-10)


def test_a_sphere_under_heavy_noise_stays_nearly_a_sphere():
    noise = wigner(100, 1.0, np.random.default_rng(1))
    values, _ = shrink_moment(np.eye(100) + noise, 1.0, trace=100.0)
    # The raw spectrum reaches from -13 to 15.
    assert ((values - 1) ** 2).sum() < 0.1 * (noise**2).sum()


def test_without_noise_nothing_changes():
    covariance = np.diag([3.0, 2.0, 1.0])
    values, vectors = shrink_moment(covariance, 1e-12, trace=6.0)
    np.testing.assert_allclose(values, [3, 2, 1], rtol=1e-9)
    np.testing.assert_allclose(np.abs(vectors), np.eye(3), atol=1e-12)
    values, _ = shrink_moment(np.array([[-5.0]]), 1.0, trace=0.3)
    np.testing.assert_allclose(values, [0.3])


def test_the_radius_of_the_noise():
    noise = wigner(400, 0.7, np.random.default_rng(2))
    # The largest eigenvalue of such a matrix is within some percent of the semicircle's edge.
    np.testing.assert_allclose(np.linalg.eigvalsh(noise)[-1], noise_radius(400, 0.7), rtol=0.05)


def test_rows_keep_what_the_noise_cannot_explain():
    rows = np.array([[3.0, 4.0], [0.1, 0.0], [1.0, 1.0]])
    target = np.array([0.0, 0.0])
    np.testing.assert_array_equal(shrink_rows(rows, target, np.zeros(3)), rows)
    np.testing.assert_array_equal(shrink_rows(rows, target, np.full(3, 1e9)), np.zeros((3, 2)))
    # 1 - 2 x 2.5 / 25 of the first, nothing of the second.
    np.testing.assert_allclose(shrink_rows(rows, target, np.array([2.5, 2.5, 0.0]))[:2], [[2.4, 3.2], [0, 0]])
    np.testing.assert_array_equal(shrink_rows(rows[:1], rows[0], np.ones(1)), rows[:1])


def test_shrunk_rows_are_nearer_to_the_truth():
    generator = np.random.default_rng(0)
    truth = generator.standard_normal((200, 50)) * 0.3
    noisy = truth + generator.standard_normal(truth.shape)
    shrunk = shrink_rows(noisy, np.zeros(50), np.ones(200))
    assert ((shrunk - truth) ** 2).sum() < 0.3 * ((noisy - truth) ** 2).sum()
