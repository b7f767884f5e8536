import json

import numpy as np
import pytest

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.release.row_statement import METADATA_KEY, RowStatement, stated

STATEMENT = RowStatement(
    "2026-05", "efficientnet_lite0", ("cat", "dög"), (0.25, 0.75), 4, None, 1.0, 1e-6, seed=2**63
)


def test_it_comes_back_from_the_metadata():
    for one in (STATEMENT, RowStatement("x", "precomputed", ("a",), (1.0,), 4, 1.5, 8.0, 1e-5)):
        found = stated({**one.metadata(2, 7), b"other": b"x"})
        assert (found.rows, found.part, found.parts) == (one, 2, 7)
    # Shares to the last bit.
    weights = tuple(np.random.default_rng(0).dirichlet(np.ones(50)).tolist())
    many = RowStatement("x", "e", tuple(map(str, range(50))), weights, 4, None, 1.0, 1e-6)
    assert stated(many.metadata(0, 1)).rows.class_weights == weights


@pytest.mark.parametrize("metadata", [None, {}, {b"dpgmm.encoder": b"x"}])
def test_files_that_say_nothing(metadata):
    assert stated(metadata) is None


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"{}", b"\xff", b"[" * 10**5, b'{"version": 2}'])
def test_what_is_no_statement(text):
    with pytest.raises(ConfigError, match="metadata 'dpgmm' is refused: it must hold"):
        stated({METADATA_KEY: text})


@pytest.mark.parametrize(
    "changes",
    [
        *[{"classes": value} for value in ([], ["a", "a"], "ab", None, ["a"], [1, 2])],
        *[{"class_weights": value} for value in ([0.5], [0.5, "x"], [0.5, -1.0], [0.5, float("nan")], None)],
        *[{"dimension": value} for value in (0, 4.0, "4", True, 10**9)],
        *[{"clip_norm": value} for value in (0, -1.0, "x", 1e300)],
        *[{"labels": value} for value in ("hard", None)],
        *[{"epsilon": value} for value in (0, "1", None)],
        *[{"delta": value} for value in (0, 0.7)],
        *[{"encoder": None}, {"release_id": 3}, {"more": 1}],
        *[{"part": value} for value in (-1, 7, 1.0, None)],
    ],
)
def test_statements_of_what_cannot_be(changes):
    content = {**json.loads(STATEMENT.metadata(2, 7)[METADATA_KEY]), **changes}
    with pytest.raises(ConfigError, match="metadata 'dpgmm' is refused: it must hold"):
        stated({METADATA_KEY: json.dumps(content).encode()})


@pytest.mark.parametrize(
    "name", ["version", "classes", "dimension", "clip_norm", "labels", "encoder", "part"]
)
def test_statements_that_lack_something(name):
    content = json.loads(STATEMENT.metadata(2, 7)[METADATA_KEY])
    del content[name]
    if name == "labels":
        # Stated as what it is; what another version would state there is not guessed.
        content[name] = "temperature"
    with pytest.raises(ConfigError, match="metadata 'dpgmm' is refused"):
        stated({METADATA_KEY: json.dumps(content).encode()})
