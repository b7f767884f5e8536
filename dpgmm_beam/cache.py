"""A bounded cache of decoded blocks, one per process.

Every round reads the same rows; decoding them costs more than summing them.
The cache lives in an importable module because a module pickled with the main
session would carry its cache along.  It never changes a result: a block that
is not there is read again.
"""

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Any

DEFAULT_BYTES = 2**30


class BlockCache:
    """A cache with a bound in bytes for rounds that scan the same blocks in the same order.

    Entries belong to groups (a run's rows in one view).  A new entry may push
    out entries of other groups, oldest group first, but never of its own: when
    the data is larger than the cache, what is cached stays and the rest is read
    again, while evicting the least recently used would empty the cache before
    every use.  Safe for threads; two that miss the same key may both compute it.
    """

    def __init__(self) -> None:
        self._groups: collections.OrderedDict[Hashable, dict[Hashable, tuple[Any, int]]] = (
            collections.OrderedDict()
        )
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, group: Hashable, key: Hashable, compute: Callable[[], tuple[Any, int]], limit: int) -> Any:
        """The cached value of `key` in `group`, else that of `compute()`, kept if it fits.

        Args:
          compute: returns the value and its size in bytes.
          limit: the bound on the cache's total, in bytes; 0 keeps nothing.
        """
        with self._lock:
            entries = self._groups.setdefault(group, {})
            self._groups.move_to_end(group)
            if key in entries:
                return entries[key][0]
        value, size = compute()
        with self._lock:
            entries = self._groups.setdefault(group, {})
            if key not in entries:
                self._make_room(group, limit - size)
                if self._bytes + size <= limit:
                    entries[key] = (value, size)
                    self._bytes += size
        return value

    def _make_room(self, group: Hashable, limit: int) -> None:
        for other in list(self._groups):
            if other != group:
                while self._groups[other] and self._bytes > limit:
                    _, (_, size) = self._groups[other].popitem()
                    self._bytes -= size
                if not self._groups[other]:
                    del self._groups[other]

    def clear(self) -> None:
        """Forgets everything, so that a finished release leaves no rows in memory."""
        with self._lock:
            self._groups.clear()
            self._bytes = 0


PROCESS_CACHE = BlockCache()
