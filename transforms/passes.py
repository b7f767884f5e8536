"""One pass over pieces of prepared rows, by threads of one process."""

import hashlib
import queue
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam import fit
from dpgmm_beam.algebra import one_thread
from dpgmm_beam.rows import Rows
from dpgmm_beam.state import State
from dpgmm_beam.statistics import Sums
from transforms import keys, prepared, run_files
from transforms.execution import Execution
from transforms.run_files import Base, Workspace

ACCUMULATOR_BYTES = 2**29
"""Of a pass at most: with large sums, fewer threads have accumulators of their own."""


class Pass:
    """Sums of a stage over the pieces that are added; `finish` once.

    Numpy and the linear algebra let go of the interpreter, so threads of one
    process keep as many cores busy.  A thread takes a piece from beginning to
    end and adds to accumulators that no other thread has.

    Args:
      base: the run's folder.
      position: of the stage.
      before: the state before the stage.
    """

    def __init__(self, base: Base, position: int, before: State, workspace: Workspace, execution: Execution):
        self.base, self.workspace, self.execution = base, workspace, execution
        self.plan = fit.plan_of(before)
        self.stage = self.plan.stages[position]
        self.before, self.working = before, self.stage.working(before)
        self.hash_key = b""
        if position == 0:
            secret = keys.load(workspace.key_file)
            fit.check_key(before, secret)
            self.hash_key = fit.row_hash_key(secret)
        # Twice: a product is as large as what it is added to.
        size = 2 * sum(array.nbytes for array in self.stage.begin().values())
        threads = max(1, min(execution.threads, ACCUMULATOR_BYTES // size))
        self.workers = ThreadPoolExecutor(threads, thread_name_prefix="sum")
        self.free: queue.SimpleQueue[Sums] = queue.SimpleQueue()
        self.pending: list[Future] = []
        self.numbers: list[int] = []

    def add(self, number: int) -> None:
        """Adds a piece, now or a little later."""
        self.numbers.append(number)
        self.pending.append(self.workers.submit(self._sum, number))

    def finish(self) -> tuple[Sums, np.ndarray]:
        """The channels' exact sums, and the fingerprint of the pieces in them."""
        try:
            for future in self.pending:
                future.result()
        finally:
            self.workers.shutdown(cancel_futures=True)
        total = self._accumulators()
        while not self.free.empty():
            for name, part in self.free.get().items():
                total[name] += part
        return self.stage.finish(total), fingerprint(self.numbers)

    def abandon(self) -> None:
        """Ends the threads of a pass that is not finished."""
        self.workers.shutdown(wait=False, cancel_futures=True)

    def _accumulators(self) -> Sums:
        try:
            return self.free.get_nowait()
        except queue.Empty:
            return self.stage.begin()

    def _sum(self, number: int) -> None:
        sums = self._accumulators()
        with one_thread():
            for block in self._blocks(number):
                fit.add_block(self.stage, block, self.working, sums, self.hash_key)
        self.free.put(sums)

    def _blocks(self, number: int) -> Iterable[Rows]:
        """The piece's rows in the stage's view, which the first pass that wants it writes."""
        dimension, block_rows = self.plan.config.dimension, self.execution.block_rows
        path = self.workspace.piece(self.base, number)
        view = self.stage.view
        if view is None:
            return prepared.read(path, dimension, block_rows)
        viewed = run_files.view_piece(self.base, view.name, number)
        if not FileSystems.exists(viewed):
            blocks = prepared.read(path, dimension, block_rows)
            prepared.write(viewed, self.stage.view_dimension, map(view.bind(self.before), blocks))
        return prepared.read(viewed, self.stage.view_dimension, block_rows)


def fingerprint(numbers: Iterable[int]) -> np.ndarray:
    """How many pieces there are, and an order-free sum that says which, (2,) int64.

    It travels with sums and is added like them: noise is drawn only for sums in
    which every piece is exactly once.
    """
    total = np.zeros(2, np.int64)
    for number in numbers:
        digest = hashlib.sha256(str(number).encode()).digest()
        total += np.array([1, int.from_bytes(digest[:7], "little")], np.int64)
    return total
