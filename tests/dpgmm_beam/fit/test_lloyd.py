import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import lloyd
from dpgmm_beam.privacy import lattice
from tests.dpgmm_beam.fit.clusters import plan_of, rows_of, sums_of, two_classes
from tests.strategies import in_view


@pytest.fixture(scope="module")
def fitted():
    return two_classes()


def clustering_stages(plan):
    return [
        (position, stage)
        for position, stage in enumerate(plan.stages)
        if stage.KIND in ("sketch", "rounds", "centres", "scatter", "scales")
    ]


def test_the_later_half_of_the_rounds_has_shorter_steps():
    rounds = [stage for stage in plan_of(rounds=8).stages if stage.KIND == "rounds"]
    assert [stage.mechanism for stage in rounds] == ["rounds"] * 3 + ["late"] * 2
    steps = [stage.relaxation for stage in rounds]
    assert steps[0] == lloyd.RELAXATION
    assert steps[-1] == 1.0
    assert (np.diff(steps) < 0).all()
    only = plan_of(rounds=1).stages[4]
    assert (only.mechanism, only.relaxation) == ("rounds", 1.0)


@settings(max_examples=60)
@given(
    row=st.lists(st.floats(-1e3, 1e3, width=32), min_size=12, max_size=12),
    label=st.integers(0, 1),
    residual_square=st.floats(0.0, 2.0**28),
)
def test_one_row_moves_a_query_by_at_most_its_sensitivity(fitted, row, label, residual_square):
    plan, _, before = fitted
    one = rows_of([row], [label])
    for position, stage in clustering_stages(plan):
        components = dataclasses.replace(before[position].components, residual_square=residual_square)
        sums = sums_of(stage, dataclasses.replace(before[position], components=components), one)
        for query in stage.queries:
            values = sums[query.name].astype(np.float64)
            if query.symmetric_order:
                order = query.symmetric_order
                packed = values.reshape(-1, order * (order + 1) // 2)
                values = np.stack([lattice.unpack_triangle(each) for each in packed])
            assert float(np.linalg.norm(values)) <= query.l2_sensitivity


def test_sums_do_not_depend_on_blocks_nor_order(fitted):
    plan, rows, before = fitted
    order = np.random.default_rng(1).permutation(len(rows))
    shuffled = Rows(rows.values[order], rows.classes[order])
    for position, stage in clustering_stages(plan):
        one = sums_of(stage, before[position], *rows.blocks(5000))
        two = sums_of(stage, before[position], *shuffled.blocks(77))
        for query in stage.queries:
            np.testing.assert_array_equal(one[query.name], two[query.name])


def test_counts_are_those_of_integer_arithmetic(fitted):
    plan, rows, before = fitted
    some = Rows(rows.values[:40], rows.classes[:40])
    for position, stage in clustering_stages(plan)[2:5]:
        centres = before[position].components.centres.astype(np.int64)
        counted = np.zeros(centres.shape[:2], dtype=np.int64)
        viewed = in_view(stage, some, before[position])
        for value, label in zip(viewed.values.astype(np.int64), viewed.classes, strict=True):
            counted[label, ((centres[label] - value) ** 2).sum(axis=1).argmin()] += 1
        found = sums_of(stage, before[position], some)["count"][: counted.size] // stage.SQUARE_UNIT
        np.testing.assert_array_equal(found.reshape(counted.shape), counted)
