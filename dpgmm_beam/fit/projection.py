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
from dpgmm_beam.fit.state import FitState
from dpgmm_beam.privacy import lattice

VIEW_BITS = 14
VIEW_UNIT = 2**VIEW_BITS
"""Norm bound of a row in a view; integers up to it fit an int16."""

PROJECTION_BITS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """Rows minus an offset, times a matrix, clipped to norm VIEW_UNIT.

    Attributes:
      offset: (d,), or (C, d) with one for each class, in lattice steps.
      matrix: (r, d) int32 in steps of 2**-20, see `pack_projection`.
    """

    offset: np.ndarray
    matrix: np.ndarray

    def bind(self) -> Callable[[Rows], Rows]:
        """The projection as a function of blocks: values (n, r) int16 of norm at most VIEW_UNIT."""
        offset, matrix = self.offset.astype(np.float64), self.matrix.T.astype(np.float64)
        by_class = offset.ndim == 2
        scale = 2.0 ** (VIEW_BITS - lattice.UNIT_BITS - PROJECTION_BITS)

        def apply(rows: Rows) -> Rows:
            centred = rows.values - (offset[rows.classes] if by_class else offset)
            # |row| <= 2 UNIT = 2**16 and `pack_projection` holds a matrix row's norm
            # under 2**37, so the products are exact.
            projected = centred @ matrix
            projected *= scale
            projected = lattice.clip_rows(np.rint(projected, out=projected), VIEW_UNIT)
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
