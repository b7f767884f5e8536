"""One stage of the fit: pieces -> sums of pieces -> combine by key -> noise, once -> pieces.

Pieces are pairs (base, number), see `transforms.run_files`; rows and states stay
in the private folder.  A stage has two barriers, the combination and the
spreading of pieces, and a third where its sums are more than one element.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator

import apache_beam as beam
import numpy as np
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared

from dpgmm_beam import fit, statistics
from dpgmm_beam.algebra import one_thread
from dpgmm_beam.plan import Plan
from dpgmm_beam.state import State
from transforms import inputs, keys, register, run_files
from transforms.execution import Execution
from transforms.passes import Pass, fingerprint
from transforms.private_files import write_private_once
from transforms.run_files import Base, Workspace

_LOG = logging.getLogger("dpgmm.fit")

_CHECK = len(fingerprint(()))


class Loaded:
    """A state in memory; a class of its own, since a dict cannot be shared by `Shared`."""

    def __init__(self, base: Base, stages: int):
        self.state: State = run_files.load_state(base, stages)


# Declared types spare Beam the guessing, half a second of a job's start.
@beam.typehints.with_output_types(tuple[tuple[Base, int], np.ndarray])
class SumPieces(beam.DoFn):
    """(base, piece) -> ((base, part), vector): one set of parts a bundle, each behind its fingerprint.

    Where the state after the stage is there already, no row is read, and a part
    without sums is handed on.
    """

    def __init__(self, position: int, workspace: Workspace, execution: Execution):
        self.position, self.workspace, self.execution = position, workspace, execution
        self.shared = Shared()

    def start_bundle(self):
        self.passes: dict[Base, Pass | None] = {}

    def process(self, element):
        base, number = element
        if base not in self.passes:
            done = run_files.has_state(base, self.position + 1)
            self.passes[base] = None if done else self._pass(base)
        if (running := self.passes[base]) is not None:
            running.add(number)

    def _pass(self, base: Base) -> Pass:
        # Once a process, however many bundles it works on.
        loaded = self.shared.acquire(lambda: Loaded(base, self.position), tag=base)
        before = loaded.state
        if self.position:
            plan = fit.plan_of(before)
            before = fit.for_next(plan.stages[self.position - 1], before)
        return Pass(base, self.position, before, self.workspace, self.execution)

    def finish_bundle(self):
        for base, running in self.passes.items():
            if running is None:
                yield GlobalWindows.windowed_value(((base, 0), fingerprint(())))
                continue
            sums, pieces = running.finish()
            for number, part in statistics.split(running.stage.channels, sums):
                yield GlobalWindows.windowed_value(((base, number), np.concatenate([pieces, part])))
        # Runners keep a stage's DoFn long after its last bundle.
        self.passes = {}

    def teardown(self):
        for running in getattr(self, "passes", {}).values():
            if running is not None:
                running.abandon()


class SumParts(beam.CombineFn):
    """Exact int64 sums of vectors; a shorter one is a longer one's beginning."""

    def create_accumulator(self):
        return np.zeros(0, np.int64)

    def add_input(self, total, part):
        shorter, longer = sorted((total, part), key=len)
        result = longer.copy()
        result[: len(shorter)] += shorter
        return result

    def merge_accumulators(self, totals):
        result = self.create_accumulator()
        for total in totals:
            result = self.add_input(result, total)
        return result

    def extract_output(self, total):
        return total


@beam.typehints.with_output_types(tuple[Base, str])
@dataclasses.dataclass
class StorePart(beam.DoFn):
    """((base, part), vector) -> (base, path of a private file that holds it).

    Gathered, the parts of large sums would be one element of many megabytes.
    """

    position: int

    def process(self, element) -> Iterator[tuple[Base, str]]:
        (base, number), vector = element
        data = number.to_bytes(8, "little") + vector.astype("<i8").tobytes()
        path = run_files.sums_file(base, self.position, number, hashlib.sha256(data).hexdigest()[:16])
        write_private_once(path, data)
        yield base, path


def load_part(path: str) -> tuple[int, np.ndarray]:
    """What `StorePart` has written: number and vector."""
    data = inputs.read_bytes(path)
    return int.from_bytes(data[:8], "little"), np.frombuffer(data[8:], "<i8")


class MissingPiecesError(RuntimeError):
    """Sums that must not be noised: of a pass in which some pieces are missing or twice."""


@beam.typehints.with_output_types(tuple[Base, int])
@dataclasses.dataclass
class DrawNoise(beam.DoFn):
    """Parts of sums -> (base, piece) of every piece, when the state after the stage is in its file.

    Whoever comes second finds the file and draws nothing: the noise of a stage
    is drawn once, whatever a runner repeats and wherever.

    Attributes:
      position: of the stage.
      workspace: of the run.
      gathered: whether an element is (base, paths of all parts), see `StorePart`,
        or the only part, ((base, part), vector).
      next_elements: how many elements of the next step; None: the pieces.
    """

    position: int
    workspace: Workspace
    gathered: bool
    next_elements: int | None = None

    def process(self, element) -> Iterator[tuple[Base, int]]:
        base, stored, parts = self._read(element)
        if not run_files.has_state(base, self.position + 1):
            before = run_files.load_state(base, self.position)
            try:
                after = self._advance(before, parts())
            except (OSError, MissingPiecesError):
                # Another attempt deletes the parts once it has written the state.
                if not run_files.has_state(base, self.position + 1):
                    raise
            else:
                run_files.write_state(base, self.position + 1, after)
        run_files.delete_files(stored)
        pieces = int(run_files.load_state(base, 0)["pieces"])
        yield from ((base, number) for number in range(self.next_elements or pieces))

    def _read(self, element) -> tuple[Base, list[str], Callable[[], dict[int, np.ndarray]]]:
        """The run's folder, the files of parts, and what reads the parts."""
        key, value = element
        if self.gathered:
            paths = list(value)
            return key, paths, lambda: dict(map(load_part, paths))
        return key[0], [], lambda: {key[1]: value}

    def _advance(self, before: State, parts: dict[int, np.ndarray]) -> State:
        plan, secret = fit.plan_of(before), keys.load(self.workspace.key_file)
        fit.check_key(before, secret)
        if self.position:
            before = fit.for_next(plan.stages[self.position - 1], before)
        stage = plan.stages[self.position]
        whole = fingerprint(range(int(before["pieces"])))
        for number in range(statistics.part_count(stage.channels)):
            if number not in parts or not np.array_equal(parts[number][:_CHECK], whole):
                raise MissingPiecesError(
                    f"stage {self.position + 1} was handed sums in which pieces are missing or twice,"
                    " and no state is there: run the same command again"
                )
        sums = statistics.join(stage.channels, {number: part[_CHECK:] for number, part in parts.items()})
        with one_thread():
            after = fit.advance(plan, self.position, before, sums, secret)
        if self.position == 0:
            # Before the state is written: of other data under a known id nothing is drawn further.
            register.check(self.workspace.register, data=after["data_digest"].tobytes().hex())
        _LOG.info("fit: stage %d of %d done (%s)", self.position + 1, len(plan.stages), stage.name)
        return after


@dataclasses.dataclass
class RunStage(beam.PTransform):
    """PCollection of (base, number) of pieces -> the same, when the next state is there.

    Attributes:
      position: which stage.
      parts: how many its sums travel in.
      workspace: of the run.
      execution: speed only.
      next_elements: see `DrawNoise`.
    """

    position: int
    parts: int
    workspace: Workspace
    execution: Execution
    next_elements: int | None = None

    def expand(self, pieces):
        sums = (
            pieces
            | "Sum" >> beam.ParDo(SumPieces(self.position, self.workspace, self.execution))
            | "Combine" >> beam.CombinePerKey(SumParts())
        )
        gathered = self.parts > 1
        if gathered:
            sums = sums | "Store" >> beam.ParDo(StorePart(self.position)) | "Gather" >> beam.GroupByKey()
        noise = DrawNoise(self.position, self.workspace, gathered, self.next_elements)
        after = sums | "Noise" >> beam.ParDo(noise)
        return after | "Spread" >> beam.Reshuffle() if self.execution.spread else after


def final_state(base: Base) -> tuple[State, Plan]:
    """The state after the last stage with what earlier ones left for the end, and the plan."""
    plan = fit.plan_of(run_files.load_state(base, 0))
    final = run_files.load_state(base, len(plan.stages))
    for position, stage in enumerate(plan.stages):
        if stage.AT_END:
            final.update(fit.at_end(stage, run_files.load_state(base, position + 1)))
    return final, plan
