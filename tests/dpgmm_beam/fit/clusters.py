"""Separated clusters, plans that look for them, and the checkpoints of such a fit."""

import numpy as np

from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.noise import NoiseKey
from tests.strategies import in_view

KEY = NoiseKey(bytes(range(32)))


def plan_of(classes=1, dimension=12, components=4, epsilon=1.0, **others):
    names = tuple(str(c) for c in range(classes))
    method = Method(teacher_steps=0, subspace_dim=8)
    config = ReleaseConfig(
        "test",
        names,
        dimension,
        epsilon,
        1e-5,
        clip_norm=1.0,
        components=components,
        method=method,
        **others,
    )
    return Plan(config, "test")


def rows_of(values, labels=None):
    values, kept = lattice.quantise_rows(np.asarray(values, dtype=np.float64), 1.0)
    labels = np.zeros(len(kept), np.int32) if labels is None else np.asarray(labels, np.int32)
    return Rows(values.astype(np.int16), labels[kept])


def separated(n, d, k, scale, seed=0):
    """Rows round k centres, the number of each row's centre, and the centres."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((k, d))
    centres *= 0.7 / np.linalg.norm(centres, axis=1)[:, None]
    labels = np.arange(n) % k
    return centres[labels] + scale / np.sqrt(d) * generator.standard_normal((n, d)), labels, centres


def checkpoints(plan, rows):
    """The checkpoint before each stage, and the last one."""
    seen = [chain.begin(plan, KEY, 1)]
    for stage in plan.stages:
        summing = chain.Summing(seen[-1], KEY)
        sums = summing.begin()
        summing.add(in_view(stage, rows, seen[-1].state), sums)
        seen.append(chain.advance(seen[-1], summing.finish(sums), KEY))
    return seen


def two_classes(epsilon=1.0):
    """(plan, rows, states before each stage) of a fit of two classes, two sketches and three rounds."""
    values, _, _ = separated(2000, 12, 4, 0.3)
    rows = rows_of(values, np.arange(2000) // 4 % 2)
    plan = plan_of(classes=2, rounds=5, epsilon=epsilon)
    return plan, rows, [checkpoint.state for checkpoint in checkpoints(plan, rows)]


def sums_of(stage, state, *blocks):
    sums, add = stage.begin(), stage.adder(state)
    for block in blocks:
        add(in_view(stage, block, state), sums)
    return stage.finish(sums)


def unlike_sizes():
    """(plan, rows, states before each stage) of three classes of 2400, 300 and 40 rows.

    How many components each has is found.
    """
    values, _, _ = separated(2740, 12, 4, 0.3)
    rows = rows_of(values, np.repeat([0, 1, 2], [2400, 300, 40]))
    plan = plan_of(classes=3, components=None, epsilon=8.0)
    return plan, rows, [checkpoint.state for checkpoint in checkpoints(plan, rows)]
