"""The stages of a fit: what each sums over the rows and what it makes of the noisy sums.

A stage is one pass.  `add` adds a block's exact integer sums to accumulators;
one row moves a channel's vector by at most the channel's sensitivity.
`advance` computes the next state from the noisy sums and the state before.
Everything in a state is released information or computed from it.

Units: "lattice steps" are 2**-15 of the embedding's norm bound; "view steps"
2**-14 of a view's.
"""

import dataclasses

import numpy as np

from dpgmm_beam import clustering, lattice, shrinkage
from dpgmm_beam.algebra import one_thread
from dpgmm_beam.exponential import exponential
from dpgmm_beam.rows import DIGEST_LIMBS, Rows
from dpgmm_beam.stage import Multipliers, Stage, sums_by_group
from dpgmm_beam.state import State
from dpgmm_beam.statistics import Channel, Sums
from dpgmm_beam.views import VIEW_BITS, VIEW_UNIT, Projection, pack_projection

BASIS_BITS = 20
DAMPING_FLOOR = 0.1
"""Least damping, as a share of the mean eigenvalue: with hardly any noise the
features would otherwise be whitened further than the steps can follow."""

LDA_DAMPING, LDA_SCALE = 4.0, 0.5
"""The teacher starts from half the discriminant of a more damped covariance:
sharper starts have to be unlearnt."""

THETA_BITS = 20
EXP_BITS = 30

FEATURES = Projection("features", "centre", by_class=False)


@dataclasses.dataclass(frozen=True)
class Means(Stage):
    """Count and sum of each class; also the private digest of the data.

    After it: `counts` (C,), `means` (C, d) and `centre` (d,) in lattice steps,
    and `residual_radius`, the clipping radius of the next stage as a share of
    the norm bound.

    Attributes:
      radius: clipping radius over the root mean squared residual.
    """

    classes: int
    dimension: int
    radius: float

    KIND = "means"

    @property
    def channels(self) -> tuple[Channel, ...]:
        return (
            Channel("count", self.classes, 1),
            Channel("sum", self.classes * self.dimension, lattice.UNIT),
            Channel("digest", DIGEST_LIMBS, 0, private=True),
        )

    def add(self, rows: Rows, before: State, sums: Sums) -> None:
        sums["count"] += np.bincount(rows.classes, minlength=self.classes)
        sums["sum"] += sums_by_group(rows.values, rows.classes, self.classes).ravel()

    def advance(self, before: State, noisy: Sums, multipliers: Multipliers) -> State:
        counts = noisy["count"].astype(np.float64)
        total = max(counts.sum(), float(self.classes))
        # A class of fewer rows than the noise could make up, or than a hundredth
        # of its equal share, is taken to have that many.
        counts = np.maximum(counts, max(multipliers["count"], 0.01 * total / self.classes))
        totals = noisy["sum"].reshape(self.classes, self.dimension).astype(np.float64)
        deviation = multipliers["sum"] * lattice.UNIT
        # Both the centre (towards zero) and each mean (towards the centre) keep
        # only what their noise does not explain.
        centre = shrinkage.shrink_rows(
            totals.sum(axis=0)[None] / total,
            np.zeros(self.dimension),
            self.classes * (deviation / total) ** 2,
        )[0]
        means = shrinkage.shrink_rows(totals / counts[:, None], centre, (deviation / counts) ** 2)
        means = lattice.clip_rows(np.rint(means), lattice.UNIT)
        shares = counts / counts.sum()
        explained = float((shares * lattice.square_norms(means)).sum()) / lattice.UNIT**2
        residual = np.sqrt(np.clip(1.0 - explained, 0.01, 1.0))
        return {
            "counts": counts,
            "means": means.astype(np.int32),
            "centre": lattice.clip_rows(np.rint(centre)[None], lattice.UNIT)[0],
            "residual_radius": np.array(min(self.radius * residual, self.radius)),
        }


@dataclasses.dataclass(frozen=True)
class PooledMoment(Stage):
    """Second moment of the rows round their class means, pooled over the classes.

    Residuals are clipped at a radius that is a function of the noisy means:
    rows have norm at most 1, so the mean squared residual is at most one minus
    the mean squared norm of the class means.

    After it: `basis` (d, d), a square root of the within-class covariance
    V diag(l) V^T, int32 in steps of 2**-20: V diag(sqrt l) V^T, or V diag(sqrt l)
    with columns by falling l where there are components to be found; the matrices
    of the views `features` and `within`; `theta`, where the teacher starts.
    """

    classes: int
    dimension: int
    components: int
    reduced: int
    radius: float
    damping: float

    KIND = "moment"
    AT_END = ("basis",)
    BITS = 12

    @property
    def bound(self) -> int:
        """Norm bound of a residual in its own steps, 2**-12 of the clipping radius."""
        return 2**self.BITS

    @property
    def channels(self) -> tuple[Channel, ...]:
        d = self.dimension
        return (Channel("moment", d * (d + 1) // 2, float(self.bound) ** 2, triangle=d),)

    def begin(self) -> Sums:
        return {"moment": np.zeros((self.dimension, self.dimension), np.int64)}

    def working(self, before: State) -> State:
        return {**before, "means": before["means"].astype(np.float64)}

    def add(self, rows: Rows, before: State, sums: Sums) -> None:
        scale = self.bound / (float(before["residual_radius"]) * lattice.UNIT)
        residuals = rows.values - before["means"][rows.classes]
        residuals *= scale
        residuals = lattice.clip_rows(np.rint(residuals, out=residuals), self.bound)
        # Exact: a block's entries are under its rows x 2**24, far under 2**53.
        sums["moment"] += (residuals.T @ residuals).astype(np.int64)

    def finish(self, sums: Sums) -> Sums:
        return {"moment": lattice.pack_triangle(sums["moment"])}

    def advance(self, before: State, noisy: Sums, multipliers: Multipliers) -> State:
        radius = float(before["residual_radius"])
        per_row = radius**2 / (self.bound**2 * before["counts"].sum())
        moment = lattice.unpack_triangle(noisy["moment"].astype(np.float64)) * per_row
        deviation = multipliers["moment"] * self.bound**2 * per_row
        largest = (radius / self.radius) ** 2
        trace = float(np.clip(np.trace(moment), 0.1 * largest, largest))
        values, vectors = shrinkage.shrink_moment(moment, deviation, trace)
        damping = self.damping * shrinkage.noise_radius(self.dimension, deviation)
        return {
            **before,
            "basis": lattice.to_lattice(self._basis(values, vectors), BASIS_BITS).astype(np.int32),
            **self._teacher_start(before, values, vectors, damping),
            **clustering.start(before, values, vectors, self.components, self.reduced, multipliers["moment"]),
        }

    def _basis(self, values: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """A square root of the within-class covariance: the symmetric one, unless components need axes."""
        with one_thread():
            return (
                vectors * np.sqrt(values) if self.components > 1 else (vectors * np.sqrt(values)) @ vectors.T
            )

    def _teacher_start(self, before: State, values: np.ndarray, vectors: np.ndarray, damping: float) -> State:
        """The feature view and a cautious first teacher.

        Features whiten the total covariance T with damping tau by the noise it came
        with: (T + tau)^(-1/2) (x - centre).  Of all square roots it is the symmetric
        one, which eigenvalues that tie, and whatever basis a processor gives them,
        leave as it is; norms, clipping and gradient steps are the same under all.
        The teacher starts from half the linear discriminant of the released means
        and covariance.
        """
        shares = before["counts"] / before["counts"].sum()
        offsets = (before["means"] - before["centre"]) / lattice.UNIT
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
        theta = LDA_SCALE * np.column_stack([weights, biases])
        return {
            "features_matrix": pack_projection(whitening / norm),
            "features_norm": np.array(norm),
            "theta": theta.astype(np.float32),
            "velocity": np.zeros(theta.shape, np.float32),
        }


@dataclasses.dataclass(frozen=True)
class TeacherStep(Stage):
    """One full-batch gradient step of multinomial logistic regression on the feature view.

    The gradient of a row is (p - y) z^T with z the row's features and a bias,
    clipped in norm to `clip`, and taken where the momentum will carry the
    weights (Nesterov 1983); the teacher is the average of the iterates of the
    last third of the steps.  The step size is `rate` in
    units of the squared norm of whitened rows, of which 2 would be the inverse
    of the largest curvature (Boehning 1992), or less where the noise would
    otherwise move a logit by more than `noise_cap` in one step.

    After it: `theta`, `velocity` and, from the first step of the last third on,
    `average`, each (C, d + 1) float32; the bias is the last column.
    """

    classes: int
    dimension: int
    step: int
    steps: int
    clip: float
    rate: float
    noise_cap: float
    momentum: float

    KIND = "teacher"
    GRADIENT_BITS = 16

    @property
    def repetition(self) -> int:
        return self.step

    @property
    def view(self) -> Projection:
        return FEATURES

    @property
    def view_dimension(self) -> int:
        return self.dimension

    @property
    def bound(self) -> float:
        """Norm bound of a row's gradient, in steps of 2**-(GRADIENT_BITS + VIEW_BITS)."""
        return self.clip * 2.0 ** (self.GRADIENT_BITS + VIEW_BITS)

    @property
    def channels(self) -> tuple[Channel, ...]:
        # The factor covers the rounding of the two norms that are multiplied.
        return (Channel("gradient", self.classes * (self.dimension + 1), self.bound * (1 + 2.0**-40)),)

    def working(self, before: State) -> State:
        ahead = before["theta"] + self.momentum * before["velocity"].astype(np.float64)
        return {**before, "logit_weights": logit_weights(before, ahead)}

    def add(self, rows: Rows, before: State, sums: Sums) -> None:
        features, bias = rows.values.astype(np.float64), bias_feature(before)
        coefficients = probabilities(features, before["logit_weights"])
        coefficients = np.rint(np.multiply(coefficients, 2.0**self.GRADIENT_BITS, out=coefficients))
        coefficients[np.arange(len(rows)), rows.classes] -= 2.0**self.GRADIENT_BITS
        lengths = np.sqrt(lattice.square_norms(coefficients)) * np.sqrt(rows.square_norms() + bias**2)
        longer = lengths > self.bound
        if longer.any():
            coefficients *= np.divide(self.bound, lengths, out=np.ones(len(rows)), where=longer)[:, None]
            # Truncation towards zero cannot lengthen a row, and leaves the others as they are.
            np.trunc(coefficients, out=coefficients)
        gradient = sums["gradient"].reshape(self.classes, self.dimension + 1)
        # Exact: a block's entries are under its rows x 2**30, under 2**53 by `lattice.MAX_BLOCK_ROWS`.
        gradient[:, :-1] += (coefficients.T @ features).astype(np.int64)
        gradient[:, -1] += (coefficients.sum(axis=0) * bias).astype(np.int64)

    def advance(self, before: State, noisy: Sums, multipliers: Multipliers) -> State:
        shape = (self.classes, self.dimension + 1)
        unit = 2.0 ** (self.GRADIENT_BITS + VIEW_BITS)
        gradient = noisy["gradient"].reshape(shape) / (unit * before["counts"].sum())
        curvature = float(before["features_norm"]) ** 2
        noise = multipliers["gradient"] * self.clip / before["counts"].sum()
        rate = min(self.rate * curvature, self.noise_cap / noise)
        velocity = self.momentum * before["velocity"].astype(np.float64) - rate * gradient
        theta = before["theta"] + velocity
        # Single precision is far finer than the noise; states are carried often.
        after = {**before, "theta": theta.astype(np.float32), "velocity": velocity.astype(np.float32)}
        first = self.steps - max(1, self.steps // 3)
        if self.step >= first:
            average = before["average"].astype(np.float64) if self.step > first else theta
            average = average + (theta - average) / (self.step - first + 1)
            after["average"] = average.astype(np.float32)
        return after


def bias_feature(current: State) -> float:
    """The constant feature in view steps: 1 / norm, as a whitened coordinate of size 1 would be."""
    return float(np.rint(VIEW_UNIT / current["features_norm"]))


def logit_weights(current: State, theta: np.ndarray) -> np.ndarray:
    """The teacher's weights for `probabilities`: their products with a view's row are logits.

    Args:
      theta: (C, d + 1); the bias is the last column.

    Returns:
      (C, d + 1) float64 integers times a power of two; the last column holds the
      bias times its feature.

    Raises:
      ConfigError: the logits would not be exact.
    """
    weights, bias = lattice.to_lattice(theta, THETA_BITS), bias_feature(current)
    longest = float(np.hypot(VIEW_UNIT, bias))
    lattice.check_exact(longest, float(np.sqrt(lattice.square_norms(weights)).max()))
    weights[:, -1] *= bias
    return weights * 2.0 ** -(THETA_BITS + VIEW_BITS)


def probabilities(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Softmax of the teacher's logits, (n, d), (C, d + 1) -> (n, C).

    The products and the normalising sum are exact, so their order cannot matter, and
    every other operation is one that IEEE 754 fixes: the same on any processor.

    Args:
      features: integers of a view's row norm.
      weights: of `logit_weights`.
    """
    logits = features @ weights[:, :-1].T
    logits += weights[:, -1]
    logits -= logits.max(axis=1, keepdims=True)
    powers = exponential(logits)
    # Only the sum is rounded: small probabilities are kept, for those who soften them.
    total = np.rint(powers * 2.0**EXP_BITS).sum(axis=1, keepdims=True) * 2.0**-EXP_BITS
    powers /= total
    return powers
