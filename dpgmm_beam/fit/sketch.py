"""Step 5: how many rows lie where, in many more cells than there are components.

The rows' principal subspace is released already (`fit.whitened`).  In it lies the view
`within` of all steps that follow: residuals from the class mean in r directions,
each divided by the fourth root of the variance there.  (Half-way to whitening: noise is
the same in all directions of a view, and a direction of small variance would drown in it,
while one that is only noise would count as much as the others.)  First come the
*sketches*, which find where mass is, then the rounds of `fit.lloyd`.

A sketch cuts space into many Voronoi cells, releases how many rows each cell holds
and their sum, and the rest is computed from these: cells that hold no more than noise
are dropped, each mean is moved towards the class mean by Wiener's factor, and weighted
k-means of the means gives the centres.  The first sketch's cells are those of draws from
the released Gaussian N(0, diag l); the next one's, of draws round each centre
found, which divide a cell in which two clusters lay.  Cells of a partition that
ignores the data, weighted by noisy counts, go back to Su, Cao, Li, Bertino and
Jin 2016 (grid) and Chang, Ghazi, Kumar and Manurangsi 2021 (hash tree); the
subspace before them, to Kamath, Sheffet, Singhal and Ullman 2019.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import kmeans
from dpgmm_beam.fit.projection import (
    PROJECTION_BITS,
    VIEW_BITS,
    VIEW_UNIT,
    Projection,
    View,
    pack_projection,
)
from dpgmm_beam.fit.stage import Advanced, Multipliers, Shape, Stage, sums_by_group
from dpgmm_beam.fit.state import ClassMeans, Components, FitState, Subspace
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.queries import SumQuery, Sums

MAX_CELLS, CELLS_PER_COMPONENT = 512, 20
"""Cells of a class in a sketch at most, unless four times the components are more.
More cells than 20 for each component say no more and are each noisier."""

MAX_SKETCH = 2**21
"""Values in a sketch's sums that its cells are kept within, if 2 K cells allow."""

REACH = 2.0
"""Norm bound of a row in the view, over the root mean square."""

SKETCH_REACH = 1.2
"""Clipping radius of a sketch, over the root mean square."""

SKETCH_BOUND = int(SKETCH_REACH / REACH * VIEW_UNIT)
"""The same in view steps."""

ROWS_PER_COMPONENT = 64.0
"""Components are as many as a class has times this many rows for each unit of the whitened moment's
noise multiplier."""

DIRECTIONS_PER_ROW, MIN_DIRECTIONS = 0.75, 8
"""Directions are as many as this share of a class's rows for each unit of the same
multiplier, to the power of two thirds: there the noise of a class's covariance, whose
norm is sqrt(r) x r x noise / rows, is of the order of what classes differ by."""

COUNT_THRESHOLD = 3.0
"""Cells under so many standard deviations of noise are dropped."""


@dataclasses.dataclass(frozen=True)
class Search:
    """How sketches look for mass.

    Attributes:
      sketches: at most.
      rows_per_noise: rows that a cell should hold for each unit of the moment's noise multiplier,
        which is much like that of the sketches' sums.
      least_cells: for each component, if the rows would have fewer.
      spread: variance of a later sketch's draws round a centre, as a share of the variance there.
    """

    sketches: int
    rows_per_noise: float
    least_cells: int
    spread: float

    def cells(self, rows: float, components: int, room: int) -> int:
        """Cells of a class.

        Args:
          rows: of a class, for each unit of the moment's noise multiplier.
        """
        return int(np.clip(rows / self.rows_per_noise, self.least_cells * components, room))


USUAL = Search(2, 10.0, 2, 0.5)
"""For components that only describe the rows: many small cells, of whose means a tenth of the clipping
radius is noise in each direction."""

NAMED = Search(3, 52.0, 4, 0.25)
"""For a number of components that the user named, who expects a cluster at each centre: none must be
missed (`benchmarks/recovery.py`)."""


def _within(state: FitState) -> Projection:
    assert state.class_means is not None
    assert state.subspace is not None
    return Projection(state.class_means.means, state.subspace.matrix)


WITHIN = View("within", _within)
"""Residuals from the class mean in the principal subspace."""


def in_view(subspace: Subspace, offsets: np.ndarray) -> np.ndarray:
    """Lattice offsets (n, d), integers at most two norm bounds long, in steps of the view, (n, r)."""
    # Exact, as in `Projection.bind`.
    found = offsets @ subspace.matrix.T.astype(np.float64)
    found *= 2.0 ** (VIEW_BITS - lattice.UNIT_BITS - PROJECTION_BITS)
    return found


def on_lattice(subspace: Subspace, within: np.ndarray) -> np.ndarray:
    """Offsets in steps of the view, (n, r), as lattice integers (n, d)."""
    directions = subspace.matrix * 2.0 ** (VIEW_BITS - PROJECTION_BITS) * subspace.steps[:, None]
    return np.rint(lattice.exact_product(within * subspace.steps, directions) * lattice.UNIT)


def room_of(shape: Shape) -> int:
    """How many cells a sketch has room for in each class."""
    components = shape.components
    wanted = min(CELLS_PER_COMPONENT * components, max(MAX_CELLS, 4 * components))
    return max(2 * components, min(wanted, MAX_SKETCH // (shape.classes * shape.subspace_dim)))


def search_of(shape: Shape) -> Search:
    """`NAMED` where the configuration has a number of components, else `USUAL`."""
    return NAMED if shape.exact_components else USUAL


def components_of(shape: Shape, rows: np.ndarray | float) -> np.ndarray:
    """How many components each class is given, int64 of the shape of `rows`.

    Args:
      rows: of each class, for each unit of the moment's noise multiplier.
    """
    if shape.exact_components:
        return np.full(np.shape(rows), shape.components)
    wanted = np.maximum(rows, 0.0) / ROWS_PER_COMPONENT
    return np.clip(np.rint(wanted), 1, shape.components).astype(np.int64)


def start(
    of_classes: ClassMeans,
    values: np.ndarray,
    vectors: np.ndarray,
    shape: Shape,
    noise_multiplier: float,
) -> tuple[Subspace, Components]:
    """The view `within` and what the first sketch starts from.

    How many components and directions are used follows from the noisy number of rows
    of a class.  Directions beyond are zero in the view: their sums hold noise only and
    nobody reads them.

    Args:
      values, vectors: eigenvalues, descending, and eigenvectors of the
        within-class covariance.
      noise_multiplier: of the whitened moment.
    """
    of_class = of_classes.counts / noise_multiplier
    rows, numbers = of_class.mean(), components_of(shape, of_class)
    count = int(numbers.max())
    # As many centres as there are directions, and one, can lie at equal distances.
    least = max(MIN_DIRECTIONS, count if shape.exact_components else 0)
    used = int(min(max((DIRECTIONS_PER_ROW * rows) ** (2 / 3), least), shape.subspace_dim))
    scales = np.zeros(shape.subspace_dim)
    scales[:used] = (values[:used] / values[0]) ** -0.25
    radius = REACH * np.sqrt((values[:used] * scales[:used] ** 2).sum())
    # Rounded, as all that is kept of an eigen-decomposition: its last bits are the processor's.
    view_scales = np.rint(scales * (VIEW_UNIT / radius) * 2.0**8) * 2.0**-8
    subspace = Subspace(
        matrix=pack_projection(vectors[:, : shape.subspace_dim].T * (view_scales / VIEW_UNIT)[:, None]),
        steps=np.divide(1.0, view_scales, out=np.zeros(len(scales)), where=view_scales > 0),
        variances=np.rint(values[: shape.subspace_dim] * view_scales**2),
    )
    centres = np.zeros((shape.classes, 1, shape.subspace_dim))
    cells = centres
    if count > 1:
        cells_of_class = search_of(shape).cells(of_class.max(), count, room_of(shape))
        generator = np.random.default_rng(np.random.SeedSequence([0, 0]))
        draws = generator.standard_normal((shape.classes, cells_of_class, shape.subspace_dim))
        cells = _round(draws * np.sqrt(subspace.variances))
        centres = cells[:, :count]
    return subspace, _components(of_classes, subspace, cells, centres, numbers)


@dataclasses.dataclass(frozen=True)
class WithinStage(Stage):
    """A stage that sums rows in the view `within`."""

    @property
    def view(self) -> View:
        return WITHIN

    @property
    def view_dimension(self) -> int:
        return self.shape.subspace_dim


@dataclasses.dataclass(frozen=True)
class Sketch(WithinStage):
    """Noisy counts and sums of many cells, and the centres that they show.

    Makes `FitState.components`: the cells of the next sketch and what the rounds start from.
    """

    position: int

    KIND = "sketch"

    @property
    def repetition(self) -> int:
        return self.position

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        cells = self.shape.classes * room_of(self.shape)
        return (
            SumQuery("count", cells, 1, one_sided=True),
            SumQuery("sum", cells * self.shape.subspace_dim, SKETCH_BOUND),
        )

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        assert before.components is not None
        of_cells, room = before.components.cells, room_of(self.shape)
        count = self.shape.classes * room
        # A class's cells lie first in its room.
        free = room - of_cells.shape[1]

        def add(rows: Rows, sums: Sums) -> None:
            values = lattice.clip_rows(rows.values.astype(np.float64), SKETCH_BOUND)
            cells = kmeans.nearest_of_class(values, rows.classes, of_cells)
            cells += rows.classes.astype(np.int64) * free
            sums["count"] += np.bincount(cells, minlength=count)
            sums["sum"] += sums_by_group(values, cells, count).ravel()

        return add

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        assert before.class_means is not None
        assert before.components is not None
        assert before.subspace is not None
        shape, variances = self.shape, before.subspace.variances
        used, room = before.components.cells.shape[1], room_of(shape)
        counts = noisy["count"].reshape(shape.classes, room)[:, :used]
        totals = noisy["sum"].reshape(shape.classes, room, shape.subspace_dim)[:, :used]
        generator = np.random.default_rng(np.random.SeedSequence([2, self.position]))
        components = before.components.centres.shape[1]
        if components == 1:
            return Advanced(before)
        numbers = before.components.present.sum(axis=1)
        centres = np.zeros((shape.classes, components, shape.subspace_dim))
        for label in range(shape.classes):
            own = numbers[label]
            if own == 1:
                continue
            points, weights = self._cell_means(counts[label], totals[label], variances, multipliers, 2 * own)
            centres[label, :own] = kmeans.weighted_k_means(points, weights, own, generator)
        within = np.maximum(variances - _mean_square(centres, numbers), variances / 20)
        each = used // components
        draws = generator.standard_normal((*centres.shape[:2], each, shape.subspace_dim))
        draws *= np.sqrt(search_of(shape).spread * within)
        # All of a class's cells lie round the components that it has.
        shown = np.arange(components) % numbers[:, None]
        around = np.take_along_axis(centres, shown[:, :, None], axis=1)
        cells = (around[:, :, None] + draws).reshape(shape.classes, -1, shape.subspace_dim)
        after = _components(before.class_means, before.subspace, _round(cells), centres, numbers)
        return Advanced(dataclasses.replace(before, components=after))

    def _cell_means(
        self,
        counts: np.ndarray,
        totals: np.ndarray,
        variances: np.ndarray,
        multipliers: Multipliers,
        least: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means and counts of a class's cells that hold more than noise.

        A mean of noise variance v is multiplied by l / (l + v), l being the
        variance of the rows in that direction.

        Args:
          least: how many of the heaviest are taken whatever they hold.
        """
        heaviest = np.argsort(-counts, kind="stable")
        enough = int((counts > COUNT_THRESHOLD * multipliers["count"]).sum())
        chosen = heaviest[: max(enough, least)]
        weights = np.maximum(counts[chosen], 1).astype(np.float64)
        noise = (multipliers["sum"] * SKETCH_BOUND / weights) ** 2
        means = totals[chosen] / weights[:, None] * (variances / (variances + noise[:, None]))
        return _round(means), weights


def _components(
    of_classes: ClassMeans,
    subspace: Subspace,
    cells: np.ndarray,
    centres: np.ndarray,
    numbers: np.ndarray,
) -> Components:
    """What rounds start from.

    Args:
      cells: (C, M, r) integers in view steps.
      centres: (C, K, r) integers in view steps.
      numbers: (C,) how many of its K centres a class has.
    """
    left = subspace.variances.sum() - _mean_square(centres, numbers).sum()
    each = of_classes.counts / numbers
    found = Components(
        cells=cells.astype(np.int16),
        centres=centres.astype(np.int16),
        counts=np.where(_first(numbers, centres.shape[1]), each[:, None], 0.0),
        residual_square=float(np.rint(max(left, subspace.variances.sum() / 20))),
    )
    return dataclasses.replace(found, centres=found.on_first(found.centres))


def _mean_square(centres: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Of the coordinates of the centres that classes have, (r,)."""
    # Integers: exact in any order.
    return (centres[_first(numbers, centres.shape[1])] ** 2).mean(axis=0)


def _first(numbers: np.ndarray, room: int) -> np.ndarray:
    """Which of `room` components are among a class's first `numbers`, (C, room)."""
    return np.arange(room) < numbers[:, None]


def _round(points: np.ndarray) -> np.ndarray:
    """Points in view steps as integers of norm at most VIEW_UNIT."""
    flat = np.rint(points.reshape(-1, points.shape[-1]))
    return lattice.clip_rows(flat, VIEW_UNIT).reshape(points.shape)
