"""Step 9: the size of each component, and its own shape where it has rows enough.

A row's offset from its nearest centre is divided by the root of its class's
covariance (`fit.scatter`); what is left would be the unit matrix in every component, did they
not differ.  Where that root is noisy it is larger, for what one divides by is too small in some
direction; a class's covariance is the mean of its components', so their sizes are brought to
a mean of 1.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import ridges, scatter, shrinkage, sketch
from dpgmm_beam.fit.scatter import MAX_OWN_DIRECTIONS, MEAN_SQUARE_PRIOR
from dpgmm_beam.fit.stage import Advanced, ClippedStage, Multipliers, add_moments_by_group
from dpgmm_beam.fit.state import FitState, Shapes
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.queries import SumQuery, Sums

MIN_SCALE, MAX_SCALE = 0.2, 3.0

LEAST_OWN = 0.05
"""Least eigenvalue of a component's own shape."""


@dataclasses.dataclass(frozen=True)
class ComponentScales(sketch.WithinStage, ClippedStage):
    """Mean square, and second moment in a few directions, of each component's rows -> `FitState.shapes`.

    As the last step in the view `within` it also makes the teacher's ridges (`fit.ridges`).
    """

    KIND = "scales"
    REACH = 4
    """Squared offsets are clipped at so many times the number of directions."""

    @property
    def room(self) -> int:
        """Room for directions in which components have shapes of their own."""
        return min(MAX_OWN_DIRECTIONS, self.shape.shaped_dim)

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        cells, h = self.shape.cells, self.room
        size, bound = cells * (h * (h + 1) // 2), float(self.bound) ** 2
        return (
            SumQuery("square", cells, self.bound, one_sided=True),
            SumQuery("moment", size, bound, symmetric_order=h, one_sided=True),
        )

    def begin(self) -> Sums:
        cells, h = self.shape.cells, self.room
        return {"square": np.zeros(cells, np.int64), "moment": np.zeros((cells, h, h), np.int64)}

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        shapes, used = _shapes(before), scatter.shaped_directions(before, self.shape)
        assert before.components is not None
        offsets_of, inverses = scatter.offsets(before, used), _inverses(shapes.roots)
        free = self.shape.components - before.components.centres.shape[1]
        own, count = shapes.own_directions, self.shape.cells
        square_scale = self.bound / (self.REACH * used * 2.0**16)

        def add(rows: Rows, sums: Sums) -> None:
            offsets, cells = offsets_of(rows)
            cells += rows.classes.astype(np.int64) * free
            whitened = np.empty_like(offsets)
            for label in np.unique(rows.classes):
                own_rows = rows.classes == label
                # Exact: norms of offsets are under 2**10, of inverse rows 2**8, in steps of 2**-12.
                whitened[own_rows] = offsets[own_rows] @ inverses[label]
            steps = np.rint(whitened * 2.0**8)
            squares = np.minimum(np.floor(lattice.square_norms(steps) * square_scale), self.bound)
            sums["square"] += np.bincount(cells, squares, minlength=count).astype(np.int64)
            if own:
                first = np.rint(steps[:, :own] * (self.bound / (2.0**8 * np.sqrt(own))))
                add_moments_by_group(lattice.clip_rows(first, self.bound), cells, sums["moment"])

        return add

    def finish(self, sums: Sums) -> Sums:
        return {"square": sums["square"], "moment": lattice.pack_triangles(sums["moment"])}

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        assert before.components is not None
        shapes, used = _shapes(before), scatter.shaped_directions(before, self.shape)
        of_components = before.components
        classes, components = of_components.counts.shape
        rows = np.maximum(of_components.counts, 1.0)
        room = (classes, self.shape.components)
        squares = noisy["square"].reshape(room)[:, :components] * (self.REACH / (self.bound * rows))
        # What the figure's noise and the sample itself explain.
        noise = (multipliers["square"] * self.REACH / rows) ** 2 + 2.0 / (used * rows)
        scales = 1.0 + (squares - 1.0) * MEAN_SQUARE_PRIOR / (MEAN_SQUARE_PRIOR + noise)
        scales = np.clip(scales, MIN_SCALE, MAX_SCALE)
        weights = rows * of_components.present
        scales /= (scales * weights).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
        factors = None
        if own := shapes.own_directions:
            moments = noisy["moment"].reshape(*room, -1)[:, :components].reshape(classes * components, -1)
            found = [
                _own_shape(moment, own, count, multipliers["moment"], self.bound)
                for moment, count in zip(moments, rows.ravel(), strict=True)
            ]
            factors = scatter.rounded(np.stack(found).reshape(classes, components, own, own))
            factors = of_components.on_first(factors)
        scales = of_components.on_first(scatter.rounded(scales))
        after = dataclasses.replace(shapes, scales=scales, factors=factors)
        state = dataclasses.replace(before, shapes=after)
        if self.shape.ridges:
            state = ridges.with_ridges(state, self.shape.ridges, multipliers["square"])
        return Advanced(state)


def _own_shape(packed: np.ndarray, own: int, rows: float, noise_multiplier: float, bound: int) -> np.ndarray:
    """The symmetric square root of a component's shape, (h, h), of trace h.

    The noise that its moment is taken to have is that of privacy and of the sample.
    """
    moment = lattice.unpack_triangle(packed.astype(np.float64))[:own, :own] * (own / (bound**2 * rows))
    factor = own / max(np.trace(moment), 0.3 * own)
    stddev = np.sqrt((noise_multiplier * own / rows * factor) ** 2 + 2.0 / rows)
    values, vectors = shrinkage.shrink_moment(moment * factor, stddev, float(own), prior=np.ones(own))
    values = np.maximum(values, LEAST_OWN)
    return scatter.symmetric_root(values * (own / values.sum()), vectors)


def _inverses(roots: np.ndarray) -> np.ndarray:
    """Inverse roots, (C, u, u), in steps of 2**-12."""
    with one_thread():
        return np.rint(np.linalg.inv(roots.astype(np.float64)) * 2.0**12) * 2.0**-12


def _shapes(state: FitState) -> Shapes:
    assert state.shapes is not None
    return state.shapes
