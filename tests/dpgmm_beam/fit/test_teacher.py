import dataclasses

import numpy as np
import pytest

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit.projection import VIEW_UNIT
from dpgmm_beam.fit.teacher import bias_feature, logit_weights, probabilities
from tests.dpgmm_beam.fit.steps import CLASSES, moved, sums_of, teacher_stage, teacher_state, viewed


def sure_of_the_wrong_class():
    state = teacher_state(3, 0, 0.0, norm=20.0)
    state.teacher.weights[1, 1] = 500.0
    return state


def with_weights(state, weights):
    return dataclasses.replace(state, teacher=dataclasses.replace(state.teacher, weights=weights))


def test_the_sensitivity_is_reached():
    row = viewed(np.eye(3)[1:2], [0])
    ((query, square),) = moved(teacher_stage(3), row, sure_of_the_wrong_class(), 0)
    assert 0.999 * query.l2_sensitivity <= np.sqrt(float(square)) <= query.l2_sensitivity


def test_the_teacher_is_clipped_at_most_at_the_square_root_of_two():
    # With clip 2 nothing is clipped: p - y has norm sqrt 2 at most, features and bias little over 1.
    row = viewed(np.eye(3)[1:2], [0])
    ((_, square),) = moved(teacher_stage(3, clip=2.0), row, sure_of_the_wrong_class(), 0)
    assert np.isclose(np.sqrt(float(square)), np.sqrt(2 * (1 + 1 / 400)) * 2.0**30, rtol=1e-6)


def test_the_gradient_is_that_of_the_cross_entropy():
    rows = viewed(np.random.default_rng(0).standard_normal((50, 4)), np.arange(50) % CLASSES)
    state = teacher_state(4, 1, 2.0)
    found = sums_of(teacher_stage(4, clip=2.0), rows, state)["gradient"].reshape(CLASSES, 5) / 2.0**30
    features = np.column_stack([rows.values / VIEW_UNIT, np.full(50, 0.5)])

    def loss(weights):
        logits = features @ weights.T
        return (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(50), rows.classes]).sum()

    step, weights = 1e-5, state.teacher.weights
    for index in np.ndindex(found.shape):
        shift = np.zeros_like(found)
        shift[index] = step
        slope = (loss(weights + shift) - loss(weights - shift)) / (2 * step)
        assert np.isclose(found[index], slope, atol=2e-3)


def test_the_gradient_is_taken_where_the_momentum_carries_the_weights():
    stage, state = teacher_stage(2), teacher_state(2, 0, 1.0)
    rows = Rows(np.full((4, 2), 1000, np.int16), np.zeros(4, np.int32))
    velocity = np.full_like(state.teacher.weights, 0.5) * np.arange(CLASSES)[:, None]
    moving = dataclasses.replace(state, teacher=dataclasses.replace(state.teacher, velocity=velocity))
    ahead = with_weights(state, state.teacher.weights + stage.method.teacher_momentum * velocity)
    found, expected, plain = (sums_of(stage, rows, each)["gradient"] for each in (moving, ahead, state))
    np.testing.assert_array_equal(found, expected)
    assert (found != plain).any()


def test_the_teacher_is_the_average_of_the_last_third():
    state, iterates = teacher_state(2, 0, 1.0), []
    for step in range(6):
        gradient = np.full(CLASSES * 3, (step + 1) * 2**30)
        stage = teacher_stage(2, step=step, steps=6)
        state = stage.advance(state, {"gradient": gradient}, {"gradient": 10.0}).state
        iterates.append(state.teacher.weights)
        assert stage.name == f"teacher {step}"
        assert (state.teacher.average is None) == (step < 4)
    np.testing.assert_allclose(state.teacher.average, np.mean(iterates[4:], axis=0), rtol=1e-6)


def test_probabilities_are_a_softmax_and_do_not_depend_on_the_block():
    rows = viewed(np.random.default_rng(0).standard_normal((40, 6)), np.zeros(40))
    teacher = teacher_state(6, 3, 5.0).teacher
    features, weights = rows.values.astype(float), logit_weights(teacher.weights, teacher.norm)
    found = probabilities(features, weights)
    with_bias = np.column_stack([features, np.full(40, bias_feature(teacher.norm))])
    logits = (with_bias / VIEW_UNIT) @ teacher.weights.T
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), atol=1e-4)
    for start in range(0, 40, 7):
        np.testing.assert_array_equal(
            probabilities(features[start : start + 7], weights), found[start : start + 7]
        )


def test_a_teacher_too_large_for_exact_products_is_refused():
    small = teacher_state(3, 0, 2.0**17).teacher
    logit_weights(small.weights, small.norm)
    # The same weights with a constant feature so long that a product could pass 2**53.
    large = teacher_state(3, 0, 2.0**21).teacher
    for weights, norm in ((small.weights, 1e-5), (large.weights, large.norm)):
        with pytest.raises(ValueError, match="summed exactly"):
            logit_weights(weights, norm)
