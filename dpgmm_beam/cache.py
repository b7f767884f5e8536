"""A bounded cache of decoded blocks, one per process.

Every round reads the same rows; decoding them costs more than summing them.
The cache lives in an importable module because a module pickled with the main
session would carry its cache along.  It never changes a result: a block that
was evicted is read again.
"""

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Any

DEFAULT_BYTES = 2**30


class BlockCache:
    """Least-recently-used cache with a bound in bytes; safe for threads.

    Two threads that miss the same key at once may both compute it.
    """

    def __init__(self) -> None:
        self._entries: collections.OrderedDict[Hashable, tuple[Any, int]] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], tuple[Any, int]], limit: int) -> Any:
        """The cached value of `key`, else that of `compute()`, kept if it fits.

        Args:
          compute: returns the value and its size in bytes.
          limit: the bound on the cache's total, in bytes; 0 keeps nothing.
        """
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key][0]
        value, size = compute()
        with self._lock:
            if size <= limit and key not in self._entries:
                self._entries[key] = (value, size)
                self._bytes += size
            while self._bytes > limit and self._entries:
                _, (_, evicted) = self._entries.popitem(last=False)
                self._bytes -= evicted
        return value

    def clear(self) -> None:
        """Forgets everything, so that a finished release leaves no rows in memory."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0


PROCESS_CACHE = BlockCache()
