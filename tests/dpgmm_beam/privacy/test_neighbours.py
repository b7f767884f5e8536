import dataclasses
import math

import numpy as np
import pytest

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.neighbours import ADD_REMOVE, REPLACE_ONE, Neighbours
from dpgmm_beam.privacy.queries import SumQuery

SUM, COUNT = SumQuery("sum", 4, 3.0), SumQuery("count", 4, 3.0, one_sided=True)


@pytest.mark.parametrize(
    ("adjacency", "most", "of_sums", "of_counts"),
    [
        (ADD_REMOVE, None, 1, 1),
        (ADD_REMOVE, 1, 1, 1),
        (ADD_REMOVE, 5, 5, 5),
        (REPLACE_ONE, None, 2, math.sqrt(2)),
        (REPLACE_ONE, 5, 10, 5 * math.sqrt(2)),
    ],
)
def test_no_smaller_factor_would_do(adjacency, most, of_sums, of_counts):
    """Rows that are alike reach each of them: L of one kind and, in their place, L of another."""
    neighbours = Neighbours(adjacency, most)
    rows, own, other = most or 1, np.array([3.0, 0, 0, 0]), np.array([0, 3.0, 0, 0])
    moved = {
        ADD_REMOVE: (rows * own, rows * own),
        REPLACE_ONE: (rows * own - rows * -own, rows * own - rows * other),
    }[adjacency]
    for query, factor, vector in zip((SUM, COUNT), (of_sums, of_counts), moved, strict=True):
        assert neighbours.rows(query) == pytest.approx(factor, rel=1e-15)
        assert np.linalg.norm(vector) == pytest.approx(neighbours.rows(query) * query.l2_sensitivity)


def test_the_root_of_two_is_not_rounded_down():
    assert Neighbours(REPLACE_ONE).rows(COUNT) ** 2 >= 2


@pytest.mark.parametrize("most", [0, -1, 1025, 2.0, True, "3", float("nan")])
def test_bounds_that_are_none_are_refused(most):
    with pytest.raises(ConfigError, match=r"max_rows_per_unit=.*from 1 to 1024"):
        Neighbours(ADD_REMOVE, most)


def test_an_adjacency_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="adjacency=swap is refused: it must be add_remove or replace_one"):
        ReleaseConfig("precomputed", ("a",), 4, 1.0, 1e-5, adjacency="swap")


@pytest.mark.parametrize("changes", [{"max_rows_per_unit": 7}, {"adjacency": REPLACE_ONE}])
def test_noise_is_what_a_unit_changes_times_the_budgets_multiplier(changes):
    config = ReleaseConfig("precomputed", ("a", "b"), 8, 1.0, 1e-5)
    plain, of_units = (Plan(each, "id") for each in (config, dataclasses.replace(config, **changes)))
    assert plain.budget.describe() == of_units.budget.describe()
    for stage in of_units.stages:
        for query in stage.queries:
            before, after = (
                plan.multipliers(stage)[query.name] * query.l2_sensitivity for plan in (plain, of_units)
            )
            assert after == pytest.approx(before * of_units.config.neighbours.rows(query), rel=1e-14)
            name = f"{stage.mechanism}/{query.name}"
            assert of_units.row_multipliers[name] == of_units.multipliers(stage)[query.name]


def test_only_what_is_of_units_has_another_digest():
    config = ReleaseConfig("precomputed", ("a", "b"), 8, 1.0, 1e-5)
    assert not {"max_rows_per_unit", "adjacency"} & config.to_dict().keys()
    for changes in ({"max_rows_per_unit": 1}, {"adjacency": REPLACE_ONE}):
        other = dataclasses.replace(config, **changes)
        assert other.fit_digest != config.fit_digest
        assert ReleaseConfig.from_dict(other.to_dict()) == other


def test_noise_that_would_be_too_large_is_refused():
    config = ReleaseConfig("precomputed", ("a", "b"), 8, 0.001, 1e-12, max_rows_per_unit=1024)
    with pytest.raises(ConfigError, match=r"epsilon=0.001 .* too large to draw"):
        Plan(config, "id")
