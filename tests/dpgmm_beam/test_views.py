import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.lattice import UNIT
from dpgmm_beam.rows import Rows
from dpgmm_beam.views import VIEW_UNIT, Projection, pack_projection
from tests.strategies import lattice_rows, quick, real_rows, splits, take

PLAIN = Projection("plain", "offset", by_class=False)
BY_CLASS = Projection("by_class", "offset", by_class=True)


def state_for(dimension, reduced, scale, seed=0, classes=2):
    generator = np.random.default_rng(seed)
    offsets = lattice_rows(generator.standard_normal((classes, dimension)), np.zeros(classes)).values
    matrix = pack_projection(scale * generator.standard_normal((reduced, dimension)))
    return {"plain_matrix": matrix, "by_class_matrix": matrix, "offset": offsets.astype(np.float64)}


@quick
@given(real_rows(), st.sampled_from([0.01, 1.0, 300.0]), st.data())
def test_views_are_bounded_exact_and_do_not_depend_on_blocks(real, scale, data):
    dimension = real.shape[1]
    rows = lattice_rows(real, np.arange(len(real)) % 2)
    current = state_for(dimension, min(dimension, 5), scale)
    viewed = BY_CLASS.apply(rows, current)
    assert viewed.values.dtype == np.int16
    values = viewed.values.astype(np.int64)
    assert ((values**2).sum(axis=1) <= VIEW_UNIT**2).all()
    for piece in data.draw(splits(len(rows))):
        np.testing.assert_array_equal(BY_CLASS.apply(take(rows, piece), current).values, viewed.values[piece])
    # Where nothing is clipped: the product in Python's integers, rounded to the view's steps.
    centred = (rows.values - current["offset"][rows.classes]).astype(np.int64).astype(object)
    exact = centred @ current["by_class_matrix"].astype(object).T
    inside = [sum(int(v) ** 2 for v in row) <= (VIEW_UNIT << 21) ** 2 for row in exact]
    steps = (exact[inside] / 2**21).astype(np.float64)
    assert (np.abs(viewed.values[inside] - steps) <= 1).all()
    assert all(inside) or scale > 0.01


def test_one_offset_or_one_for_each_class():
    rows = Rows(np.array([[UNIT, 0], [UNIT, 0]], np.int32), np.array([0, 1], np.int32))
    current = {
        "plain_matrix": pack_projection(np.eye(2)),
        "by_class_matrix": pack_projection(np.eye(2)),
        "offset": np.array([[UNIT, 0.0], [0.0, 0.0]]),
    }
    np.testing.assert_array_equal(BY_CLASS.apply(rows, current).values, [[0, 0], [VIEW_UNIT, 0]])
    current["offset"] = np.array([UNIT / 2, 0.0])
    np.testing.assert_array_equal(PLAIN.apply(rows, current).values, [[VIEW_UNIT / 2, 0]] * 2)


def test_projections_out_of_range_are_refused():
    assert pack_projection(np.full((1, 1), 2047.9))[0, 0] == round(2047.9 * 2**20)
    for matrix in (np.full((1, 1), 2048.0), np.full((1, 1), -2048.0), np.full((1, 5000), 2000.0)):
        with pytest.raises(ConfigError):
            pack_projection(matrix)
