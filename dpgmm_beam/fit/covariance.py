"""Step 3: the covariance of the rows within their classes, and what starts from it."""

import dataclasses
from collections.abc import Callable

import numpy as np

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import shrinkage, sketch
from dpgmm_beam.fit.projection import pack_projection
from dpgmm_beam.fit.stage import Advanced, ClippedStage, Multipliers
from dpgmm_beam.fit.state import ClassMeans, Covariance, FitState, Teacher
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.queries import SumQuery, Sums

BASIS_BITS = 20
DAMPING_FLOOR = 0.1
"""Least damping, as a share of the mean eigenvalue: with hardly any noise the
features would otherwise be whitened further than the steps can follow."""

MAX_FACTOR = 20.0
"""What a moment of clipped residuals is multiplied by at most, to have the trace of all."""

LDA_DAMPING, LDA_SCALE = 4.0, 0.5
"""The teacher starts from half the discriminant of a more damped covariance:
sharper starts have to be unlearnt."""


@dataclasses.dataclass(frozen=True)
class PooledMoment(ClippedStage):
    """Second moment of the rows round their class means, pooled over the classes.

    Residuals are clipped at a share of their root mean square, which the step before
    knows: what the moment lacks for it is put back by one factor, and its noise is
    as much smaller.  What the moment says is taken beyond the variances of the
    coordinates, which are known better than its other entries.

    Makes the `Covariance`, and in the state `teacher`, `subspace` and `components`.
    """

    KIND = "moment"

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        d = self.shape.dimension
        bound = float(self.bound) ** 2
        return (SumQuery("moment", d * (d + 1) // 2, bound, symmetric_order=d, one_sided=True),)

    def begin(self) -> Sums:
        return {"moment": np.zeros((self.shape.dimension, self.shape.dimension), np.int64)}

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        of_classes = _class_means(before)
        means = of_classes.means.astype(np.float64)
        scale = self.bound / (self._radius(of_classes) * lattice.UNIT)

        def add(rows: Rows, sums: Sums) -> None:
            residuals = rows.values - means[rows.classes]
            residuals *= scale
            residuals = lattice.clip_rows(np.rint(residuals, out=residuals), self.bound)
            # Exact: a block's entries are under its rows x 2**24, far under 2**53.
            sums["moment"] += (residuals.T @ residuals).astype(np.int64)

        return add

    def finish(self, sums: Sums) -> Sums:
        return {"moment": lattice.pack_triangle(sums["moment"])}

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        of_classes = _class_means(before)
        trace, radius = of_classes.residual_square, self._radius(of_classes)
        per_row = radius**2 / (self.bound**2 * of_classes.counts.sum())
        moment = lattice.unpack_triangle(noisy["moment"].astype(np.float64)) * per_row
        # Of rows that are clipped the trace is at most that of rows that are not.
        factor = float(np.clip(trace / max(np.trace(moment), 1e-30), 1.0, MAX_FACTOR))
        stddev = multipliers["moment"] * self.bound**2 * per_row * factor
        values, vectors = shrinkage.shrink_moment(
            moment * factor, stddev, trace, of_classes.variances.astype(np.float64)
        )
        damping = self.method.damping * shrinkage.noise_radius(self.shape.dimension, stddev)
        subspace, components = sketch.start(of_classes, values, vectors, self.shape, multipliers["moment"])
        state = dataclasses.replace(
            before,
            teacher=_first_teacher(of_classes, values, vectors, damping),
            subspace=subspace,
            components=components,
        )
        # Axes by falling size: shapes are given in the first of them.
        basis = lattice.to_lattice(vectors * np.sqrt(values), BASIS_BITS).astype(np.int32)
        return Advanced(state, Covariance(basis))

    def _radius(self, of_classes: ClassMeans) -> float:
        """Clipping radius of a residual, as a share of the norm bound."""
        return self.method.residual_radius * float(np.sqrt(of_classes.residual_square))


def _class_means(state: FitState) -> ClassMeans:
    assert state.class_means is not None
    return state.class_means


def _first_teacher(
    of_classes: ClassMeans, values: np.ndarray, vectors: np.ndarray, damping: float
) -> Teacher:
    """The feature view and a cautious first teacher.

    Features whiten the total covariance T with damping tau by the noise it came
    with: (T + tau)^(-1/2) (x - centre).  Of all square roots it is the symmetric
    one, which eigenvalues that tie, and whatever basis a processor gives them,
    leave as it is; norms, clipping and gradient steps are the same under all.
    The teacher starts from half the linear discriminant of the released means
    and covariance.
    """
    shares = of_classes.counts / of_classes.counts.sum()
    offsets = (of_classes.means - of_classes.centre) / lattice.UNIT
    spread = offsets * np.sqrt(shares)[:, None]
    with one_thread():
        total_values, axes = np.linalg.eigh((vectors * values) @ vectors.T + spread.T @ spread)
        total_values = np.maximum(total_values, 0.0)
        damping = max(damping, DAMPING_FLOOR * total_values.mean())
        # The squared norm of a whitened row is on average the effective dimension.
        # In single precision, for its last bits are the processor's.
        norm = float(np.float32(np.sqrt((total_values / (total_values + damping)).sum())))
        scales = np.sqrt(total_values + damping)
        # With S the within-class covariance, damped more: directions S^-1 (m_c - m).
        damped = values + LDA_DAMPING * damping
        directions = ((offsets @ vectors) / damped) @ vectors.T
        weights = norm * ((directions @ axes) * scales) @ axes.T
        biases = norm * (np.log(shares) - 0.5 * (directions * offsets).sum(axis=1))
        whitening = (axes / scales) @ axes.T
    weights = (LDA_SCALE * np.column_stack([weights, biases])).astype(np.float32)
    return Teacher(
        whitening=pack_projection(whitening / norm),
        norm=norm,
        weights=weights,
        velocity=np.zeros(weights.shape, np.float32),
    )
