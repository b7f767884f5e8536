"""Step 3: the covariance of the rows within their classes, roughly.

A moment's noise is alike in all directions, and as large as the clipping radius allows: most of it is
there for the few directions of large variance.  So a small part of the budget finds
the covariance roughly, and the step after this one (`fit.whitened`) measures what that says.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import shrinkage
from dpgmm_beam.fit.stage import Advanced, ClippedStage, Multipliers
from dpgmm_beam.fit.state import ClassMeans, Covariance, FitState
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.queries import SumQuery, Sums

BASIS_BITS = 20
MAX_FACTOR = 20.0
"""What a moment of clipped residuals is multiplied by at most, to have the trace of all."""


@dataclasses.dataclass(frozen=True)
class MomentStage(ClippedStage):
    """A second moment of clipped vectors of d numbers, one a row, over all classes."""

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        d = self.shape.dimension
        bound = float(self.bound) ** 2
        return (SumQuery("moment", d * (d + 1) // 2, bound, symmetric_order=d, one_sided=True),)

    def begin(self) -> Sums:
        return {"moment": np.zeros((self.shape.dimension, self.shape.dimension), np.int64)}

    def finish(self, sums: Sums) -> Sums:
        return {"moment": lattice.pack_triangle(sums["moment"])}

    def add_moment(self, vectors: np.ndarray, sums: Sums) -> None:
        """Adds vectors, (n, d) in steps of the bound, which are rounded in place and clipped."""
        clipped = lattice.clip_rows(np.rint(vectors, out=vectors), self.bound)
        # Exact: a block's entries are under its rows x 2**24, far under 2**53.
        sums["moment"] += (clipped.T @ clipped).astype(np.int64)

    def estimate(
        self,
        noisy: Sums,
        multipliers: Multipliers,
        radius: float,
        rows: float,
        trace: float,
        prior: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Eigenvalues (d,), descending, and vectors (d, d) of the mean moment; and its diagonal's noise.

        Args:
          radius: of the clip, in real units.
          rows: of all classes.
          trace: of the moment of vectors that are not clipped.
          prior: (d,) variances of the coordinates that are known without the moment.
        """
        per_row = radius**2 / (self.bound**2 * rows)
        moment = lattice.unpack_triangle(noisy["moment"].astype(np.float64)) * per_row
        # Of rows that are clipped the trace is at most that of rows that are not.
        factor = float(np.clip(trace / max(np.trace(moment), 1e-30), 1.0, MAX_FACTOR))
        stddev = multipliers["moment"] * self.bound**2 * per_row * factor
        values, vectors = shrinkage.shrink_moment(moment * factor, stddev, trace, prior)
        return values, vectors, stddev


@dataclasses.dataclass(frozen=True)
class PooledMoment(MomentStage):
    """Second moment of the rows round their class means, pooled over the classes.

    Residuals are clipped at a share of their root mean square, which the step before
    knows: what the moment lacks for it is put back by one factor, and its noise is
    as much smaller.  What the moment says is taken beyond the variances of the
    coordinates, which are known better than its other entries.

    Makes `FitState.rough`.
    """

    KIND = "moment"

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        of_classes = _class_means(before)
        means = of_classes.means.astype(np.float64)
        scale = self.bound / (self._radius(of_classes) * lattice.UNIT)

        def add(rows: Rows, sums: Sums) -> None:
            residuals = rows.values - means[rows.classes]
            residuals *= scale
            self.add_moment(residuals, sums)

        return add

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        of_classes = _class_means(before)
        radius, rows = self._radius(of_classes), of_classes.counts.sum()
        prior = of_classes.variances.astype(np.float64)
        values, vectors, _ = self.estimate(
            noisy, multipliers, radius, rows, of_classes.residual_square, prior
        )
        return Advanced(dataclasses.replace(before, rough=covariance_of(values, vectors)))

    def _radius(self, of_classes: ClassMeans) -> float:
        """Clipping radius of a residual, as a share of the norm bound."""
        return self.method.residual_radius * float(np.sqrt(of_classes.residual_square))


def _class_means(state: FitState) -> ClassMeans:
    assert state.class_means is not None
    return state.class_means


def covariance_of(values: np.ndarray, vectors: np.ndarray) -> Covariance:
    """As it is kept, from eigenvalues, descending, and eigenvectors in columns."""
    return Covariance(lattice.to_lattice(vectors * np.sqrt(values), BASIS_BITS).astype(np.int32))
