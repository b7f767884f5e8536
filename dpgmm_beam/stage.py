"""What every stage of a fit is: one pass over the rows, from state to state."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from dpgmm_beam.rows import Rows
from dpgmm_beam.state import State
from dpgmm_beam.statistics import Channel, Sums, zeros
from dpgmm_beam.views import Projection

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


@dataclasses.dataclass(frozen=True)
class Stage:
    """One pass over the rows: a pure description, safe to send to any worker."""

    KIND = ""
    """With the position it names the stage in the noise's key."""

    AT_END: ClassVar[tuple[str, ...]] = ()
    """Entries of the state after it that no stage reads, only what comes after the last one."""

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
    def view(self) -> Projection | None:
        """The coordinates in which `add` wants its rows; None: the lattice itself."""
        return None

    @property
    def view_dimension(self) -> int:
        """How many coordinates the view has."""
        raise NotImplementedError

    @property
    def channels(self) -> tuple[Channel, ...]:
        raise NotImplementedError

    def working(self, before: State) -> State:
        """The state as `add` wants it: what every block would compute again is computed once a pass."""
        return before

    def begin(self) -> Sums:
        """Fresh accumulators for `add`."""
        return zeros(self.channels)

    def add(self, rows: Rows, before: State, sums: Sums) -> None:
        """Adds a block's exact sums to the accumulators, in place.

        Args:
          before: `working` of the state before the stage.
        """
        raise NotImplementedError

    def finish(self, sums: Sums) -> Sums:
        """The channels' vectors from the accumulators."""
        return sums

    def advance(self, before: State, noisy: Sums, multipliers: Multipliers) -> State:
        """The state after this stage.

        Args:
          noisy: int64 noisy sums by channel.
          multipliers: the noise multipliers with which they were released.
        """
        raise NotImplementedError
