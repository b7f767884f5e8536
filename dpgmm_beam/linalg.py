"""Dense algebra that must give the same bits whatever the number of threads."""

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
import threadpoolctl


def _take_control() -> None:
    """Lets this thread set the limit.

    In threadpoolctl 3.8 only one thread may set OpenBLAS's limit, the first that
    did; calls from others are ignored in silence.
    """
    controller = getattr(threadpoolctl, "OpenBLASController", None)
    if controller is not None and hasattr(controller, "clear_controlling_thread"):
        controller.clear_controlling_thread(force=True)


class _OneThread:
    """Holds BLAS to one thread while anyone in the process wants it so.

    The limit is the process's, and several threads may want it at once: the
    first to enter sets it and the last to leave lifts it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._controller: threadpoolctl.ThreadpoolController | None = None
        self._limits: threadpoolctl.threadpool_limits | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._holders:
                _take_control()
                if self._controller is None:
                    # Looking for libraries takes milliseconds, once; numpy's, which
                    # does all of the algebra, is loaded by now.
                    self._controller = threadpoolctl.ThreadpoolController()
                self._limits = self._controller.limit(limits=1, user_api="blas")
            self._holders += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders and self._limits is not None:
                _take_control()
                self._limits.restore_original_limits()
                _take_control()


_ONE_THREAD = _OneThread()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Holds BLAS and LAPACK to one thread.

    For central algebra (eigen-decompositions), whose last bits depend on the
    number of threads.  Sums over rows are exact in any case; workers hold the
    limit for speed, since products with few columns lose by threads.
    """
    with _ONE_THREAD:
        yield


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """In steps of 2**-bits: without the last bits, which are the processor's, and the sign of a zero."""
    return np.rint(values * 2.0**bits) * 2.0**-bits + 0.0
