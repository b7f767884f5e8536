"""The fit as a chain of stages, without any runner.

`Summing` and `advance` are what workers use; `fit` runs the whole chain over
blocks in memory and is the reference that every runner must equal, bit for bit.
"""

import contextlib
import dataclasses
import queue
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np

from dpgmm_beam.data.digest import digest_limbs, digest_of_limbs, no_limbs
from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit.checkpoint import Checkpoint
from dpgmm_beam.fit.components import mixture_of
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.fit.projection import View
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.mixture import Mixture
from dpgmm_beam.privacy import queries
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.privacy.queries import Sums


@dataclasses.dataclass
class PassSums:
    """Exact sums of one pass over rows, or over some of them; private.

    Attributes:
      queries: the accumulators of the stage's queries, or their vectors when it is finished.
      limbs: of the data digest, in the pass that takes it.
    """

    queries: Sums
    limbs: np.ndarray | None = None

    def __iadd__(self, other: "PassSums") -> "PassSums":
        for name, values in other.queries.items():
            self.queries[name] += values
        if self.limbs is not None:
            self.limbs += other.limbs
        return self


class Summing:
    """Adds blocks of rows for the stage that comes next; any number of threads may use it.

    Args:
      before: the checkpoint before the stage.
      secret: the noise key, which only the pass that takes the data digest needs.
    """

    def __init__(self, before: Checkpoint, secret: NoiseKey | None):
        self.stage = before.stage
        self._add = self.stage.adder(before.state)
        self._hash_key = row_hash_key(secret) if before.takes_data_digest and secret else None

    def begin(self) -> PassSums:
        """Fresh accumulators."""
        return PassSums(self.stage.begin(), no_limbs() if self._hash_key else None)

    def add(self, block: Rows, sums: PassSums) -> None:
        """Adds a block that is in the stage's view."""
        if self._hash_key:
            sums.limbs += digest_limbs(block, self._hash_key)
        self._add(block, sums.queries)

    def finish(self, sums: PassSums) -> PassSums:
        """With the queries' vectors in place of accumulators."""
        return PassSums(self.stage.finish(sums.queries), sums.limbs)


def begin(plan: Plan, secret: NoiseKey, pieces: int) -> Checkpoint:
    """The checkpoint before the first stage.

    Args:
      pieces: in how many pieces the rows are kept.
    """
    return Checkpoint(plan, pieces, commitment(secret))


def check_key(checkpoint: Checkpoint, secret: NoiseKey) -> None:
    """Raises RuntimeError unless the key is the one with which the run began."""
    if checkpoint.key_commitment != commitment(secret):
        raise RuntimeError(
            "the noise key is not the one that this run began with: every worker must see the same"
            " --noise-key-file, and a release id belongs to one key (--restart drops what was begun)"
        )


def commitment(secret: NoiseKey) -> bytes:
    """What tells a key from another and nothing else about it, 32 bytes."""
    return secret.within("key commitment").stream(32)


def row_hash_key(secret: NoiseKey) -> bytes:
    """The key of the rows' hashes in the data digest."""
    return secret.within("row hash").stream(64)


def advance(before: Checkpoint, sums: PassSums, secret: NoiseKey) -> Checkpoint:
    """Adds the next stage's noise to its exact sums and computes the checkpoint after it.

    The noise's key holds the release id, the configuration of the fit, the data
    digest and the stage, so that any change to any of them gives fresh noise in every
    statistic, also in those of classes that did not change.
    """
    plan, stage = before.plan, before.stage
    if sums.limbs is not None:
        before = dataclasses.replace(before, data_digest=digest_of_limbs(sums.limbs))
    multipliers = plan.multipliers(stage)
    noisy = queries.add_noise(
        stage.queries, sums.queries, multipliers, release_key(before, secret).within(stage.name)
    )
    after, done = stage.advance(before.state, noisy, multipliers), before.stages_done + 1
    if after.counted is not None:
        plan = dataclasses.replace(plan, noise_multiplier=plan.budget.noise_multiplier, counted=after.counted)
    return dataclasses.replace(
        before,
        plan=plan,
        stages_done=done,
        state=after.state,
        covariance=after.covariance,
        covariance_at=done if after.covariance is not None else before.covariance_at,
    )


def release_key(checkpoint: Checkpoint, secret: NoiseKey) -> NoiseKey:
    """The key of everything drawn after the data digest is known."""
    assert checkpoint.data_digest is not None
    plan = checkpoint.plan
    return secret.within(plan.release_id, plan.fit_digest, checkpoint.data_digest)


def fit(plan: Plan, blocks: Callable[[], Iterable[Rows]], secret: NoiseKey, threads: int = 1) -> Checkpoint:
    """The checkpoint after the last stage, with the covariance, from blocks that can be read again and again.

    Stages that follow each other with the same view share its blocks, which are
    kept in memory.

    Args:
      threads: that sum side by side; they change nothing but the speed.
    """
    current, covariance = begin(plan, secret, 0), None
    viewed: tuple[View | None, list[Rows]] = (None, [])
    # One thread of ours leaves the cores to the linear algebra.
    alone = contextlib.nullcontext() if threads == 1 else one_thread()
    with ThreadPoolExecutor(threads) as workers, alone:
        for stage in plan.stages:
            if stage.view is not None and stage.view != viewed[0]:
                viewed = stage.view, list(workers.map(stage.view.of(current.state).bind(), blocks()))
            sums = _summed(Summing(current, secret), blocks() if stage.view is None else viewed[1], workers)
            with one_thread():
                current = advance(current, sums, secret)
            covariance = current.covariance or covariance
    return dataclasses.replace(current, covariance=covariance)


def _summed(summing: Summing, blocks: Iterable[Rows], workers: Executor) -> PassSums:
    """Sums over all blocks; a thread adds to accumulators that no other one has."""
    free: queue.SimpleQueue[PassSums] = queue.SimpleQueue()

    def add(block: Rows) -> None:
        try:
            sums = free.get_nowait()
        except queue.Empty:
            sums = summing.begin()
        summing.add(block, sums)
        free.put(sums)

    for _ in workers.map(add, blocks):
        pass
    total = summing.begin()
    while not free.empty():
        total += free.get()
    return summing.finish(total)


def released_mixture(final: Checkpoint) -> Mixture:
    """The released mixture, from the checkpoint after the last stage with the covariance in it."""
    assert final.covariance is not None
    return mixture_of(final.plan.config, final.state, final.covariance)
