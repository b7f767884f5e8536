"""Costs of releases: exact, additive, and as dp-accounting composes them."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy import accounting
from dpgmm_beam.privacy.allocation import SHARES, allocate
from dpgmm_beam.privacy.composition import (
    STEPS,
    Spending,
    allowance,
    cost_of,
    epsilon_of,
    epsilon_within,
    has_place,
)

BUDGETS = [(0.001, 1e-12), (0.1, 1e-9), (1.0, 1e-5), (8.0, 1e-6), (300.0, 0.4), (1000.0, 1e-12)]


def event(epsilon, delta):
    shares = allocate(
        {"means/sum": 1, "moment/moment": 1, "teacher/gradient": 20, "rounds/sum": 7}, dict(SHARES), False
    )
    return accounting.Budget(epsilon, delta, shares).event()


@pytest.mark.parametrize(("epsilon", "delta"), BUDGETS)
def test_a_release_fits_a_total_of_its_own_and_no_smaller_one(epsilon, delta):
    cost = cost_of(event(epsilon, delta))
    assert cost <= allowance(epsilon, delta)
    if delta > 1e-12:
        assert cost > allowance(epsilon * 0.998, delta)
    assert epsilon_of(cost, delta) == pytest.approx(epsilon, rel=2e-3)
    assert epsilon_of(cost, delta) <= epsilon


@pytest.mark.parametrize("count", [2, 12, 100])
@pytest.mark.parametrize("epsilon", [0.05, 1.0])
def test_the_pld_accountant_composes_to_the_same(count, epsilon):
    delta, single = 1e-6, event(epsilon, 1e-7)
    cost = count * cost_of(single)
    composed = accounting.event_from_json({"SelfComposedDpEvent": {"event": single, "count": count}})
    assert epsilon_of(cost, delta) == pytest.approx(accounting.epsilon_by_pld(composed, delta), rel=1e-4)
    # Far less than what adding epsilons says.
    assert epsilon_of(cost, delta) < count * epsilon


@given(
    st.floats(0.002, 900.0, allow_nan=False),
    st.sampled_from([1e-12, 1e-9, 1e-6, 1e-3, 0.4]),
    st.integers(1, 50),
)
def test_what_is_said_to_fit_does(total, delta, releases):
    """And a part in ten thousand more does not."""
    left = allowance(total, delta) // releases
    epsilon = epsilon_within(left, delta)
    if epsilon:
        multiplier = accounting.calibrated(epsilon, delta)
        assert cost_of({"GaussianDpEvent": {"noise_multiplier": multiplier}}) <= left
        more = min(epsilon * 1.002, accounting.MAX_EPSILON)
        assert more == accounting.MAX_EPSILON or allowance(more, delta) > left


@given(
    st.lists(
        st.tuples(st.integers(1, 2**70), st.sampled_from([None, "1/2", "2/2", "1/3", "2/4"])), max_size=20
    )
)
def test_slices_compose_in_parallel_and_the_whole_with_each(charges):
    spent = Spending()
    for cost, name in charges:
        spent = spent.plus(cost, name)

    def at(place):
        return sum(cost for cost, name in charges if has_place(name, Fraction(place, 24)))

    # What a unit at each place was charged, by hand: no slice here begins or ends between them.
    for name in ("1/2", "2/2", "1/3", "3/3", "2/4", None):
        assert spent.of(name) == max(at(place) for place in range(24) if has_place(name, Fraction(place, 24)))
    assert spent.of(None) == spent.most
    backwards = Spending()
    for cost, name in reversed(charges):
        backwards = backwards.plus(cost, name)
    assert backwards == spent


def test_costs_are_exact_and_round_up():
    third = {"GaussianDpEvent": {"noise_multiplier": math.sqrt(3)}}
    assert cost_of({"SelfComposedDpEvent": {"event": third, "count": 3}}) <= 3 * cost_of(third)
    assert cost_of({"ComposedDpEvent": {"events": []}}) == 0
    assert cost_of({"GaussianDpEvent": {"noise_multiplier": 1}}) == STEPS
    assert epsilon_of(0, 1e-6) == epsilon_within(0, 1e-6) == 0.0
    assert epsilon_within(1000 * allowance(1000.0, 1e-6), 1e-6) == 1000.0


@pytest.mark.parametrize(
    "bad",
    [
        None,
        {},
        [],
        {"GaussianDpEvent": {}},
        {"GaussianDpEvent": {"noise_multiplier": 0}},
        {"GaussianDpEvent": {"noise_multiplier": -1.0}},
        {"GaussianDpEvent": {"noise_multiplier": float("nan")}},
        {"GaussianDpEvent": {"noise_multiplier": True}},
        {"LaplaceDpEvent": {"noise_multiplier": 1.0}},
        {"SelfComposedDpEvent": {"event": {"GaussianDpEvent": {"noise_multiplier": 1}}, "count": -1}},
        {"SelfComposedDpEvent": {"event": {"GaussianDpEvent": {"noise_multiplier": 1}}, "count": 1.5}},
        {"ComposedDpEvent": {"events": 3}},
    ],
)
def test_what_is_no_composition_of_gaussians_has_no_cost(bad):
    with pytest.raises(ConfigError, match="dp_event"):
        cost_of(bad)


def test_a_deep_event_is_refused():
    deep = {"GaussianDpEvent": {"noise_multiplier": 1}}
    for _ in range(5000):
        deep = {"ComposedDpEvent": {"events": [deep]}}
    with pytest.raises(ConfigError, match="dp_event"):
        cost_of(deep)
