import numpy as np
import pytest

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import sketch
from dpgmm_beam.fit.projection import VIEW_UNIT
from dpgmm_beam.fit.sketch import room_of
from dpgmm_beam.fit.stage import Shape
from dpgmm_beam.privacy import lattice
from tests.dpgmm_beam.fit.clusters import plan_of, sums_of, two_classes
from tests.strategies import in_view


@pytest.fixture(scope="module")
def fitted():
    return two_classes()


def test_stages_are_few_and_do_not_depend_on_the_classes():
    kinds = [[stage.name for stage in plan_of(classes=c, rounds=4).stages[4:]] for c in (1, 50)]
    shapes = ["centres 0", "scatter 0", "scales 0"]
    assert kinds[0] == kinds[1] == ["sketch 0", "sketch 1", "rounds 2", "rounds 3", *shapes]
    assert [stage.name for stage in plan_of(rounds=1).stages[4:]] == ["rounds 0", *shapes]
    assert len(plan_of().stages[4:]) == len(plan_of(components=None).stages[4:]) == 11
    assert [stage.name for stage in plan_of(components=1).stages] == [
        "counts 0",
        "means 0",
        "moment 0",
        "whitened 0",
        "scatter 0",
    ]


@pytest.mark.parametrize(
    ("classes", "components", "room"), [(1, 4, 80), (1, 64, 512), (1, 300, 1200), (1000, 30, 60)]
)
def test_a_sketch_has_cells_for_its_components_and_room_in_memory(classes, components, room):
    assert room_of(Shape(classes, 128, components, 64, 64)) == room


def test_components_are_as_many_as_rows_allow():
    found = Shape(2, 128, 40, 64, 64, exact_components=False)
    assert sketch.components_of(found, np.array([-3, 10, 620, 1e6])).tolist() == [1, 1, 10, 40]
    assert sketch.components_of(Shape(2, 128, 7, 64, 64), np.array([10, 1e6])).tolist() == [7, 7]


@pytest.mark.parametrize("position", [4, 5])
def test_sums_are_those_of_integer_arithmetic(fitted, position):
    plan, rows, before = fitted
    stage, state, some = plan.stages[position], before[position], Rows(rows.values[:40], rows.classes[:40])
    viewed = in_view(stage, some, state)
    sums, centres = sums_of(stage, state, some), state.components.cells.astype(np.int64)
    counted = np.zeros(centres.shape[:2], dtype=np.int64)
    values = lattice.clip_rows(viewed.values.astype(np.float64), sketch.SKETCH_BOUND).astype(np.int64)
    for value, label in zip(values, viewed.classes, strict=True):
        counted[label, ((centres[label] - value) ** 2).sum(axis=1).argmin()] += 1
    np.testing.assert_array_equal(sums["count"].reshape(2, -1)[:, : centres.shape[1]], counted)
    np.testing.assert_array_equal(sums["sum"].reshape(-1, 8).sum(axis=0), values.sum(axis=0))


def test_states_hold_what_workers_need_as_integers(fitted):
    for state in fitted[2][4:]:
        for points in (state.components.cells, state.components.centres):
            np.testing.assert_array_equal(points, np.rint(points))
        cells = state.components.cells.reshape(-1, 8).astype(np.float64)
        assert lattice.square_norms(cells).max() <= VIEW_UNIT**2
