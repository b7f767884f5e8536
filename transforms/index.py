"""The index of row groups: all that travels of the data itself."""

import json
from collections.abc import Iterable

import numpy as np

from transforms.inputs import RowGroups


def pack(index: Iterable[RowGroups]) -> np.ndarray:
    """The index, ordered by path, as an array of bytes that a state can hold."""
    found = sorted({(entry.path, entry.rows) for entry in index})
    return np.frombuffer(json.dumps(found).encode(), np.uint8)


def unpack(packed: np.ndarray) -> list[RowGroups]:
    """The inverse of `pack`."""
    return [RowGroups(path, tuple(rows)) for path, rows in json.loads(packed.tobytes())]
