"""What lets the teacher bend: functions of a row that turn half-way between two components.

For components with whitened centres p and q of two classes, (p - q) f - (|p|^2 - |q|^2) / 2 tells which
is nearer to the whitened row f; its absolute value bends where they are equally near.  A linear
teacher on such functions beside the row is a network of one hidden layer, whose units stand
where the released mixture says that classes meet.  They are centred and whitened by what they
are over draws from that mixture: all of this is made of released values and costs nothing.
"""

import dataclasses

import numpy as np

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import sketch
from dpgmm_beam.fit.projection import MIX_BITS, VIEW_UNIT, Projection, ridge_values
from dpgmm_beam.fit.state import FitState, Ridges, Teacher
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.privacy import lattice

DRAWS = 8192
"""Rows over which ridges are whitened."""

DAMPING = 0.3
"""Of that whitening, as a share of the mean eigenvalue."""

ROWS_PER_NOISE = 128
"""Ridges are used from so many rows of a class on, for each unit of the noise multiplier of
components' sizes: with fewer they give the teacher more noise than knowledge."""

SCALE_BITS = 8
"""Significant bits of a ridge's scale, which need not be exact: last bits are the processor's."""


def with_ridges(state: FitState, count: int, noise_multiplier: float) -> FitState:
    """The state with a teacher that sees so many ridges, none of which has a weight yet.

    Where classes have few rows or one component each, they are all zero.

    Args:
      state: after `fit.scales`.
      noise_multiplier: of the components' sizes.
    """
    assert state.class_means is not None
    assert state.components is not None
    assert state.teacher is not None
    before = state.teacher
    enough = state.class_means.counts.mean() >= ROWS_PER_NOISE * noise_multiplier
    if not enough or state.components.centres.shape[1] == 1:
        ridges, norm = _unused(count, state), before.norm
    else:
        generator = np.random.default_rng(np.random.SeedSequence([3]))
        ridges, norm = _between_components(state, count, generator)
    grown = norm / before.norm
    weights = np.zeros((len(before.weights), before.weights.shape[1] + count), np.float32)
    weights[:, : before.weights.shape[1] - 1] = before.weights[:, :-1] * grown
    weights[:, -1] = before.weights[:, -1] * grown
    after = Teacher(before.whitening, norm, weights, np.zeros(weights.shape, np.float32), ridges=ridges)
    return dataclasses.replace(state, teacher=after)


def _unused(count: int, state: FitState) -> Ridges:
    assert state.teacher is not None
    nothing = np.zeros(count)
    matrix = np.zeros((count, state.teacher.whitening.shape[1]), np.int32)
    return Ridges(matrix, nothing, nothing, nothing, np.zeros((count, count), np.int32), 1.0)


def _between_components(state: FitState, count: int, generator: np.random.Generator) -> tuple[Ridges, float]:
    """The ridges, and the norm of a whitened row with them."""
    assert state.components is not None
    assert state.teacher is not None
    classes, components, _ = state.components.centres.shape
    first, second = _pairs(state.components.counts, count, generator)
    cells = np.arange(classes * components)
    points = _whitened(state, _real(state, cells, state.components.centres.reshape(len(cells), -1)))
    matrix = points[first] - points[second]
    squares = lattice.square_norms(points)
    lengths = np.sqrt(lattice.square_norms(matrix))
    scales = _few_bits(1.0 / np.maximum(lengths, 1.0))
    bent = Ridges(
        matrix=matrix.astype(np.int32),
        offsets=(squares[first] - squares[second]) / 2,
        scales=scales,
        means=np.zeros(count),
        mix=np.zeros((count, count), np.int32),
        kept=1.0,
    )
    values = ridge_values(bent)(_draws(state, generator))
    means = np.rint(values.mean(axis=0))
    values -= means
    with one_thread():
        # Sums of integers: exact.
        covariance = values.T @ values / len(values)
        found, vectors = np.linalg.eigh(covariance)
        damping = DAMPING * max(float(np.trace(covariance)) / count, 1.0)
        found = np.maximum(found, 0.0) + damping
        mix = (vectors / np.sqrt(found)) @ vectors.T
    # How many directions they add; a row's whitened coordinates are of size 1 over the norm.
    added = float((1.0 - damping / found).sum())
    before = state.teacher.norm
    norm = float(np.float32(np.sqrt(before**2 + added)))
    ridges = dataclasses.replace(
        bent,
        means=means,
        mix=lattice.to_lattice(mix * (VIEW_UNIT / before), MIX_BITS).astype(np.int32),
        kept=float(np.float32(before / norm)),
    )
    return ridges, norm


def _few_bits(values: np.ndarray) -> np.ndarray:
    """Positive numbers with SCALE_BITS significant bits."""
    mantissas, exponents = np.frexp(values)
    return np.ldexp(np.rint(mantissas * 2.0**SCALE_BITS), exponents - SCALE_BITS)


def _pairs(counts: np.ndarray, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two components c K + k of different classes for each ridge, by their share of the class."""
    classes, components = counts.shape
    one = generator.integers(0, classes, count)
    other = (one + generator.integers(1, classes, count)) % classes
    edges = np.cumsum(counts / counts.sum(axis=1, keepdims=True), axis=1)
    found = []
    for labels in (one, other):
        chosen = (generator.random(count)[:, None] >= edges[labels]).sum(axis=1)
        found.append(labels * components + np.minimum(chosen, components - 1))
    return found[0], found[1]


def _draws(state: FitState, generator: np.random.Generator) -> np.ndarray:
    """Whitened rows (DRAWS, d) of the released mixture, in view steps.

    Beyond the directions in which components are found they are alike in all directions, of
    the norm that whitened rows have.
    """
    assert state.class_means is not None
    assert state.components is not None
    assert state.shapes is not None
    assert state.subspace is not None
    assert state.teacher is not None
    counts = state.components.counts
    classes, components = counts.shape
    shares = state.class_means.counts / state.class_means.counts.sum()
    weights = (counts / counts.sum(axis=1, keepdims=True) * shares[:, None]).ravel()
    cells = np.searchsorted(np.cumsum(weights), generator.random(DRAWS)).clip(max=classes * components - 1)
    spread = np.sqrt(state.subspace.variances * state.shapes.left)
    within = generator.standard_normal((DRAWS, len(spread))) * spread
    within += state.components.centres.reshape(classes * components, -1)[cells]
    drawn = _whitened(state, _real(state, cells, within))
    missing = max(VIEW_UNIT**2 - float(lattice.square_norms(drawn).mean()), 0.0) / drawn.shape[1]
    drawn += np.rint(generator.standard_normal(drawn.shape) * np.sqrt(missing))
    return lattice.clip_rows(drawn, VIEW_UNIT)


def _real(state: FitState, cells: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Lattice rows (n, d) of places in the view `within`, (n, r), of components c K + k."""
    assert state.class_means is not None
    assert state.components is not None
    assert state.subspace is not None
    beyond = state.components.beyond
    rows = state.class_means.means[cells // state.components.centres.shape[1]].astype(np.float64)
    rows += sketch.on_lattice(state.subspace, within)
    if beyond is not None:
        rows += beyond.reshape(-1, rows.shape[1])[cells]
    return lattice.clip_rows(rows, lattice.UNIT)


def _whitened(state: FitState, rows: np.ndarray) -> np.ndarray:
    """Lattice rows in the view `features` without ridges, (n, d) float64 integers."""
    assert state.class_means is not None
    assert state.teacher is not None
    view = Projection(state.class_means.centre, state.teacher.whitening)
    return view.apply(Rows(rows, np.zeros(len(rows), np.int32))).values.astype(np.float64)
