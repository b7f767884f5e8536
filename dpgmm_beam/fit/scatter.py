"""Step 8: the shape of each class round its centres.

In the view `within` a row's offset from its nearest centre is divided by the standard
deviation that the pooled covariance leaves there, so that without classes of their
own shape all covariances would be the unit matrix.  Their noisy estimates are
flattened by what their noise explains (`shrinkage`), which moves them towards it.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from dpgmm_beam import linalg
from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import kmeans, lloyd, shrinkage, sketch
from dpgmm_beam.fit.stage import Advanced, ClippedStage, Multipliers, Shape, add_moments_by_group
from dpgmm_beam.fit.state import FitState, Shapes
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.queries import SumQuery, Sums

OWN_DIRECTIONS_PER_ROW, MAX_OWN_DIRECTIONS = 1.06, 24
"""Components have shapes of their own in as many directions as this share of a component's rows,
for each unit of the noise multiplier, to the power of two thirds."""

LEAST_LEFT = 0.05
"""Least share of the pooled variance that the centres are taken to leave."""

MAX_OFFSET = 64.0
"""Coordinates of an offset are held within so many deviations: what is made of them stays under 2**53."""

KEPT_BITS = 16
"""Square roots of covariances are kept in steps of 2**-16."""


@dataclasses.dataclass(frozen=True)
class ClassScatter(sketch.WithinStage, ClippedStage):
    """Second moment of each class's rows round their centres -> `FitState.shapes`.

    Offsets are clipped at their root mean square, sqrt(r); the mean square, of which the
    clip takes a part, is a query of its own.
    """

    KIND = "scatter"
    REACH = 4
    """Squared offsets are clipped at so many times r."""

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        classes, r = self.shape.classes, self.shape.shaped_dim
        size, bound = classes * (r * (r + 1) // 2), float(self.bound) ** 2
        return (
            SumQuery("moment", size, bound, symmetric_order=r, one_sided=True),
            SumQuery("square", classes, self.bound, one_sided=True),
        )

    def begin(self) -> Sums:
        classes, r = self.shape.classes, self.shape.shaped_dim
        return {"moment": np.zeros((classes, r, r), np.int64), "square": np.zeros(classes, np.int64)}

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        used, classes = shaped_directions(before, self.shape), self.shape.classes
        offsets_of = offsets(before, used)
        scale = self.bound / np.sqrt(used)
        square_scale = self.bound / (self.REACH * float(self.bound) ** 2)

        def add(rows: Rows, sums: Sums) -> None:
            steps = np.rint(offsets_of(rows)[0] * scale)
            squares = np.minimum(np.floor(lattice.square_norms(steps) * square_scale), self.bound)
            sums["square"] += np.bincount(rows.classes, squares, minlength=classes).astype(np.int64)
            add_moments_by_group(lattice.clip_rows(steps, self.bound), rows.classes, sums["moment"])

        return add

    def finish(self, sums: Sums) -> Sums:
        return {"moment": lattice.pack_triangles(sums["moment"]), "square": sums["square"]}

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        assert before.class_means is not None
        classes, used = self.shape.classes, shaped_directions(before, self.shape)
        roots = np.empty((classes, used, used))
        moments = noisy["moment"].reshape(classes, -1)
        for label, rows in enumerate(before.class_means.counts):
            # A moment of used x used entries, whose clipping radius is sqrt(used).
            per_row = used / (self.bound**2 * rows)
            moment = lattice.unpack_triangle(moments[label].astype(np.float64))[:used, :used] * per_row
            whole = noisy["square"][label] * (self.REACH * used / (self.bound * rows))
            noise = multipliers["square"] * self.REACH * used / rows
            # Towards 1 a direction by what the figure's noise explains.
            kept = MEAN_SQUARE_PRIOR / (MEAN_SQUARE_PRIOR + (noise / used) ** 2)
            trace = used * float(np.clip(1.0 + kept * (whole / used - 1.0), 0.1, self.REACH))
            factor = trace / max(np.trace(moment), 0.1 * trace)
            values, vectors = shrinkage.shrink_moment(
                moment * factor,
                multipliers["moment"] * used / rows * factor,
                trace,
                prior=np.full(used, trace / used),
            )
            roots[label] = symmetric_root(values, vectors)
        found = Shapes(
            left=left_by_centres(before),
            roots=rounded(roots),
            own_directions=self._own_directions(before, used, multipliers["moment"]),
        )
        return Advanced(dataclasses.replace(before, shapes=found))

    def _own_directions(self, before: FitState, used: int, noise_multiplier: float) -> int:
        """In how many directions the next step looks for components' own shapes: none, or two or more."""
        assert before.components is not None
        rows = before.components.counts[before.components.present].mean() / noise_multiplier
        wanted = int(min((OWN_DIRECTIONS_PER_ROW * rows) ** (2 / 3), MAX_OWN_DIRECTIONS, used))
        return wanted if wanted > 1 else 0


MEAN_SQUARE_PRIOR = 0.04
"""Variance of the mean square of a class's or component's offsets, over the pooled one, before it is seen."""


def symmetric_root(values: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The symmetric square root of a matrix with these eigenvalues and vectors."""
    with one_thread():
        return (vectors * np.sqrt(values)) @ vectors.T


def rounded(values: np.ndarray) -> np.ndarray:
    """As states keep them: single precision, in steps of 2**-16."""
    return linalg.rounded(values, KEPT_BITS).astype(np.float32)


def shaped_directions(state: FitState, shape: Shape) -> int:
    """In how many directions of the view, the first, there are shapes."""
    assert state.subspace is not None
    return min(int((state.subspace.variances > 0).sum()), shape.shaped_dim)


def weights_of(state: FitState) -> np.ndarray:
    """Share of each component in all rows, (C, K)."""
    assert state.class_means is not None
    assert state.components is not None
    counts = state.components.counts
    weights = counts / counts.sum(axis=1, keepdims=True)
    return weights * (state.class_means.counts / state.class_means.counts.sum())[:, None]


def explained_by_centres(state: FitState) -> np.ndarray:
    """Variance that the centres explain in each direction of the view, (r,), in real units."""
    assert state.components is not None
    assert state.subspace is not None
    squares = state.components.centres.astype(np.float64) ** 2
    return np.einsum("ck,ckr->r", weights_of(state), squares) * state.subspace.steps**2


def left_by_centres(state: FitState) -> np.ndarray:
    """Share of the pooled variance that the centres leave, (r,); 1 where the view is not used."""
    assert state.subspace is not None
    variances = state.subspace.variances * state.subspace.steps**2
    left = np.ones(len(variances))
    used = variances > 0
    left[used] = np.clip(1.0 - explained_by_centres(state)[used] / variances[used], LEAST_LEFT, 1.0)
    return rounded(left)


def offsets(state: FitState, used: int) -> Callable[[Rows], tuple[np.ndarray, np.ndarray]]:
    """What gives a block's offsets in the first directions, (n, used), and cells c K + k, (n,).

    Offsets are from the nearest centre, over the standard deviation that the pooled
    covariance has there, rounded to steps of 2**-12.
    """
    assert state.subspace is not None
    centres = lloyd.centres_of(state)
    flat = centres.reshape(-1, centres.shape[2]).astype(np.float64)
    spread = np.sqrt(state.subspace.variances * left_by_centres(state))[:used]
    inverse = np.rint(2.0**24 / np.maximum(spread, 1.0)) * 2.0**-24

    def of(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        values = rows.values.astype(np.float64)
        cells = kmeans.nearest_of_class(values, rows.classes, centres)
        values -= flat[cells]
        scaled = np.clip(values[:, :used] * inverse, -MAX_OFFSET, MAX_OFFSET)
        return np.rint(scaled * 2.0**12) * 2.0**-12, cells

    return of
