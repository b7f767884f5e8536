"""Centres in all directions: what the rounds' view leaves out of them."""

import dataclasses

import numpy as np
import pytest

from dpgmm_beam.fit import centres, chain, kmeans, sketch
from dpgmm_beam.fit.centres import WholeCentres
from dpgmm_beam.privacy import lattice
from tests.dpgmm_beam.fit.clusters import KEY, plan_of, rows_of, separated, sums_of, two_classes
from tests.strategies import in_view


def fitted_with(epsilon):
    plan, rows, before = two_classes(epsilon)
    position = next(i for i, stage in enumerate(plan.stages) if isinstance(stage, WholeCentres))
    return plan, rows, before[position], plan.stages[position]


@pytest.fixture(scope="module")
def fitted():
    """(plan, rows, state before the stage, the stage)."""
    return fitted_with(1.0)


@pytest.fixture(scope="module")
def well_fitted():
    """The same with so little noise that a radius is what it should be."""
    return fitted_with(20.0)


def next_to_none(stage):
    """Noise multipliers of nearly no noise."""
    return dict.fromkeys((query.name for query in stage.queries), 1e-6)


def test_sums_are_those_of_rows_less_their_nearest_centre(fitted):
    _, rows, before, stage = fitted
    some = rows_of(rows.values[:50] / lattice.UNIT, rows.classes[:50])
    of_components = before.components.centres.astype(np.int64)
    viewed = sketch.WITHIN.of(before).apply(some).values.astype(np.int64)
    totals = np.zeros((*of_components.shape[:2], 12))
    for row, seen, label in zip(some.values, viewed, some.classes, strict=True):
        cell = ((of_components[label] - seen) ** 2).sum(axis=1).argmin()
        place = sketch.on_lattice(before.subspace, of_components[label, [cell]].astype(np.float64))[0]
        offset = row - before.class_means.means[label] - place
        offset *= min(1.0, centres.clip_radius(before) / np.linalg.norm(offset))
        totals[label, cell] += offset * (stage.bound / centres.clip_radius(before))
    found = sums_of(stage, before, some)["sum"].reshape(totals.shape)
    np.testing.assert_allclose(found, totals, atol=50)


def test_centres_go_where_rows_are_in_directions_that_the_view_leaves_out():
    values, _, truth = separated(4000, 40, 6, 0.2)
    rows, plan = rows_of(values), plan_of(dimension=40, components=6, epsilon=20.0)
    position = next(i for i, stage in enumerate(plan.stages) if isinstance(stage, WholeCentres))
    checkpoint = chain.begin(plan, KEY, 1)
    for stage in plan.stages[:position]:
        summing = chain.Summing(checkpoint, KEY)
        sums = summing.begin()
        summing.add(in_view(stage, rows, checkpoint.state), sums)
        checkpoint = chain.advance(checkpoint, summing.finish(sums), KEY)
    before, stage = checkpoint.state, plan.stages[position]
    # Six centres lie in five directions.  The view is cut to four, and they with it.
    subspace = before.subspace
    hidden = dataclasses.replace(
        subspace,
        matrix=np.where(np.arange(8)[:, None] < 4, subspace.matrix, 0),
        steps=np.where(np.arange(8) < 4, subspace.steps, 0.0),
        variances=np.where(np.arange(8) < 4, subspace.variances, 0.0),
    )
    seen = np.where(np.arange(8) < 4, before.components.centres, 0).astype(np.int16)
    before = dataclasses.replace(
        before, subspace=hidden, components=dataclasses.replace(before.components, centres=seen)
    )

    def places(state):
        found = state.class_means.means[:, None].astype(np.float64)
        found = found + sketch.on_lattice(hidden, state.components.centres.reshape(6, -1))
        if state.components.beyond is not None:
            found = found + state.components.beyond
        return found[0] / lattice.UNIT

    def error(state):
        return np.linalg.norm(places(state)[:, None] - truth, axis=2).min(axis=0).max()

    after = stage.advance(before, sums_of(stage, before, rows), next_to_none(stage)).state
    assert error(before) > 0.15
    # What is left is the clip, which takes a part of each move.
    assert error(after) < 0.6 * error(before)


def test_noise_alone_moves_little(fitted):
    _, _, before, stage = fitted
    kept = []
    for seed in range(20):
        noise = np.random.default_rng(seed).standard_normal(stage.queries[0].size) * 400 * stage.bound
        noisy = {"sum": np.rint(noise).astype(np.int64), "square": np.array([1000], np.int64)}
        after = stage.advance(before, noisy, {"sum": 400.0, "square": 1.0}).state
        moved = after.components.centres - before.components.centres.astype(float)
        moved = sketch.on_lattice(before.subspace, moved.reshape(8, -1))
        moved += after.components.beyond.reshape(8, -1)
        raw = noise * centres.clip_radius(before) / stage.bound / 800
        kept.append((moved**2).sum() / (raw**2).sum())
    # Blocks of two directions tell noise from signal by 16 numbers only.
    assert np.mean(kept) < 0.1


def test_what_centres_leave_of_the_variance_is_found(well_fitted):
    _, rows, before, stage = well_fitted
    # With the true counts, for noisy ones stretch the moves.
    of_components = before.components.centres
    viewed = sketch.WITHIN.of(before).apply(rows).values.astype(float)
    cells = kmeans.nearest_of_class(viewed, rows.classes, of_components)
    counts = np.bincount(cells, minlength=8).reshape(of_components.shape[:2]).astype(float)
    before = dataclasses.replace(before, components=dataclasses.replace(before.components, counts=counts))
    after = stage.advance(before, sums_of(stage, before, rows), next_to_none(stage)).state.components
    places = before.class_means.means[:, None] + after.beyond.astype(float)
    places += sketch.on_lattice(before.subspace, after.centres.reshape(8, -1)).reshape(places.shape)
    squares = ((rows.values[:, None] - places[rows.classes]) ** 2).sum(axis=2).min(axis=1)
    assert after.whole_square == pytest.approx(squares.mean() / lattice.UNIT**2, rel=0.03)
    # A figure that is all noise says nothing.
    drowned = {"sum": np.zeros(stage.queries[0].size, np.int64), "square": np.array([10**9], np.int64)}
    found = stage.advance(before, drowned, {"sum": 1e6, "square": 1e7}).state.components.whole_square
    expected = (centres.clip_radius(before) / centres.CENTRE_RADIUS / lattice.UNIT) ** 2
    assert found == pytest.approx(expected, rel=0.01)


def test_the_radius_is_of_what_centres_leave_and_never_nothing(fitted):
    _, _, before, _ = fitted
    of_classes = before.class_means
    whole = 0.9 * np.sqrt(of_classes.residual_square) * lattice.UNIT
    none = dataclasses.replace(before.components, centres=np.zeros_like(before.components.centres))
    assert centres.clip_radius(dataclasses.replace(before, components=none)) == pytest.approx(whole)
    assert 0.2 * whole < centres.clip_radius(before) < 0.8 * whole
    nothing = dataclasses.replace(of_classes, residual_square=1e-9)
    assert centres.clip_radius(dataclasses.replace(before, class_means=nothing)) > 2**8
