import mpmath
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.fit.exponential import exponential


def test_against_multiple_precision():
    values = -np.random.default_rng(0).exponential(20.0, 2000)
    found = exponential(values.copy())
    exact = [mpmath.exp(mpmath.mpf(float(value))) for value in values]
    worst = max(abs(mpmath.mpf(float(a)) - b) / b for a, b in zip(found, exact, strict=True))
    assert worst < 1e-12


def test_ends():
    found = exponential(np.array([0.0, -0.0, -5e-324, -699.9, -1e300, -np.inf]))
    assert found[:3].tolist() == [1.0, 1.0, 1.0]
    assert (found[3:] > 0).all()
    assert (found[3:] < 1e-300).all()


@given(st.lists(st.floats(-800, 0), min_size=1, max_size=60), st.integers(0, 59))
def test_a_value_does_not_depend_on_its_place(values, start):
    """Nor on its neighbours, nor on how many there are: numpy's vector loops have ends."""
    whole = exponential(np.array(values * 3))
    alone = np.array([exponential(np.array([value]))[0] for value in values])
    assert np.array_equal(whole, np.tile(alone, 3))
    assert np.array_equal(exponential(np.array(values)[start:].copy()), alone[start:])


def test_it_never_falls():
    values = np.linspace(-30, 0, 200_001)
    assert (np.diff(exponential(values)) >= 0).all()


def test_blocks_and_shapes():
    values = -np.random.default_rng(1).exponential(3.0, (3000, 7))
    found = exponential(values.copy())
    assert found.shape == values.shape
    assert np.array_equal(found.ravel()[::997], exponential(values.ravel()[::997].copy()))
