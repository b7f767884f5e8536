"""The gate of a release that a ledger charges: passed before its first noise is drawn, or shut for good.

It is one file in the private folder, written once.  Whoever is first decides: a worker that
is about to draw, for data of one digest, or a driver that gives the charge back
since nothing was drawn.  A late worker of a job whose charge was given back finds the gate shut.

Digests in it, which a ledger keeps as well, are hashes of the private ones together with the
release id: equal data of two releases does not show.
"""

import dataclasses
import hashlib
import json
import os

from dpgmm_beam.errors import ConfigError
from transforms.files.opening import read_bytes
from transforms.files.private import is_local
from transforms.files.publish import exists
from transforms.files.write import write_whole

_SHUT = "given back"


@dataclasses.dataclass(frozen=True)
class Passed:
    """What passed a gate.

    Attributes:
      data: `told` of the keyed data digest.
      state: `told` of the final state's digest, where the release was made before; else "".
    """

    data: str
    state: str = ""


def told(release_id: str, what: str, digest: str) -> str:
    """What may be told of a private digest: whether a release of this id has the same, and nothing else."""
    text = json.dumps(["dpgmm ledger", release_id, what, digest])
    return hashlib.sha256(text.encode()).hexdigest()


def read(path: str) -> Passed | None:
    """What passed the gate; None if nothing did.

    Raises:
      ConfigError: the gate is shut, or its file is damaged.
    """
    if not exists(path):
        return None
    try:
        content = json.loads(read_bytes(path))
        if content == _SHUT:
            raise ConfigError(
                "release_id", "(of this job)", "be reserved anew: its charge was given back; run it again"
            )
        return Passed(**content)
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("private_dir", path, "hold the gate's file whole: it is damaged") from None


def go_through(path: str, release_id: str, data: bytes) -> None:
    """To be called before the first noise of a release is drawn.

    Args:
      path: of the gate; "" where no ledger charges the release.
      data: the keyed data digest.

    Raises:
      ConfigError: the charge was given back, or the id names a release of other data.
    """
    if path:
        _open(path, release_id, Passed(told(release_id, "data", data.hex())))


def open_for(path: str, release_id: str, passed: Passed) -> None:
    """Opens the gate of a release that was made before, for its own data and outcome only."""
    _open(path, release_id, passed)


def _open(path: str, release_id: str, passed: Passed) -> None:
    _write(path, dataclasses.asdict(passed))
    found = read(path)
    if found is None or found.data != passed.data:
        raise ConfigError(
            "release_id", release_id, "be new: it names a release of other data, and each needs its own"
        )


def _write(path: str, content: object) -> None:
    write_whole(path, json.dumps(content).encode(), private=True, once=True)
    if is_local(path):
        # The name, too, is on the disk before any noise is drawn.
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_state(path: str, release_id: str, state: str) -> None:
    """To be called before a release is published.

    Args:
      state: digest of its final state, hexadecimal.

    Raises:
      ConfigError: the id has named another outcome.
    """
    found = read(path) if path else None
    if found is not None and found.state and found.state != told(release_id, "state", state):
        raise ConfigError(
            "release_id",
            release_id,
            "be new: it names another draw of the same noise, by a processor that computes otherwise",
        )


def shut(path: str) -> bool:
    """Whether nothing was drawn behind the gate, and from now on nothing will be.

    On an object store, where two may write at once, that is never known.
    """
    if not is_local(path):
        return False
    _write(path, _SHUT)
    return is_shut(path)


def is_shut(path: str) -> bool:
    """Whether the charge of a gate was given back."""
    try:
        return exists(path) and json.loads(read_bytes(path)) == _SHUT
    except ValueError:
        return False
