"""Step 6: noisy Lloyd steps, which refine the centres in the view `within`.

A round assigns rows to the nearest centre and moves it by the noisy mean of
their residuals, shrunk by what its noise explains (empirical Bayes); the first rounds
step further than that mean, for Lloyd's algorithm creeps.  Residuals are clipped
near the root mean square that the last release says, so that noise falls as the
clusters tighten.  The second half of the rounds has the larger part of the budget:
the first moves are larger than their noise, and the last noise stays.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from dpgmm_beam.config import Method
from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import kmeans, shrinkage, sketch
from dpgmm_beam.fit.projection import VIEW_UNIT
from dpgmm_beam.fit.stage import Advanced, ClippedStage, Multipliers, Shape, sums_by_group
from dpgmm_beam.fit.state import Components, FitState
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.queries import SumQuery, Sums

RELAXATION = 1.6
"""Length of the first round's step over the noisy mean's; it falls evenly to 1 at the last."""

ROUND_RADIUS = 0.9
"""Clipping radius of a round, over the root mean squared residual."""

MIN_RESIDUAL = 0.01
"""Least clipping radius of a round, as a share of the view's norm bound."""


def rounds(shape: Shape, method: Method, first: int, end: int) -> list["CentreRound"]:
    """The rounds at the positions from `first` up to `end`."""
    count = end - first
    relaxations = np.linspace(RELAXATION, 1.0, count) if count > 1 else [1.0]
    return [
        CentreRound(shape, method, first + i, i >= count - count // 2, float(relaxations[i]))
        for i in range(count)
    ]


@dataclasses.dataclass(frozen=True)
class CentreRound(sketch.WithinStage, ClippedStage):
    """One round of private Lloyd steps, K centres for each class -> `FitState.components`.

    A class's centres lie first in its room of K sums.

    Counts and mean squared residuals are one vector: a row adds `SQUARE_UNIT` to
    a count and at most that to a square.

    Attributes:
      position: among sketches and rounds.
      late: whether it is of the second half, and has that half's budget.
      relaxation: length of the step over the noisy mean's.
    """

    position: int
    late: bool
    relaxation: float

    KIND = "rounds"
    BITS = 14
    SQUARE_UNIT = 2**12
    REACH = 4
    """Squared residuals are clipped at so many times the squared radius."""

    @property
    def repetition(self) -> int:
        return self.position

    @property
    def mechanism(self) -> str:
        return "late" if self.late else self.KIND

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        cells = self.shape.cells
        both = float(np.ceil(np.sqrt(2.0) * self.SQUARE_UNIT))
        return (
            SumQuery("count", 2 * cells, both, one_sided=True),
            SumQuery("sum", cells * self.shape.subspace_dim, self.bound),
        )

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        of_components, count = centres_of(before), self.shape.cells
        centres = of_components.reshape(-1, self.shape.subspace_dim).astype(np.float64)
        free = self.shape.components - of_components.shape[1]
        # Views have norms of at most 2**14, and a radius of 2**7 or more: norms stay
        # under 2**23, squares under 2**53.
        scale = self.bound / clip_radius(before)
        square_scale = self.SQUARE_UNIT / (self.REACH * float(self.bound) ** 2)

        def add(rows: Rows, sums: Sums) -> None:
            values = rows.values.astype(np.float64)
            cells = kmeans.nearest_of_class(values, rows.classes, of_components)
            residuals = values - centres[cells]
            cells += rows.classes.astype(np.int64) * free
            residuals = np.rint(residuals * scale)
            squares = lattice.square_norms(residuals) * square_scale
            squares = np.minimum(np.floor(squares), self.SQUARE_UNIT)
            sums["count"][:count] += np.bincount(cells, minlength=count) * self.SQUARE_UNIT
            sums["count"][count:] += np.bincount(cells, squares, minlength=count).astype(np.int64)
            sums["sum"] += sums_by_group(lattice.clip_rows(residuals, self.bound), cells, count).ravel()

        return add

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        components = _components(before)
        shape, radius = self.shape, clip_radius(before)
        classes, used, r = components.centres.shape
        present = components.present.ravel()
        both = noisy["count"].reshape(2, classes, shape.components)[:, :, :used] / self.SQUARE_UNIT
        counts, squares = both.reshape(2, -1) * present
        count = present.sum()
        noise = multipliers["count"] * self.queries[0].l2_sensitivity / self.SQUARE_UNIT
        held = np.maximum(counts, 2 * noise)
        weights = held * present
        totals = noisy["sum"].reshape(classes, shape.components, r)[:, :used].reshape(-1, r)
        moves = totals / self.bound * radius / held[:, None]
        variances = (multipliers["sum"] * radius / held) ** 2
        moves = shrinkage.shrink_by_blocks(moves, weights, variances)
        rows = max(counts.sum(), noise * np.sqrt(count))
        reach = self.REACH * radius**2
        # What is left after the move, but no less than the noise of that figure.
        gained = (weights * (moves**2).sum(axis=1)).sum() / rows
        left = max(squares.sum() / rows * reach - gained, noise * np.sqrt(count) / rows * reach)
        moved = components.centres.reshape(-1, r) + moves * self.relaxation
        centres = lattice.clip_rows(np.rint(moved), VIEW_UNIT).astype(np.int16)
        after = dataclasses.replace(
            components,
            centres=components.on_first(centres.reshape(classes, used, r)),
            counts=(np.maximum(counts, noise) * present).reshape(classes, used),
            residual_square=float(np.rint(left)),
        )
        return Advanced(dataclasses.replace(before, components=after))


def clip_radius(before: FitState) -> float:
    """Clipping radius of a round, in view steps."""
    wanted = ROUND_RADIUS * np.sqrt(_components(before).residual_square)
    return float(np.clip(wanted, MIN_RESIDUAL * VIEW_UNIT, VIEW_UNIT))


def centres_of(state: FitState) -> np.ndarray:
    """The centres, (C, K, r) in view steps."""
    return _components(state).centres


def _components(state: FitState) -> Components:
    assert state.components is not None
    return state.components
