import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.privacy.queries import PART, SHIPPED, SumQuery, add_noise, join, part_count, split, zeros
from tests.strategies import quick

KEY = NoiseKey(bytes(range(32))).within("tests of statistics")
BIG = (SumQuery("small", 3, 1), SumQuery("large", 2 * PART + 5, 2))


def noise_of(queries, multipliers, key, sums=None):
    sums = zeros(queries) if sums is None else sums
    noisy = add_noise(queries, sums, multipliers, key)
    return {name: values - sums[name] for name, values in noisy.items()}


def test_parts_cover_every_channel_once_and_are_small():
    sums = {"small": np.arange(3), "large": np.arange(2 * PART + 5)}
    parts = dict(split(BIG, sums))
    assert list(parts) == list(range(part_count(BIG)))
    assert [len(part) for part in parts.values()] == [SHIPPED] * 4 + [8]
    assert all(part.nbytes <= 2**18 and part.dtype == np.int64 for part in parts.values())
    joined = join(BIG, parts)
    assert joined.keys() == sums.keys()
    for name, values in sums.items():
        np.testing.assert_array_equal(joined[name], values)
    del parts[2]
    with pytest.raises(KeyError):
        join(BIG, parts)


def test_the_sums_of_a_usual_stage_are_one_part():
    """A release of 10 classes in 512 dimensions has two barriers a stage but for moments and centres."""
    plan = Plan(ReleaseConfig("precomputed", tuple("abcdefghij"), 512, 1.0, 1e-5), "id")
    parts = {stage.KIND: part_count(stage.queries) for stage in plan.stages}
    moments = {"moment": 5, "whitened": 5, "scatter": 2, "scales": 4}
    assert parts == {
        "counts": 1,
        "means": 1,
        "start": 1,
        "teacher": 1,
        "sketch": 16,
        "rounds": 2,
        "centres": 7,
        **moments,
    }


@quick
@given(st.integers(1, 8), st.integers(1, 3), st.integers(0, 10**6))
def test_triangle_noise_is_isometric(order, matrices, seed):
    # The norm in which the noise is white is the Frobenius norm of the matrices.
    triangle = order * (order + 1) // 2
    query = SumQuery("m", matrices * triangle, 7.0, symmetric_order=order)
    deviations = query.noise_stddevs(3.0)
    assert deviations.shape == (query.size,)
    generator = np.random.default_rng(seed)
    full = generator.standard_normal((matrices, order, order))
    full += full.transpose(0, 2, 1)
    packed = np.concatenate([lattice.pack_triangle(matrix) for matrix in full])
    np.testing.assert_allclose(((packed / deviations) ** 2).sum(), (full**2).sum() / 21.0**2, rtol=1e-12)


def test_plain_noise_is_the_multiplier_times_the_sensitivity():
    assert SumQuery("s", 10, 6.0).noise_stddevs(2.5) == 15.0


def test_noise_of_a_triangle_has_its_variance_on_and_off_the_diagonal():
    order = 400
    query = (SumQuery("m", order * (order + 1) // 2, 50.0, symmetric_order=order),)
    noise = lattice.unpack_triangle(noise_of(query, {"m": 4.0}, KEY)["m"])
    on, off = np.diag(noise), noise[np.triu_indices(order, 1)]
    # Sums of squares are chi-square; each of the four bounds is crossed by chance once in 1e8.
    for values, variance in ((on, 200.0**2), (off, 200.0**2 / 2)):
        assert 1e-8 < stats.chi2.cdf((values**2).sum() / variance, len(values)) < 1 - 1e-8


def test_noise_has_the_deviation_that_the_budget_charges():
    noise = noise_of(BIG, {"small": 2.0, "large": 50.0}, KEY)["large"]
    assert 1e-8 < stats.chi2.cdf((noise**2).sum() / 100.0**2, len(noise)) < 1 - 1e-8


def test_private_queries_are_not_released():
    assert set(noise_of(BIG, {"small": 2.0, "large": 50.0}, KEY)) == {"small", "large"}


def test_the_same_statistic_gets_the_same_noise():
    sums = {name: values + 3 for name, values in zeros(BIG).items()}
    one, two = (add_noise(BIG, sums, {"small": 9.0, "large": 9.0}, KEY) for _ in range(2))
    for name, values in one.items():
        np.testing.assert_array_equal(values, two[name])
    strided = {name: np.repeat(values, 2)[::2] for name, values in sums.items()}
    np.testing.assert_array_equal(
        add_noise(BIG, strided, {"small": 9.0, "large": 9.0}, KEY)["large"], one["large"]
    )


def assert_unrelated(one, two):
    """Under 6 deviations of correlation (2e-9 by chance), and the share of equal values that chance gives."""
    n = len(one)
    scale = np.sqrt((one.astype(float) ** 2).mean() * (two.astype(float) ** 2).mean())
    assert abs((one * two).mean() / scale) * np.sqrt(n) < 6
    assert (one == two).mean() < 0.01


@pytest.mark.parametrize("change", ["multiplier", "sensitivity", "both", "symmetry"])
def test_the_same_deviates_never_come_at_two_scales(change):
    """Two equations, of a sum noised at two known scales with the same deviates, would give the sum."""
    size = 2**15
    order = 255
    one, multiplier = SumQuery("sum", order * (order + 1) // 2, 4.0), 1000.0
    two, other = {
        "multiplier": (one, 1250.0),
        "sensitivity": (dataclasses.replace(one, l2_sensitivity=5.0), 1000.0),
        # The same deviations, differently come by.
        "both": (dataclasses.replace(one, l2_sensitivity=8.0), 500.0),
        "symmetry": (dataclasses.replace(one, symmetric_order=order), 1000.0),
    }[change]
    draws = [noise_of((c,), {"sum": m}, KEY)["sum"][:size] for c, m in ((one, multiplier), (two, other))]
    assert_unrelated(*draws)


def test_noise_is_independent_across_stages_rounds_queries_parts_and_coordinates():
    queries = (SumQuery("count", 2 * PART, 1), SumQuery("sum", 2 * PART, 1))
    multipliers = {"count": 1000.0, "sum": 1000.0}
    streams = []
    for stage in ("means 0", "rounds 0", "rounds 1"):
        # All statistics are zero, so that only their place tells the streams apart.
        noise = noise_of(queries, multipliers, KEY.within(stage))
        streams += [noise[name][part * PART :][:PART] for name in noise for part in range(2)]
    for one, two in itertools.combinations(streams, 2):
        assert_unrelated(one, two)
    for lag in (1, 2, 3, 64, 512):
        assert_unrelated(streams[0][lag:], streams[0][:-lag])


def test_one_changed_value_renews_the_noise_of_its_whole_part():
    queries = (SumQuery("sum", 2000, 1),)
    sums = zeros(queries)
    before = noise_of(queries, {"sum": 1000.0}, KEY, sums)["sum"]
    sums["sum"][1999] += 1
    assert_unrelated(before, noise_of(queries, {"sum": 1000.0}, KEY, sums)["sum"])
