"""Every neighbour of small data sets, against what the plan charges."""

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.data.rows import Rows, rows_of
from dpgmm_beam.data.units import UnitKeys, bounded
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.checkpoint import Checkpoint
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.neighbours import ADD_REMOVE, REPLACE_ONE
from dpgmm_beam.privacy.noise import NoiseKey
from tests.strategies import quick, real_row

SECRET = NoiseKey(bytes(range(32)))
KEYS = UnitKeys.of(SECRET)
CLASSES, DIMENSION = 3, 4


def plan_of(most, adjacency=ADD_REMOVE):
    return Plan(
        ReleaseConfig(
            "precomputed",
            tuple("abc"),
            DIMENSION,
            8.0,
            1e-5,
            components=2,
            rounds=4,
            method=Method(teacher_steps=2, subspace_dim=3),
            max_rows_per_unit=most,
            adjacency=adjacency,
        ),
        "id",
    )


def units_of(numbers):
    return np.column_stack([np.asarray(numbers, np.uint64) * 7919 + 1, np.full(len(numbers), 5, np.uint64)])


def data_of(seed, kinds):
    """Rows of all kinds of some few units, most of them of one."""
    generator = np.random.default_rng(seed)
    values = np.array([real_row(kind, DIMENSION, generator) for kind in kinds])
    labels = generator.integers(0, CLASSES, len(kinds))
    if generator.random() < 0.5:
        labels[:] = labels[0]
    if generator.random() < 0.5:
        # Rows that are equal have one hash.
        values[: len(values) // 2] = values[0]
    rows = rows_of(values, labels)
    owners = generator.integers(0, 4, len(rows)) * (generator.random(len(rows)) < 0.6)
    return dataclasses.replace(rows, units=units_of(owners))


def of_units(rows, chosen):
    kept = np.flatnonzero(chosen)
    return dataclasses.replace(rows.kept(kept), units=rows.units[kept])


@functools.cache
def checkpoints(most, adjacency):
    """Before each stage; any state would do, since whoever attacks may know all that was released."""
    plan = plan_of(most, adjacency)
    rows = data_of(3, ["normal"] * 60)
    current, found = chain.begin(plan, SECRET, 1), []
    for stage in plan.stages:
        found.append(current)
        summing = chain.Summing(current, SECRET)
        sums = summing.begin()
        summing.add(viewed(current, rows), sums)
        current = chain.advance(current, summing.finish(sums), SECRET)
        assert stage == found[-1].stage
    return found


def viewed(before: Checkpoint, rows: Rows) -> Rows:
    view = before.stage.view
    return rows if view is None else view.of(before.state).bind()(rows)


def exact_sums(before: Checkpoint, rows: Rows):
    stage = before.stage
    sums = stage.begin()
    stage.adder(before.state)(viewed(before, rows), sums)
    return stage.finish(sums)


def norm_of(query, difference):
    """In the norm in which the noise is white: the Frobenius norm of symmetric matrices."""
    values = difference.astype(np.float64).ravel()
    scale = np.broadcast_to(query.noise_stddevs(1.0) / query.l2_sensitivity, values.shape)
    return np.linalg.norm(values / scale)


def records_of(blocks):
    return sorted(bytes(record) for block in blocks for record in block.records())


data = st.tuples(
    st.integers(0, 2**32),
    st.lists(
        st.sampled_from(["normal", "one-hot", "equal", "signs", "opposite", "sparse"]),
        min_size=1,
        max_size=14,
    ),
)


@quick
@given(data, st.integers(1, 4))
def test_whatever_unit_is_removed_sums_differ_by_no_more_than_is_charged(drawn, most):
    rows = data_of(*drawn)
    whole = bounded([rows], most, KEYS)
    befores = checkpoints(most, ADD_REMOVE)
    sums = [exact_sums(before, whole[0]) for before in befores]
    for unit in np.unique(rows.units, axis=0):
        others = of_units(rows, (rows.units != unit).any(axis=1))
        own = bounded([of_units(rows, (rows.units == unit).all(axis=1))], most, KEYS)
        left = bounded([others], most, KEYS)
        # What counts of the others is what counted before.
        assert records_of(left) == sorted(list_without(records_of(whole), records_of(own)))
        assert len(own[0]) <= most
        charged(befores, sums, [exact_sums(before, left[0]) for before in befores])


@quick
@given(data, data, st.integers(1, 3))
def test_whatever_unit_is_replaced_sums_differ_by_no_more_than_is_charged(drawn, other, most):
    rows, replacing = data_of(*drawn), data_of(*other)
    # The new one has all rows of some other data set.
    replacing = dataclasses.replace(replacing, units=units_of([99] * len(replacing)))
    befores = checkpoints(most, REPLACE_ONE)
    sums = [exact_sums(before, bounded([rows], most, KEYS)[0]) for before in befores]
    for unit in np.unique(rows.units, axis=0):
        others = of_units(rows, (rows.units != unit).any(axis=1))
        both = bounded([others, replacing], most, KEYS)
        after = [
            {name: one + two for (name, one), two in zip(first.items(), second.values(), strict=True)}
            for first, second in ([exact_sums(before, block) for block in both] for before in befores)
        ]
        charged(befores, sums, after)


def charged(befores, sums, after):
    for before, one, two in zip(befores, sums, after, strict=True):
        multipliers = before.plan.multipliers(before.stage)
        for query in before.stage.queries:
            budget = before.plan.budget.multiplier(f"{before.stage.mechanism}/{query.name}")
            # Noise over the budget's multiplier: what neighbours may differ by.
            most = multipliers[query.name] * query.l2_sensitivity / budget
            assert norm_of(query, one[query.name] - two[query.name]) <= most * (1 + 1e-12)


def list_without(items, some):
    left = list(items)
    for each in some:
        left.remove(each)
    return left


@pytest.mark.parametrize("adjacency", [ADD_REMOVE, REPLACE_ONE])
def test_what_is_charged_is_reached(adjacency):
    """By a unit of equal rows at the bound, and another that is its opposite: no less could be charged."""
    most = 3
    first, second, *_ = checkpoints(most, adjacency)
    axis = np.zeros((most, DIMENSION))
    axis[:, 0] = 1
    own = bounded([dataclasses.replace(rows_of(axis, [0] * most), units=units_of([1] * most))], most, KEYS)
    new = bounded([dataclasses.replace(rows_of(-axis, [1] * most), units=units_of([2] * most))], most, KEYS)
    none = own[0].kept(np.zeros(0, np.int64))
    before, after = (
        {**exact_sums(first, each), **exact_sums(second, each)}
        for each in (own[0], none if adjacency == ADD_REMOVE else new[0])
    )
    reached = {
        query.name: norm_of(query, before[query.name] - after[query.name])
        / (query.l2_sensitivity * first.plan.config.neighbours.rows(query))
        for query in (*first.stage.queries, *second.stage.queries)
    }
    assert reached["count"] == pytest.approx(1)
    # In two classes the sums are no longer opposite: sqrt 2 of 2; and the squares are the same.
    assert reached["sum"] == pytest.approx(1 if adjacency == ADD_REMOVE else np.sqrt(0.5), rel=1e-4)
    new = bounded([dataclasses.replace(rows_of(-axis, [0] * most), units=units_of([2] * most))], most, KEYS)
    if adjacency == REPLACE_ONE:
        difference = before["sum"] - exact_sums(second, new[0])["sum"]
        query = second.stage.queries[0]
        assert norm_of(query, difference) == pytest.approx(2 * most * query.l2_sensitivity, rel=1e-4)
