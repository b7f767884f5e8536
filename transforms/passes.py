"""One pass over pieces of prepared rows, by threads of one process."""

import hashlib
import queue
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.data.rows import RecordForm, Rows
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.chain import PassSums
from dpgmm_beam.fit.checkpoint import Checkpoint
from dpgmm_beam.linalg import one_thread
from transforms.execution import Execution
from transforms.files import keys, prepared, run_files
from transforms.files.run_files import Base, Workspace

ACCUMULATOR_BYTES = 2**29
"""Of a pass at most: with large sums, fewer threads have accumulators of their own."""


class Pass:
    """Sums of a stage over the pieces that are added; `finish` once.

    Numpy and the linear algebra let go of the interpreter, so threads of one
    process keep as many cores busy.  A thread takes a piece from beginning to
    end and adds to accumulators that no other thread has.

    Args:
      base: the run's folder.
      before: the checkpoint before the stage.
    """

    def __init__(self, base: Base, before: Checkpoint, workspace: Workspace, execution: Execution):
        self.base, self.before, self.workspace, self.execution = base, before, workspace, execution
        secret = None
        if before.takes_data_digest:
            secret = keys.load(workspace.key_file)
            chain.check_key(before, secret)
        self.summing = chain.Summing(before, secret)
        # Twice: a product is as large as what it is added to.
        size = 2 * sum(array.nbytes for array in self.summing.begin().queries.values())
        threads = max(1, min(execution.threads, ACCUMULATOR_BYTES // size))
        self.workers = ThreadPoolExecutor(threads, thread_name_prefix="sum")
        self.free: queue.SimpleQueue[PassSums] = queue.SimpleQueue()
        self.pending: list[Future] = []
        self.numbers: list[int] = []

    def add(self, number: int) -> None:
        """Adds a piece, now or a little later."""
        self.numbers.append(number)
        self.pending.append(self.workers.submit(self._sum, number))

    def finish(self) -> tuple[PassSums, np.ndarray]:
        """The queries' exact sums, and the fingerprint of the pieces in them."""
        try:
            for future in self.pending:
                future.result()
        finally:
            self.workers.shutdown(cancel_futures=True)
        total = self._accumulators()
        while not self.free.empty():
            total += self.free.get()
        return self.summing.finish(total), fingerprint(self.numbers)

    def abandon(self) -> None:
        """Ends the threads of a pass that is not finished."""
        self.workers.shutdown(wait=False, cancel_futures=True)

    def _accumulators(self) -> PassSums:
        try:
            return self.free.get_nowait()
        except queue.Empty:
            return self.summing.begin()

    def _sum(self, number: int) -> None:
        sums = self._accumulators()
        with one_thread():
            for block in self._blocks(number):
                self.summing.add(block, sums)
        self.free.put(sums)

    def _blocks(self, number: int) -> Iterable[Rows]:
        """The piece's rows in the stage's view, which the first pass that wants it writes."""
        form, block_rows = self.before.plan.row_format.records(), self.execution.block_rows
        path, stage = self.workspace.piece(self.base, number), self.before.stage
        if stage.view is None:
            return prepared.read(path, form, block_rows)
        viewed = run_files.view_piece(self.base, stage.view.name, number)
        viewed_form = RecordForm(stage.view_dimension)
        if not FileSystems.exists(viewed):
            blocks = prepared.read(path, form, block_rows)
            project = stage.view.of(self.before.state).bind()
            prepared.write(viewed, viewed_form, map(project, blocks))
        return prepared.read(viewed, viewed_form, block_rows)


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
