"""Rows in other coordinates: exact integer projections of lattice rows.

A view turns a block of lattice rows into integers of a smaller lattice, again
of bounded norm, and depends on released state only.  Its result is written beside
the prepared rows, since many steps use the same view.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit.state import FitState, Ridges
from dpgmm_beam.privacy import lattice

VIEW_BITS = 14
VIEW_UNIT = 2**VIEW_BITS
"""Norm bound of a row in a view; integers up to it fit an int16."""

PROJECTION_BITS = 20

MIX_BITS = 12
"""Of the mixing matrix of ridges."""


@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """Rows minus an offset, times a matrix, clipped to norm VIEW_UNIT.

    Attributes:
      offset: (d,), or (C, d) with one for each class, in lattice steps.
      matrix: (r, d) int32 in steps of 2**-20, see `pack_projection`.
      ridges: functions of the result that are put behind it; None: it stands alone.
    """

    offset: np.ndarray
    matrix: np.ndarray
    ridges: Ridges | None = None

    def bind(self) -> Callable[[Rows], Rows]:
        """The projection as a function of blocks: values (n, r) int16 of norm at most VIEW_UNIT.

        With H ridges r is so many more.
        """
        offset, matrix = self.offset.astype(np.float64), self.matrix.T.astype(np.float64)
        by_class = offset.ndim == 2
        with_ridges = _with_ridges(self.ridges) if self.ridges is not None else None
        scale = 2.0 ** (VIEW_BITS - lattice.UNIT_BITS - PROJECTION_BITS)

        def apply(rows: Rows) -> Rows:
            centred = rows.values - (offset[rows.classes] if by_class else offset)
            # |row| <= 2 UNIT = 2**16 and `pack_projection` holds a matrix row's norm
            # under 2**37, so the products are exact.
            projected = centred @ matrix
            projected *= scale
            projected = lattice.clip_rows(np.rint(projected, out=projected), VIEW_UNIT)
            if with_ridges is not None:
                projected = with_ridges(projected)
            return Rows(
                projected.astype(np.int16), rows.classes, lattice.square_norms(projected).astype(np.int32)
            )

        return apply

    def apply(self, rows: Rows) -> Rows:
        """One block, see `bind`."""
        return self.bind()(rows)


@dataclasses.dataclass(frozen=True)
class View:
    """A projection that a state defines.

    Attributes:
      name: of the view, and of the folder that its rows are kept in.
      of: the projection in a state.
    """

    name: str
    of: Callable[[FitState], Projection]


def ridge_values(ridges: Ridges) -> Callable[[np.ndarray], np.ndarray]:
    """What gives the values |a f - b| c - m of view rows, (n, d) -> (n, H) integers, not yet mixed."""
    matrix = ridges.matrix.T.astype(np.float64)

    def of(values: np.ndarray) -> np.ndarray:
        # Exact: norms are at most 2**14 and 2**15, and b is a multiple of a half.
        found = np.abs(values @ matrix - ridges.offsets)
        found *= ridges.scales
        return np.rint(found, out=found) - ridges.means

    return of


def _with_ridges(ridges: Ridges) -> Callable[[np.ndarray], np.ndarray]:
    """What puts the ridges behind view rows, (n, d) -> (n, d + H), of norm at most VIEW_UNIT again."""
    values_of, mix = ridge_values(ridges), ridges.mix.astype(np.float64)
    # A value is at most 2**17: two view norms, times a scale that is rounded up to twice.
    longest = 2.0**17 * np.sqrt(len(mix))
    lattice.check_exact(longest, float(np.sqrt(lattice.square_norms(mix)).max(initial=0.0)))

    def of(values: np.ndarray) -> np.ndarray:
        mixed = values_of(values) @ mix
        mixed *= 2.0**-MIX_BITS
        both = np.concatenate([values, mixed], axis=1)
        both *= ridges.kept
        return lattice.clip_rows(np.rint(both, out=both), VIEW_UNIT)

    return of


def pack_projection(matrix: np.ndarray) -> np.ndarray:
    """A projection's matrix as integers: (r, d) int32 in steps of 2**-20.

    Rows are in units of the embedding's norm bound and results in units of the
    view's.

    Raises:
      ConfigError: a matrix row's norm reaches 2**17 or an entry 2**11, in real
        units: the products would not be exact, or the entry not fit.
    """
    packed = lattice.to_lattice(matrix, PROJECTION_BITS)
    lattice.check_exact(2.0 * lattice.UNIT, float(np.sqrt(lattice.square_norms(packed)).max(initial=0.0)))
    if not np.abs(packed).max(initial=0.0) < 2.0**31:
        raise ConfigError("projection", float(np.abs(packed).max()), "have entries under 2**31 steps")
    return packed.astype(np.int32)
