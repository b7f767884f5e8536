"""A bound on calls that have none of their own."""

import threading
from collections.abc import Callable
from typing import Any


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What a call returns, if it does in time; else it is left to itself, in a daemon thread.

    Args:
      seconds: how long it is waited for.
      call: the call, without arguments.

    Raises:
      TimeoutError: it took longer.
      Whatever the call raises.
    """
    said: list[Any] = []
    failed: list[BaseException] = []

    def run():
        try:
            said.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not said:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return said[0]
