import numpy as np
import pytest

from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.allocation import CLUSTERING_HEIRS, SHARES, allocate
from tests.dpgmm_beam.fit.clusters import plan_of


def test_the_later_half_of_the_rounds_has_three_times_the_budget_and_sketches_a_quarter():
    plan = plan_of(rounds=7)
    rounds = [stage for stage in plan.stages if stage.KIND == "rounds"]
    for query in ("count", "sum"):
        spent = [1 / plan.multipliers(stage)[query] ** 2 for stage in rounds]
        np.testing.assert_allclose(spent, spent[0] * np.array([1, 1, 1, 3, 3]))
        sketches = [1 / plan.multipliers(stage)[query] ** 2 for stage in plan.stages[2:4]]
        assert sum(sketches) / sum(sketches + spent) == pytest.approx(0.25)


def test_without_a_teacher_its_share_goes_to_the_clustering():
    budget = plan_of().budget
    shares = {mechanism.name: mechanism.share for mechanism in budget.mechanisms}
    assert sum(shares.values()) == pytest.approx(1)
    given, teacher = dict(SHARES), dict(SHARES)["teacher/gradient"]
    heirs = {name: given[name] + part * teacher for name, part in CLUSTERING_HEIRS}
    assert sum(part for _, part in CLUSTERING_HEIRS) == pytest.approx(1)
    for name in ("moment/moment", "scatter/moment", "scales/moment"):
        assert shares[name] == pytest.approx(heirs[name])
    sums = shares["rounds/sum"] + shares["late/sum"] + shares["sketch/sum"]
    assert sums == pytest.approx(heirs["rounds/sum"])
    with_teacher = Plan(
        ReleaseConfig("test", ("a", "b"), 12, 1.0, 1e-5, components=4, method=Method(teacher_steps=2)), "test"
    )
    shares = {mechanism.name: mechanism.share for mechanism in with_teacher.budget.mechanisms}
    assert shares["teacher/gradient"] == pytest.approx(teacher)


def test_what_is_not_used_is_spread_over_the_others():
    mechanisms = allocate({"a": 1, "b": 3}, {"a": 0.1, "b": 0.3, "c": 0.6, "teacher/gradient": 0.0}, True)
    assert [(each.name, each.repetitions) for each in mechanisms] == [("a", 1), ("b", 3)]
    assert [each.share for each in mechanisms] == pytest.approx([0.25, 0.75])
