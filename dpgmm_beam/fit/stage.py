"""What every step of a fit is: one pass over the rows, from state to state."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from dpgmm_beam.config import Method
from dpgmm_beam.data.rows import Rows
from dpgmm_beam.encoders.dct import PictureForm
from dpgmm_beam.fit.projection import View
from dpgmm_beam.fit.state import Covariance, FitState
from dpgmm_beam.privacy.queries import SumQuery, Sums, zeros

Multipliers = Mapping[str, float]

_FEW_GROUPS = 32
"""Up to so many, a product with their indicators is faster than sorting."""


def sums_by_group(values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Sums of integer-valued rows by group, (n, d), (n,) -> (count, d) int64, exact."""
    totals = np.zeros((count, values.shape[1]), dtype=np.int64)
    if count <= _FEW_GROUPS:
        members = (np.arange(count)[:, None] == groups).astype(np.float64)
        totals += (members @ values.astype(np.float64)).astype(np.int64)
    elif len(groups):
        order = np.argsort(groups, kind="stable")
        present, starts = np.unique(groups[order], return_index=True)
        totals[present] = np.add.reduceat(values[order].astype(np.float64), starts, axis=0).astype(np.int64)
    return totals


def add_moments_by_group(values: np.ndarray, groups: np.ndarray, totals: np.ndarray) -> None:
    """Adds the second moments of integer-valued rows to those of their groups, exactly and in place.

    Args:
      values: (n, r) of norms at most 2**12: products over a block are then far under 2**53.
      groups: (n,) indices.
      totals: (m, R, R) int64, R >= r; the first r coordinates are added to.
    """
    if not len(groups):
        return
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(groups[order], return_index=True)
    r = values.shape[1]
    for group, own in zip(present, np.split(values[order], starts[1:]), strict=True):
        totals[group, :r, :r] += (own.T @ own).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes that all steps of a fit share.

    Attributes:
      classes: C.
      dimension: d, of an embedding.
      components: K, room for Gaussians of a class; how many are used is found on the way.
      subspace_dim: r, room for directions in which components are found.
      shaped_dim: room for those of them, the first, in which classes and components have shapes of their own.
      exact_components: whether all of the room is used, for the user has named the number.
      unit_norm: whether every row has norm 1, and so the mean squared norm is known.
      ridges: H, how many ridge functions the teacher sees beside a row.
      pictures: form of the picture beside each row; None where there is none.
    """

    classes: int
    dimension: int
    components: int
    subspace_dim: int
    shaped_dim: int
    exact_components: bool = True
    unit_norm: bool = True
    ridges: int = 0
    pictures: PictureForm | None = None

    @property
    def cells(self) -> int:
        """Room for all components of all classes."""
        return self.classes * self.components


@dataclasses.dataclass(frozen=True)
class Advanced:
    """What a step made of its noisy sums.

    Attributes:
      state: for the steps that follow.
      covariance: for the released mixture alone; None from all steps but one.
      counted: noisy rows of all classes, for the plan; None from all steps but the first.
    """

    state: FitState
    covariance: Covariance | None = None
    counted: int | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
    """One pass over the rows: a pure description, safe to send to any worker.

    Attributes:
      shape: sizes of the fit.
      method: constants of the fit.
    """

    shape: Shape
    method: Method

    KIND = ""
    """With the repetition it names the stage in the noise's key."""

    @property
    def repetition(self) -> int:
        return 0

    @property
    def mechanism(self) -> str:
        """The name under which the budget knows the stage."""
        return self.KIND

    @property
    def name(self) -> str:
        return f"{self.KIND} {self.repetition}"

    @property
    def view(self) -> View | None:
        """The coordinates in which rows are summed; None: the lattice itself."""
        return None

    @property
    def view_dimension(self) -> int:
        """How many coordinates the view has."""
        raise NotImplementedError

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        raise NotImplementedError

    def begin(self) -> Sums:
        """Fresh accumulators for `adder`."""
        return zeros(self.queries)

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        """What adds a block's exact sums to accumulators, in place.

        What every block would compute again is computed here, once a pass.
        """
        raise NotImplementedError

    def finish(self, sums: Sums) -> Sums:
        """The queries' vectors from the accumulators."""
        return sums

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        """The state after this stage.

        Args:
          noisy: int64 noisy sums by query.
          multipliers: the noise multipliers with which they were released.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ClippedStage(Stage):
    """A stage that clips what it sums of a row, on a lattice of its own."""

    BITS = 12
    """Steps of 2**-BITS of the clipping radius."""

    @property
    def bound(self) -> int:
        """Norm bound of what is clipped, in these steps."""
        return 2**self.BITS
