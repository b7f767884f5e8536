import dataclasses
import json
import math
import pickle

import pytest

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.accounting import calibrated, epsilon_by_pld, event_from_json
from dpgmm_beam.privacy.allocation import FAVORED, turning_points, with_shares

CONFIG = ReleaseConfig("precomputed", ("a", "b"), 8, 1.0, 1e-5, components=3, rounds=2)


@pytest.fixture(scope="module")
def plan():
    return Plan(CONFIG, "one")


def test_the_budget_charges_every_channel_of_every_stage(plan):
    charged = sum(
        1 / multiplier**2 for stage in plan.stages for multiplier in plan.multipliers(stage).values()
    )
    assert math.isclose(charged, 1 / plan.budget.noise_multiplier**2, rel_tol=1e-12)
    assert epsilon_by_pld(event_from_json(plan.budget.event()), 1e-5) <= 1.0
    for stage in plan.stages:
        assert set(plan.multipliers(stage)) == {query.name for query in stage.queries}
    assert {m.name: m.repetitions for m in plan.budget.mechanisms} == {
        "means/count": 1,
        "means/sum": 1,
        "means/square": 1,
        "moment/moment": 1,
        "whitened/moment": 1,
        "start/slope": 1,
        "teacher/gradient": 19,
        "sketch/count": 1,
        "sketch/sum": 1,
        "rounds/count": 1,
        "rounds/sum": 1,
        "centres/sum": 1,
        "centres/square": 1,
        "scatter/moment": 1,
        "scatter/square": 1,
        "scales/square": 1,
        "scales/moment": 1,
    }


def test_stages_have_distinct_names(plan):
    names = [stage.name for stage in plan.stages]
    assert len(set(names)) == len(names)


def test_what_is_not_used_is_spread_over_the_others():
    alone = Plan(dataclasses.replace(CONFIG, classes=("a",), components=1), "one")
    assert [stage.KIND for stage in alone.stages] == ["counts", "means", "moment", "whitened", "scatter"]
    assert math.isclose(sum(m.share for m in alone.budget.mechanisms), 1.0)
    shares = {m.name: m.share for m in alone.budget.mechanisms}
    moments = shares["moment/moment"] + shares["whitened/moment"]
    assert math.isclose(moments / shares["means/sum"], 0.14 / 0.07)


def test_noise_too_large_to_draw_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"epsilon=0.001 is refused.*teacher/gradient"):
        Plan(dataclasses.replace(CONFIG, epsilon=0.001), "one")


@pytest.mark.parametrize("favor", FAVORED)
def test_what_is_taken_can_be_drawn_whatever_will_be_counted(favor):
    """Of the least epsilon that is taken: what would be refused after a count would be refused too late."""
    least = ReleaseConfig("precomputed", ("a", "b"), 64, 1.0, 1e-5, shares=with_shares([], favor))
    low, high = 1e-3, 1.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        try:
            Plan(dataclasses.replace(least, epsilon=middle), "id")
            high = middle
        except ConfigError:
            low = middle
    plan = Plan(dataclasses.replace(least, epsilon=high), "id")
    for rows in (0.0, 100.0, *turning_points(dict(plan.config.shares)), 1e6):
        dataclasses.replace(plan, counted=round(rows * plan.budget.noise_multiplier * 2))


def test_plans_travel_with_their_budget(plan):
    copy = pickle.loads(pickle.dumps(plan))
    assert copy == plan
    assert "budget" in vars(copy)
    assert copy.fit_digest == plan.fit_digest


@pytest.mark.parametrize("changes", [{"version": "0.0.9"}, {"scheme": 1}, {"version": None}])
def test_a_plan_of_another_version_is_refused(plan, changes):
    """Its stages may sum otherwise, or take the same noise at another scale."""
    with pytest.raises(RuntimeError, match="driver and workers must be of one version"):
        Plan.from_dict({**plan.to_dict(), **changes})


def test_plans_travel_as_plain_data_to_the_last_bit(plan):
    data = json.loads(json.dumps(plan.to_dict()))
    copy = Plan.from_dict(data)
    assert copy == plan
    assert copy.fit_digest == plan.fit_digest
    assert copy.budget == plan.budget
    assert copy.to_dict() == plan.to_dict()
    for stage, other in zip(copy.stages, plan.stages, strict=True):
        assert copy.multipliers(stage) == plan.multipliers(other)


def test_a_plan_with_a_multiplier_is_not_calibrated_again(plan):
    odd = math.nextafter(3 * plan.budget.noise_multiplier, math.inf)
    given = Plan(CONFIG, "one", odd)
    assert given.budget.noise_multiplier == odd
    assert given == plan
    assert Plan.from_dict(given.to_dict()).budget.noise_multiplier == odd


def test_a_plan_that_is_changed_is_calibrated_for_what_it_became(plan):
    changed = dataclasses.replace(plan, config=dataclasses.replace(CONFIG, epsilon=0.5))
    assert changed.budget.noise_multiplier == calibrated(0.5, 1e-5)
