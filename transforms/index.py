"""What a state holds beside statistics: the index of row groups, and the plan.

The index is all that travels of the data itself.  The plan travels with the
state, too, so that the job graph holds it once and not once for every step.
"""

import json
from collections.abc import Iterable

import numpy as np

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.plan import Plan
from transforms.inputs import RowGroups


def pack(index: Iterable[RowGroups]) -> np.ndarray:
    """The index, ordered by path, as an array of bytes that a state can hold."""
    found = sorted({(entry.path, entry.rows) for entry in index})
    return np.frombuffer(json.dumps(found).encode(), np.uint8)


def unpack(packed: np.ndarray) -> list[RowGroups]:
    """The inverse of `pack`."""
    return [RowGroups(path, tuple(rows)) for path, rows in json.loads(packed.tobytes())]


def pack_plan(plan: Plan) -> np.ndarray:
    """The plan as an array of bytes that a state can hold."""
    content = {"config": plan.config.to_dict(), "release_id": plan.release_id}
    return np.frombuffer(json.dumps(content).encode(), np.uint8)


def unpack_plan(packed: np.ndarray) -> Plan:
    """The inverse of `pack_plan`."""
    content = json.loads(packed.tobytes())
    return Plan(ReleaseConfig.from_dict(content["config"]), content["release_id"])
