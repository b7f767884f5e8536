import json
import math

import dp_accounting
import pytest
from scipy.stats import norm

from dpgmm_beam.budget import (
    Budget,
    Mechanism,
    check_privacy_parameters,
    epsilon_by_pld,
    event_from_json,
    event_to_json,
)
from dpgmm_beam.errors import ConfigError

MECHANISMS = (Mechanism("count", 0.05), Mechanism("sum", 0.25), Mechanism("rounds", 0.7, 20))


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(0.001, 1e-5), (0.01, 1e-12), (0.1, 1e-6), (0.5, 0.3), (1, 1e-5), (1.0, 1e-10), (3.0, 1e-5)],
)
def test_the_whole_costs_no_more_than_epsilon_and_little_less(epsilon, delta):
    budget = Budget(epsilon, delta, MECHANISMS)
    assert epsilon_by_pld(budget.event, delta) <= epsilon
    # The exact privacy curve of one Gaussian mechanism (Balle and Wang 2018), by itself.
    mu = math.sqrt(sum(m.repetitions / budget.multiplier(m.name) ** 2 for m in MECHANISMS))
    assert math.isclose(mu, 1 / budget.noise_multiplier, rel_tol=1e-12)

    def exact_delta(mu):
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)

    assert exact_delta(mu) <= delta * (1 + 1e-6)
    assert exact_delta(mu * 1.01) > delta


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
    assert sorted(gaussians(budget.event)) == sorted(expected)


def test_events_survive_json():
    event = Budget(1.0, 1e-5, MECHANISMS).event
    assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event
    with pytest.raises(TypeError, match="LaplaceDpEvent"):
        event_to_json(dp_accounting.LaplaceDpEvent(1.0))


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


@pytest.mark.parametrize("epsilon", [0, -1.0, math.nan, math.inf, -math.inf, "1", None])
def test_epsilon_out_of_range(epsilon):
    for refuse in (
        lambda: check_privacy_parameters(epsilon, 1e-5),
        lambda: Budget(epsilon, 1e-5, MECHANISMS),
    ):
        with pytest.raises(ConfigError, match=f"--epsilon={epsilon} is refused.*finite number above 0"):
            refuse()


@pytest.mark.parametrize("delta", [0, 1, 1.0, -1e-5, 2.0, math.nan, math.inf, "1e-5", None])
def test_delta_out_of_range(delta):
    with pytest.raises(ConfigError, match=f"--delta={delta} is refused.*between 0 and 1"):
        check_privacy_parameters(1.0, delta)


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
