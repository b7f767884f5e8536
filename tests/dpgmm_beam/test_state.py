import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from dpgmm_beam.state import from_bytes, to_bytes
from tests.strategies import quick

ARRAYS = st.sampled_from([np.int16, np.int32, np.int64, np.float32, np.float64, np.uint8]).flatmap(
    lambda kind: stn.arrays(kind, stn.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
)
STATES = st.dictionaries(st.sampled_from(["means", "counts", "theta", "plan", "a b/c"]), ARRAYS)


@quick
@given(STATES)
def test_a_state_comes_back(state):
    again = from_bytes(to_bytes(state))
    assert again.keys() == state.keys()
    for name, array in state.items():
        assert again[name].dtype == array.dtype
        assert again[name].shape == array.shape
        assert again[name].tobytes() == array.tobytes()


@quick
@given(STATES)
def test_the_same_state_is_the_same_bytes(state):
    assert to_bytes(state) == to_bytes(dict(reversed(state.items())))


def test_damage_is_found():
    data = to_bytes({"means": np.arange(100.0), "counts": np.arange(3)})
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 1
        try:
            found = from_bytes(bytes(damaged))
        except ValueError:
            continue
        # What the archive holds beside names and values may differ, no value.
        assert to_bytes(found) == data, position
    for length in (0, 10, len(data) - 1):
        with pytest.raises(ValueError, match="not a state"):
            from_bytes(data[:length])


def test_another_digest_is_refused():
    good = {"means": np.arange(4)}
    other = to_bytes({"means": np.arange(4, dtype=np.int32)})
    assert from_bytes(other)["means"].dtype == np.int32
    import io

    with np.load(io.BytesIO(to_bytes(good))) as file:
        entries = dict(file)
    sink = io.BytesIO()
    np.savez(sink, **{**entries, "means": np.arange(1, 5)})
    with pytest.raises(ValueError, match="digest"):
        from_bytes(sink.getvalue())
