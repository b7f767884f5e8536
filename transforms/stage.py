"""One stage of the fit as a pass over the rows: index -> sums -> noise -> next state.

Nothing but the index of row groups, parts of sums and chunks of state goes
through the runner.  Each stage starts from its own impulse and takes the index
from the state before it, so that no collection is read by many stages.
"""

import dataclasses
import logging
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsList
from apache_beam.transforms.window import GlobalWindows

from dpgmm_beam import fit, rows, state, statistics
from dpgmm_beam.cache import PROCESS_CACHE
from dpgmm_beam.plan import Plan
from transforms import keys
from transforms.inputs import RowGroups, open_parquet

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
    cache_bytes: int = 2**30
    cache_token: str = ""


def with_index(initial: state.State, row_groups: Iterable[RowGroups]) -> state.State:
    """The state with the index of row groups in it, ordered by path."""
    return {**initial, "index": RowGroups.pack(sorted(row_groups))}


@dataclasses.dataclass
class InitialState(beam.PTransform):
    """PCollection[RowGroups] -> PCollection[Chunk]: the state before the first stage."""

    def expand(self, row_groups):
        return (
            row_groups.pipeline
            | "Start" >> beam.Impulse()
            | "Index" >> beam.FlatMap(lambda _, found: state.to_chunks(with_index({}, found)), AsList(row_groups))
        )


def index_elements(_: bytes, chunks: list[state.Chunk]) -> Iterator[tuple[str, int]]:
    """(path, row group) of every row group; last an empty one that yields zeros.

    The empty one makes every part of every statistic exist, whatever the data.
    """
    index = state.from_chunks(chunk for chunk in chunks if chunk.name == "index")["index"]
    for row_groups in RowGroups.unpack(index):
        for number in range(len(row_groups.rows)):
            yield row_groups.path, number
    yield "", 0


class SumRows(beam.DoFn):
    """(path, row group) -> parts of the stage's exact sums, one set a bundle."""

    def __init__(self, plan: Plan, position: int, execution: Execution, key_file: str):
        self.plan, self.position, self.execution, self.key_file = plan, position, execution, key_file

    def setup(self):
        self.stage = self.plan.stages[self.position]
        self.hash_key = keys.load(self.key_file).row_hash_key() if self.position == 0 else b""
        self.state = None

    def start_bundle(self):
        self.sums = None

    def process(self, element, chunks):
        if self.state is None:
            self.state = state.from_chunks(chunks)
        if self.sums is None:
            self.sums = statistics.zeros(self.stage.channels)
        path, number = element
        if path:
            for block in self._blocks(path, number):
                fit.add_block(self.stage, block, self.state, self.sums, self.hash_key)

    def _blocks(self, path: str, number: int) -> Iterator[rows.Rows]:
        execution, row_format = self.execution, self.plan.row_format

        def read():
            with open_parquet(path) as file:
                blocks = list(rows.read_row_group(file, number, row_format, execution.block_rows))
            return blocks, sum(block.nbytes for block in blocks)

        yield from PROCESS_CACHE.get((execution.cache_token, path, number), read, execution.cache_bytes)

    def finish_bundle(self):
        if self.sums is not None:
            for part in statistics.split(self.stage.channels, self.sums):
                yield GlobalWindows.windowed_value(part)
        self.sums = None


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


class Advance(beam.DoFn):
    """Draws the stage's noise, once and centrally, and computes the next state."""

    def __init__(self, plan: Plan, position: int, key_file: str):
        self.plan, self.position, self.key_file = plan, position, key_file

    def process(self, _, parts, chunks):
        before = state.from_chunks(chunks)
        sums = statistics.join(self.plan.stages[self.position].channels, dict(parts))
        after = fit.advance(self.plan, self.position, before, sums, keys.load(self.key_file))
        _LOG.info("stage %d of %d done: %s", self.position + 1, len(self.plan.stages), self.plan.stages[self.position].name)
        yield from state.to_chunks({**after, "index": before["index"]})


@dataclasses.dataclass
class RunStage(beam.PTransform):
    """PCollection[Chunk] -> PCollection[Chunk]: the state after one stage of the plan.

    Attributes:
      plan: stages, channels and noise multipliers.
      position: which stage.
      execution: speed only.
      key_file: where workers find the noise key.
    """

    plan: Plan
    position: int
    execution: Execution
    key_file: str

    def expand(self, before):
        pipeline = before.pipeline
        parts = (
            pipeline
            | "Start" >> beam.Impulse()
            | "Index" >> beam.FlatMap(index_elements, AsList(before))
            | "Spread" >> beam.Reshuffle()
            | "Sum" >> beam.ParDo(SumRows(self.plan, self.position, self.execution, self.key_file), AsList(before))
            | "Combine" >> beam.CombinePerKey(SumParts())
        )
        return (
            pipeline
            | "Once" >> beam.Impulse()
            | "Noise" >> beam.ParDo(Advance(self.plan, self.position, self.key_file), AsList(parts), AsList(before))
        )
