"""What one pass over the rows may compute: integer sums with known sensitivity.

A stage has channels; a channel is one vector of integer sums and one Gaussian
mechanism.  A stage's sums travel in parts of at most SHIPPED values, so that no
element of a pipeline is large.  Noise is drawn in streams of at most PART values.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from dpgmm_beam.noise import NoiseKey, rounded_gaussian

Sums = dict[str, np.ndarray]

PART = 2**16
"""Values that share a noise stream."""

SHIPPED = 2**15
"""Values in a part: 256 KiB as int64, so that those of several workers are a small element together."""


@dataclasses.dataclass(frozen=True)
class Channel:
    """A vector of integer sums over rows, released by one Gaussian mechanism.

    Attributes:
      name: unique within the stage.
      size: number of values.
      sensitivity: the most by which one row can move the vector in the
        Euclidean norm (in the Frobenius norm where `triangle` is set), in
        lattice steps.
      triangle: order of the symmetric matrices whose packed upper triangles
        make up the vector; 0 for a plain vector.  The isometric vector of a
        symmetric matrix is (diagonal, sqrt 2 x upper triangle); noise s on it
        is noise s on the diagonal and s / sqrt 2 on the plain triangle.
      private: never released and never noised: the data digest.
    """

    name: str
    size: int
    sensitivity: float
    triangle: int = 0
    private: bool = False

    def noise_deviations(self, noise_multiplier: float) -> np.ndarray | float:
        """Standard deviations of the noise on the values, a number or (size,)."""
        deviation = noise_multiplier * self.sensitivity
        if not self.triangle:
            return deviation
        packed = np.full(self.triangle * (self.triangle + 1) // 2, deviation / np.sqrt(2.0))
        lengths = np.arange(self.triangle, 0, -1)
        packed[np.concatenate([[0], np.cumsum(lengths)[:-1]])] = deviation
        return np.tile(packed, self.size // len(packed))


def part_count(channels: tuple[Channel, ...]) -> int:
    """How many parts a stage's sums travel in."""
    return -(-sum(channel.size for channel in channels) // SHIPPED)


def split(channels: tuple[Channel, ...], sums: Sums) -> Iterator[tuple[int, np.ndarray]]:
    """A stage's sums, one channel behind the other, cut into numbered int64 parts."""
    whole = np.concatenate([np.asarray(sums[channel.name], np.int64).ravel() for channel in channels])
    for number in range(part_count(channels)):
        yield number, whole[number * SHIPPED : (number + 1) * SHIPPED]


def join(channels: tuple[Channel, ...], parts: Mapping[int, np.ndarray]) -> Sums:
    """The inverse of `split`.

    Raises:
      KeyError: a part is missing.
    """
    whole = np.concatenate([parts[number] for number in range(part_count(channels))])
    edges = np.cumsum([channel.size for channel in channels])[:-1]
    return {channel.name: part for channel, part in zip(channels, np.split(whole, edges), strict=True)}


def zeros(channels: tuple[Channel, ...]) -> Sums:
    """Fresh accumulators, one int64 vector a channel."""
    return {channel.name: np.zeros(channel.size, dtype=np.int64) for channel in channels}


def add_noise(
    channels: tuple[Channel, ...],
    sums: dict[str, np.ndarray],
    multipliers: dict[str, float],
    key: NoiseKey,
) -> dict[str, np.ndarray]:
    """The noisy sums of every channel that is not private.

    The noise of a part is a function of the key (whose context holds release
    id, fit digest, data digest and stage), the channel, its sensitivity and noise
    multiplier, the part, the digests of its deviations and of the exact part, and of
    nothing else: drawing it again, in any worker, gives the same bits and spends
    nothing.  The same deviates never come at two scales, whatever was changed
    in the code: two such equations would give the exact sum.

    Args:
      sums: exact int64 sums by channel.
      multipliers: noise multipliers by channel.
      key: the stage's key.
    """
    noisy = {}
    for channel in channels:
        if channel.private:
            continue
        exact = sums[channel.name]
        multiplier = multipliers[channel.name]
        deviations = np.broadcast_to(channel.noise_deviations(multiplier), (channel.size,))
        scaled = key.within(channel.name, float(channel.sensitivity).hex(), float(multiplier).hex())
        result = np.empty(channel.size, dtype=np.int64)
        for start in range(0, channel.size, PART):
            where = slice(start, min(start + PART, channel.size))
            part = np.ascontiguousarray(exact[where], dtype="<i8")
            stream = scaled.within(start // PART, _digest(deviations[where].astype("<f8")), _digest(part))
            result[where] = part + rounded_gaussian(stream, deviations[where], len(part))
        noisy[channel.name] = result
    return noisy


def _digest(values: np.ndarray) -> bytes:
    return hashlib.sha256(values.tobytes()).digest()
