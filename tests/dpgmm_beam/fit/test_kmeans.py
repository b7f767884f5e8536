import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dpgmm_beam.fit import kmeans
from dpgmm_beam.fit.kmeans import nearest_of_class, weighted_k_means


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 6))
def test_weighted_k_means_is_integral_and_beats_one_centre(seed, count):
    generator = np.random.default_rng(seed)
    points = np.rint(generator.uniform(-1, 1, (30, 3)) * 1000)
    weights = generator.integers(1, 50, 30).astype(np.float64)
    centres = weighted_k_means(points, weights, count, np.random.default_rng(0))
    assert centres.shape == (count, 3)
    np.testing.assert_array_equal(centres, np.rint(centres))

    def cost(some):
        return (weights * ((points[:, None] - some) ** 2).sum(axis=2).min(axis=1)).sum()

    assert cost(centres) <= cost(np.average(points, axis=0, weights=weights)[None]) * (1 + 1e-6) + 30 * 50


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 8), size=st.integers(1, 40))
def test_swaps_raise_no_cost(seed, count, size):
    generator = np.random.default_rng(seed)
    points = np.rint(generator.uniform(-1, 1, (size, 3)) * 1000)
    weights = generator.integers(1, 50, size).astype(np.float64)
    seeds = generator.integers(0, size, count).tolist()

    def cost(chosen):
        return (weights * ((points[:, None] - points[chosen]) ** 2).sum(axis=2).min(axis=1)).sum()

    found = kmeans._swapped(points, weights, seeds, np.random.default_rng(0))
    assert len(found) == count
    assert cost(found) <= cost(seeds)


def test_swaps_find_a_cluster_that_has_no_seed():
    """Two seeds in one of eight clusters and none in another: Lloyd's steps would leave it so."""
    generator = np.random.default_rng(0)
    centres = 10_000 * np.eye(8)
    points = np.rint(np.repeat(centres, 20, axis=0) + generator.normal(0, 100, (160, 8)))
    seeds = [0, 1, 20, 40, 60, 80, 100, 120]
    found = kmeans._swapped(points, np.ones(160), seeds, generator)
    assert {index // 20 for index in found} == set(range(8))


def test_ties_go_to_the_lowest_centre_of_the_rows_own_class():
    centres = np.array([[[0, 2], [0, -2]], [[5, 0], [5, 0]]])
    rows = np.zeros((3, 2))
    np.testing.assert_array_equal(nearest_of_class(rows, np.array([0, 1, 0]), centres), [0, 2, 0])
