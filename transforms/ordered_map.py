"""A map over a stream by threads, in order and with bounded memory."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any


def ordered_map(
    workers: Executor, function: Callable[[Any], Any], items: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """Results in the order of the items, with at most `ahead` of them under way or waiting."""
    pending: collections.deque = collections.deque()
    for item in items:
        if len(pending) >= ahead:
            yield pending.popleft().result()
        pending.append(workers.submit(function, item))
    while pending:
        yield pending.popleft().result()
