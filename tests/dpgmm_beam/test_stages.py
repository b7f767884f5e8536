import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam import lattice, stages, statistics
from dpgmm_beam.lattice import UNIT
from dpgmm_beam.rows import Rows
from dpgmm_beam.stages import Means, PooledMoment, TeacherStep
from dpgmm_beam.views import VIEW_UNIT
from tests.strategies import blobs, lattice_rows, quick, real_rows, splits, take

CLASSES = 3


def sums_of(stage, rows, before):
    """The channels' exact vectors over blocks of rows."""
    sums, working = stage.begin(), stage.working(before)
    for block in rows if isinstance(rows, list) else [rows]:
        stage.add(block, working, sums)
    return stage.finish(sums)


def means_stage(dimension):
    return Means(CLASSES, dimension, 1.2)


def moment_stage(dimension):
    return PooledMoment(CLASSES, dimension, 1, dimension, 1.2, 1 / 7)


def teacher_stage(dimension, clip=0.25, step=0, steps=4):
    return TeacherStep(CLASSES, dimension, step, steps, clip, 3.0, 0.05, 0.9)


def moment_state(dimension, seed, radius):
    """Class means of any length up to the bound, and a clipping radius."""
    generator = np.random.default_rng(seed)
    means = lattice_rows(generator.standard_normal((CLASSES, dimension)), np.zeros(CLASSES)).values
    lengths = generator.choice([0.0, 0.3, 1.0], CLASSES)[:, None]
    return {"means": np.trunc(means * lengths).astype(np.float64), "residual_radius": np.array(radius)}


def teacher_state(dimension, seed, scale, norm=2.0):
    """A teacher whose logits reach `scale`."""
    generator = np.random.default_rng(seed)
    theta = scale * generator.standard_normal((CLASSES, dimension + 1))
    return {"theta": theta, "velocity": np.zeros_like(theta), "features_norm": np.array(norm)}


def viewed(real, classes):
    """Rows as a view gives them: norm up to VIEW_UNIT."""
    rows = lattice_rows(real, classes)
    return Rows(lattice.coarsen_rows(rows.values.astype(float), 1, VIEW_UNIT).astype(np.int16), rows.classes)


@st.composite
def cases(draw):
    """A stage, the state before it and rows as it wants them."""
    real = draw(real_rows(dimension=st.integers(1, 12)))
    dimension = real.shape[1]
    seed = draw(st.integers(0, 1000))
    classes = np.random.default_rng(seed).integers(0, CLASSES, len(real))
    which = draw(st.sampled_from(["means", "moment", "teacher"]))
    if which == "means":
        return means_stage(dimension), {}, lattice_rows(real, classes)
    if which == "moment":
        state = moment_state(dimension, seed, draw(st.sampled_from([0.12, 0.7, 1.2])))
        rows = lattice_rows(real, classes)
        if draw(st.booleans()) and len(rows):
            # Opposite to the class's mean: the longest residual there is.
            opposite = np.where(draw(st.booleans()), -1, 1) * -state["means"][rows.classes]
            rows = Rows(opposite.astype(np.float32), rows.classes)
        return moment_stage(dimension), state, rows
    scale = draw(st.sampled_from([0.0, 1.0, 300.0]))
    clip = draw(st.sampled_from([0.01, 0.25, 1.0, 2.0]))
    norm = draw(st.sampled_from([0.05, 0.8, 20.0]))
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


def moved(stage, rows, before, out):
    """By how much each channel moves when row `out` is removed, in the channel's norm."""
    whole = sums_of(stage, rows, before)
    rest = sums_of(stage, take(rows, np.delete(np.arange(len(rows)), out)), before)
    for channel in stage.channels:
        if not channel.private:
            difference = [int(v) for v in whole[channel.name] - rest[channel.name]]
            if channel.triangle:
                full = lattice.unpack_triangle(np.array(difference, dtype=object))
                yield channel, sum(v * v for v in full.ravel())
            else:
                yield channel, sum(v * v for v in difference)


@quick
@given(cases(), st.data())
def test_removing_one_row_moves_no_channel_by_more_than_its_sensitivity(case, data):
    stage, before, rows = case
    if len(rows):
        out = data.draw(st.integers(0, len(rows) - 1))
        for channel, square in moved(stage, rows, before, out):
            assert square <= channel.sensitivity**2


def single(real, label=0):
    return lattice_rows(np.array([real], dtype=float), [label])


def test_the_sensitivities_are_reached():
    # A bound that no row comes near would waste the budget, and this test's blind side.
    one_hot = single([0, 1, 0])
    # Along one axis an int16 is one step short; four equal entries are a whole unit.
    for channel, square in moved(means_stage(4), single([1, 1, 1, 1]), {}, 0):
        assert square == channel.sensitivity**2
    state = {"means": np.array([[0, -UNIT, 0]] * CLASSES, float), "residual_radius": np.array(1.0)}
    ((channel, square),) = moved(moment_stage(3), one_hot, state, 0)
    assert square == channel.sensitivity**2
    state = teacher_state(3, 0, 0.0, norm=20.0)
    state["theta"][1, 1] = 500.0  # sure of the wrong class
    ((channel, square),) = moved(teacher_stage(3), viewed(np.eye(3)[1:2], [0]), state, 0)
    assert 0.999 * channel.sensitivity <= np.sqrt(float(square)) <= channel.sensitivity


def test_the_teacher_is_clipped_at_most_at_the_square_root_of_two():
    # With clip 2 nothing is clipped: p - y has norm sqrt 2 at most, features and bias little over 1.
    state = teacher_state(3, 0, 0.0, norm=20.0)
    state["theta"][1, 1] = 500.0
    ((_, square),) = moved(teacher_stage(3, clip=2.0), viewed(np.eye(3)[1:2], [0]), state, 0)
    assert np.isclose(np.sqrt(float(square)), np.sqrt(2 * (1 + 1 / 400)) * 2.0**30, rtol=1e-6)


def test_sums_by_group():
    values = np.arange(12, dtype=np.int16).reshape(4, 3)
    totals = stages.sums_by_group(values, np.array([3, 0, 3, 1]), 5)
    np.testing.assert_array_equal(totals, [[3, 4, 5], [9, 10, 11], [0, 0, 0], [6, 8, 10], [0, 0, 0]])
    assert not stages.sums_by_group(values[:0], np.zeros(0, int), 5).any()


def test_means_without_noise_are_the_means():
    rows = blobs(400, 5, CLASSES)
    stage = means_stage(5)
    after = stage.advance({}, sums_of(stage, rows, {}), {"count": 0.0, "sum": 0.0})
    for label in range(CLASSES):
        own = rows.values[rows.classes == label].astype(float)
        assert after["counts"][label] == len(own)
        np.testing.assert_allclose(after["means"][label], own.mean(axis=0), atol=0.5)
    np.testing.assert_allclose(after["centre"], rows.values.astype(float).mean(axis=0), atol=0.5)
    residuals = (rows.values - after["means"][rows.classes]) / UNIT
    np.testing.assert_allclose(
        after["residual_radius"], 1.2 * np.sqrt((residuals**2).sum(axis=1).mean()), rtol=1e-3
    )


def test_means_under_overwhelming_noise_collapse_and_stay_in_range():
    stage = means_stage(5)
    noisy = {"count": np.array([-500, 20, 3]), "sum": np.arange(15) * 10**8}
    after = stage.advance({}, noisy, {"count": 1000.0, "sum": 1e6})
    assert (after["counts"] >= 1000).all()
    assert not after["means"].any()
    assert 0 < after["residual_radius"] <= 1.2


def test_the_moment_without_noise_is_the_covariance_within_classes():
    rows = blobs(3000, 5, CLASSES, spread=0.2)
    first, second = means_stage(5), moment_stage(5)
    none = {"count": 0.0, "sum": 0.0, "moment": 1e-6}
    before = first.advance({}, sums_of(first, rows, {}), none)
    before["residual_radius"] = np.array(1.2)  # nothing is clipped
    after = second.advance(before, sums_of(second, rows, before), none)
    basis = after["basis"] / 2.0**stages.BASIS_BITS
    residuals = (rows.values - before["means"][rows.classes]) / UNIT
    covariance = residuals.T @ residuals / len(rows)
    # Its trace is not under a tenth of the public bound, which is where it would be raised to.
    scale = max(np.trace(covariance), 0.1) / np.trace(covariance)
    np.testing.assert_allclose(basis @ basis.T, covariance * scale, atol=0.002)
    np.testing.assert_array_equal(basis, basis.T)
    with_components = dataclasses.replace(second, components=2)
    axes = with_components.advance(before, sums_of(second, rows, before), none)["basis"].astype(float)
    np.testing.assert_allclose(axes @ axes.T * 2.0 ** (-2 * stages.BASIS_BITS), basis @ basis.T, atol=1e-5)
    assert (np.diff((axes**2).sum(axis=0)) <= 0).all()
    # Features are white: their mean squared norm is one in units of the effective dimension.
    features = stages.FEATURES.apply(rows, after).values / VIEW_UNIT
    assert 0.5 < (features.astype(float) ** 2).sum(axis=1).mean() < 1.5


def test_the_gradient_is_that_of_the_cross_entropy():
    rows = viewed(np.random.default_rng(0).standard_normal((50, 4)), np.arange(50) % CLASSES)
    state = teacher_state(4, 1, 2.0)
    found = sums_of(teacher_stage(4, clip=2.0), rows, state)["gradient"].reshape(CLASSES, 5) / 2.0**30
    features = np.column_stack([rows.values / VIEW_UNIT, np.full(50, 0.5)])

    def loss(theta):
        logits = features @ theta.T
        return (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(50), rows.classes]).sum()

    step = 1e-5
    for index in np.ndindex(found.shape):
        shift = np.zeros_like(found)
        shift[index] = step
        slope = (loss(state["theta"] + shift) - loss(state["theta"] - shift)) / (2 * step)
        assert np.isclose(found[index], slope, atol=2e-3)


def test_the_gradient_is_taken_where_the_momentum_carries_the_weights():
    stage = teacher_stage(2)
    state = teacher_state(2, 0, 1.0)
    rows = Rows(np.full((4, 2), 1000, np.int16), np.zeros(4, np.int32))
    moving = {**state, "velocity": np.full_like(state["theta"], 0.5) * np.arange(CLASSES)[:, None]}
    moved = {**state, "theta": moving["theta"] + stage.momentum * moving["velocity"]}
    found, expected, plain = stage.begin(), stage.begin(), stage.begin()
    for current, sums in ((moving, found), (moved, expected), (state, plain)):
        stage.add(rows, stage.working(current), sums)
    np.testing.assert_array_equal(found["gradient"], expected["gradient"])
    assert (found["gradient"] != plain["gradient"]).any()


def test_the_teacher_is_the_average_of_the_last_third():
    state = {
        **teacher_state(2, 0, 1.0),
        "counts": np.full(CLASSES, 100.0),
    }
    iterates = []
    for step in range(6):
        gradient = np.full(CLASSES * 3, (step + 1) * 2**30)
        stage = teacher_stage(2, step=step, steps=6)
        state = stage.advance(state, {"gradient": gradient}, {"gradient": 10.0})
        iterates.append(state["theta"])
        assert stage.name == f"teacher {step}"
    np.testing.assert_allclose(state["average"], np.mean(iterates[4:], axis=0), rtol=1e-6)


def test_probabilities_are_a_softmax_and_do_not_depend_on_the_block():
    rows = viewed(np.random.default_rng(0).standard_normal((40, 6)), np.zeros(40))
    state = teacher_state(6, 3, 5.0)
    features, weights = rows.values.astype(float), stages.logit_weights(state, state["theta"])
    found = stages.probabilities(features, weights)
    with_bias = np.column_stack([features, np.full(40, stages.bias_feature(state))])
    logits = (with_bias / VIEW_UNIT) @ state["theta"].T
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), atol=1e-4)
    for start in range(0, 40, 7):
        np.testing.assert_array_equal(
            stages.probabilities(features[start : start + 7], weights), found[start : start + 7]
        )


def test_a_teacher_too_large_for_exact_products_is_refused():
    small = teacher_state(3, 0, 2.0**17)
    stages.logit_weights(small, small["theta"])
    # The same weights with a constant feature so long that a product could pass 2**53.
    for state in ({**small, "features_norm": np.array(1e-5)}, teacher_state(3, 0, 2.0**21)):
        with pytest.raises(ValueError, match="summed exactly"):
            stages.logit_weights(state, state["theta"])


def test_every_stage_takes_blocks_without_rows():
    for stage, before in (
        (means_stage(4), {}),
        (moment_stage(4), moment_state(4, 0, 1.0)),
        (teacher_stage(4), teacher_state(4, 0, 1.0)),
    ):
        empty = Rows(np.zeros((0, 4), np.int16), np.zeros(0, np.int32))
        sums = sums_of(stage, empty, before)
        for channel in stage.channels:
            assert sums[channel.name].shape == (channel.size,)
        assert not any(values.any() for values in sums.values())
        assert (
            statistics.join(stage.channels, dict(statistics.split(stage.channels, sums))).keys()
            == sums.keys()
        )
