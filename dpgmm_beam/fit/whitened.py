"""Step 4: the covariance again, where the rough one is the unit matrix; and what starts from it.

Rows are whitened by the rough covariance (`fit.covariance`), damped by its mean
variance: directions of large variance, which it knows, no longer fill the clipping
radius, and for directions of middling variance the noise is as much smaller.  What is
released is as good there as one moment of 1.8 times the budget, and at small epsilon these are
the directions in which synthetic rows would be too narrow (docs/clustering.md).
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import shrinkage, sketch, teacher
from dpgmm_beam.fit.covariance import BASIS_BITS, MomentStage, covariance_of
from dpgmm_beam.fit.projection import VIEW_BITS, Projection, pack_projection
from dpgmm_beam.fit.stage import Advanced, Multipliers
from dpgmm_beam.fit.state import ClassMeans, Covariance, FitState
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.privacy.queries import Sums

WHITENED_RADIUS = 0.8
"""Clipping radius of a whitened row, over the root of the effective dimension."""


@dataclasses.dataclass(frozen=True)
class WhitenedMoment(MomentStage):
    """Second moment of the rows round their class means, whitened by the rough covariance.

    The squared norm of a whitened row is on average the effective dimension, which the
    rough covariance states: rows are clipped at a share of its root, and the moment is scaled to it.

    Makes the `Covariance`, and in the state `teacher`, `subspace` and `components`, in the place of `rough`.
    """

    KIND = "whitened"

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        of_classes, rough = _known(before)
        whitening = rough.vectors / np.sqrt(rough.damped)
        matrix = pack_projection(whitening.T / self._radius(rough))
        project = Projection(of_classes.means, matrix).bind()

        def add(rows: Rows, sums: Sums) -> None:
            self.add_moment(project(rows).values * 2.0 ** (self.BITS - VIEW_BITS), sums)

        return add

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        of_classes, rough = _known(before)
        radius, rows, trace = self._radius(rough), of_classes.counts.sum(), rough.effective_dimension
        found, axes, stddev = self.estimate(
            noisy, multipliers, radius, rows, trace, rough.values / rough.damped
        )
        with one_thread():
            root = (rough.vectors * np.sqrt(rough.damped)) @ axes
            values, vectors = shrinkage.spectrum((root * found) @ root.T, of_classes.residual_square)
        # The noise of a direction of mean variance.
        noise = shrinkage.noise_radius(self.shape.dimension, stddev) * float(rough.damped.mean())
        subspace, components = sketch.start(of_classes, values, vectors, self.shape, multipliers["moment"])
        state = dataclasses.replace(
            before,
            rough=None,
            teacher=teacher.start(of_classes, values, vectors, self.method.damping * noise),
            subspace=subspace,
            components=components,
        )
        # Axes by falling size: shapes are given in the first of them.
        return Advanced(state, covariance_of(values, vectors))

    def _radius(self, rough: "_Rough") -> float:
        """Clipping radius of a whitened residual."""
        return WHITENED_RADIUS * float(np.sqrt(rough.effective_dimension))


@dataclasses.dataclass(frozen=True, eq=False)
class _Rough:
    """The rough covariance as eigenvalues, (d,), and eigenvectors in columns, (d, d)."""

    values: np.ndarray
    vectors: np.ndarray

    @staticmethod
    def of(covariance: Covariance) -> "_Rough":
        basis = covariance.basis * 2.0**-BASIS_BITS
        values = np.maximum((basis**2).sum(axis=0), 2.0 ** (-2 * BASIS_BITS))
        return _Rough(values, basis / np.sqrt(values))

    @property
    def damped(self) -> np.ndarray:
        """Variances plus their mean: what rows are divided by the root of."""
        return self.values + self.values.mean()

    @property
    def effective_dimension(self) -> float:
        return float((self.values / self.damped).sum())


def _known(before: FitState) -> tuple[ClassMeans, _Rough]:
    assert before.class_means is not None
    assert before.rough is not None
    return before.class_means, _Rough.of(before.rough)
