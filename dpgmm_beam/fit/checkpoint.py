"""What a job keeps between two stages: one typed value, as the bytes of a file with a digest inside."""

import dataclasses
import functools
import hashlib
import io
import json
import types
import typing
from typing import Any

import numpy as np

from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.fit.stage import Stage
from dpgmm_beam.fit.state import Covariance, FitState

_DIGEST = "sha256"

_NOTHING = FitState()


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A fit between two stages.

    All of it is released information or computed from it, with one private
    exception that never leaves the job: the data digest (keyed, so worthless without
    the key).

    Attributes:
      plan: of the release.
      pieces: in how many pieces the rows are kept.
      key_commitment: tells the key from any other and nothing else about it, 32 bytes.
      stages_done: how many stages lie before.
      data_digest: 64 bytes; None before the first stage.
      state: for the stages that follow.
      covariance: what the stage before made for the released mixture alone.
      covariance_at: after how many stages that was; 0 where it lies ahead.
    """

    plan: Plan
    pieces: int
    key_commitment: bytes
    stages_done: int = 0
    data_digest: bytes | None = None
    state: FitState = _NOTHING
    covariance: Covariance | None = None
    covariance_at: int = 0

    @property
    def stage(self) -> Stage:
        """The one that comes next."""
        return self.plan.stages[self.stages_done]

    @property
    def takes_data_digest(self) -> bool:
        """Whether the next pass takes the digest of the data, too."""
        return self.data_digest is None

    def digest(self) -> bytes:
        """SHA-256 of all in it that could come out otherwise elsewhere: it names a draw of the noise."""
        return _digest(_to_arrays(self))

    def to_bytes(self) -> bytes:
        """A file of numpy's own format (.npz); the same checkpoint gives the same bytes."""
        sink, arrays = io.BytesIO(), _to_arrays(self)
        stated = {_DIGEST: np.frombuffer(_digest(arrays), np.uint8)}
        entries: dict[str, Any] = {**stated, **dict(sorted(arrays.items()))}
        np.savez(sink, **entries)
        return sink.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> "Checkpoint":
        """The inverse of `to_bytes`.

        Raises:
          ValueError: these are not the bytes of a whole checkpoint.
          RuntimeError: another version of this package wrote it.
        """
        try:
            with np.load(io.BytesIO(data)) as file:
                arrays = {name: file[name] for name in file.files}
            stated = arrays.pop(_DIGEST)
        except Exception as error:
            raise ValueError(f"not a state ({type(error).__name__})") from None
        if stated.tobytes() != _digest(arrays):
            raise ValueError("not a state: it does not have the digest that it holds")
        try:
            return _from_arrays(Checkpoint, arrays)
        except TypeError:
            raise RuntimeError(
                "this run was begun by another version of dpgmm-beam, whose states lack something;"
                " --restart drops what was begun"
            ) from None


def _digest(arrays: dict[str, np.ndarray]) -> bytes:
    """SHA-256 of names, types, shapes and values."""
    sha = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        sha.update(f"{name}\0{array.dtype.str}{array.shape}\0".encode())
        sha.update(array.tobytes())
    return sha.digest()


def _to_arrays(value: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """A dataclass as arrays by the dotted names of its fields; what is None is left out."""
    arrays: dict[str, np.ndarray] = {}
    for field in dataclasses.fields(value):
        content, name = getattr(value, field.name), f"{prefix}{field.name}"
        if isinstance(content, Plan):
            content = json.dumps(content.to_dict()).encode()
        if isinstance(content, bytes):
            arrays[name] = np.frombuffer(content, np.uint8)
        elif dataclasses.is_dataclass(content):
            arrays.update(_to_arrays(content, f"{name}."))
        elif content is not None:
            arrays[name] = np.asarray(content)
    return arrays


def _from_arrays(kind: type, arrays: dict[str, np.ndarray], prefix: str = "") -> Any:
    """The inverse of `_to_arrays`."""
    found: dict[str, Any] = {}
    for name, inner in _fields(kind).items():
        entry = f"{prefix}{name}"
        if entry in arrays:
            found[name] = _from_array(inner, arrays[entry])
        elif dataclasses.is_dataclass(inner) and any(other.startswith(f"{entry}.") for other in arrays):
            found[name] = _from_arrays(inner, arrays, f"{entry}.")
    return kind(**found)


def _from_array(kind: type, array: np.ndarray) -> Any:
    if kind is Plan:
        return Plan.from_dict(json.loads(array.tobytes()))
    if kind is bytes:
        return array.tobytes()
    return array if kind is np.ndarray else kind(array)


@functools.cache
def _fields(kind: type) -> dict[str, type]:
    """Types of a dataclass's fields; of those that may be None, the other type."""
    hints = typing.get_type_hints(kind)
    return {
        name: next(each for each in typing.get_args(hint) if each is not types.NoneType)
        if isinstance(hint, types.UnionType)
        else hint
        for name, hint in hints.items()
    }
