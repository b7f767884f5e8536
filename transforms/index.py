"""The index of row groups: all that travels of the data itself."""

import dataclasses
import json
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True, order=True)
class RowGroups:
    """One Parquet file.

    Attributes:
      path: on any file system that Beam knows.
      rows: number of rows of each of its row groups.
    """

    path: str
    rows: tuple[int, ...]


def pack(index: Iterable[RowGroups]) -> np.ndarray:
    """The index, ordered by path, as an array of bytes that a state can hold."""
    data = json.dumps([[found.path, found.rows] for found in sorted(index)])
    return np.frombuffer(data.encode(), np.uint8)


def unpack(packed: np.ndarray) -> list[RowGroups]:
    """The inverse of `pack`."""
    return [RowGroups(path, tuple(rows)) for path, rows in json.loads(packed.tobytes())]
