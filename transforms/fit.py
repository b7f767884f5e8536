"""One stage of the fit: pieces -> sums of pieces -> combine by key -> noise, once -> pieces.

Pieces are pairs (base, number), see `transforms.files.run_files`; rows and states stay
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

from dpgmm_beam.data.digest import DIGEST_LIMBS, digest_of_limbs, no_limbs
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.chain import PassSums
from dpgmm_beam.fit.checkpoint import Checkpoint
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.privacy import queries
from dpgmm_beam.release.manifest import parts_of
from transforms.execution import Execution
from transforms.files import gate, keys, opening, register, run_files
from transforms.files.run_files import Base, Workspace
from transforms.files.write import write_whole
from transforms.passes import Pass, fingerprint

_LOG = logging.getLogger("dpgmm.fit")


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
        before = self.shared.acquire(lambda: run_files.load_state(base, self.position), tag=base)
        return Pass(base, before, self.workspace, self.execution)

    def finish_bundle(self):
        for base, running in self.passes.items():
            if running is None:
                yield GlobalWindows.windowed_value(((base, 0), fingerprint(())))
                continue
            sums, pieces = running.finish()
            head = _head(pieces, sums.limbs)
            for number, part in queries.split(running.before.stage.queries, sums.queries):
                yield GlobalWindows.windowed_value(((base, number), np.concatenate([head, part])))
        # Runners keep a stage's DoFn long after its last bundle.
        self.passes = {}

    def teardown(self):
        for running in getattr(self, "passes", {}).values():
            if running is not None:
                running.abandon()


def _head(pieces: np.ndarray, limbs: np.ndarray | None) -> np.ndarray:
    """What goes before each part and adds up like it: which pieces, and their part in the data digest."""
    return pieces if limbs is None else np.concatenate([pieces, limbs])


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
        write_whole(path, data, private=True, once=True)
        yield base, path


def load_part(path: str) -> tuple[int, np.ndarray]:
    """What `StorePart` has written: number and vector."""
    data = opening.read_bytes(path)
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
                run_files.write_state(base, after)
        run_files.delete_files(stored)
        pieces = run_files.load_state(base, 0).pieces
        yield from ((base, number) for number in range(self.next_elements or pieces))

    def _read(self, element) -> tuple[Base, list[str], Callable[[], dict[int, np.ndarray]]]:
        """The run's folder, the files of parts, and what reads the parts."""
        key, value = element
        if self.gathered:
            paths = list(value)
            return key, paths, lambda: dict(map(load_part, paths))
        return key[0], [], lambda: {key[1]: value}

    def _advance(self, before: Checkpoint, parts: dict[int, np.ndarray]) -> Checkpoint:
        plan, stage, secret = before.plan, before.stage, keys.load(self.workspace.key_file)
        chain.check_key(before, secret)
        whole = fingerprint(range(before.pieces))
        for number in range(queries.part_count(stage.queries)):
            if number not in parts or not np.array_equal(parts[number][: len(whole)], whole):
                raise MissingPiecesError(
                    f"stage {self.position + 1} was handed sums in which pieces are missing or twice,"
                    " and no state is there: run the same command again"
                )
        sums = _joined(before, parts)
        if sums.limbs is not None:
            # Before the first noise: of other data under a known id nothing is drawn.
            digest = digest_of_limbs(sums.limbs)
            register.check(self.workspace.register, data=digest.hex())
            gate.go_through(self.workspace.gate, plan.release_id, digest)
        with one_thread():
            after = chain.advance(before, sums, secret)
        _LOG.info("fit: stage %d of %d done (%s)", after.stages_done, len(plan.stages), stage.name)
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


@dataclasses.dataclass
class FitMixture(beam.PTransform):
    """(base, number) of prepared pieces -> (base, number) of the release's files, when it is fitted.

    One chain of stages; what they find lies in the run's folder.

    Attributes:
      plan: what to fit, with its budget.
      workspace: private files of the run.
      execution: speed only.
    """

    plan: Plan
    workspace: Workspace
    execution: Execution = dataclasses.field(default_factory=Execution)

    def expand(self, pieces):
        stages, current = self.plan.stages, pieces
        for position, stage in enumerate(stages):
            last = position == len(stages) - 1
            current = current | f"Stage {position}: {stage.name}" >> RunStage(
                position,
                queries.part_count(stage.queries),
                self.workspace,
                self.execution,
                # The mixture and each part of the rows.
                1 + len(parts_of(self.plan.config)) if last else None,
            )
        return current


def _joined(before: Checkpoint, parts: dict[int, np.ndarray]) -> PassSums:
    """A pass's sums from its parts, without what goes before each."""
    head = len(_head(fingerprint(()), no_limbs() if before.takes_data_digest else None))
    limbs = parts[0][head - DIGEST_LIMBS : head] if before.takes_data_digest else None
    sums = queries.join(before.stage.queries, {number: part[head:] for number, part in parts.items()})
    return PassSums(sums, limbs)


def final_checkpoint(base: Base) -> Checkpoint:
    """The checkpoint after the last stage, with the covariance that an earlier one left."""
    last = run_files.load_state(base, len(run_files.load_state(base, 0).plan.stages))
    return dataclasses.replace(last, covariance=run_files.load_state(base, last.covariance_at).covariance)
