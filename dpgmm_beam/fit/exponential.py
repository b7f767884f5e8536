"""An exponential that is the same on every processor.

numpy's differs in its last bit between instruction sets, in one value of twenty,
and sums over rows must not.  This one is made of products, sums and roundings of
doubles only, which IEEE 754 fixes to the last bit, and numpy never fuses two of
its operations into one.
"""

import math

import numpy as np

_BITS = 10
_STEPS = 2**_BITS
_LOWEST = -700.0
"""Smaller arguments give the value here, 1e-304: nothing in this package tells it from 0."""

_BLOCK = 2**13
"""Values that stay in the cache of a core while they are worked on."""

# As numbers: a library's logarithm may have another last bit elsewhere.
_STEPS_OVER_LN2 = float.fromhex("0x1.71547652b82fep+10")
_LN2_OVER_STEPS = float.fromhex("0x1.62e42fefa39efp-11")


def _powers() -> np.ndarray:
    """The bits of 2**(j / 1024), (1024,) int64; square roots are exactly rounded everywhere."""
    roots, root = [], 2.0
    for _ in range(_BITS):
        root = math.sqrt(root)
        roots.append(root)
    values = np.ones(_STEPS)
    for bit, root in enumerate(reversed(roots)):
        values[(np.arange(_STEPS) >> bit) & 1 == 1] *= root
    values.flags.writeable = False
    return values.view(np.int64)


_POWERS = _powers()


def exponential(values: np.ndarray) -> np.ndarray:
    """e to the power of values that are at most 0, to a relative error under 1e-12.

    With k = round(1024 x / ln 2) and r = x - k ln 2 / 1024, |r| < .00034, it is
    2^(k / 1024) (1 + r + r^2 / 2 + r^3 / 6); the method is Tang's (1989).

    Args:
      values: contiguous float64 of any shape, none above 0; overwritten.

    Returns:
      The same array.
    """
    flat = values.reshape(-1)
    for start in range(0, len(flat), _BLOCK):
        _overwrite(flat[start : start + _BLOCK])
    return values


def _overwrite(x: np.ndarray) -> None:
    np.maximum(x, _LOWEST, out=x)
    k = x * _STEPS_OVER_LN2
    np.rint(k, out=k)
    powers = k.astype(np.int64)
    k *= _LN2_OVER_STEPS
    x -= k
    polynomial = np.multiply(x, 1 / 6, out=k)
    for coefficient in (1 / 2, 1.0):
        polynomial += coefficient
        polynomial *= x
    low = powers & (_STEPS - 1)
    # The exponent's field of a double begins at bit 52.
    powers >>= _BITS
    powers <<= 52
    powers += _POWERS.take(low)
    np.multiply(powers.view(np.float64), polynomial, out=x)
    x += powers.view(np.float64)
