import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.state import CHUNK_BYTES, digest, from_chunks, to_chunks
from tests.strategies import quick

STATE = {
    "long": np.arange(300_000, dtype=np.float64).reshape(2, -1),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3), np.int32),
    "bytes": np.arange(64, dtype=np.uint8),
    "strided": np.arange(20, dtype=np.int16).reshape(4, 5).T,
    "big-endian": np.arange(3, dtype=">i4"),
}


@quick
@given(st.randoms(use_true_random=False))
def test_chunks_in_any_order_and_repeated_give_the_state(random):
    chunks = list(to_chunks(STATE))
    chunks += chunks[1:3]
    random.shuffle(chunks)
    state = from_chunks(chunks)
    assert set(state) == set(STATE)
    for name, array in STATE.items():
        np.testing.assert_array_equal(state[name], array)
        assert state[name].shape == array.shape
        assert state[name].dtype == array.dtype


def test_chunks_are_small():
    chunks = list(to_chunks(STATE))
    assert max(len(chunk.data) for chunk in chunks) <= CHUNK_BYTES
    assert sum(chunk.name == "long" for chunk in chunks) == 3


def test_digests_name_contents_type_and_shape():
    one = np.arange(6, dtype=np.int32)
    different = [
        digest(one),
        digest(one.reshape(2, 3)),
        digest(one.astype(np.int64)),
        digest(one + 1),
        digest(one, one),
        digest(one[:3], one[3:]),
    ]
    assert len(set(different)) == len(different)
    assert digest(one) == digest(np.repeat(one, 2)[::2])
