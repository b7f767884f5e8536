"""What a fit has released so far, one section for each step that has been done.

Everything here is released statistics or computed from them.  Arrays are never
changed in place.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class ClassCounts:
    """After `fit.counts`.

    Attributes:
      noisy: (C,) int64, as the mechanism gave them: without bias, and maybe below 0.
      counts: (C,) rows of each class as the fit takes them: noisy, float64, and none
        fewer than the noise could make up.
    """

    noisy: np.ndarray
    counts: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ClassMeans:
    """After `fit.means`.

    Attributes:
      counts: (C,) of `ClassCounts`.
      means: (C, d) int32 in lattice steps.
      centre: (d,) float64 integers in lattice steps, the mean over all classes.
      residual_square: mean squared residual of a row from its class's mean, in real units.
      variances: (d,) of the residuals' coordinates, in real units, single precision; they
        sum to `residual_square`.
    """

    counts: np.ndarray
    means: np.ndarray
    centre: np.ndarray
    residual_square: float
    variances: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Covariance:
    """After `fit.covariance` roughly, and after `fit.whitened` for the released mixture only.

    Attributes:
      basis: (d, d) int32 in steps of 2**-20, a square root B of the covariance B B^T
        within classes; columns are orthogonal, by falling length.
    """

    basis: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Subspace:
    """After `fit.whitened`: the directions in which classes and components differ in shape.

    Attributes:
      matrix: (r, d) int32 in steps of 2**-20: principal directions over the view's steps.
      steps: (r,) length of a step of the view `within` in each direction, in real units.
      variances: (r,) of rows in that view, in its steps squared, rounded.
    """

    matrix: np.ndarray
    steps: np.ndarray
    variances: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Ridges:
    """Functions of a view's row f that bend between two points: |a f - b| c - m, and mixtures of them.

    Attributes:
      matrix: (H, d) int32, each a the difference of two points, in view steps.
      offsets: (H,) b, half the difference of their squared norms.
      scales: (H,) c, about one over the length of a.
      means: (H,) integers m.
      mix: (H, H) int32 in steps of 2**-12, symmetric: functions of it are uncorrelated.
      kept: by which the row with its functions is multiplied.
    """

    matrix: np.ndarray
    offsets: np.ndarray
    scales: np.ndarray
    means: np.ndarray
    mix: np.ndarray
    kept: float


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """After `fit.pictures`, where a release is decodable; p coefficients are a picture.

    Attributes:
      means: (C, p) int32, of each class's pictures, in lattice steps.
      slopes: (p, r) float32, what a picture gains, in those steps, by each step of the view `within`; None
        after the first of the two steps.
      residuals: (p,) float32 variance of what is left of a coefficient, in those steps squared; None as well.
    """

    means: np.ndarray
    slopes: np.ndarray | None = None
    residuals: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """After `fit.whitened`, where the teacher starts, and after each step of `fit.teacher`.

    D is the length of a row of the view `features`: d, and with ridges H more.

    Attributes:
      whitening: (d, d) int32 in steps of 2**-20, of the view `features`.
      norm: root mean square norm of a whitened row, with its ridges.
      weights: (C, D + 1) float32, the bias last.
      velocity: (C, D + 1) float32.
      average: (C, D + 1) float32 of the weights of the last third of the steps; None before.
      ridges: of the view; None before `fit.ridges`, or without any.
    """

    whitening: np.ndarray
    norm: float
    weights: np.ndarray
    velocity: np.ndarray
    average: np.ndarray | None = None
    ridges: Ridges | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Components:
    """From `fit.whitened` on; after `fit.sketch`, `fit.lloyd` and `fit.centres`.

    Attributes:
      cells: (C, M, r) int16 in steps of the view `within`: centres of the next sketch's cells.
      centres: (C, K, r) int16 in those steps.
      counts: (C, K) noisy rows of each component, those of the class over its number before the first
        round; 0 of those that a class does not have.
      residual_square: mean squared distance of a row from its component's centre, in view
        steps squared, rounded.
      beyond: (C, K, d) int16 what centres are off their class's mean in the directions that the view
        leaves out, in lattice steps; None before `fit.centres`.
      whole_square: mean squared distance of a row from its component's centre in all directions, in real
        units, single precision; None before `fit.centres`.
    """

    cells: np.ndarray
    centres: np.ndarray
    counts: np.ndarray
    residual_square: float
    beyond: np.ndarray | None = None
    whole_square: float | None = None

    @property
    def present(self) -> np.ndarray:
        """(C, K) which components a class has: its first.  The others lie there too, and have no row."""
        return self.counts > 0

    def on_first(self, values: np.ndarray) -> np.ndarray:
        """Values (C, K, ...) of components, those that a class does not have as its first."""
        present = self.present.reshape(*self.counts.shape, *[1] * (values.ndim - 2))
        return np.where(present, values, values[:, :1])


@dataclasses.dataclass(frozen=True, eq=False)
class Shapes:
    """After `fit.scatter`, and with components' own after `fit.scales`.

    Attributes:
      left: (r,) float32 share of the pooled variance that the centres leave, in each direction.
      roots: (C, u, u) float32 symmetric square root of a class's covariance round its centres, in
        the u directions that are used, divided by what the pooled covariance leaves there.
      own_directions: h, in how many directions components may have shapes of their own.
      scales: (C, K) float32 variance of a component over its class's, 1 on average; None before `fit.scales`.
      factors: (C, K, h, h) float32 symmetric square root of a component's covariance over its
        class's and its scale, in the first h directions; None before, or without any.
    """

    left: np.ndarray
    roots: np.ndarray
    own_directions: int
    scales: np.ndarray | None = None
    factors: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class FitState:
    """What the steps that follow may read; None until it is made, and when nobody reads it any more."""

    class_counts: ClassCounts | None = None
    class_means: ClassMeans | None = None
    rough: Covariance | None = None
    subspace: Subspace | None = None
    teacher: Teacher | None = None
    components: Components | None = None
    shapes: Shapes | None = None
    pictures: Pictures | None = None
