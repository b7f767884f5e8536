"""Step 5: noisy Lloyd steps, which refine the centres in the full space.

A round assigns rows to the nearest centre and moves it by the noisy mean of
their residuals, shrunk by what its noise explains (empirical Bayes); the first rounds
step further than that mean, for Lloyd's algorithm creeps.  Residuals are clipped
near the root mean square that the last release says, so that noise falls as the
clusters tighten.  The second half of the rounds has the larger part of the budget:
the first moves are larger than their noise, and the last noise stays.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from dpgmm_beam.config import Method
from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import kmeans, sketch
from dpgmm_beam.fit.stage import Advanced, Multipliers, Shape, Stage, sums_by_group
from dpgmm_beam.fit.state import Components, FitState
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.queries import SumQuery, Sums

RELAXATION = 1.6
"""Length of the first round's step over the noisy mean's; it falls evenly to 1 at the last."""

ROUND_RADIUS = 0.9
"""Clipping radius of a round, over the root mean squared residual."""

MIN_RESIDUAL = 0.01
"""Least clipping radius of a round, as a share of the moment's."""


def rounds(shape: Shape, method: Method, first: int, end: int) -> list["CentreRound"]:
    """The rounds at the positions from `first` up to `end`."""
    count = end - first
    relaxations = np.linspace(RELAXATION, 1.0, count) if count > 1 else [1.0]
    return [
        CentreRound(shape, method, first + i, i >= count - count // 2, float(relaxations[i]))
        for i in range(count)
    ]


@dataclasses.dataclass(frozen=True)
class CentreRound(Stage):
    """One round of private Lloyd steps, K centres for each class -> `FitState.components`.

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
    def bound(self) -> int:
        """Norm bound of a residual in its own steps, 2**-14 of the clipping radius."""
        return 2**self.BITS

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        cells = self.shape.cells
        both = float(np.ceil(np.sqrt(2.0) * self.SQUARE_UNIT))
        return (
            SumQuery("count", 2 * cells, both),
            SumQuery("sum", cells * self.shape.dimension, self.bound),
        )

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        means, count = _components(before).means, self.shape.cells
        # At most 2**16 lattice steps, and a radius of 2**-10 or more: norms stay
        # under 2**26, squares under 2**53.
        scale = self.bound / (clip_radius(before) * lattice.UNIT)
        square_scale = self.SQUARE_UNIT / (self.REACH * float(self.bound) ** 2)

        def add(rows: Rows, sums: Sums) -> None:
            values = rows.values.astype(np.float64)
            # Exact: rows and means have lattice norms of at most 2**15.
            cells = kmeans.nearest_of_class(values, rows.classes, means)
            residuals = values - means.reshape(-1, self.shape.dimension)[cells]
            residuals = np.rint(residuals * scale)
            squares = lattice.square_norms(residuals) * square_scale
            squares = np.minimum(np.floor(squares), self.SQUARE_UNIT).astype(np.int64)
            sums["count"][:count] += np.bincount(cells, minlength=count) * self.SQUARE_UNIT
            np.add.at(sums["count"][count:], cells, squares)
            sums["sum"] += sums_by_group(lattice.clip_rows(residuals, self.bound), cells, count).ravel()

        return add

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        shape, count, radius = self.shape, self.shape.cells, clip_radius(before)
        counts, squares = noisy["count"].reshape(2, count) / self.SQUARE_UNIT
        noise = multipliers["count"] * self.queries[0].l2_sensitivity / self.SQUARE_UNIT
        held = np.maximum(counts, 2 * noise)
        moves = noisy["sum"].reshape(count, shape.dimension) / self.bound * radius / held[:, None]
        moves = self._shrink(moves, held, (multipliers["sum"] * radius / held) ** 2, before)
        rows = max(counts.sum(), noise * np.sqrt(count))
        reach = self.REACH * radius**2
        # What is left after the move, but no less than the noise of that figure.
        gained = (held * (moves**2).sum(axis=1)).sum() / rows
        left = max(squares.sum() / rows * reach - gained, noise * np.sqrt(count) / rows * reach)
        step = lattice.UNIT * self.relaxation
        components = _components(before)
        means = components.means.reshape(count, shape.dimension) + moves * step
        on_lattice = lattice.clip_rows(np.rint(means), lattice.UNIT).astype(np.int32)
        after = dataclasses.replace(
            components,
            means=on_lattice.reshape(shape.classes, shape.components, -1),
            counts=np.maximum(counts, noise).reshape(shape.classes, shape.components),
            residual_square=float(np.float32(left)),
        )
        return Advanced(dataclasses.replace(before, components=after))

    def _shrink(
        self, moves: np.ndarray, held: np.ndarray, variances: np.ndarray, before: FitState
    ) -> np.ndarray:
        """Moves times t / (t + v): v a move's noise, t the variance of true moves.

        Empirical Bayes (Efron and Morris 1973): t is what the moves of all
        centres show beyond noise, block by block of the subspace's directions
        and for the rest.
        """
        assert before.class_means is not None
        assert before.subspace is not None
        axes = sketch.directions(before.class_means, before.subspace)
        r = len(axes)
        with one_thread():
            inside = moves @ axes.T
            rest = moves - inside @ axes
            edges = [0, *(2**power for power in range(1, 14) if 2**power < r), r]
            for low, high in itertools.pairwise(edges):
                inside[:, low:high] *= _wiener(inside[:, low:high], high - low, held, variances)
            return inside @ axes + rest * _wiener(rest, self.shape.dimension - r, held, variances)


def _wiener(moves: np.ndarray, free: int, held: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """The factors (n, 1) of moves (n, ...) that vary in `free` directions."""
    excess = (moves**2).sum(axis=1) / max(free, 1) - variances
    true = max(float((held * excess).sum() / held.sum()), 0.0)
    return (true / (true + variances))[:, None]


def clip_radius(before: FitState) -> float:
    """Clipping radius of a round, as a share of the norm bound."""
    assert before.class_means is not None
    largest = before.class_means.residual_radius
    wanted = ROUND_RADIUS * np.sqrt(_components(before).residual_square)
    return float(np.clip(wanted, MIN_RESIDUAL * largest, largest))


def _components(state: FitState) -> Components:
    assert state.components is not None
    return state.components
