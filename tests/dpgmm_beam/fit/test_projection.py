import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit.projection import VIEW_UNIT, Projection, pack_projection
from dpgmm_beam.privacy.lattice import UNIT
from tests.strategies import lattice_rows, quick, real_rows, splits, take


def some_projection(dimension, subspace_dim, scale, classes=2):
    generator = np.random.default_rng(0)
    offsets = lattice_rows(generator.standard_normal((classes, dimension)), np.zeros(classes)).values
    return Projection(offsets, pack_projection(scale * generator.standard_normal((subspace_dim, dimension))))


@quick
@given(real_rows(), st.sampled_from([0.01, 1.0, 300.0]), st.data())
def test_views_are_bounded_exact_and_do_not_depend_on_blocks(real, scale, data):
    dimension = real.shape[1]
    rows = lattice_rows(real, np.arange(len(real)) % 2)
    projection = some_projection(dimension, min(dimension, 5), scale)
    viewed = projection.apply(rows)
    assert viewed.values.dtype == np.int16
    values = viewed.values.astype(np.int64)
    assert ((values**2).sum(axis=1) <= VIEW_UNIT**2).all()
    for piece in data.draw(splits(len(rows))):
        np.testing.assert_array_equal(projection.apply(take(rows, piece)).values, viewed.values[piece])
    # Where nothing is clipped: the product in Python's integers, rounded to the view's steps.
    centred = (rows.values.astype(np.int64) - projection.offset[rows.classes]).astype(object)
    exact = centred @ projection.matrix.astype(object).T
    inside = [sum(int(v) ** 2 for v in row) <= (VIEW_UNIT << 21) ** 2 for row in exact]
    steps = (exact[inside] / 2**21).astype(np.float64)
    assert (np.abs(viewed.values[inside] - steps) <= 1).all()
    assert all(inside) or scale > 0.01


def test_one_offset_or_one_for_each_class():
    rows = Rows(np.array([[UNIT, 0], [UNIT, 0]], np.int32), np.array([0, 1], np.int32))
    matrix = pack_projection(np.eye(2))
    by_class = Projection(np.array([[UNIT, 0.0], [0.0, 0.0]]), matrix)
    np.testing.assert_array_equal(by_class.apply(rows).values, [[0, 0], [VIEW_UNIT, 0]])
    one = Projection(np.array([UNIT / 2, 0.0]), matrix)
    np.testing.assert_array_equal(one.apply(rows).values, [[VIEW_UNIT / 2, 0]] * 2)


def test_projections_out_of_range_are_refused():
    assert pack_projection(np.full((1, 1), 2047.9))[0, 0] == round(2047.9 * 2**20)
    for matrix in (np.full((1, 1), 2048.0), np.full((1, 1), -2048.0), np.full((1, 5000), 2000.0)):
        with pytest.raises(ConfigError):
            pack_projection(matrix)
