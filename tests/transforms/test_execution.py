import pickle

import pytest

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.lattice import MAX_BLOCK_ROWS
from transforms.execution import MAX_THREADS, Execution


def test_what_is_allowed():
    for block_rows, threads in [(1, 1), (MAX_BLOCK_ROWS, MAX_THREADS)]:
        execution = Execution(block_rows, threads)
        assert pickle.loads(pickle.dumps(execution)) == execution


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"block_rows": 0},
            f"block_rows=0 is refused: it must be a whole number from 1 to {MAX_BLOCK_ROWS}.",
        ),
        ({"block_rows": MAX_BLOCK_ROWS + 1}, f"block_rows={MAX_BLOCK_ROWS + 1} is refused"),
        ({"threads": 0}, f"threads=0 is refused: it must be a whole number from 1 to {MAX_THREADS}."),
        ({"threads": MAX_THREADS + 1}, f"threads={MAX_THREADS + 1} is refused"),
    ],
)
def test_what_is_refused(values, sentence):
    with pytest.raises(ConfigError) as refused:
        Execution(**values)
    assert sentence in str(refused.value)
