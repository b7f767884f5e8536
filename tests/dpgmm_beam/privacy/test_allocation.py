import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.defaults import LABELS
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.allocation import (
    CLUSTERING_HEIRS,
    FAVORED,
    FOLLOWING,
    SHARES,
    UNITS_ROWS,
    allocate,
    following,
    with_shares,
)
from tests.dpgmm_beam.fit.clusters import plan_of


def test_the_later_half_of_the_rounds_has_three_times_the_budget_and_sketches_a_quarter():
    plan = plan_of(rounds=8)
    rounds = [stage for stage in plan.stages if stage.KIND == "rounds"]
    for query in ("count", "sum"):
        spent = [1 / plan.multipliers(stage)[query] ** 2 for stage in rounds]
        np.testing.assert_allclose(spent, spent[0] * np.array([1, 1, 1, 3, 3]))
        sketches = [1 / plan.multipliers(stage)[query] ** 2 for stage in plan.stages[4:7]]
        assert sum(sketches) / sum(sketches + spent) == pytest.approx(0.25)


def test_without_a_teacher_its_share_goes_to_the_clustering():
    budget = plan_of().budget
    shares = {mechanism.name: mechanism.share for mechanism in budget.mechanisms}
    assert sum(shares.values()) == pytest.approx(1)
    given, teacher = dict(SHARES), dict(SHARES)["teacher/gradient"]
    heirs = {name: given[name] + part * teacher for name, part in CLUSTERING_HEIRS}
    assert sum(part for _, part in CLUSTERING_HEIRS) == pytest.approx(1)
    moments = shares["moment/moment"], shares["whitened/moment"]
    assert moments == pytest.approx((heirs["moment/moment"] / 4, heirs["moment/moment"] * 3 / 4))
    for name in ("scatter/moment", "scales/moment"):
        assert shares[name] == pytest.approx(heirs[name])
    sums = shares["rounds/sum"] + shares["late/sum"] + shares["sketch/sum"]
    assert sums == pytest.approx(heirs["rounds/sum"])
    with_teacher = Plan(
        ReleaseConfig("test", ("a", "b"), 12, 1.0, 1e-5, components=4, method=Method(teacher_steps=2)), "test"
    )
    shares = {mechanism.name: mechanism.share for mechanism in with_teacher.budget.mechanisms}
    assert shares["teacher/gradient"] + shares["start/slope"] == pytest.approx(teacher)
    assert shares["start/slope"] == pytest.approx(0.02 * teacher)


def test_what_is_not_used_is_spread_over_the_others():
    mechanisms = allocate({"a": 1, "b": 3}, {"a": 0.1, "b": 0.3, "c": 0.6, "teacher/gradient": 0.0}, True)
    assert [(each.name, each.repetitions) for each in mechanisms] == [("a", 1), ("b", 3)]
    assert [each.share for each in mechanisms] == pytest.approx([0.25, 0.75])


USED = {name: 1 for name, _ in SHARES}


@given(
    st.floats(-1e6, 1e9),
    st.sampled_from(
        [USED, {name: 1 for name in USED if not name.startswith(("rounds", "centres", "scales"))}]
    ),
    st.booleans(),
)
def test_what_follows_from_a_count_spends_the_same_and_leaves_what_has_run(rows, used, found):
    repetitions = {UNITS_ROWS: 1, **used} if found else used
    usual = allocate(repetitions, dict(SHARES), "rounds/sum" not in used)
    following_it = following(repetitions, dict(SHARES), "rounds/sum" not in used, rows)
    assert [(each.name, each.repetitions) for each in following_it] == list(repetitions.items())
    assert math.isclose(math.fsum(each.share for each in following_it), 1.0, rel_tol=1e-12)
    for before, after in zip(usual, following_it, strict=True):
        if before.name in ("means/count", UNITS_ROWS):
            assert before == after


@pytest.mark.parametrize("favor", FAVORED)
def test_shares_follow_from_the_rows(favor):
    anchors, asked = FOLLOWING[favor], dict(FAVORED[favor])
    rows = [at for at, _ in anchors]
    assert rows == sorted(rows)

    def at(rows):
        return {each.name: each.share for each in following(USED, asked, False, rows)}

    for place, shares in anchors:
        assert math.isclose(sum(share for _, share in shares), 1.0)
        assert [name for name, _ in SHARES] == [name for name, _ in shares]
        # The count has run by then.
        assert dict(shares)["means/count"] == asked["means/count"]
        assert at(place) == pytest.approx(dict(shares))
    assert at(-5.0) == at(rows[0])
    assert at(1e12) == at(rows[-1])
    for (fewer, of_fewer), (more, of_more) in itertools.pairwise(anchors):
        middle = at(math.sqrt(fewer * more))
        assert middle == pytest.approx({name: (share + dict(of_more)[name]) / 2 for name, share in of_fewer})


def test_few_rows_spend_on_means_and_teacher_and_many_on_rows():
    few, usual, many, _, plenty = (dict(shares) for _, shares in FOLLOWING[LABELS])
    assert few["means/sum"] > usual["means/sum"] > many["means/sum"]
    assert few["teacher/gradient"] > usual["teacher/gradient"] > plenty["teacher/gradient"]
    assert many["moment/moment"] > plenty["moment/moment"]
    assert plenty["rounds/sum"] > many["rounds/sum"] > few["rounds/sum"]


def test_shares_that_were_asked_for_hold():
    asked = {**dict(SHARES), "means/sum": 0.3}
    assert following(USED, asked, False, 10.0) == allocate(USED, asked, False)


def test_a_budget_that_favours_rows():
    shares, usual = dict(with_shares([], "rows")), dict(with_shares([], "labels"))
    assert usual == dict(SHARES) == dict(with_shares([]))
    assert list(shares) == list(usual)
    assert math.isclose(sum(shares.values()), 1.0)
    assert shares["teacher/gradient"] < usual["teacher/gradient"]
    assert shares["scatter/moment"] > usual["scatter/moment"]
    # However many rows there are; and single shares on top of it.
    for rows in (10.0, 1400.0, 1e9):
        teachers = [
            {each.name: each.share for each in following(USED, asked, False, rows)}["teacher/gradient"]
            for asked in (shares, usual)
        ]
        assert teachers[0] < 0.6 * teachers[1]
    assert dict(with_shares(["means/sum=.5"], "rows")) == {**shares, "means/sum": 0.5}


def test_nothing_else_can_be_favoured():
    with pytest.raises(ConfigError, match="favor=speed is refused: it must be rows or labels"):
        with_shares([], "speed")
