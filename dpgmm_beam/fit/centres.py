"""Step 7: centres in all directions.

Rounds look for centres in the view `within`, the few directions that are told from noise, and
leave them where the class mean is in all others.  There, too, components differ: the view's
directions are noisy, and few.  So one pass sums whole rows less their centres, and
the centres go where these sums say, shrunk by what their noise explains.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import kmeans, scatter, shrinkage, sketch
from dpgmm_beam.fit.projection import VIEW_UNIT
from dpgmm_beam.fit.stage import Advanced, ClippedStage, Multipliers, sums_by_group
from dpgmm_beam.fit.state import FitState, Subspace
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.queries import SumQuery, Sums

CENTRE_RADIUS = 0.9
"""Clipping radius of a row less its centre, over the root mean square that the covariance leaves."""


@dataclasses.dataclass(frozen=True)
class WholeCentres(ClippedStage):
    """Sums of whole rows round the K centres of each class -> `FitState.components`, complete.

    A class's centres lie first in its room of K sums.  The mean square of all rows less their
    centres is a query of its own: the covariance's trace less what the centres explain is a small
    difference of two large numbers where clusters are tight.
    """

    KIND = "centres"
    BITS = 14
    REACH = 4
    """Squares are clipped at so many times the squared radius."""

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        return (
            SumQuery("sum", self.shape.cells * self.shape.dimension, self.bound),
            SumQuery("square", 1, self.bound, one_sided=True),
        )

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        assert before.class_means is not None
        assert before.components is not None
        of_components, count = before.components.centres, self.shape.cells
        used, r = of_components.shape[1:]
        flat = of_components.reshape(-1, r).astype(np.float64)
        centres = np.repeat(before.class_means.means.astype(np.float64), used, axis=0)
        centres += sketch.on_lattice(_subspace(before), flat)
        project, free = sketch.WITHIN.of(before).bind(), self.shape.components - used
        # Offsets are under 2**17 long and a radius is 2**8 or more: squared norms stay under 2**46.
        scale = self.bound / clip_radius(before)
        square_scale = 1.0 / (self.REACH * self.bound)

        def add(rows: Rows, sums: Sums) -> None:
            values = project(rows).values.astype(np.float64)
            cells = kmeans.nearest_of_class(values, rows.classes, of_components)
            offsets = rows.values - centres[cells]
            cells += rows.classes.astype(np.int64) * free
            offsets *= scale
            np.rint(offsets, out=offsets)
            squares = np.minimum(np.floor(lattice.square_norms(offsets) * square_scale), self.bound)
            sums["square"] += int(squares.sum())
            offsets = lattice.clip_rows(offsets, self.bound)
            sums["sum"] += sums_by_group(offsets, cells, count).ravel()

        return add

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        assert before.components is not None
        components, subspace, radius = before.components, _subspace(before), clip_radius(before)
        classes, used, r = components.centres.shape
        d = self.shape.dimension
        held = np.maximum(components.counts.ravel(), 2 * multipliers["sum"])
        weights = held * components.present.ravel()
        variances = (multipliers["sum"] * radius / held) ** 2
        totals = noisy["sum"].reshape(classes, self.shape.components, d)[:, :used].reshape(-1, d)
        moves = np.rint(totals * (radius / self.bound) / held[:, None])
        moves = lattice.clip_rows(moves, 2 * lattice.UNIT)
        within = sketch.in_view(subspace, moves)
        beyond = moves - sketch.on_lattice(subspace, within)
        # A step of the view is longer where the variance is small; in lattice steps noise is alike.
        lengths = subspace.steps * lattice.UNIT
        kept = shrinkage.shrink_by_blocks(within * lengths, weights, variances)
        within = np.divide(kept, lengths, out=np.zeros_like(kept), where=lengths > 0)
        if (others := d - int((subspace.variances > 0).sum())) > 0:
            squares = (beyond**2).sum(axis=1) / others
            beyond *= shrinkage.shared_factors(squares, weights, variances)[:, None]
        gained = float(((kept**2).sum(axis=1) + (beyond**2).sum(axis=1)) @ scatter.weights_of(before).ravel())
        moved = components.centres.reshape(-1, r) + within
        after = dataclasses.replace(
            components,
            centres=components.on_first(_whole(moved, VIEW_UNIT).reshape(components.centres.shape)),
            beyond=components.on_first(_whole(beyond, lattice.UNIT - 1).reshape(classes, used, d)),
            whole_square=self._square(before, noisy, multipliers, radius, gained),
        )
        return Advanced(dataclasses.replace(before, components=after))

    def _square(
        self, before: FitState, noisy: Sums, multipliers: Multipliers, radius: float, gained: float
    ) -> float:
        """Mean square of a row less its moved centre, in real units.

        Args:
          radius: of the clip, in lattice steps.
          gained: weighted mean square of the moves, in lattice steps squared.
        """
        assert before.class_means is not None
        radius, rows = radius / lattice.UNIT, before.class_means.counts.sum()
        expected = (radius / CENTRE_RADIUS) ** 2
        per_row = self.REACH * radius**2 / rows
        noise = multipliers["square"] * per_row / expected
        found = float(noisy["square"][0]) / self.bound * per_row / expected
        # Towards what is known without the figure, by what its noise explains.
        prior = scatter.MEAN_SQUARE_PRIOR
        ratio = 1.0 + (found - 1.0) * prior / (prior + noise**2)
        left = expected * ratio - gained / lattice.UNIT**2
        return float(np.float32(max(left, scatter.LEAST_LEFT * expected)))


def clip_radius(before: FitState) -> float:
    """Clipping radius of a row less its centre, in lattice steps."""
    assert before.class_means is not None
    whole = before.class_means.residual_square
    left = whole - float(scatter.explained_by_centres(before).sum())
    square = max(left, scatter.LEAST_LEFT * whole, LEAST_SQUARE)
    return CENTRE_RADIUS * float(np.sqrt(square)) * lattice.UNIT


LEAST_SQUARE = 2.0**-12
"""Least mean square of a row less its centre, in real units."""


def _subspace(state: FitState) -> Subspace:
    assert state.subspace is not None
    return state.subspace


def _whole(rows: np.ndarray, bound: int) -> np.ndarray:
    return lattice.clip_rows(np.rint(rows), bound).astype(np.int16)
