"""Keyed rounded-Gaussian noise: round(N(0, s^2)) as a pure function of a key.

Adding round(N(0, s^2)) to an integer vector v is rounding v + N(0, s^2): the
Gaussian mechanism followed by post-processing, so the Gaussian's exact
privacy curve holds with no slack.

The value is the exact rounding of the exact Gaussian of an infinite keyed bit
stream, computed lazily: 64 bits settle almost every draw by double-precision
inversion; a draw that falls within an error bound of a half-integer, or so
far in the tail that 64 bits are coarse, takes more bits of its own stream and
is settled by multiple-precision arithmetic.

Method: inversion, with the lazy exactness of Devroye (1986), chapter II.
"""

import dataclasses
import hashlib

import numpy as np
from scipy.special import ndtri

from dpgmm_beam.errors import ConfigError

SCHEME = 10
"""Raise it whenever the same data, configuration, key and id give other sums, or the same sums at
another scale: two releases of one key must never have the same deviates."""

KEY_BYTES = 32
MAX_STANDARD_DEVIATION = 2.0**40

# Bound on the error of scipy's ndtri, relative to 1 + |z|, and of the conversion
# of 63 bits to a double.  The largest seen against multiple precision is
# 2**-51.3; tests check it.
_RELATIVE_ERROR = 2.0**-49
# The Mills ratio u / phi(z) of a lower tail probability u <= 1/2 is at most
# sqrt(pi / 2): an error du in u moves z by at most this times du / u.
_MILLS = 1.2534
_BATCH = 2**16


@dataclasses.dataclass(frozen=True, repr=False)
class NoiseKey:
    """The secret and the public context from which all noise of a release comes.

    Attributes:
      secret: 32 bytes.  Never printed: `repr` leaves it out.
      context: digests and ids that make a release's noise its own.

    Raises:
      ConfigError: the secret is not of 32 bytes.

    >>> import os
    >>> NoiseKey(os.urandom(32))
    NoiseKey(secret=<hidden>)
    """

    secret: bytes
    context: tuple[bytes, ...] = ()

    def __post_init__(self):
        if len(self.secret) != KEY_BYTES:
            raise ConfigError("secret", f"{len(self.secret)} bytes", f"hold exactly {KEY_BYTES} bytes")

    def __repr__(self):
        return "NoiseKey(secret=<hidden>)"

    def within(self, *context: bytes | str | int) -> "NoiseKey":
        """The key for a narrower purpose, e.g. a stage, a channel and a part."""
        return dataclasses.replace(self, context=self.context + tuple(_as_bytes(item) for item in context))

    def stream(self, length: int, purpose: bytes = b"") -> bytes:
        """`length` pseudo-random bytes for this context (SHAKE-256 keyed by prefix)."""
        head = f"dpgmm noise {SCHEME}".encode()
        return hashlib.shake_256(_encode(head, self.secret, *self.context, purpose)).digest(length)


def _as_bytes(item: bytes | str | int) -> bytes:
    if isinstance(item, bytes):
        return item
    return str(item).encode()


def _encode(*items: bytes) -> bytes:
    """An injective encoding of byte strings: each with its length before it."""
    return b"".join(len(item).to_bytes(8, "little") + item for item in items)


def rounded_gaussian(
    key: NoiseKey, stddev: float | np.ndarray, size: int, *, settle_all: bool = False
) -> np.ndarray:
    """Draws round(N(0, s^2)) exactly, as a pure function of the key.

    Args:
      key: the secret and the context; the same key gives the same draws.
      stddev: s, one number or (size,).
      size: how many.
      settle_all: settle every draw in multiple precision (for tests; the
        result is the same, thousands of times slower).

    Returns:
      (size,) int64.

    Raises:
      ConfigError: s is not in (0, 2**40].
    """
    stddevs = np.broadcast_to(np.asarray(stddev, dtype=np.float64), (size,))
    if size and not (stddevs.min() > 0 and stddevs.max() <= MAX_STANDARD_DEVIATION):
        raise ConfigError("noise standard deviation", stddev, "be above 0 and at most 2**40")
    words = np.frombuffer(key.stream(8 * size), dtype="<u8")
    result = np.empty(size, dtype=np.int64)
    # Batches that stay in the cache of one core are twice as fast as one sweep.
    for start in range(0, size, _BATCH):
        stop = min(start + _BATCH, size)
        result[start:stop] = _settle_batch(
            key, words[start:stop], stddevs[start:stop], offset=start, settle_all=settle_all
        )
    return result


def _settle_batch(key, words, stddevs, *, offset, settle_all):
    # The top bit is the sign, the other 63 the lower tail probability in (0, 1/2).
    negative = (words >> np.uint64(63)).astype(bool)
    bits = (words & np.uint64(2**63 - 1)).astype(np.float64) + 0.5
    magnitudes = -ndtri(bits * 2.0**-64)
    values = magnitudes * stddevs
    rounded = np.rint(values)
    margin = 0.5 - np.abs(values - rounded)
    error = stddevs * ((1.0 + magnitudes) * _RELATIVE_ERROR + _MILLS / bits) + np.abs(values) * 2.0**-52
    # Nothing bounds the value of a draw whose 63 bits are all zero.
    unsettled = np.ones(len(words), bool) if settle_all else (margin <= error) | (bits < 1.0)
    for index in np.flatnonzero(unsettled):
        rounded[index] = _settle_exactly(
            key, int(words[index]) & (2**63 - 1), float(stddevs[index]), offset + int(index)
        )
    np.negative(rounded, out=rounded, where=negative)
    return rounded.astype(np.int64)


def _settle_exactly(key: NoiseKey, head: int, stddev: float, index: int) -> int:
    """The magnitude of the draw whose first 63 bits are `head`, from as many bits as it takes."""
    # Here, because most processes never draw such a number.
    import mpmath

    extra = 32
    while True:
        tail = key.stream(extra, purpose=b"extend" + index.to_bytes(8, "little"))
        length = 64 + 8 * extra
        low = (head << (8 * extra)) | int.from_bytes(tail, "big")
        with mpmath.workprec(length + 64):
            step = mpmath.mpf(2) ** -length
            lower, upper = low * step, (low + 1) * step
            scale = mpmath.mpf(stddev)
            slack = mpmath.mpf(2) ** -(length + 16)

            def beyond(half_integer, *, scale=scale):
                """P(N(0, 1) < -half_integer / s)."""
                return mpmath.ncdf(-half_integer / scale)

            start = float(ndtri(max(float((lower + upper) / 2), 5e-324)))
            candidate = max(0, round(-start * stddev))
            while candidate > 0 and lower > beyond(candidate - mpmath.mpf(1) / 2) + slack:
                candidate -= 1
            while upper < beyond(candidate + mpmath.mpf(1) / 2) - slack:
                candidate += 1
            # Settled when all of [lower, upper) rounds to the candidate.
            above = lower >= beyond(candidate + mpmath.mpf(1) / 2) + slack
            below = candidate == 0 or upper <= beyond(candidate - mpmath.mpf(1) / 2) - slack
            if above and below:
                return candidate
        extra *= 2
