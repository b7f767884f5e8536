"""Which TCP ports processes listen at, as the kernel tells it."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

_LISTENS = "0A"


def listeners(pids: Iterable[int]) -> set[str]:
    """Addresses of the listening TCP sockets that processes hold; those that have ended hold none."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            held = _held(pid)
            for name in ("tcp", "tcp6"):
                for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                    words = line.split()
                    if words[3] == _LISTENS and f"socket:[{words[9]}]" in held:
                        found.add(words[1])
    return found


def _held(pid: int) -> set[str]:
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def tree(pid: int) -> set[int]:
    """A process, what it has started and what that has started."""
    parents = {}
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[1])
    found, new = set(), {pid}
    while new:
        found |= new
        new = {child for child, parent in parents.items() if parent in new} - found
    return found
