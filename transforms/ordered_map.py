"""A map over a stream by threads, in order and with bounded memory."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any


def ordered_map(
    start: Callable[[Any], Future],
    items: Iterable[Any],
    ahead: int,
    weight: Callable[[Any], int] = lambda item: 0,
    most: int = 0,
) -> Iterator[Any]:
    """Results in the order of the items, with at most `ahead` of them under way or waiting.

    Args:
      start: begins with an item, e.g. submits it to a pool.
      weight: of an item; all that are under way or waiting weigh `most` together,
        or there is one only.
    """
    pending: collections.deque[tuple[Future, int]] = collections.deque()
    held = 0
    for item in items:
        heavy = weight(item)
        while pending and (len(pending) >= ahead or held + heavy > most):
            result, freed = pending.popleft()
            yield result.result()
            held -= freed
        pending.append((start(item), heavy))
        held += heavy
    while pending:
        yield pending.popleft()[0].result()
