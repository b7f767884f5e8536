"""Rows on an integer lattice, so that every sum over rows is exact.

A row of norm at most 1 is written in steps of 2**-15 and rounded to integers that
fit an int16, so that prepared rows are half as large as the floats they came from.
Integers add exactly in any order, so sums do not depend on blocks, bundles,
workers or threads.  Matrix products run at BLAS speed in float64 and are still
exact: by Cauchy-Schwarz every partial sum of an inner product is at most the
product of the two norms, which `check_exact` holds under 2**53.

Arrays here hold integers as float64 (for BLAS) unless said otherwise.
"""

import numpy as np

from dpgmm_beam.errors import ConfigError

UNIT_BITS = 15
UNIT = 2**UNIT_BITS
"""Lattice steps in a norm of 1; also the norm bound of a row on the lattice."""

LARGEST = UNIT - 1
"""The largest entry of a row on the lattice: what an int16 holds, with either sign."""

MAX_DIMENSION = 8192
"""Rows longer than this would lose the exactness of `_row_scale`'s norms."""

MAX_ROWS = 2**31
"""Rows in one data set for which int64 sums of every statistic cannot overflow."""

MAX_BLOCK_ROWS = 2**16
"""Rows summed at once for which float64 products over them stay exact: under 2**53 / 2**30, with room."""

MIN_NORM, MAX_NORM = 1e-18, 1e18
"""A row whose norm is outside this range is set aside as zero or huge."""

_SCALE_BITS = 20


def check_exact(*norms: float) -> None:
    """Checks that an inner product of vectors of these norms is exact in float64.

    Raises:
      ConfigError: the product of the norms reaches 2**53.
    """
    if not np.prod(np.asarray(norms, dtype=np.float64)) < 2.0**53:
        raise ConfigError("lattice norms", norms, "have a product under 2**53 to be summed exactly")


def check_dimension(dimension: int) -> None:
    """Raises ConfigError unless 1 <= dimension <= MAX_DIMENSION."""
    if not 1 <= dimension <= MAX_DIMENSION:
        raise ConfigError("dimension", dimension, f"be from 1 to {MAX_DIMENSION}")


def square_norms(rows: np.ndarray) -> np.ndarray:
    """Exact squared norms of integer-valued rows, shape (n, d) -> (n,).

    Exact whatever the order of summation while the squared norms stay under
    2**53, which holds for every bound used in this package.
    """
    return np.einsum("ij,ij->i", rows, rows)


def _round_within(rows: np.ndarray, bound: int) -> np.ndarray:
    """Rounds rows whose real norm is at most `bound` to integers of norm at most `bound`.

    Rounding can lengthen a row.  Such a row is truncated towards zero instead,
    which cannot: its squared norm is then an integer no larger than
    bound**2 * (1 + 1e-15), that is, no larger than bound**2.  So the
    sensitivity to charge is `bound` itself, with no slack for rounding.
    """
    rounded = np.rint(rows)
    longer = np.flatnonzero(square_norms(rounded) > float(bound) ** 2)
    if len(longer):
        truncated = np.trunc(rows[longer])
        if (square_norms(truncated) > float(bound) ** 2).any():
            raise AssertionError("a truncated row is longer than its bound")
        rounded[longer] = truncated
    return rounded


def clip_rows(rows: np.ndarray, bound: int) -> np.ndarray:
    """Clips integer-valued rows to lattice norm `bound`, again integer-valued.

    Args:
      rows: (n, d) integers with squared norms under 2**53.
      bound: the norm bound in lattice steps.

    Returns:
      (n, d) integers, each row of norm at most `bound`: rows within it are
      returned as they are, the others are scaled onto it and rounded inwards.
    """
    squares = square_norms(rows)
    outside = np.flatnonzero(squares > float(bound) ** 2)
    if not len(outside):
        return rows
    clipped = rows.copy()
    scaled = rows[outside]
    scaled *= (bound / np.sqrt(squares[outside]))[:, None]
    clipped[outside] = _round_within(scaled, bound)
    return clipped


def _row_scale(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows scaled by a power of two to 20-bit integers, their exponents and norms.

    The norm is computed from those integers and is therefore the same bits in
    any order of summation, on any processor.
    """
    largest = np.abs(rows).max(axis=1, initial=0.0)
    _, exponents = np.frexp(largest)
    # A product with a power of two is exact, and much faster than ldexp.
    scaled = rows * np.ldexp(1.0, _SCALE_BITS - exponents)[:, None]
    np.rint(scaled, out=scaled)
    norms = np.ldexp(np.sqrt(square_norms(scaled)), exponents - _SCALE_BITS)
    return scaled, exponents, norms


def quantise_rows(rows: np.ndarray, clip_norm: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Puts real rows on the lattice with norm at most UNIT.

    Args:
      rows: (n, d) floats of any values, NaN and infinities included.
      clip_norm: rows are divided by it and those of norm above 1 are scaled to
        1.  None: every row is scaled to norm 1.

    Returns:
      The rows on the lattice, (m, d) float64 integers of at most LARGEST with norm
      at most UNIT, and a mask (n,) of the m rows that are kept.  Rows that are not finite,
      zero, or of a norm outside [MIN_NORM, MAX_NORM] are not.
    """
    check_dimension(rows.shape[1])
    rows = rows.astype(np.float64)
    largest = np.abs(rows).max(axis=1, initial=0.0)
    keep = np.isfinite(largest) & (largest >= MIN_NORM) & (largest <= MAX_NORM)
    if not keep.all():
        rows = rows[keep]
    scaled, exponents, norms = _row_scale(rows)
    # A row whose 20-bit form is much coarser than its clipped length is not
    # possible: entries are relative to the row's largest one.
    norms_scaled = np.ldexp(norms, _SCALE_BITS - exponents)
    factors = UNIT / norms_scaled
    if clip_norm is not None:
        inside = norms <= clip_norm
        factors = np.where(inside, np.ldexp(UNIT / clip_norm, exponents - _SCALE_BITS), factors)
    scaled *= factors[:, None]
    on_lattice = _round_within(scaled, UNIT)
    # Only a row along one axis has an entry of UNIT, one too many for an int16.
    # A smaller entry shortens the row: the sensitivity charged stays UNIT.
    return np.clip(on_lattice, -LARGEST, LARGEST, out=on_lattice), keep


def to_lattice(values: np.ndarray, bits: int) -> np.ndarray:
    """Rounds central quantities (centres, projections) to integers in steps of 2**-bits.

    What workers compute with is such an integer array, so that the last bits
    of central algebra, which may differ between builds, rarely matter.
    """
    return np.rint(np.ldexp(np.asarray(values, dtype=np.float64), bits))


def exact_product(offsets: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """(..., r) times (r, d) in floating point, the same bits whatever the order of sums.

    Both sides are rounded to integers first: offsets in steps of 2**-26, directions of 2**-20.
    """
    return np.ldexp(to_lattice(offsets, 26) @ to_lattice(directions, 20), -46)


def pack_triangle(matrix: np.ndarray) -> np.ndarray:
    """The upper triangle of (d, d), row by row with the diagonal, as (d (d + 1) / 2,)."""
    return matrix[np.triu_indices(matrix.shape[0])]


def pack_triangles(matrices: np.ndarray) -> np.ndarray:
    """The upper triangles of (n, d, d), one behind the other."""
    return np.concatenate([pack_triangle(matrix) for matrix in matrices])


def unpack_triangle(packed: np.ndarray) -> np.ndarray:
    """The symmetric (d, d) matrix of `pack_triangle`'s vector."""
    dimension = int((np.sqrt(8 * len(packed) + 1) - 1) // 2)
    matrix = np.zeros((dimension, dimension), dtype=packed.dtype)
    matrix[np.triu_indices(dimension)] = packed
    return matrix + np.triu(matrix, 1).T
