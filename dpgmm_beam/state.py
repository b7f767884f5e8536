"""What one stage hands to the next: named arrays, as the bytes of a file with a digest inside.

Only released statistics and what is computed from them belong here, with one
private exception that never leaves the job: the data digest (keyed, so
worthless without the key).
"""

import hashlib
import io
from typing import Any

import numpy as np

State = dict[str, np.ndarray]

_DIGEST = "sha256"


def to_bytes(state: State) -> bytes:
    """A state as a file of numpy's own format (.npz); the same state gives the same bytes."""
    sink = io.BytesIO()
    entries: dict[str, Any] = {_DIGEST: np.frombuffer(digest(state), np.uint8), **dict(sorted(state.items()))}
    np.savez(sink, **entries)
    return sink.getvalue()


def from_bytes(data: bytes) -> State:
    """The inverse of `to_bytes`.

    Raises:
      ValueError: these are not the bytes of a whole state.
    """
    try:
        with np.load(io.BytesIO(data)) as file:
            state = {name: file[name] for name in file.files}
        stated = state.pop(_DIGEST)
    except Exception as error:
        raise ValueError(f"not a state ({type(error).__name__})") from None
    if stated.tobytes() != digest(state):
        raise ValueError("not a state: it does not have the digest that it holds")
    return state


def digest(state: State) -> bytes:
    """SHA-256 of names, types, shapes and values."""
    sha = hashlib.sha256()
    for name, array in sorted(state.items()):
        sha.update(f"{name}\0{array.dtype.str}{array.shape}\0".encode())
        sha.update(array.tobytes())
    return sha.digest()
