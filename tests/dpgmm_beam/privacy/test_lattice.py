import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.lattice import UNIT
from tests.strategies import quick, real_rows, splits


def squares(rows):
    """Squared norms in Python's integers, which cannot be wrong."""
    return [sum(int(value) ** 2 for value in row) for row in rows]


def assert_on_lattice(rows, bound):
    assert (rows == np.rint(rows)).all()
    assert max(squares(rows), default=0) <= bound**2


@quick
@given(real_rows(), st.sampled_from([None, 1.0, 0.37, 1e-12, 5e11]))
def test_no_row_is_longer_than_the_unit(real, clip_norm):
    rows, keep = lattice.quantise_rows(real, clip_norm)
    assert len(rows) == keep.sum() == len(real)
    assert_on_lattice(rows, UNIT)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_equal_coordinates_whose_rounding_would_lengthen_the_row(clip_norm):
    lengthened = 0
    for dimension in range(1, 400):
        real = np.full((1, dimension), 1.0)
        rows, _ = lattice.quantise_rows(real, clip_norm)
        assert_on_lattice(rows, UNIT)
        lengthened += np.rint(UNIT / np.sqrt(dimension)) ** 2 * dimension > UNIT**2
    # The test would show nothing had rounding never lengthened a row.
    assert lengthened > 100


@quick
@given(st.integers(1, 30), st.integers(0, 2**32), st.integers(1, 3000))
def test_rows_at_half_steps_on_the_bound(dimension, seed, bound):
    generator = np.random.default_rng(seed)
    halves = generator.integers(-50, 50, (20, dimension)) + 0.5
    # Half steps of a norm as near to the bound as halving allows, and rows scaled onto it.
    norms = np.linalg.norm(halves, axis=1)
    for rows in (halves[norms <= bound], halves * (bound / norms)[:, None] * (1 - 1e-15)):
        rounded = lattice._round_within(rows, bound)
        assert_on_lattice(rounded, bound)
        assert (np.abs(rounded - rows) < 1).all()


def test_the_smallest_rows_that_rounding_lengthens():
    # 1.5 x 4 has norm 3; its nearest integers have norm 4.
    np.testing.assert_array_equal(lattice._round_within(np.full((1, 4), 1.5), 3), np.ones((1, 4)))
    np.testing.assert_array_equal(lattice._round_within(np.full((1, 4), -1.5), 3), -np.ones((1, 4)))
    # One such row changes nothing in the others.
    both = np.array([[1.5, 1.5, 1.5, 1.5], [0.6, -0.6, 0.6, 0.6]])
    np.testing.assert_array_equal(lattice._round_within(both, 3)[1], [1, -1, 1, 1])


@quick
@given(real_rows(), st.data())
def test_a_row_does_not_depend_on_its_block(real, data):
    rows, _ = lattice.quantise_rows(real)
    for piece in data.draw(splits(len(real))):
        np.testing.assert_array_equal(lattice.quantise_rows(real[piece])[0], rows[piece])
    np.testing.assert_array_equal(lattice.quantise_rows(np.asfortranarray(real))[0], rows)


@quick
@given(real_rows(), st.data())
def test_sums_do_not_depend_on_order_and_partition(real, data):
    rows, _ = lattice.quantise_rows(real)
    total, moment = rows.sum(axis=0), rows.T @ rows
    pieces = data.draw(splits(len(real)))
    np.testing.assert_array_equal(sum(rows[piece].sum(axis=0) for piece in pieces), total)
    np.testing.assert_array_equal(sum(rows[piece].T @ rows[piece] for piece in pieces), moment)
    exact = rows.astype(np.int64).astype(object)
    np.testing.assert_array_equal(moment.astype(np.int64), (exact.T @ exact).astype(np.int64))


@quick
@given(real_rows(kinds=("normal", "one-hot", "equal", "sparse")), st.integers(-50, 50))
def test_quantised_rows_are_close_and_keep_under_scaling(real, power):
    rows, _ = lattice.quantise_rows(real)
    unit = real / np.linalg.norm(real, axis=1, keepdims=True)
    # A step of truncation, and a sixteenth or so from the 20-bit form.
    assert (np.abs(rows - unit * UNIT) <= 1.2).all()
    np.testing.assert_array_equal(lattice.quantise_rows(real * 2.0**power)[0], rows)


def test_clip_norm_scales_the_inside_and_clips_the_outside():
    real = np.array([[0.25, 0.0], [0.0, -2.0], [3.0, 4.0], [1.5, 0.0]])
    rows, _ = lattice.quantise_rows(real, clip_norm=2.0)
    np.testing.assert_allclose(rows, UNIT * np.array([[0.125, 0], [0, -1], [0.6, 0.8], [0.75, 0]]), atol=1)


def test_bad_rows_are_set_aside_and_the_others_stay():
    good = np.array([3.0, 4.0, 0.0])
    bad = [
        [np.nan, 1, 1],
        [np.inf, 1, 1],
        [1, -np.inf, 0],
        [np.inf, -np.inf, np.nan],
        [0, 0, 0],
        [-0.0, 0, 0],
        [5e-324, 0, 0],
        [1e-310, 1e-310, 1e-310],
        [1e300, 1, 1],
        [1.7e308, 1.7e308, 1.7e308],
    ]
    real = np.array([good, *bad, 2 * good])
    for clip_norm in (None, 1.0):
        rows, keep = lattice.quantise_rows(real, clip_norm)
        assert keep.tolist() == [True] + [False] * len(bad) + [True]
        np.testing.assert_allclose(rows, UNIT * np.array([[0.6, 0.8, 0]] * 2), atol=1)
    rows, keep = lattice.quantise_rows(real[1:-1])
    assert rows.shape == (0, 3)
    assert not keep.any()


def test_every_float_width_and_no_rows():
    real = np.array([[0.5, -0.25, 0.125], [1, 0, 0]])
    expected, _ = lattice.quantise_rows(real)
    for kind in (np.float16, np.float32, ">f8"):
        np.testing.assert_array_equal(lattice.quantise_rows(real.astype(kind))[0], expected)
    # float16's own denormals are ordinary numbers here.
    np.testing.assert_array_equal(
        lattice.quantise_rows(np.array([[6e-8, 0]], np.float16))[0], [[UNIT - 1, 0]]
    )
    rows, keep = lattice.quantise_rows(np.zeros((0, 5), np.float16))
    assert rows.shape == (0, 5)
    assert keep.shape == (0,)


@quick
@given(real_rows(), st.integers(1, UNIT))
def test_clipping_keeps_the_bound_and_what_is_inside(real, bound):
    rows, _ = lattice.quantise_rows(real)
    clipped = lattice.clip_rows(rows, bound)
    assert_on_lattice(clipped, bound)
    inside = np.array(squares(rows), dtype=object) <= bound**2
    inside = inside.astype(bool)
    np.testing.assert_array_equal(clipped[inside], rows[inside])
    norms = np.linalg.norm(rows[~inside], axis=1, keepdims=True)
    assert (np.abs(clipped[~inside] - rows[~inside] * bound / norms) <= 1).all()


def test_exactness_is_checked():
    lattice.check_exact(2.0**26, 2.0**26)
    lattice.check_exact(2.0**53 - 1)
    for norms in ((2.0**53,), (2.0**27, 2.0**26), (np.inf, 1.0), (np.nan, 1.0)):
        with pytest.raises(ConfigError, match="summed exactly"):
            lattice.check_exact(*norms)


def test_dimensions_are_checked():
    lattice.check_dimension(1)
    lattice.check_dimension(lattice.MAX_DIMENSION)
    for dimension in (0, -1, lattice.MAX_DIMENSION + 1):
        with pytest.raises(ConfigError, match="dimension"):
            lattice.check_dimension(dimension)
    with pytest.raises(ConfigError, match="dimension"):
        lattice.quantise_rows(np.ones((1, lattice.MAX_DIMENSION + 1)))


def test_the_longest_allowed_row_is_still_bounded():
    generator = np.random.default_rng(0)
    real = np.stack([np.ones(lattice.MAX_DIMENSION), generator.standard_normal(lattice.MAX_DIMENSION)])
    rows, _ = lattice.quantise_rows(real)
    assert_on_lattice(rows, UNIT)
    assert min(squares(rows)) > (0.98 * UNIT) ** 2


@quick
@given(st.integers(1, 12), st.integers(0, 1000))
def test_triangles_pack_and_unpack(dimension, seed):
    matrix = np.random.default_rng(seed).integers(-9, 9, (dimension, dimension))
    matrix += matrix.T
    packed = lattice.pack_triangle(matrix)
    assert packed.shape == (dimension * (dimension + 1) // 2,)
    np.testing.assert_array_equal(lattice.unpack_triangle(packed), matrix)
    assert lattice.unpack_triangle(packed).dtype == matrix.dtype
    np.testing.assert_array_equal(packed[:dimension], matrix[0])
