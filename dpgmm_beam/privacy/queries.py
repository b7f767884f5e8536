"""What one pass over the rows may compute: integer sums with known sensitivity.

A stage asks queries; each is one vector of integer sums and one Gaussian
mechanism.  A stage's sums travel in parts of at most SHIPPED values, so that no
element of a pipeline is large.  Noise is drawn in streams of at most PART values.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from dpgmm_beam.privacy.noise import NoiseKey, rounded_gaussian

Sums = dict[str, np.ndarray]

PART = 2**16
"""Values that share a noise stream."""

SHIPPED = 2**15
"""Values in a part: 256 KiB as int64, so that those of several workers are a small element together."""


@dataclasses.dataclass(frozen=True)
class SumQuery:
    """A vector of integer sums over rows, released by one Gaussian mechanism.

    Attributes:
      name: unique within the stage.
      size: number of values.
      l2_sensitivity: the most by which adding one row can move the vector in the
        Euclidean norm (in the Frobenius norm where `symmetric_order` is set), in
        lattice steps.
      symmetric_order: order of the symmetric matrices whose packed upper triangles
        make up the vector; 0 for a plain vector.  The isometric vector of a
        symmetric matrix is (diagonal, sqrt 2 x upper triangle); noise s on it
        is noise s on the diagonal and s / sqrt 2 on the plain triangle.
      one_sided: whether what any two rows add has an inner product of 0 or more: counts, squares and
        r r^T.  Replacing rows then moves the vector by less (`privacy.neighbours`).
    """

    name: str
    size: int
    l2_sensitivity: float
    symmetric_order: int = 0
    one_sided: bool = False

    def noise_stddevs(self, noise_multiplier: float) -> np.ndarray | float:
        """Standard deviations of the noise on the values, a number or (size,)."""
        stddev = noise_multiplier * self.l2_sensitivity
        if not self.symmetric_order:
            return stddev
        order = self.symmetric_order
        packed = np.full(order * (order + 1) // 2, stddev / np.sqrt(2.0))
        lengths = np.arange(order, 0, -1)
        packed[np.concatenate([[0], np.cumsum(lengths)[:-1]])] = stddev
        return np.tile(packed, self.size // len(packed))


def part_count(queries: tuple[SumQuery, ...]) -> int:
    """How many parts a stage's sums travel in."""
    return -(-sum(query.size for query in queries) // SHIPPED)


def split(queries: tuple[SumQuery, ...], sums: Sums) -> Iterator[tuple[int, np.ndarray]]:
    """A stage's sums, one query behind the other, cut into numbered int64 parts."""
    whole = np.concatenate([np.asarray(sums[query.name], np.int64).ravel() for query in queries])
    for number in range(part_count(queries)):
        yield number, whole[number * SHIPPED : (number + 1) * SHIPPED]


def join(queries: tuple[SumQuery, ...], parts: Mapping[int, np.ndarray]) -> Sums:
    """The inverse of `split`.

    Raises:
      KeyError: a part is missing.
    """
    whole = np.concatenate([parts[number] for number in range(part_count(queries))])
    edges = np.cumsum([query.size for query in queries])[:-1]
    return {query.name: part for query, part in zip(queries, np.split(whole, edges), strict=True)}


def zeros(queries: tuple[SumQuery, ...]) -> Sums:
    """Fresh accumulators, one int64 vector a query."""
    return {query.name: np.zeros(query.size, dtype=np.int64) for query in queries}


def add_noise(
    queries: tuple[SumQuery, ...],
    sums: dict[str, np.ndarray],
    multipliers: dict[str, float],
    key: NoiseKey,
) -> dict[str, np.ndarray]:
    """The noisy sums of every query.

    The noise of a part is a function of the key (whose context holds release
    id, fit digest, data digest and stage), the query, its sensitivity and noise
    multiplier, the part, the digests of its standard deviations and of the exact part, and of
    nothing else: drawing it again, in any worker, gives the same bits and spends
    nothing.  The same deviates never come at two scales, whatever was changed
    in the code: two such equations would give the exact sum.

    Args:
      sums: exact int64 sums by query.
      multipliers: noise multipliers by query.
      key: the stage's key.
    """
    noisy = {}
    for query in queries:
        exact = sums[query.name]
        multiplier = multipliers[query.name]
        stddevs = np.broadcast_to(query.noise_stddevs(multiplier), (query.size,))
        scaled = key.within(query.name, float(query.l2_sensitivity).hex(), float(multiplier).hex())
        result = np.empty(query.size, dtype=np.int64)
        for start in range(0, query.size, PART):
            where = slice(start, min(start + PART, query.size))
            part = np.ascontiguousarray(exact[where], dtype="<i8")
            stream = scaled.within(start // PART, _digest(stddevs[where].astype("<f8")), _digest(part))
            result[where] = part + rounded_gaussian(stream, stddevs[where], len(part))
        noisy[query.name] = result
    return noisy


def _digest(values: np.ndarray) -> bytes:
    return hashlib.sha256(values.tobytes()).digest()
