"""Step 1: how many rows each class has, before anything else is asked.

How the rest of the budget is shared follows from it (`privacy.allocation`): statistics
that would drown in their noise are not worth what they cost.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit.stage import Advanced, Multipliers, Stage
from dpgmm_beam.fit.state import ClassCounts, FitState
from dpgmm_beam.privacy.queries import SumQuery, Sums


@dataclasses.dataclass(frozen=True)
class Counts(Stage):
    """Rows of each class -> `FitState.class_counts`, and their sum to the plan."""

    KIND = "counts"

    @property
    def mechanism(self) -> str:
        return "means"

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        return (SumQuery("count", self.shape.classes, 1, one_sided=True),)

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        classes = self.shape.classes

        def add(rows: Rows, sums: Sums) -> None:
            sums["count"] += np.bincount(rows.classes, minlength=classes)

        return add

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        # A class of fewer rows than the noise could make up, or than a hundredth
        # of its equal share, is taken to have that many.
        found = noisy["count"].astype(np.int64)
        total = max(found.sum(), self.shape.classes)
        floor = max(multipliers["count"], 0.01 * total / self.shape.classes)
        after = ClassCounts(found, np.maximum(found.astype(np.float64), floor))
        return Advanced(dataclasses.replace(before, class_counts=after), counted=int(found.sum()))
