"""The bound on a unit's rows that data says: what is counted, drawn, chosen and charged."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit import unit_bound
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.noise import NoiseKey
from tests.strategies import quick

SECRET = NoiseKey(bytes(range(32)))
CONFIG = ReleaseConfig("precomputed", ("a", "b"), 8, 1.0, 1e-5, max_rows_per_unit=64, bound_found=True)


def units_of(sizes):
    return np.repeat(np.column_stack([np.arange(len(sizes))] * 2).astype(np.uint64), sizes, axis=0)


sizes = st.lists(st.integers(1, 64), max_size=30)


@quick
@given(sizes, st.integers(0, 100), st.integers(1, 64))
def test_a_unit_is_counted_once(drawn, which, other):
    counts = unit_bound.histogram(units_of(drawn))
    assert counts.sum() == len(drawn)
    for power in range(unit_bound.BINS):
        low, high = 2**power // 2 + 1 if power else 1, 2**power
        assert counts[power] == sum(low <= size <= high for size in drawn)
    if not drawn:
        return
    # Whoever comes, goes or is replaced.
    left = list(drawn)
    left.pop(which % len(drawn))
    assert np.linalg.norm(counts - unit_bound.histogram(units_of(left))) == 1
    assert np.linalg.norm(counts - unit_bound.histogram(units_of([*left, other]))) in (0, np.sqrt(2))


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
def test_the_budget_pays(adjacency):
    config = dataclasses.replace(CONFIG, adjacency=adjacency)
    plan, without = Plan(config, "id"), Plan(dataclasses.replace(config, bound_found=False), "id")
    assert plan.budget.noise_multiplier == without.budget.noise_multiplier
    names = [each.name for each in plan.budget.mechanisms]
    assert names == ["units/rows", *(each.name for each in without.budget.mechanisms)]
    charged = plan.budget.multiplier("units/rows")
    due = 1.0 if adjacency == "add_remove" else np.sqrt(2)
    assert plan.row_multipliers["units/rows"] == pytest.approx(charged * due, rel=1e-14)
    spent = sum(each.repetitions / plan.budget.multiplier(each.name) ** 2 for each in plan.budget.mechanisms)
    assert spent == pytest.approx(plan.budget.noise_multiplier**-2)


def test_what_is_charged_does_not_depend_on_what_is_found():
    found = [Plan(dataclasses.replace(CONFIG, max_rows_per_unit=2**power), "id") for power in range(7)]
    assert all(plan.budget.describe() == found[0].budget.describe() for plan in found)
    assert len({plan.fit_digest for plan in found}) == 1
    assert len({plan.config.digest for plan in found}) == 7
    assert {plan.config.unbounded for plan in found} == {CONFIG}


def test_noise_has_the_deviation_that_is_charged_and_is_the_datas_own():
    plan, counts = Plan(CONFIG, "id"), np.arange(unit_bound.BINS)
    draws = np.array([unit_bound.noisy(plan, counts, bytes([n]), SECRET) - counts for n in range(200)])
    # A chi-square of 1,400 degrees: by chance outside once in 1e8.
    ratio = (draws**2).mean() / plan.row_multipliers["units/rows"] ** 2
    assert 0.8 < ratio < 1.23
    again = unit_bound.noisy(plan, counts, bytes([0]), SECRET)
    np.testing.assert_array_equal(again - counts, draws[0])
    others = [
        unit_bound.noisy(Plan(CONFIG, "other"), counts, bytes([0]), SECRET),
        unit_bound.noisy(plan, counts, bytes([0]), NoiseKey(bytes(range(1, 33)))),
        unit_bound.noisy(plan, counts[::-1].copy(), bytes([0]), SECRET)[::-1],
    ]
    assert not any((other == again).all() for other in others)


@pytest.mark.parametrize(
    ("counts", "stddev", "bound"),
    [
        ([1000], 1, 1),
        ([1000, 40], 1, 1),
        ([1000, 400], 1, 2),
        ([0] * 6 + [1000], 1, 64),
        ([0] * 5 + [1000], 1, 32),
        ([900, 50, 50, 50, 20], 1, 8),
        ([-5, 3, 0], 40, 1),
        ([-500] * 7, 40, 1),
    ],
)
def test_the_rule(counts, stddev, bound):
    assert unit_bound.chosen(np.array(counts + [0] * (7 - len(counts))), stddev) == bound


def test_an_empty_data_set_has_a_bound():
    assert unit_bound.find(Plan(CONFIG, "id"), unit_bound.histogram(units_of([])), bytes(64), SECRET) <= 2


def test_it_comes_with_a_bound():
    with pytest.raises(ConfigError, match="bound_found=True is refused"):
        dataclasses.replace(CONFIG, max_rows_per_unit=None)
