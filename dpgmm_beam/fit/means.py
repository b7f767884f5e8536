"""Step 1: count and mean of each class."""

import dataclasses
from collections.abc import Callable

import numpy as np

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import shrinkage
from dpgmm_beam.fit.stage import Advanced, Multipliers, Stage, sums_by_group
from dpgmm_beam.fit.state import ClassMeans, FitState
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.queries import SumQuery, Sums


@dataclasses.dataclass(frozen=True)
class Means(Stage):
    """Count and sum of each class -> `FitState.class_means`."""

    KIND = "means"

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        classes = self.shape.classes
        return (
            SumQuery("count", classes, 1),
            SumQuery("sum", classes * self.shape.dimension, lattice.UNIT),
        )

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        classes = self.shape.classes

        def add(rows: Rows, sums: Sums) -> None:
            sums["count"] += np.bincount(rows.classes, minlength=classes)
            sums["sum"] += sums_by_group(rows.values, rows.classes, classes).ravel()

        return add

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        classes, dimension = self.shape.classes, self.shape.dimension
        counts = noisy["count"].astype(np.float64)
        total = max(counts.sum(), float(classes))
        # A class of fewer rows than the noise could make up, or than a hundredth
        # of its equal share, is taken to have that many.
        counts = np.maximum(counts, max(multipliers["count"], 0.01 * total / classes))
        totals = noisy["sum"].reshape(classes, dimension).astype(np.float64)
        stddev = multipliers["sum"] * lattice.UNIT
        # Both the centre (towards zero) and each mean (towards the centre) keep
        # only what their noise does not explain.
        centre = shrinkage.shrink_rows(
            totals.sum(axis=0)[None] / total,
            np.zeros(dimension),
            classes * (stddev / total) ** 2,
        )[0]
        means = shrinkage.shrink_rows(totals / counts[:, None], centre, (stddev / counts) ** 2)
        means = lattice.clip_rows(np.rint(means), lattice.UNIT)
        shares = counts / counts.sum()
        explained = float((shares * lattice.square_norms(means)).sum()) / lattice.UNIT**2
        residual = np.sqrt(np.clip(1.0 - explained, 0.01, 1.0))
        radius = self.method.residual_radius
        found = ClassMeans(
            counts=counts,
            noisy_counts=noisy["count"].astype(np.int64),
            means=means.astype(np.int32),
            centre=lattice.clip_rows(np.rint(centre)[None], lattice.UNIT)[0],
            residual_radius=float(min(radius * residual, radius)),
        )
        return Advanced(dataclasses.replace(before, class_means=found))
