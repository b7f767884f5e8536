"""The fit as a chain of stages, without any runner.

`add_block` and `advance` are what workers call; `fit` runs the whole chain over
blocks in memory and is the reference that every runner must equal, bit for bit.
"""

import json
from collections.abc import Callable, Iterable

import numpy as np

from dpgmm_beam import clustering, lattice, stages, statistics
from dpgmm_beam.mixture import Mixture
from dpgmm_beam.noise import NoiseKey
from dpgmm_beam.plan import Plan
from dpgmm_beam.rows import Rows, digest_limbs, digest_of_limbs
from dpgmm_beam.stage import Stage
from dpgmm_beam.state import State
from dpgmm_beam.views import Projection

CARRIED = ("plan", "pieces", "key_commitment", "data_digest")
"""Entries of a state that every stage hands on as they are."""


def initial_state(plan: Plan, secret: NoiseKey, pieces: int) -> State:
    """The state before the first stage: what workers need to know of the run.

    Args:
      pieces: in how many pieces the rows are kept.
    """
    return {
        "plan": np.frombuffer(json.dumps(plan.to_dict()).encode(), np.uint8),
        "pieces": np.array(pieces, np.int64),
        "key_commitment": commitment(secret),
    }


def plan_of(current: State) -> Plan:
    """The plan of the run that a state belongs to."""
    return Plan.from_dict(json.loads(current["plan"].tobytes()))


def check_key(current: State, secret: NoiseKey) -> None:
    """Raises RuntimeError unless the key is the one with which the run of this state began."""
    if not np.array_equal(current["key_commitment"], commitment(secret)):
        raise RuntimeError(
            "the noise key is not the one that this run began with: every worker must see the same"
            " --noise-key-file, and a release id belongs to one key (--restart drops what was begun)"
        )


def commitment(secret: NoiseKey) -> np.ndarray:
    """What tells a key from another and nothing else about it, (32,) uint8."""
    return np.frombuffer(secret.within("key commitment").stream(32), np.uint8)


def row_hash_key(secret: NoiseKey) -> bytes:
    """The key of the rows' hashes in the data digest."""
    return secret.within("row hash").stream(64)


def add_block(stage: Stage, viewed: Rows, before: State, sums: statistics.Sums, hash_key: bytes) -> None:
    """Adds a block, already in the stage's view, to the stage's accumulators.

    Args:
      before: `stage.working` of the state before the stage.
      hash_key: needed by the first stage only, which also takes the data digest.
    """
    if any(channel.private for channel in stage.channels):
        sums["digest"] += digest_limbs(viewed, hash_key)
    stage.add(viewed, before, sums)


def advance(plan: Plan, position: int, before: State, sums: statistics.Sums, secret: NoiseKey) -> State:
    """Adds the stage's noise to its exact sums and computes the next state.

    The noise's key holds the release id, the configuration of the fit, the data
    digest and the stage, so that any change to any of them gives fresh noise in every
    statistic, also in those of classes that did not change.
    """
    stage = plan.stages[position]
    if position == 0:
        before = {**before, "data_digest": np.frombuffer(digest_of_limbs(sums["digest"]), np.uint8)}
    key = release_key(plan, before, secret).within(stage.name)
    multipliers = plan.multipliers(stage)
    noisy = statistics.add_noise(stage.channels, sums, multipliers, key)
    carried = {name: before[name] for name in CARRIED if name in before}
    return {**stage.advance(before, noisy, multipliers), **carried}


def release_key(plan: Plan, current: State, secret: NoiseKey) -> NoiseKey:
    """The key of everything drawn after the data digest is known."""
    return secret.within(plan.release_id, plan.fit_digest, current["data_digest"].tobytes())


def fit(plan: Plan, blocks: Callable[[], Iterable[Rows]], secret: NoiseKey) -> State:
    """The final state, from blocks of rows that can be read again and again.

    Stages that follow each other with the same view share its blocks, which are
    kept in memory.
    """
    current: State = {}
    kept: State = {}
    viewed: tuple[Projection | None, list[Rows]] = (None, [])
    for position, stage in enumerate(plan.stages):
        sums, working = stage.begin(), stage.working(current)
        if stage.view is not None and stage.view != viewed[0]:
            viewed = stage.view, list(map(stage.view.bind(current), blocks()))
        for block in blocks() if stage.view is None else viewed[1]:
            add_block(stage, block, working, sums, row_hash_key(secret))
        after = advance(plan, position, current, stage.finish(sums), secret)
        current = for_next(stage, after)
        kept.update(at_end(stage, after))
    return {**current, **kept}


def for_next(stage: Stage, after: State) -> State:
    """Of the state after a stage, what the stages that follow may read."""
    return {name: array for name, array in after.items() if name not in stage.AT_END}


def at_end(stage: Stage, after: State) -> State:
    """Of the state after a stage, what only the end of the fit reads."""
    return {name: after[name] for name in stage.AT_END}


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
