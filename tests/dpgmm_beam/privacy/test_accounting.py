import json
import math

import dp_accounting
import mpmath
import pytest

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.accounting import (
    Budget,
    Mechanism,
    calibrated,
    check_privacy_parameters,
    epsilon_by_pld,
    epsilon_of_part,
    event_from_json,
    gaussian_multiplier,
)

MECHANISMS = (Mechanism("count", 0.05), Mechanism("sum", 0.25), Mechanism("rounds", 0.7, 20))
COMPOSITIONS = {
    "twelve alike": tuple(Mechanism(str(number), 1 / 12) for number in range(12)),
    "a thousand repetitions": (Mechanism("small", 0.01), Mechanism("rounds", 0.99, 1000)),
}
CORNERS = [(epsilon, delta) for epsilon in (0.001, 1.0, 499.0, 1000.0) for delta in (1e-12, 1e-5, 0.4999)]


@pytest.mark.parametrize(("epsilon", "delta"), CORNERS)
def test_the_multiplier_is_exact_and_never_too_small(epsilon, delta):
    multiplier = gaussian_multiplier(epsilon, delta)
    assert math.isclose(
        multiplier, dp_accounting.get_sigma_gaussian(epsilon, delta, tol=1e-14), rel_tol=1e-10
    )
    assert math.isclose(calibrated(epsilon, delta), multiplier, rel_tol=4e-16 / delta + 2e-6)

    def exact_delta(multiplier):
        """Balle and Wang 2018, theorem 8, as they write it."""
        mu, e = 1 / mpmath.mpf(multiplier), mpmath.mpf(epsilon)
        return mpmath.ncdf(mu / 2 - e / mu) - mpmath.exp(e) * mpmath.ncdf(-mu / 2 - e / mu)

    with mpmath.workdps(500):
        assert exact_delta(multiplier * (1 - 1e-9)) > delta > exact_delta(multiplier * (1 + 1e-9))
        assert exact_delta(calibrated(epsilon, delta)) < delta


@pytest.mark.parametrize("mechanisms", COMPOSITIONS.values(), ids=COMPOSITIONS)
@pytest.mark.parametrize(("epsilon", "delta"), CORNERS)
def test_the_accountant_confirms_the_whole_and_finds_little_to_spare(epsilon, delta, mechanisms):
    event = event_from_json(Budget(epsilon, delta, mechanisms).event())
    assert epsilon_by_pld(event, delta) <= epsilon
    # Less noise than the exact multiplier is too little.
    less = Budget(epsilon, delta, mechanisms, gaussian_multiplier(epsilon, delta) * (1 - 1e-6))
    assert epsilon_by_pld(event_from_json(less.event()), delta) > epsilon


@pytest.mark.parametrize(("epsilon", "delta"), [(1.0, 1e-5), (8.0, 1e-6)])
def test_the_accountant_confirms_it_with_its_own_grid_too(epsilon, delta):
    accountant = dp_accounting.pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(event_from_json(Budget(epsilon, delta, MECHANISMS).event()))
    assert accountant.get_epsilon(delta) <= epsilon


def test_the_multiplier_has_ten_digits():
    multiplier = calibrated(1.0, 1e-5)
    assert float(f"{multiplier:.10g}") == multiplier


def test_a_multiplier_that_is_given_is_used_as_it_is():
    budget = Budget(1.0, 1e-5, MECHANISMS, 12.5)
    assert budget.noise_multiplier == 12.5
    assert budget.multiplier("sum") == 25.0
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match=f"noise multiplier={wrong} is refused"):
            Budget(1.0, 1e-5, MECHANISMS, wrong)


def test_what_composes_to_nothing_or_to_everything():
    nothing = dp_accounting.ComposedDpEvent([])
    everything = dp_accounting.ComposedDpEvent(
        [dp_accounting.GaussianDpEvent(1.0), dp_accounting.GaussianDpEvent(0.0)]
    )
    assert epsilon_by_pld(nothing, 1e-5) == 0
    assert epsilon_by_pld(everything, 1e-5) == math.inf
    for wrong in (
        dp_accounting.GaussianDpEvent(-1.0),
        dp_accounting.GaussianDpEvent(math.nan),
        dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(1.0), -1),
        dp_accounting.LaplaceDpEvent(1.0),
    ):
        with pytest.raises(ValueError, match="not a composition of Gaussian events"):
            epsilon_by_pld(wrong, 1e-5)


def test_shares_and_repetitions_give_the_multipliers():
    budget = Budget(1.0, 1e-5, MECHANISMS)
    for mechanism in MECHANISMS:
        spent = mechanism.repetitions / budget.multiplier(mechanism.name) ** 2
        assert math.isclose(spent * budget.noise_multiplier**2, mechanism.share, rel_tol=1e-12)
    described = budget.describe()
    assert [entry["name"] for entry in described] == ["count", "sum", "rounds"]
    assert [entry["noise_multiplier"] for entry in described] == [
        budget.multiplier(mechanism.name) for mechanism in MECHANISMS
    ]
    with pytest.raises(KeyError):
        budget.multiplier("unknown")


def gaussians(event):
    """Noise multipliers of the Gaussian events, repeated as often as they are used."""
    if isinstance(event, dp_accounting.GaussianDpEvent):
        return [event.noise_multiplier]
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        return gaussians(event.event) * event.count
    return [multiplier for inner in event.events for multiplier in gaussians(inner)]


def test_the_event_holds_every_mechanism_as_often_as_it_runs():
    budget = Budget(1.0, 1e-5, MECHANISMS)
    expected = [budget.multiplier(m.name) for m in MECHANISMS for _ in range(m.repetitions)]
    assert sorted(gaussians(event_from_json(json.loads(json.dumps(budget.event()))))) == sorted(expected)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"LaplaceDpEvent": {"noise_multiplier": 1}},
        {"GaussianDpEvent": {}},
        {"GaussianDpEvent": {"noise_multiplier": "much"}},
        {"GaussianDpEvent": {"noise_multiplier": 1}, "ComposedDpEvent": {"events": []}},
        {"ComposedDpEvent": {"events": 3}},
        {"ComposedDpEvent": {"events": [{"Other": {}}]}},
        {"SelfComposedDpEvent": {"count": 2}},
    ],
)
def test_other_events_are_refused(data):
    with pytest.raises(ConfigError, match="dp_event"):
        event_from_json(data)


@pytest.mark.parametrize("epsilon", [0, -1.0, 0.0009, 1000.1, 1e6, math.nan, math.inf, -math.inf, "1", None])
def test_epsilon_out_of_range(epsilon):
    for refuse in (
        lambda: check_privacy_parameters(epsilon, 1e-5),
        lambda: Budget(epsilon, 1e-5, MECHANISMS),
        lambda: Budget(epsilon, 1e-5, MECHANISMS, 1.0),
    ):
        with pytest.raises(ConfigError, match=f"epsilon={epsilon} is refused.*a number from 0.001 to 1000"):
            refuse()


@pytest.mark.parametrize(
    "delta", [0, 1, 1.0, 0.5, 9e-13, 1e-16, -1e-5, 2.0, math.nan, math.inf, "1e-5", None]
)
def test_delta_out_of_range(delta):
    with pytest.raises(ConfigError, match=f"delta={delta} is refused.*at least 1e-12 and below 0.5"):
        check_privacy_parameters(1.0, delta)


@pytest.mark.parametrize("epsilon", [0.001, 1, 1000])
@pytest.mark.parametrize("delta", [1e-12, 0.4999])
def test_the_ends_of_the_range_are_in_it(epsilon, delta):
    check_privacy_parameters(epsilon, delta)


@pytest.mark.parametrize(
    ("mechanisms", "message"),
    [
        ((Mechanism("a", 0.5), Mechanism("a", 0.5)), "distinct"),
        ((Mechanism("a", 1.2), Mechanism("b", -0.2)), "share of b"),
        ((Mechanism("a", 1.0), Mechanism("b", 0.0)), "share of b"),
        ((Mechanism("a", 1.0), Mechanism("b", math.nan)), "share of b"),
        ((Mechanism("a", 1.0, 0),), "share of a"),
        ((Mechanism("a", 0.5), Mechanism("b", 0.4)), "sum to 1"),
        ((Mechanism("a", 0.6), Mechanism("b", 0.6)), "sum to 1"),
        ((), "sum to 1"),
    ],
)
def test_mechanisms_that_are_refused(mechanisms, message):
    with pytest.raises(ConfigError, match=message):
        Budget(1.0, 1e-5, mechanisms)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("shares", [(0.4, 0.6), (0.1, 0.2, 0.7), (1.0,)])
def test_releases_of_parts_compose_to_the_whole(epsilon, shares):
    """As dp-accounting's accountant sees it, with all mechanisms of all releases in one event."""
    delta = 1e-5
    budgets = [Budget(epsilon_of_part(epsilon, delta, share), delta, MECHANISMS) for share in shares]
    whole = dp_accounting.ComposedDpEvent([event_from_json(budget.event()) for budget in budgets])
    found = epsilon_by_pld(whole, delta)
    assert found <= epsilon
    assert found > epsilon * (1 - 1e-4)


@pytest.mark.parametrize(
    ("share", "message"), [(0, "above 0"), (1.1, "at most 1"), (1e-9, "a part of epsilon")]
)
def test_parts_that_are_refused(share, message):
    with pytest.raises(ConfigError, match=message):
        epsilon_of_part(1.0, 1e-5, share)
