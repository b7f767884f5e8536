"""What one stage hands to the next: named arrays, cut into small elements.

Only released statistics and what is computed from them belong here, with two
private exceptions that never leave the job: the index of row groups and the
data digest (keyed, so worthless without the key).
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

CHUNK_BYTES = 2**20

State = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A piece of one array of a state, at most CHUNK_BYTES."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    data: bytes


def to_chunks(state: State) -> Iterator[Chunk]:
    """Cuts a state into chunks; an empty array is one empty chunk."""
    for name, array in state.items():
        data = np.ascontiguousarray(array).tobytes()
        for offset in range(0, max(len(data), 1), CHUNK_BYTES):
            yield Chunk(name, array.dtype.str, array.shape, offset, data[offset : offset + CHUNK_BYTES])


def from_chunks(chunks: Iterable[Chunk]) -> State:
    """The state of which these are all the chunks, in any order, repeats allowed."""
    buffers: dict[str, tuple[Chunk, bytearray]] = {}
    for chunk in chunks:
        if chunk.name not in buffers:
            size = int(np.prod(chunk.shape, dtype=np.int64)) * np.dtype(chunk.dtype).itemsize
            buffers[chunk.name] = (chunk, bytearray(size))
        buffers[chunk.name][1][chunk.offset : chunk.offset + len(chunk.data)] = chunk.data
    return {
        name: np.frombuffer(bytes(buffer), dtype=chunk.dtype).reshape(chunk.shape)
        for name, (chunk, buffer) in buffers.items()
    }


def digest(*arrays: np.ndarray) -> str:
    """A short name for the contents of arrays, for cache keys."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:32]
