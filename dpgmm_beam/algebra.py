"""Dense algebra that must give the same bits whatever the number of threads."""

import contextlib
from collections.abc import Iterator

import threadpoolctl


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Holds BLAS and LAPACK to one thread, so that results do not depend on the count.

    Only central steps need it: sums over rows are exact in any case.
    """
    with threadpoolctl.threadpool_limits(limits=1):
        yield
