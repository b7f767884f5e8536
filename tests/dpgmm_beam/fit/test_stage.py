"""What holds for every step: exact sums whatever the order, and the sensitivity that is charged."""

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit.covariance import covariance_of
from dpgmm_beam.fit.stage import add_moments_by_group, sums_by_group
from dpgmm_beam.privacy import queries
from tests.dpgmm_beam.fit.steps import (
    CLASSES,
    NOTHING,
    means_stage,
    moment_stage,
    moment_state,
    moved,
    start_stage,
    sums_of,
    teacher_stage,
    teacher_state,
    viewed,
    whitened_stage,
)
from tests.strategies import lattice_rows, quick, real_rows, splits, take


@st.composite
def cases(draw):
    """A stage, the state before it and rows as it wants them."""
    real = draw(real_rows(dimension=st.integers(1, 12)))
    dimension = real.shape[1]
    seed = draw(st.integers(0, 1000))
    classes = np.random.default_rng(seed).integers(0, CLASSES, len(real))
    which = draw(st.sampled_from(["means", "moment", "whitened", "start", "teacher"]))
    if which == "means":
        return means_stage(dimension), NOTHING, lattice_rows(real, classes)
    if which in ("moment", "whitened"):
        state = moment_state(dimension, seed, draw(st.sampled_from([0.12, 0.7, 1.2])))
        rows = lattice_rows(real, classes)
        if draw(st.booleans()) and len(rows):
            # Opposite to the class's mean: the longest residual there is.
            opposite = np.where(draw(st.booleans()), -1, 1) * -state.class_means.means[rows.classes]
            rows = Rows(opposite.astype(np.float32), rows.classes)
        if which == "moment":
            return moment_stage(dimension), state, rows
        generator = np.random.default_rng(seed)
        spread = draw(st.sampled_from([0.0, 1.0, 8.0]))
        values = np.sort(generator.exponential(size=dimension) ** spread)[::-1]
        axes, _ = np.linalg.qr(generator.standard_normal((dimension, dimension)))
        rough = covariance_of(values * draw(st.sampled_from([2e-4, 1.0])) / values.sum(), axes)
        return whitened_stage(dimension), dataclasses.replace(state, rough=rough), rows
    scale = draw(st.sampled_from([0.0, 1.0, 300.0]))
    norm = draw(st.sampled_from([0.05, 0.8, 20.0]))
    if which == "start":
        return start_stage(dimension), teacher_state(dimension, seed, scale, norm), viewed(real, classes)
    clip = draw(st.sampled_from([0.01, 0.25, 1.0, 2.0]))
    return teacher_stage(dimension, clip), teacher_state(dimension, seed, scale, norm), viewed(real, classes)


@quick
@given(cases(), st.data())
def test_any_partition_and_order_gives_the_same_statistics(case, data):
    stage, before, rows = case
    whole = sums_of(stage, rows, before)
    pieces = [take(rows, piece) for piece in data.draw(splits(len(rows)))]
    for name, values in sums_of(stage, pieces, before).items():
        np.testing.assert_array_equal(values, whole[name])
        assert values.dtype == np.int64


@quick
@given(cases(), st.data())
def test_removing_one_row_moves_no_query_by_more_than_its_sensitivity(case, data):
    stage, before, rows = case
    if len(rows):
        out = data.draw(st.integers(0, len(rows) - 1))
        for query, square in moved(stage, rows, before, out):
            assert square <= query.l2_sensitivity**2


def test_sums_by_group():
    values = np.arange(12, dtype=np.int16).reshape(4, 3)
    totals = sums_by_group(values, np.array([3, 0, 3, 1]), 5)
    np.testing.assert_array_equal(totals, [[3, 4, 5], [9, 10, 11], [0, 0, 0], [6, 8, 10], [0, 0, 0]])
    assert not sums_by_group(values[:0], np.zeros(0, int), 5).any()


def test_moments_by_group():
    generator = np.random.default_rng(0)
    values, groups = generator.integers(-4096, 4096, (40, 3)).astype(float), generator.integers(0, 5, 40)
    groups[groups == 2] = 4
    totals = np.ones((5, 4, 4), np.int64)
    add_moments_by_group(values, groups, totals)
    for group in range(5):
        own = values[groups == group].astype(np.int64)
        np.testing.assert_array_equal(totals[group, :3, :3], 1 + own.T @ own)
    assert (totals[:, 3] == 1).all()
    before = totals.copy()
    add_moments_by_group(values[:0], groups[:0], totals)
    np.testing.assert_array_equal(totals, before)


def test_every_stage_takes_blocks_without_rows():
    for stage, before in (
        (means_stage(4), NOTHING),
        (moment_stage(4), moment_state(4, 0, 1.0)),
        (start_stage(4), teacher_state(4, 0, 1.0)),
        (teacher_stage(4), teacher_state(4, 0, 1.0)),
    ):
        empty = Rows(np.zeros((0, 4), np.int16), np.zeros(0, np.int32))
        sums = sums_of(stage, empty, before)
        for query in stage.queries:
            assert sums[query.name].shape == (query.size,)
        assert not any(values.any() for values in sums.values())
        assert queries.join(stage.queries, dict(queries.split(stage.queries, sums))).keys() == sums.keys()
