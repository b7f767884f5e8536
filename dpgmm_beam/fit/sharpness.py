"""Step 10: how sharp the labelling teacher should start.

The linear discriminant from which it starts (`fit.teacher.start`) is as sharp as Gaussian classes
of the released covariance would have it.  Real classes overlap more, and noise that flattens the
covariance makes it too blunt: between data sets and epsilons the best scale of its logits differs
twentyfold, and twenty gradient steps do not make up for a wrong one.  Of a row the derivative of its
cross-entropy by the logarithm of that scale is one number for each of a few scales; where their noisy
means cross zero the discriminant fits the rows best.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import teacher
from dpgmm_beam.fit.stage import Advanced, Multipliers
from dpgmm_beam.fit.state import FitState
from dpgmm_beam.privacy.queries import SumQuery, Sums

FACTORS = 2.0 ** np.arange(-2, 4)
"""What the start is multiplied by, at choice: powers of two, so that logits stay exact."""

USUAL = 2
"""The place of 1 among them."""

PRIOR, PRIOR_PER_NOISE = 0.05, 2.0
"""How far below 0 a slope must lie for each doubling of the usual factor: this, and so many standard
deviations of noise."""

SLOPE_CLIP = 4.0
"""Most that a row may say of one factor, in either direction.  Less would leave out what rows say
against logits that are sharply wrong."""

SLOPES_NORM = SLOPE_CLIP * float(np.sqrt(len(FACTORS)))
"""Norm bound of what a row says of all of them."""

SLOPE_BITS = 10
"""Slopes are summed in steps of 2**-10."""

_PROBABILITY_BITS, _LOGIT_BITS, _LONGEST_LOGIT = 16, 8, 2.0**12


@dataclasses.dataclass(frozen=True)
class TeacherStart(teacher.FeatureStage):
    """Slopes of the cross-entropy of the teacher's start at a few scales -> the start at the best one.

    The derivative of a row's cross-entropy by the logarithm of the scale is sum_c p_c (z_c - z_y),
    z the logits and p the probabilities at that scale and y the row's class.  Each is clipped to
    SLOPE_CLIP, and so the norm of all is at most SLOPES_NORM.
    """

    KIND = "start"

    @property
    def bound(self) -> float:
        """Norm bound of a row's slopes, in steps of 2**-SLOPE_BITS."""
        return SLOPES_NORM * 2.0**SLOPE_BITS

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        # The factor covers the rounding of the root.
        return (SumQuery("slope", len(FACTORS), self.bound * (1 + 2.0**-40)),)

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        found = teacher.teacher_of(before)
        weights = teacher.logit_weights(found.weights, found.norm)

        def add(rows: Rows, sums: Sums) -> None:
            logits = teacher.logits(rows.values.astype(np.float64), weights)
            sums["slope"] += np.stack([_slopes(logits * factor, rows.classes) for factor in FACTORS]).sum(
                axis=1, dtype=np.int64
            )

        return add

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        assert before.class_means is not None
        found = teacher.teacher_of(before)
        unit = 2.0**SLOPE_BITS * before.class_means.counts.sum()
        factor = _crossing(noisy["slope"] / unit, multipliers["slope"] * self.bound / unit)
        weights = (found.weights * factor).astype(np.float32)
        return Advanced(dataclasses.replace(before, teacher=dataclasses.replace(found, weights=weights)))


def _slopes(logits: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Clipped slopes of rows, (n, C), (n,) -> (n,) int64 in steps of 2**-SLOPE_BITS; logits are overwritten.

    All sums are of integers under 2**53 and so exact.
    """
    own = logits[np.arange(len(logits)), classes]
    beyond = np.clip(logits - own[:, None], -_LONGEST_LOGIT, _LONGEST_LOGIT)
    weighed = np.rint(teacher.softmax(logits) * 2.0**_PROBABILITY_BITS)
    weighed *= np.rint(beyond * 2.0**_LOGIT_BITS)
    slopes = weighed.sum(axis=1) * 2.0 ** (SLOPE_BITS - _PROBABILITY_BITS - _LOGIT_BITS)
    most = SLOPE_CLIP * 2.0**SLOPE_BITS
    return np.rint(np.clip(slopes, -most, most)).astype(np.int64)


def _crossing(slopes: np.ndarray, noise: float) -> float:
    """The factor at which cross-entropy turns from falling to rising.

    A prior pulls towards the usual factor (a normal one of the logarithm, so that its slope is a line): what
    noise gives, or the flat bottom of classes that hardly overlap, must not choose at random.  The search
    begins at the usual factor; between two factors the slope is taken for a line.

    Args:
      slopes: noisy means, by the logarithm of the factor.
      noise: standard deviation of each.
    """
    pulled = slopes + (PRIOR + PRIOR_PER_NOISE * noise) * (np.arange(len(FACTORS)) - USUAL)
    at = USUAL
    if pulled[at] < 0:
        while at < len(pulled) - 1 and pulled[at] < 0:
            at += 1
        below = at - 1
    else:
        while at > 0 and pulled[at] >= 0:
            at -= 1
        below = at
    low, high = pulled[below], pulled[below + 1]
    if low < 0 <= high:
        return float(FACTORS[below] * (1.0 - low / (high - low)))
    return float(FACTORS[at])
