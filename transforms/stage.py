"""One stage of the fit as a pass over the rows: index -> sums -> noise -> next state.

Nothing but the index of row groups, parts of sums and chunks of state goes
through the runner.  Each stage starts from its own impulse and takes the index
from the state before it, so that no collection is read by many stages.  Side
inputs are read once and as iterables: a worker keeps the list that it has made
of one for as long as it keeps the stage.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsIter
from apache_beam.transforms.window import GlobalWindows

from dpgmm_beam import fit, rows, state, statistics
from dpgmm_beam.algebra import one_thread
from dpgmm_beam.cache import DEFAULT_BYTES, PROCESS_CACHE
from dpgmm_beam.plan import Plan
from dpgmm_beam.stages import AT_END
from transforms import index, keys
from transforms.inputs import open_rows

_LOG = logging.getLogger("dpgmm.fit")


@dataclasses.dataclass(frozen=True)
class Execution:
    """What changes the speed of a release and never its bytes.

    Attributes:
      block_rows: rows in one numpy block.
      cache_bytes: bound of the per-process cache of decoded blocks.
      cache_token: tells this run's cache entries from those of other runs.
    """

    block_rows: int = 1024
    cache_bytes: int = DEFAULT_BYTES
    cache_token: str = ""


@dataclasses.dataclass
class InitialState(beam.PTransform):
    """PCollection[RowGroups] -> PCollection[Chunk]: the state before the first stage.

    Attributes:
      plan: what to fit; every later step finds it in the state.
    """

    plan: Plan

    def expand(self, row_groups):
        plan = index.pack_plan(self.plan)
        return (
            row_groups.pipeline
            | "Start" >> beam.Impulse()
            | "Index"
            >> beam.FlatMap(
                lambda _, found: state.to_chunks({"index": index.pack(found), "plan": plan}),
                AsIter(row_groups),
            )
        )


def is_index(chunk: state.Chunk) -> bool:
    return chunk.name == "index"


def is_for_the_end(chunk: state.Chunk) -> bool:
    return chunk.name in AT_END


def index_elements(_: bytes, chunks: Iterable[state.Chunk]) -> Iterator[tuple[str, int, int]]:
    """(path, row group, rows in it) of every row group; last an empty one that yields zeros.

    The empty one makes every part of every statistic exist, whatever the data.
    """
    packed = state.from_chunks(filter(is_index, chunks))["index"]
    for row_groups in index.unpack(packed):
        for number, count in enumerate(row_groups.rows):
            yield row_groups.path, number, count
    yield "", 0, 0


# Declared types spare Beam the guessing, half a second of a job's start.
@beam.typehints.with_output_types(tuple[int, np.ndarray])
class SumRows(beam.DoFn):
    """(path, row group, rows) -> parts of the stage's exact sums, one set a bundle."""

    def __init__(self, position: int, execution: Execution, key_file: str):
        self.position, self.execution, self.key_file = position, execution, key_file

    def setup(self):
        self.hash_key = fit.row_hash_key(keys.load(self.key_file)) if self.position == 0 else b""

    def start_bundle(self):
        self.before = self.sums = None
        self.held = contextlib.ExitStack()
        self.held.enter_context(one_thread())

    def process(self, element, chunks):
        if self.before is None:
            self.before = state.from_chunks(chunks)
            self.plan = index.unpack_plan(self.before["plan"])
            self.stage = self.plan.stages[self.position]
            view = self.stage.view
            self.view_key = "" if view is None else view.cache_key(self.before)
            self.sums = self.stage.begin()
        path, number, count = element
        if path:
            for block in self._viewed(path, number, count):
                fit.add_block(self.stage, block, self.before, self.sums, self.hash_key)

    def _viewed(self, path: str, number: int, count: int) -> Iterable[rows.Rows]:
        """The row group's blocks in the stage's view, from the cache where they are there."""
        if not self.view_key:
            return self._blocks(path, number, count)
        return self._cached(
            self.view_key,
            (path, number),
            count,
            lambda: (fit.view(self.stage, block, self.before) for block in self._blocks(path, number, count)),
        )

    def _blocks(self, path: str, number: int, count: int) -> Iterable[rows.Rows]:
        return self._cached("", (path, number), count, lambda: self._read(path, number))

    def _read(self, path: str, number: int) -> Iterator[rows.Rows]:
        try:
            with open_rows(path) as file:
                yield from rows.read_row_group(file, number, self.plan.row_format, self.execution.block_rows)
        except OSError:
            raise
        except Exception as error:
            # A library's message may quote a value of the data; its type does not.
            raise RuntimeError(
                f"row group {number} of {path} could not be read ({type(error).__name__})"
            ) from None

    def _cached(
        self, view: str, key: tuple, count: int, compute: Callable[[], Iterator[rows.Rows]]
    ) -> Iterable[rows.Rows]:
        """Blocks from the cache, or computed; a row group too large for it is streamed."""
        execution = self.execution
        if count * self.plan.config.dimension * 4 > execution.cache_bytes // 4:
            return compute()

        def sized():
            blocks = list(compute())
            return blocks, sum(block.nbytes for block in blocks)

        return PROCESS_CACHE.get((execution.cache_token, view), key, sized, execution.cache_bytes)

    def finish_bundle(self):
        if self.sums is not None:
            for part in statistics.split(self.stage.channels, self.stage.finish(self.sums)):
                yield GlobalWindows.windowed_value(part)
        # Runners keep a stage's DoFn long after its last bundle.
        self.before = self.sums = None
        self.held.close()


class SumParts(beam.CombineFn):
    """Exact int64 sums of the parts with one number."""

    def create_accumulator(self):
        return None

    def add_input(self, total, part):
        return part if total is None else total + part

    def merge_accumulators(self, totals):
        total = None
        for part in totals:
            if part is not None:
                total = self.add_input(total, part)
        return total

    def extract_output(self, total):
        return np.zeros(0, np.int64) if total is None else total


@beam.typehints.with_output_types(state.Chunk)
class Advance(beam.DoFn):
    """Draws the stage's noise, once and centrally, and computes the next state."""

    def __init__(self, position: int, key_file: str):
        self.position, self.key_file = position, key_file

    def process(self, _, parts, chunks):
        before = state.from_chunks(chunks)
        plan = index.unpack_plan(before["plan"])
        stage = plan.stages[self.position]
        sums = statistics.join(stage.channels, dict(parts))
        after = fit.advance(plan, self.position, before, sums, keys.load(self.key_file))
        _LOG.info("fit: stage %d of %d done (%s)", self.position + 1, len(plan.stages), stage.name)
        # What no stage reads leaves the chain here, by `is_for_the_end`.
        unread = set(AT_END) & set(before)
        carried = {name: array for name, array in after.items() if name not in unread}
        yield from state.to_chunks({**carried, "index": before["index"], "plan": before["plan"]})


@dataclasses.dataclass
class RunStage(beam.PTransform):
    """PCollection[Chunk] -> PCollection[Chunk]: the state after one stage of the plan.

    Attributes:
      position: which stage.
      execution: speed only.
      key_file: where workers find the noise key.
    """

    position: int
    execution: Execution
    key_file: str

    def expand(self, before):
        pipeline = before.pipeline
        # Runners keep a copy of a side input for each reader; the index is all
        # that this reader needs.
        small = before | "Index chunks" >> beam.Filter(is_index)
        parts = (
            pipeline
            | "Start" >> beam.Impulse()
            | "Index" >> beam.FlatMap(index_elements, AsIter(small))
            | "Spread" >> beam.Reshuffle()
            | "Sum" >> beam.ParDo(SumRows(self.position, self.execution, self.key_file), AsIter(before))
            | "Combine" >> beam.CombinePerKey(SumParts())
        )
        return (
            pipeline
            | "Once" >> beam.Impulse()
            | "Noise" >> beam.ParDo(Advance(self.position, self.key_file), AsIter(parts), AsIter(before))
        )
