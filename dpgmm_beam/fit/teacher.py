"""Step 11: the private teacher that labels synthetic rows."""

import dataclasses
from collections.abc import Callable

import numpy as np

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit.exponential import exponential
from dpgmm_beam.fit.projection import VIEW_BITS, VIEW_UNIT, Projection, View, pack_projection
from dpgmm_beam.fit.stage import Advanced, Multipliers, Stage
from dpgmm_beam.fit.state import ClassMeans, FitState, Teacher
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.queries import SumQuery, Sums

WEIGHT_BITS = 20
EXP_BITS = 30

DAMPING_FLOOR = 0.1
"""Least damping, as a share of the mean eigenvalue: with hardly any noise the
features would otherwise be whitened further than the steps can follow."""

LDA_DAMPING, LDA_SCALE = 4.0, 0.5
"""The teacher starts from the discriminant of a more damped covariance; half of it, before
`fit.sharpness` has asked the rows."""


def _features(state: FitState) -> Projection:
    assert state.class_means is not None
    found = teacher_of(state)
    return Projection(state.class_means.centre, found.whitening, found.ridges)


FEATURES = View("features", _features)
"""Whitened rows, the same for all classes, and behind them their ridges."""


@dataclasses.dataclass(frozen=True)
class FeatureStage(Stage):
    """A stage that reads rows as the teacher sees them."""

    @property
    def view(self) -> View:
        return FEATURES

    @property
    def view_dimension(self) -> int:
        return self.shape.dimension + self.shape.ridges


@dataclasses.dataclass(frozen=True)
class TeacherStep(FeatureStage):
    """One full-batch gradient step of multinomial logistic regression on the feature view.

    The gradient of a row is (p - y) z^T with z the row's features and a bias,
    clipped in norm to `method.teacher_clip`, and taken where the momentum will carry
    the weights (Nesterov 1983); the teacher is the average of the iterates of the
    last third of the steps.  The step size is `teacher_rate` in
    units of the squared norm of whitened rows, of which 2 would be the inverse
    of the largest curvature (Boehning 1992), or less where the noise would
    otherwise move a logit by more than `teacher_noise_cap` in one step.
    """

    step: int

    KIND = "teacher"
    GRADIENT_BITS = 16

    @property
    def repetition(self) -> int:
        return self.step

    @property
    def bound(self) -> float:
        """Norm bound of a row's gradient, in steps of 2**-(GRADIENT_BITS + VIEW_BITS)."""
        return self.method.teacher_clip * 2.0 ** (self.GRADIENT_BITS + VIEW_BITS)

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        size = self.shape.classes * (self.view_dimension + 1)
        # The factor covers the rounding of the two norms that are multiplied.
        return (SumQuery("gradient", size, self.bound * (1 + 2.0**-40)),)

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        teacher = teacher_of(before)
        ahead = teacher.weights + self.method.teacher_momentum * teacher.velocity.astype(np.float64)
        weights, bias = logit_weights(ahead, teacher.norm), bias_feature(teacher.norm)
        shape = (self.shape.classes, self.view_dimension + 1)

        def add(rows: Rows, sums: Sums) -> None:
            features = rows.values.astype(np.float64)
            coefficients = probabilities(features, weights)
            coefficients = np.rint(np.multiply(coefficients, 2.0**self.GRADIENT_BITS, out=coefficients))
            coefficients[np.arange(len(rows)), rows.classes] -= 2.0**self.GRADIENT_BITS
            lengths = np.sqrt(lattice.square_norms(coefficients)) * np.sqrt(rows.square_norms() + bias**2)
            longer = lengths > self.bound
            if longer.any():
                kept = np.divide(self.bound, lengths, out=np.ones(len(rows)), where=longer)
                coefficients *= kept[:, None]
                # Truncation towards zero cannot lengthen a row, and leaves the others as they are.
                np.trunc(coefficients, out=coefficients)
            gradient = sums["gradient"].reshape(shape)
            # Exact: a block's entries are under its rows x 2**30, under 2**53 by `lattice.MAX_BLOCK_ROWS`.
            gradient[:, :-1] += (coefficients.T @ features).astype(np.int64)
            gradient[:, -1] += (coefficients.sum(axis=0) * bias).astype(np.int64)

        return add

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        assert before.class_means is not None
        teacher, rows = teacher_of(before), before.class_means.counts.sum()
        shape = (self.shape.classes, self.view_dimension + 1)
        unit = 2.0 ** (self.GRADIENT_BITS + VIEW_BITS)
        gradient = noisy["gradient"].reshape(shape) / (unit * rows)
        noise = multipliers["gradient"] * self.method.teacher_clip / rows
        rate = min(self.method.teacher_rate * teacher.norm**2, self.method.teacher_noise_cap / noise)
        velocity = self.method.teacher_momentum * teacher.velocity.astype(np.float64) - rate * gradient
        weights = teacher.weights + velocity
        # Single precision is far finer than the noise; states are carried often.
        after = dataclasses.replace(
            teacher,
            weights=weights.astype(np.float32),
            velocity=velocity.astype(np.float32),
            average=self._average(teacher, weights),
        )
        return Advanced(dataclasses.replace(before, teacher=after))

    def _average(self, teacher: Teacher, weights: np.ndarray) -> np.ndarray | None:
        """The mean of the iterates of the last third, this one included; None before."""
        first = self.method.teacher_steps - max(1, self.method.teacher_steps // 3)
        if self.step < first:
            return None
        average = weights if teacher.average is None else teacher.average.astype(np.float64)
        return (average + (weights - average) / (self.step - first + 1)).astype(np.float32)


def teacher_of(state: FitState) -> Teacher:
    """The state's teacher, in stages that come after its start."""
    assert state.teacher is not None
    return state.teacher


def bias_feature(norm: float) -> float:
    """The constant feature in view steps: 1 / norm, as a whitened coordinate of size 1 would be.

    Args:
      norm: see `Teacher`.
    """
    return float(np.rint(VIEW_UNIT / norm))


def logit_weights(weights: np.ndarray, norm: float) -> np.ndarray:
    """The teacher's weights for `probabilities`: their products with a view's row are logits.

    Args:
      weights: (C, D + 1); the bias is the last column.
      norm: see `Teacher`.

    Returns:
      (C, D + 1) float64 integers times a power of two; the last column holds the
      bias times its feature.

    Raises:
      ConfigError: the logits would not be exact.
    """
    on_lattice, bias = lattice.to_lattice(weights, WEIGHT_BITS), bias_feature(norm)
    longest = float(np.hypot(VIEW_UNIT, bias))
    lattice.check_exact(longest, float(np.sqrt(lattice.square_norms(on_lattice)).max()))
    on_lattice[:, -1] *= bias
    return on_lattice * 2.0 ** -(WEIGHT_BITS + VIEW_BITS)


def probabilities(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Softmax of the teacher's logits, (n, D), (C, D + 1) -> (n, C).

    The products and the normalising sum are exact, so their order cannot matter, and
    every other operation is one that IEEE 754 fixes: the same on any processor.

    Args:
      features: integers of a view's row norm.
      weights: of `logit_weights`.
    """
    return softmax(logits(features, weights))


def logits(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The teacher's logits, exact: (n, D), (C, D + 1) -> (n, C); arguments as those of `probabilities`."""
    found = features @ weights[:, :-1].T
    found += weights[:, -1]
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of exact logits, (n, C) -> (n, C), the same on any processor; logits are overwritten."""
    logits -= logits.max(axis=1, keepdims=True)
    powers = exponential(logits)
    # Only the sum is rounded: small probabilities are kept, for those who soften them.
    total = np.rint(powers * 2.0**EXP_BITS).sum(axis=1, keepdims=True) * 2.0**-EXP_BITS
    powers /= total
    return powers


def start(of_classes: ClassMeans, values: np.ndarray, vectors: np.ndarray, damping: float) -> Teacher:
    """The feature view and a cautious first teacher.

    Features whiten the total covariance T with damping tau by the noise it came
    with: (T + tau)^(-1/2) (x - centre).  Of all square roots it is the symmetric
    one, which eigenvalues that tie, and whatever basis a processor gives them,
    leave as it is; norms, clipping and gradient steps are the same under all.
    The teacher starts from half the linear discriminant of the released means
    and covariance, until `fit.sharpness` finds how much of it.
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
