"""Private clustering: K centres for each class, in a few noisy passes.

The rows' principal subspace is released already (`stages.PooledMoment`).  In it
(the view `within`: residuals from the class mean, not whitened, r directions)
come the *sketches*, which find where mass is; then, in the full space, come the
*rounds*, noisy Lloyd steps.

A sketch cuts space into many more cells than there are components, releases
how many rows each cell holds and their sum, and the rest is computed from
these: cells that hold no more than noise are dropped, each mean is moved
towards the class mean by Wiener's factor, and weighted k-means of the means
gives the centres.  The first sketch's cells are the Voronoi cells of draws from
the released Gaussian N(0, diag l); the next one's, of draws round each centre
found, which divide a cell in which two clusters lay.  Cells of a partition that
ignores the data, weighted by noisy counts, go back to Su, Cao, Li, Bertino and
Jin 2016 (grid) and Chang, Ghazi, Kumar and Manurangsi 2021 (hash tree); the
subspace before them, to Kamath, Sheffet, Singhal and Ullman 2019.

A round assigns rows to the nearest centre and moves it by the noisy mean of
their residuals, shrunk by what its noise explains (empirical Bayes); the first rounds
step further than that mean, for Lloyd's algorithm creeps.  Residuals are clipped
near the root mean square that the last release says, so that noise falls as the
clusters tighten.  The second half of the rounds has the larger part of the budget:
the first moves are larger than their noise, and the last noise stays.
"""

import dataclasses
import itertools

import numpy as np

from dpgmm_beam import lattice
from dpgmm_beam.algebra import one_thread
from dpgmm_beam.rows import Rows
from dpgmm_beam.stage import Multipliers, Stage, sums_by_group
from dpgmm_beam.state import State
from dpgmm_beam.statistics import Channel, Sums
from dpgmm_beam.views import PROJECTION_BITS, VIEW_UNIT, Projection, pack_projection

WITHIN = Projection("within", "means", by_class=True)

MAX_CELLS, CELLS_PER_COMPONENT = 512, 20
"""Cells of a class in a sketch at most, unless four times the components are more.
More cells than 20 for each component say no more and are each noisier."""

MAX_SKETCH = 2**21
"""Values in a sketch's sums that its cells are kept within, if 2 K cells allow."""

ROWS_PER_NOISE = 12
"""A cell should hold this many rows for each unit of the moment's noise multiplier,
which is much like that of the sketches' sums: a mean's noise is then about a
tenth of the clipping radius in each direction."""

COUNT_THRESHOLD = 3.0
"""Cells under so many deviations of noise are dropped."""

SPREAD = 0.5
"""Variance of a later sketch's draws round a centre, as a share of the variance there."""

RELAXATION = 1.6
"""Length of the first round's step over the noisy mean's; it falls evenly to 1 at the last."""

LATE_WEIGHT = 3
"""Budget of a round of the second half, over one of the first."""

ROUND_RADIUS = 0.9
"""Clipping radius of a round, over the root mean squared residual."""

MIN_RESIDUAL = 0.01
"""Least clipping radius of a round, as a share of the moment's."""

MIN_VARIANCE = 0.001
"""Least variance of a component, as a share of the pooled one in that direction."""

RELEASED_BITS = 26
"""Covariances and basis are released in steps of 2**-26."""

RESTARTS, ITERATIONS, TRIALS = 20, 15, 8
"""Of the weighted k-means: starts, steps for each, candidates for each seed."""


def cells_of(classes: int, components: int, reduced: int) -> int:
    """How many cells a sketch has room for in each class."""
    wanted = min(CELLS_PER_COMPONENT * components, max(MAX_CELLS, 4 * components))
    return max(2 * components, min(wanted, MAX_SKETCH // (classes * reduced)))


def start(
    before: State,
    values: np.ndarray,
    vectors: np.ndarray,
    components: int,
    reduced: int,
    noise_multiplier: float,
) -> State:
    """The view `within` and what the first stage of clustering starts from.

    One component starts, and stays, at its class's mean.

    Args:
      before: the state after `stages.Means`.
      values, vectors: eigenvalues, descending, and eigenvectors of the
        within-class covariance.
      noise_multiplier: of the moment.
    """
    radius, counts = float(before["residual_radius"]), before["counts"]
    classes = len(counts)
    common = {"within_matrix": pack_projection(vectors[:, :reduced].T / radius)}
    if components == 1:
        centres = np.zeros((classes, 1, reduced))
        return {**common, "centres": centres, "component_counts": np.ones((classes, 1))}
    # Rounded, as all that is kept of an eigen-decomposition: its last bits are the processor's.
    variances = np.rint(values[:reduced] * (VIEW_UNIT / radius) ** 2)
    room = cells_of(classes, components, reduced)
    cells = int(np.clip(counts.mean() / (ROWS_PER_NOISE * noise_multiplier), 2 * components, room))
    generator = np.random.default_rng(np.random.SeedSequence([0, 0]))
    draws = generator.standard_normal((classes, cells, reduced)) * np.sqrt(variances)
    state = {
        **common,
        "variances": variances,
        "total_variance": np.array(values.sum(), np.float32),
        "cells": _round(draws).astype(np.int16),
    }
    return {**state, **_to_full_space(before, state, _round(draws[:, :components]))}


@dataclasses.dataclass(frozen=True)
class Sketch(Stage):
    """Noisy counts and sums of many cells, and the centres that they show.

    After it: `cells`, (C, M, r), of the next sketch, and what `CentreRound`
    starts from: `component_means` and `residual_square`.
    """

    classes: int
    components: int
    reduced: int
    position: int

    KIND = "sketch"

    @property
    def repetition(self) -> int:
        return self.position

    @property
    def view(self) -> Projection:
        return WITHIN

    @property
    def view_dimension(self) -> int:
        return self.reduced

    @property
    def room(self) -> int:
        return cells_of(self.classes, self.components, self.reduced)

    @property
    def channels(self) -> tuple[Channel, ...]:
        cells = self.classes * self.room
        return (Channel("count", cells, 1), Channel("sum", cells * self.reduced, VIEW_UNIT))

    def add(self, rows: Rows, before: State, sums: Sums) -> None:
        values = rows.values.astype(np.float64)
        cells = nearest_cells(values, rows.classes, before["cells"])
        # A class's cells lie first in its room.
        used = before["cells"].shape[1]
        cells += rows.classes.astype(np.int64) * (self.room - used)
        count = self.classes * self.room
        sums["count"] += np.bincount(cells, minlength=count)
        sums["sum"] += sums_by_group(values, cells, count).ravel()

    def advance(self, before: State, noisy: Sums, multipliers: Multipliers) -> State:
        used = before["cells"].shape[1]
        counts = noisy["count"].reshape(self.classes, self.room)[:, :used]
        totals = noisy["sum"].reshape(self.classes, self.room, self.reduced)[:, :used]
        generator = np.random.default_rng(np.random.SeedSequence([2, self.position]))
        centres = np.empty((self.classes, self.components, self.reduced))
        for label in range(self.classes):
            points, weights = self._cell_means(counts[label], totals[label], before["variances"], multipliers)
            centres[label] = weighted_k_means(points, weights, self.components, generator)
        within = np.maximum(before["variances"] - (centres**2).mean(axis=(0, 1)), before["variances"] / 20)
        each = used // self.components
        draws = generator.standard_normal((*centres.shape[:2], each, self.reduced)) * np.sqrt(SPREAD * within)
        cells = (centres[:, :, None] + draws).reshape(self.classes, -1, self.reduced)
        return {**before, "cells": _round(cells).astype(np.int16), **_to_full_space(before, before, centres)}

    def _cell_means(
        self, counts: np.ndarray, totals: np.ndarray, variances: np.ndarray, multipliers: Multipliers
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means and counts of a class's cells that hold more than noise.

        A mean of noise variance v is multiplied by l / (l + v), l being the
        variance of the rows in that direction.
        """
        heaviest = np.argsort(-counts, kind="stable")
        enough = max(int((counts > COUNT_THRESHOLD * multipliers["count"]).sum()), 2 * self.components)
        chosen = heaviest[:enough]
        weights = np.maximum(counts[chosen], 1).astype(np.float64)
        noise = (multipliers["sum"] * VIEW_UNIT / weights) ** 2
        means = totals[chosen] / weights[:, None] * (variances / (variances + noise[:, None]))
        return _round(means), weights


def centre_rounds(classes: int, components: int, dimension: int, first: int, end: int) -> list["CentreRound"]:
    """The rounds at the positions from `first` up to `end`."""
    count = end - first
    relaxations = np.linspace(RELAXATION, 1.0, count) if count > 1 else [1.0]
    return [
        CentreRound(classes, components, dimension, first + i, i >= count - count // 2, float(relaxations[i]))
        for i in range(count)
    ]


@dataclasses.dataclass(frozen=True)
class CentreRound(Stage):
    """One round of private Lloyd steps in the full space, K centres for each class.

    Counts and mean squared residuals are one vector: a row adds `SQUARE_UNIT` to
    a count and at most that to a square.

    After it: `component_means` (C, K, d) in lattice steps, `component_counts`
    (C, K), and `residual_square`, the mean squared residual in real units.

    Attributes:
      late: whether it is of the second half, and has that half's budget.
      relaxation: length of the step over the noisy mean's.
    """

    classes: int
    components: int
    dimension: int
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
    def channels(self) -> tuple[Channel, ...]:
        cells = self.classes * self.components
        both = float(np.ceil(np.sqrt(2.0) * self.SQUARE_UNIT))
        return (Channel("count", 2 * cells, both), Channel("sum", cells * self.dimension, self.bound))

    def add(self, rows: Rows, before: State, sums: Sums) -> None:
        values = rows.values.astype(np.float64)
        means = before["component_means"]
        # Exact: rows and means have lattice norms of at most 2**15.
        cells = nearest_cells(values, rows.classes, means)
        residuals = values - means.reshape(-1, self.dimension)[cells]
        # At most 2**16 lattice steps, and a radius of 2**-10 or more: norms stay
        # under 2**26, squares under 2**53.
        scale = self.bound / (clip_radius(before) * lattice.UNIT)
        residuals = np.rint(residuals * scale)
        squares = lattice.square_norms(residuals) * (self.SQUARE_UNIT / (self.REACH * float(self.bound) ** 2))
        squares = np.minimum(np.floor(squares), self.SQUARE_UNIT).astype(np.int64)
        count = self.classes * self.components
        sums["count"][:count] += np.bincount(cells, minlength=count) * self.SQUARE_UNIT
        np.add.at(sums["count"][count:], cells, squares)
        sums["sum"] += sums_by_group(lattice.clip_rows(residuals, self.bound), cells, count).ravel()

    def advance(self, before: State, noisy: Sums, multipliers: Multipliers) -> State:
        count, radius = self.classes * self.components, clip_radius(before)
        counts, squares = noisy["count"].reshape(2, count) / self.SQUARE_UNIT
        noise = multipliers["count"] * self.channels[0].sensitivity / self.SQUARE_UNIT
        held = np.maximum(counts, 2 * noise)
        moves = noisy["sum"].reshape(count, self.dimension) / self.bound * radius / held[:, None]
        moves = self._shrink(moves, held, (multipliers["sum"] * radius / held) ** 2, before)
        rows = max(counts.sum(), noise * np.sqrt(count))
        reach = self.REACH * radius**2
        # What is left after the move, but no less than the noise of that figure.
        gained = (held * (moves**2).sum(axis=1)).sum() / rows
        left = max(squares.sum() / rows * reach - gained, noise * np.sqrt(count) / rows * reach)
        step = lattice.UNIT * self.relaxation
        means = before["component_means"].reshape(count, self.dimension) + moves * step
        shape = (self.classes, self.components)
        return {
            **before,
            "component_means": _lattice_means(means).reshape(*shape, -1),
            "component_counts": np.maximum(counts, noise).reshape(shape),
            "residual_square": np.array(left, np.float32),
        }

    def _shrink(
        self, moves: np.ndarray, held: np.ndarray, variances: np.ndarray, before: State
    ) -> np.ndarray:
        """Moves times t / (t + v): v a move's noise, t the variance of true moves.

        Empirical Bayes (Efron and Morris 1973): t is what the moves of all
        centres show beyond noise, block by block of the subspace's directions
        and for the rest.
        """
        directions = _directions(before, before)
        r = len(directions)
        with one_thread():
            inside = moves @ directions.T
            rest = moves - inside @ directions
            edges = [0, *(2**power for power in range(1, 14) if 2**power < r), r]
            for low, high in itertools.pairwise(edges):
                inside[:, low:high] *= _wiener(inside[:, low:high], high - low, held, variances)
            return inside @ directions + rest * _wiener(rest, self.dimension - r, held, variances)


def _wiener(moves: np.ndarray, free: int, held: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """The factors (n, 1) of moves (n, ...) that vary in `free` directions."""
    excess = (moves**2).sum(axis=1) / max(free, 1) - variances
    true = max(float((held * excess).sum() / held.sum()), 0.0)
    return (true / (true + variances))[:, None]


def clip_radius(before: State) -> float:
    """Clipping radius of a round, as a share of the norm bound."""
    largest = float(before["residual_radius"])
    wanted = ROUND_RADIUS * np.sqrt(float(before["residual_square"]))
    return float(np.clip(wanted, MIN_RESIDUAL * largest, largest))


def _directions(before: State, state: State) -> np.ndarray:
    """The directions of the view `within`, (r, d), orthonormal up to the lattice."""
    return state["within_matrix"] * (float(before["residual_radius"]) * 2.0**-PROJECTION_BITS)


def _to_full_space(before: State, state: State, centres: np.ndarray) -> State:
    """What rounds start from, from centres (C, K, r) in view steps."""
    radius = float(before["residual_radius"])
    offsets = centres * (radius / VIEW_UNIT)
    with one_thread():
        moved = offsets @ _directions(before, state)
    means = before["means"][:, None, :] + moved * lattice.UNIT
    explained = (offsets**2).sum(axis=2).mean()
    return {
        "component_means": lattice.clip_rows(
            np.rint(means.reshape(-1, means.shape[2])), lattice.UNIT
        ).reshape(means.shape),
        "component_counts": np.ones(centres.shape[:2]),
        "residual_square": np.array(max(float(state["total_variance"]) - explained, 0.0), np.float32),
    }


def _lattice_means(means: np.ndarray) -> np.ndarray:
    """Means in lattice steps as integers of norm at most lattice.UNIT, (n, d) int32."""
    return lattice.clip_rows(np.rint(means), lattice.UNIT).astype(np.int32)


def nearest_cells(values: np.ndarray, classes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Index c K + k of the nearest centre of each row's own class; ties to the lowest, exact."""
    components = centres.shape[1]
    cells = classes.astype(np.int64) * components
    for label in np.unique(classes):
        chosen = classes == label
        cells[chosen] += _nearest(values[chosen], centres[label].astype(np.float64))
    return cells


def _nearest(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return (lattice.square_norms(centres) - 2.0 * (values @ centres.T)).argmin(axis=1)


def _round(points: np.ndarray) -> np.ndarray:
    """Points in view steps as integers of norm at most VIEW_UNIT."""
    flat = np.rint(points.reshape(-1, points.shape[-1]))
    return lattice.clip_rows(flat, VIEW_UNIT).reshape(points.shape)


def weighted_k_means(
    points: np.ndarray, weights: np.ndarray, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Lloyd's algorithm from the best of several greedy k-means++ starts.

    Arthur and Vassilvitskii 2007.  Points and centres are integers, distances
    exact and sums taken in order: the result is the same on any machine.

    Args:
      points: (n, r) integers of norm at most VIEW_UNIT.
      weights: (n,) positive.

    Returns:
      (count, r) integers; some are equal if there are fewer points than that.
    """
    best, best_cost = points[:0], np.inf
    for _ in range(RESTARTS):
        centres = _seeds(points, weights, count, generator)
        for _ in range(ITERATIONS):
            nearest = _nearest(points, centres)
            mass = np.bincount(nearest, weights, minlength=count)
            totals = np.zeros_like(centres)
            np.add.at(totals, nearest, points * weights[:, None])
            centres = np.where(mass[:, None] > 0, np.rint(totals / np.maximum(mass, 1)[:, None]), centres)
        nearest = _nearest(points, centres)
        cost = np.cumsum(weights * lattice.square_norms(points - centres[nearest]))[-1]
        if cost < best_cost:
            best, best_cost = centres, cost
    return best


def _seeds(points: np.ndarray, weights: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """k-means++ seeds, each the best of a few candidates."""
    squares = lattice.square_norms(points)

    def distances(index: int) -> np.ndarray:
        return squares + squares[index] - 2.0 * (points @ points[index])

    def draw(masses: np.ndarray, size: int) -> np.ndarray:
        cumulative = np.cumsum(masses)
        drawn = np.searchsorted(cumulative, generator.random(size) * cumulative[-1], side="right")
        return np.minimum(drawn, len(points) - 1)

    seeds = [int(draw(weights, 1)[0])]
    nearest = distances(seeds[0])
    for _ in range(1, count):
        candidates = draw(weights * nearest, TRIALS)
        options = [np.minimum(nearest, distances(index)) for index in candidates]
        chosen = int(np.argmin([np.cumsum(weights * option)[-1] for option in options]))
        seeds.append(int(candidates[chosen]))
        nearest = options[chosen]
    return points[seeds].copy()


def within_covariance(
    offsets: np.ndarray, shares: np.ndarray, basis: np.ndarray, reduced: int, residual_square: float
) -> tuple[np.ndarray, np.ndarray]:
    """What is left of the pooled covariance B B^T when the centres have explained their part.

    In the coordinates of B the centres explain E = sum of share x offset offset^T;
    I - E is taken as a full matrix on the first r coordinates and as a diagonal
    one on the rest.  Differences of noisy figures say little where nearly all is
    explained, so variances are held above one floor (as in water-filling), the one
    at which the trace is the released mean squared residual.

    Args:
      offsets: (C, K, d), of the components from their class's mean.
      shares: (C, K), summing to 1.
      basis: (d, d), orthogonal columns.

    Returns:
      The covariance on the first coordinates (r, r), and the basis with its
      other columns scaled.
    """
    with one_thread():
        variances = np.maximum((basis**2).sum(axis=0), np.finfo(float).tiny)
        whitened = (offsets.reshape(-1, len(basis)) @ (basis / variances)) * np.sqrt(shares.reshape(-1, 1))
        first = whitened[:, :reduced]
        values, vectors = np.linalg.eigh(np.eye(reduced) - first.T @ first)
        sizes = np.concatenate([variances[:reduced] @ vectors**2, variances[reduced:]])
        values = np.concatenate([values, 1.0 - (whitened[:, reduced:] ** 2).sum(axis=0)])
        low, high = MIN_VARIANCE, 1.0
        for _ in range(30):
            middle = np.sqrt(low * high)
            above = sizes @ np.clip(values, middle, 1.0) > residual_square
            low, high = (low, middle) if above else (middle, high)
        values = np.clip(values, low, 1.0)
        # Where even the least floor leaves too much, all of it is scaled.
        values *= np.clip(residual_square / (sizes @ values), MIN_VARIANCE, 1.0)
        values = np.maximum(values, MIN_VARIANCE)
        covariance = (vectors * values[:reduced]) @ vectors.T
        scales = np.concatenate([np.ones(reduced), np.sqrt(values[reduced:])])
    return _rounded(covariance), _rounded(basis * scales)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Without the last bits, which are the processor's, and the sign of what is zero without them."""
    return np.rint(values * 2.0**RELEASED_BITS) * 2.0**-RELEASED_BITS + 0.0
