"""Step 4: how many rows lie where, in many more cells than there are components.

The rows' principal subspace is released already (`fit.covariance`).  In it (the view
`within`: residuals from the class mean, not whitened, r directions) come the
*sketches*, which find where mass is; then, in the full space, come the rounds of
`fit.lloyd`.

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
from dpgmm_beam.fit.projection import PROJECTION_BITS, VIEW_UNIT, Projection, View, pack_projection
from dpgmm_beam.fit.stage import Advanced, Multipliers, Shape, Stage, sums_by_group
from dpgmm_beam.fit.state import ClassMeans, Components, FitState, Subspace
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.queries import SumQuery, Sums

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
"""Cells under so many standard deviations of noise are dropped."""

SPREAD = 0.5
"""Variance of a later sketch's draws round a centre, as a share of the variance there."""


def _within(state: FitState) -> Projection:
    assert state.class_means is not None
    assert state.subspace is not None
    return Projection(state.class_means.means, state.subspace.matrix)


WITHIN = View("within", _within)
"""Residuals from the class mean in the principal subspace."""


def room_of(shape: Shape) -> int:
    """How many cells a sketch has room for in each class."""
    components = shape.components
    wanted = min(CELLS_PER_COMPONENT * components, max(MAX_CELLS, 4 * components))
    return max(2 * components, min(wanted, MAX_SKETCH // (shape.classes * shape.subspace_dim)))


def start(
    of_classes: ClassMeans, values: np.ndarray, vectors: np.ndarray, shape: Shape, noise_multiplier: float
) -> tuple[Subspace, Components]:
    """The view `within` and what the first sketch starts from.

    Args:
      values, vectors: eigenvalues, descending, and eigenvectors of the
        within-class covariance.
      noise_multiplier: of the moment.
    """
    radius, r = of_classes.residual_radius, shape.subspace_dim
    # Rounded, as all that is kept of an eigen-decomposition: its last bits are the processor's.
    subspace = Subspace(
        matrix=pack_projection(vectors[:, :r].T / radius),
        variances=np.rint(values[:r] * (VIEW_UNIT / radius) ** 2),
        total_variance=float(np.float32(values.sum())),
    )
    wanted = of_classes.counts.mean() / (ROWS_PER_NOISE * noise_multiplier)
    cells = int(np.clip(wanted, 2 * shape.components, room_of(shape)))
    generator = np.random.default_rng(np.random.SeedSequence([0, 0]))
    draws = generator.standard_normal((shape.classes, cells, r)) * np.sqrt(subspace.variances)
    return subspace, _components(of_classes, subspace, draws, _round(draws[:, : shape.components]))


@dataclasses.dataclass(frozen=True)
class Sketch(Stage):
    """Noisy counts and sums of many cells, and the centres that they show.

    Makes `FitState.components`: the cells of the next sketch and what the rounds start from.
    """

    position: int

    KIND = "sketch"

    @property
    def repetition(self) -> int:
        return self.position

    @property
    def view(self) -> View:
        return WITHIN

    @property
    def view_dimension(self) -> int:
        return self.shape.subspace_dim

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        cells = self.shape.classes * room_of(self.shape)
        return (SumQuery("count", cells, 1), SumQuery("sum", cells * self.shape.subspace_dim, VIEW_UNIT))

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        assert before.components is not None
        of_cells, room = before.components.cells, room_of(self.shape)
        count = self.shape.classes * room
        # A class's cells lie first in its room.
        free = room - of_cells.shape[1]

        def add(rows: Rows, sums: Sums) -> None:
            values = rows.values.astype(np.float64)
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
        centres = np.empty((shape.classes, shape.components, shape.subspace_dim))
        for label in range(shape.classes):
            points, weights = self._cell_means(counts[label], totals[label], variances, multipliers)
            centres[label] = kmeans.weighted_k_means(points, weights, shape.components, generator)
        within = np.maximum(variances - (centres**2).mean(axis=(0, 1)), variances / 20)
        each = used // shape.components
        draws = generator.standard_normal((*centres.shape[:2], each, shape.subspace_dim))
        draws *= np.sqrt(SPREAD * within)
        cells = (centres[:, :, None] + draws).reshape(shape.classes, -1, shape.subspace_dim)
        after = _components(before.class_means, before.subspace, cells, centres)
        return Advanced(dataclasses.replace(before, components=after))

    def _cell_means(
        self, counts: np.ndarray, totals: np.ndarray, variances: np.ndarray, multipliers: Multipliers
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means and counts of a class's cells that hold more than noise.

        A mean of noise variance v is multiplied by l / (l + v), l being the
        variance of the rows in that direction.
        """
        heaviest = np.argsort(-counts, kind="stable")
        enough = int((counts > COUNT_THRESHOLD * multipliers["count"]).sum())
        chosen = heaviest[: max(enough, 2 * self.shape.components)]
        weights = np.maximum(counts[chosen], 1).astype(np.float64)
        noise = (multipliers["sum"] * VIEW_UNIT / weights) ** 2
        means = totals[chosen] / weights[:, None] * (variances / (variances + noise[:, None]))
        return _round(means), weights


def directions(of_classes: ClassMeans, subspace: Subspace) -> np.ndarray:
    """The directions of the view `within`, (r, d), orthonormal up to the lattice."""
    return subspace.matrix * (of_classes.residual_radius * 2.0**-PROJECTION_BITS)


def _components(
    of_classes: ClassMeans, subspace: Subspace, cells: np.ndarray, centres: np.ndarray
) -> Components:
    """What rounds start from.

    Args:
      cells: (C, M, r) in view steps.
      centres: (C, K, r) in view steps.
    """
    offsets = centres * (of_classes.residual_radius / VIEW_UNIT)
    with one_thread():
        moved = offsets @ directions(of_classes, subspace)
    means = of_classes.means[:, None, :] + moved * lattice.UNIT
    explained = (offsets**2).sum(axis=2).mean()
    on_lattice = lattice.clip_rows(np.rint(means.reshape(-1, means.shape[2])), lattice.UNIT)
    return Components(
        cells=_round(cells).astype(np.int16),
        means=on_lattice.reshape(means.shape),
        counts=np.ones(centres.shape[:2]),
        residual_square=float(np.float32(max(subspace.total_variance - explained, 0.0))),
    )


def _round(points: np.ndarray) -> np.ndarray:
    """Points in view steps as integers of norm at most VIEW_UNIT."""
    flat = np.rint(points.reshape(-1, points.shape[-1]))
    return lattice.clip_rows(flat, VIEW_UNIT).reshape(points.shape)
