import dataclasses

import numpy as np
import pytest

from dpgmm_beam.fit.projection import VIEW_UNIT
from dpgmm_beam.fit.sharpness import FACTORS, SLOPE_CLIP
from tests.dpgmm_beam.fit.steps import CLASSES, moved, start_stage, sums_of, teacher_state, viewed

STEP = 2.0**-10


def released(slopes, noise=0.0):
    """The factor by which weights grow after these noisy means of 300 rows."""
    before = teacher_state(3, 0, 1.0)
    rows = before.class_means.counts.sum()
    stage = start_stage(3)
    multiplier = noise * rows / STEP / stage.bound
    sums = {"slope": np.rint(np.asarray(slopes) * rows / STEP).astype(np.int64)}
    after = stage.advance(before, sums, {"slope": multiplier}).state
    ratios = after.teacher.weights / before.teacher.weights.astype(np.float32)
    np.testing.assert_allclose(ratios, ratios[0, 0], rtol=1e-5)
    np.testing.assert_array_equal(after.teacher.velocity, before.teacher.velocity)
    return float(ratios[0, 0])


def test_slopes_are_those_of_the_cross_entropy_by_the_logarithm_of_the_scale():
    rows = viewed(np.random.default_rng(0).standard_normal((60, 4)), np.arange(60) % CLASSES)
    state = teacher_state(4, 1, 0.15)
    features = np.column_stack([rows.values / VIEW_UNIT, np.full(60, 0.5)])

    def loss(factor):
        logits = factor * features @ state.teacher.weights.T
        return (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(60), rows.classes]).sum()

    found = sums_of(start_stage(4), rows, state)["slope"] * STEP
    expected = [(loss(f * 1.0001) - loss(f / 1.0001)) / (2 * np.log(1.0001)) for f in FACTORS]
    np.testing.assert_allclose(found, expected, atol=60 * (STEP / 2 + 1e-3))
    assert np.abs(found).max() > 1


def test_the_sensitivity_is_reached_in_either_direction():
    for weight in (500.0, -500.0):
        state = teacher_state(3, 0, 0.0, norm=20.0)
        state.teacher.weights[1, 1] = weight
        # Of class 0, and class 1 is far likelier; or of class 1, which is not likely at all.
        row = viewed(np.eye(3)[1:2], [0 if weight > 0 else 1])
        ((query, square),) = moved(start_stage(3), row, state, 0)
        assert 0.999 * query.l2_sensitivity <= np.sqrt(float(square)) <= query.l2_sensitivity
        assert query.l2_sensitivity == pytest.approx(SLOPE_CLIP * np.sqrt(len(FACTORS)) / STEP)


def test_rows_that_agree_ask_for_more_and_rows_that_do_not_for_less():
    state = teacher_state(3, 0, 0.0)
    state.teacher.weights[:, :3] = 3 * np.eye(3)
    right = viewed(np.eye(3), [0, 1, 2])
    wrong = dataclasses.replace(right, classes=np.array([1, 2, 0], np.int32))
    # Where they are sharp enough there is nothing left to ask for.
    agreed = sums_of(start_stage(3), right, state)["slope"]
    assert (agreed[:4] < 0).all()
    assert (agreed <= 0).all()
    assert (sums_of(start_stage(3), wrong, state)["slope"] > 0).all()


def test_the_factor_lies_where_slopes_cross_zero():
    line = 0.4 * np.arange(len(FACTORS))
    # A prior of .05 for each doubling pulls towards the usual factor, 1.
    assert released(line - 0.8) == pytest.approx(1.0, abs=1e-3)
    assert released(line - 1.4) == pytest.approx(2 * (1 + 0.15 / 0.45), rel=1e-2)
    assert released(line - 0.2) == pytest.approx(0.25 * (1 + 0.3 / 0.45), rel=1e-2)


def test_it_stays_among_the_factors():
    assert released(np.full(len(FACTORS), -3.0)) == FACTORS[-1]
    assert released(np.full(len(FACTORS), 3.0)) == FACTORS[0]


def test_noise_alone_leaves_the_start_about_as_it_was():
    generator = np.random.default_rng(7)
    found = [released(0.3 * generator.standard_normal(len(FACTORS)), noise=0.3) for _ in range(300)]
    # A slope of noise is within 6.5 standard deviations but once in 10^10: three doublings of two each.
    assert 0.4 < np.quantile(found, 0.02) < np.quantile(found, 0.98) < 2.5
