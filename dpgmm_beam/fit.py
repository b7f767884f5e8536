"""The fit as a chain of stages, without any runner.

`add_block` and `advance` are what workers call; `fit` runs the whole chain over
blocks in memory and is the reference that every runner must equal, bit for bit.
"""

from collections.abc import Callable, Iterable

import numpy as np

from dpgmm_beam import clustering, lattice, stages, statistics
from dpgmm_beam.mixture import Mixture
from dpgmm_beam.noise import NoiseKey
from dpgmm_beam.plan import Plan
from dpgmm_beam.rows import Rows, digest_limbs, digest_of_limbs
from dpgmm_beam.stage import Stage
from dpgmm_beam.state import State


def row_hash_key(secret: NoiseKey) -> bytes:
    """The key of the rows' hashes in the data digest."""
    return secret.within("row hash").stream(64)


def add_block(stage: Stage, viewed: Rows, before: State, sums: statistics.Sums, hash_key: bytes) -> None:
    """Adds a block, already in the stage's view, to the stage's accumulators.

    Args:
      hash_key: needed by the first stage only, which also takes the data digest.
    """
    if any(channel.private for channel in stage.channels):
        sums["digest"] += digest_limbs(viewed, hash_key)
    stage.add(viewed, before, sums)


def advance(plan: Plan, position: int, before: State, sums: statistics.Sums, secret: NoiseKey) -> State:
    """Adds the stage's noise to its exact sums and computes the next state.

    The noise's key holds the release id, the configuration, the data digest
    and the stage, so that any change to any of them gives fresh noise in every
    statistic, also in those of classes that did not change.
    """
    stage = plan.stages[position]
    if position == 0:
        before = {"data_digest": np.frombuffer(digest_of_limbs(sums["digest"]), np.uint8)}
    key = release_key(plan, before, secret).within(stage.name)
    multipliers = plan.multipliers(stage)
    noisy = statistics.add_noise(stage.channels, sums, multipliers, key)
    return {**stage.advance(before, noisy, multipliers), "data_digest": before["data_digest"]}


def release_key(plan: Plan, current: State, secret: NoiseKey) -> NoiseKey:
    """The key of everything drawn after the data digest is known."""
    return secret.within(plan.release_id, plan.config_digest, current["data_digest"].tobytes())


def fit(plan: Plan, blocks: Callable[[], Iterable[Rows]], secret: NoiseKey) -> State:
    """The final state, from blocks of rows that can be read again and again."""
    current: State = {}
    for position, stage in enumerate(plan.stages):
        sums = stage.begin()
        for block in blocks():
            viewed = view(stage, block, current)
            add_block(stage, viewed, current, sums, row_hash_key(secret))
        current = advance(plan, position, current, stage.finish(sums), secret)
    return current


def view(stage: Stage, block: Rows, current: State) -> Rows:
    """The block in the coordinates that the stage wants."""
    return block if stage.view is None else stage.view.apply(block, current)


def mixture_of(plan: Plan, final: State) -> Mixture:
    """The released mixture, from the state after the last stage."""
    config = plan.config
    clip_norm = config.clip_norm or 1.0
    basis = final["basis"] * 2.0**-stages.BASIS_BITS
    weights = final["component_counts"] / final["component_counts"].sum(axis=1, keepdims=True)
    class_weights = final["counts"] / final["counts"].sum()
    count, components = weights.shape
    r = len(final["within_matrix"])
    means = final["means"][:, None, :] / lattice.UNIT
    covariance = np.eye(r)
    if components > 1:
        offsets = final["component_means"] / lattice.UNIT - means
        means = means + offsets
        shares = class_weights[:, None] * weights
        covariance, basis = clustering.within_covariance(
            offsets, shares, basis, r, float(final["residual_square"])
        )
    return Mixture(
        classes=config.classes,
        class_weights=class_weights,
        weights=weights,
        means=means * clip_norm,
        covariances=np.broadcast_to(covariance, (count, components, r, r)),
        basis=basis * clip_norm,
        normalized=config.clip_norm is None,
        clip_norm=clip_norm,
    )
