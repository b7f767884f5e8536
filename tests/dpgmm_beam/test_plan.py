import dataclasses
import math
import pickle

import pytest

from dpgmm_beam.budget import epsilon_by_pld
from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.plan import Plan

CONFIG = ReleaseConfig("precomputed", ("a", "b"), 8, 1.0, 1e-5, components=3, rounds=2)


@pytest.fixture(scope="module")
def plan():
    return Plan(CONFIG, "one")


def test_the_budget_charges_every_channel_of_every_stage(plan):
    charged = sum(
        1 / multiplier**2 for stage in plan.stages for multiplier in plan.multipliers(stage).values()
    )
    assert math.isclose(charged, 1 / plan.budget.noise_multiplier**2, rel_tol=1e-12)
    assert epsilon_by_pld(plan.budget.event, 1e-5) <= 1.0
    for stage in plan.stages:
        assert set(plan.multipliers(stage)) == {c.name for c in stage.channels if not c.private}
    assert {m.name: m.repetitions for m in plan.budget.mechanisms} == {
        "means/count": 1,
        "means/sum": 1,
        "moment/moment": 1,
        "teacher/gradient": 20,
        "sketch/count": 1,
        "sketch/sum": 1,
        "rounds/count": 1,
        "rounds/sum": 1,
    }


def test_stages_have_distinct_names(plan):
    names = [stage.name for stage in plan.stages]
    assert len(set(names)) == len(names)


def test_what_is_not_used_is_spread_over_the_others():
    alone = Plan(dataclasses.replace(CONFIG, classes=("a",), components=1), "one")
    assert [stage.KIND for stage in alone.stages] == ["means", "moment"]
    assert math.isclose(sum(m.share for m in alone.budget.mechanisms), 1.0)
    shares = {m.name: m.share for m in alone.budget.mechanisms}
    assert math.isclose(shares["moment/moment"] / shares["means/sum"], 0.12 / 0.07)


def test_noise_too_large_to_draw_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"--epsilon=0.001 is refused.*teacher/gradient"):
        Plan(dataclasses.replace(CONFIG, epsilon=0.001), "one")


def test_plans_travel_with_their_budget(plan):
    copy = pickle.loads(pickle.dumps(plan))
    assert copy == plan
    assert "budget" in vars(copy)
    assert copy.config_digest == plan.config_digest
