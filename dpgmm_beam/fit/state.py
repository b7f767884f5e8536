"""What a fit has released so far, one section for each step that has been done.

Everything here is released statistics or computed from them.  Arrays are never
changed in place.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class ClassMeans:
    """After `fit.means`.

    Attributes:
      counts: (C,) rows of each class as the fit takes them: noisy, float64, and none
        fewer than the noise could make up.
      noisy_counts: (C,) int64, as the mechanism gave them: without bias, and maybe below 0.
      means: (C, d) int32 in lattice steps.
      centre: (d,) float64 integers in lattice steps, the mean over all classes.
      residual_radius: clipping radius of a residual, as a share of the norm bound.
    """

    counts: np.ndarray
    noisy_counts: np.ndarray
    means: np.ndarray
    centre: np.ndarray
    residual_radius: float


@dataclasses.dataclass(frozen=True, eq=False)
class Subspace:
    """After `fit.covariance`: the directions in which components are found.

    Attributes:
      matrix: (r, d) int32 in steps of 2**-20: principal directions over the clipping radius.
      variances: (r,) of rows in the view `within`, in its steps squared, rounded.
      total_variance: of rows round their class's mean, in real units, single precision.
    """

    matrix: np.ndarray
    variances: np.ndarray
    total_variance: float


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """After `fit.covariance`, where the teacher starts, and after each step of `fit.teacher`.

    Attributes:
      whitening: (d, d) int32 in steps of 2**-20, of the view `features`.
      norm: root mean square norm of a whitened row, in single precision.
      weights: (C, d + 1) float32, the bias last.
      velocity: (C, d + 1) float32.
      average: (C, d + 1) float32 of the weights of the last third of the steps; None before.
    """

    whitening: np.ndarray
    norm: float
    weights: np.ndarray
    velocity: np.ndarray
    average: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Components:
    """From `fit.covariance` on, where there are several components; after `fit.sketch` and `fit.lloyd`.

    Attributes:
      cells: (C, M, r) int16 in view steps: centres of the next sketch's cells.
      means: (C, K, d) integers in lattice steps.
      counts: (C, K) noisy rows of each component; ones before the first round.
      residual_square: mean squared distance of a row from its component's mean, in real
        units, single precision.
    """

    cells: np.ndarray
    means: np.ndarray
    counts: np.ndarray
    residual_square: float


@dataclasses.dataclass(frozen=True, eq=False)
class Covariance:
    """After `fit.covariance`, for the released mixture only: no later step reads it.

    Attributes:
      basis: (d, d) int32 in steps of 2**-20, a square root B of the covariance B B^T
        within classes.
    """

    basis: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class FitState:
    """What the steps that follow may read; None until it is made."""

    class_means: ClassMeans | None = None
    subspace: Subspace | None = None
    teacher: Teacher | None = None
    components: Components | None = None
