"""No core dump of a process that holds a noise key: it would hold the key, too."""

import ctypes
import resource
import sys

_PR_SET_DUMPABLE = 4


def forbid_core_dumps() -> None:
    """Keeps this process, and what it forks, from leaving core dumps.

    The limit alone does not: a core pattern that is a pipe ignores it.  On Linux
    the process is made undumpable, too, so that no other process of the same
    user can read its memory or trace it.  Both hold until it ends.
    """
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    if sys.platform == "linux":
        _make_undumpable()


def _make_undumpable() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
