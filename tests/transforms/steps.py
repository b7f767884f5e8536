"""The steps of a release's chain, each called by hand as a runner would call its DoFn."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.noise import NoiseKey
from tests import small
from transforms.execution import Execution
from transforms.files.run_files import Base, Workspace
from transforms.fit import DrawNoise, StorePart, SumPieces
from transforms.prepare import ListUnits, PrepareUnits, Source

SECRET = NoiseKey(small.KEY)
EXECUTION = Execution()


def setting(folder: Path, **changes: Any) -> tuple[Plan, Workspace]:
    """A plan and a workspace with its key in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    key = small.write_key(folder / "key")
    return Plan(small.small_config(**changes), small.RELEASE_ID), small.workspace(folder, key)


def list_units(
    plan: Plan, workspace: Workspace, source: Path | str, execution: Execution = EXECUTION
) -> list[tuple[Base, int]]:
    return list(ListUnits(plan, workspace, execution).process(Source(str(source))))


def prepare_units(
    units: Iterable[tuple[Base, int]], workspace: Workspace, execution: Execution = EXECUTION
) -> list[tuple[Base, int]]:
    worker = PrepareUnits(workspace, execution)
    worker.setup()
    return [piece for unit in units for piece in worker.process(unit)]


def prepare(
    plan: Plan, workspace: Workspace, source: Path | str, execution: Execution = EXECUTION
) -> list[tuple[Base, int]]:
    """(base, number) of every piece, when it is there."""
    return prepare_units(list_units(plan, workspace, source, execution), workspace, execution)


def sum_pieces(
    position: int, workspace: Workspace, pieces: Iterable[tuple[Base, int]], execution: Execution = EXECUTION
) -> dict[tuple[Base, int], np.ndarray]:
    """What one bundle yields: vector by (base, part)."""
    worker = SumPieces(position, workspace, execution)
    worker.setup()
    worker.start_bundle()
    for piece in pieces:
        assert worker.process(piece) is None
    found = dict(output.value for output in worker.finish_bundle())
    worker.teardown()
    return found


def draw(
    position: int, workspace: Workspace, base: Base, parts: Iterable[Any], next_elements: int | None = None
) -> list[tuple[Base, int]]:
    """What the draw yields.

    Args:
      parts: (number, vector), of which the only one is handed over as it is and several
        are stored first; or paths of stored ones.
    """
    parts = list(parts)
    if len(parts) == 1 and not isinstance(parts[0], str):
        ((number, vector),) = parts
        only = DrawNoise(position, workspace, gathered=False, next_elements=next_elements)
        return list(only.process(((base, number), vector)))
    store = StorePart(position)
    paths = [part if isinstance(part, str) else store_part(store, base, *part) for part in parts]
    all_of_them = DrawNoise(position, workspace, gathered=True, next_elements=next_elements)
    return list(all_of_them.process((base, iter(paths))))


def store_part(store: StorePart, base: Base, number: int, vector: np.ndarray) -> str:
    """The path at which a part is stored."""
    ((_, path),) = store.process(((base, number), vector))
    return path


def run_stage(
    position: int, workspace: Workspace, pieces: list[tuple[Base, int]], execution: Execution = EXECUTION
) -> list[tuple[Base, int]]:
    """The stage from pieces to pieces, in one bundle."""
    sums = sum_pieces(position, workspace, pieces, execution)
    (base,) = {base for base, _ in sums}
    return draw(position, workspace, base, [(part, vector) for (_, part), vector in sums.items()])
