"""Progress of long steps, on the user's own terminal."""

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

# A terminal's line is rewritten; a log gets a new line, and so seldom.
_TERMINAL_SECONDS, _LOG_SECONDS = 1.0, 30.0


class Progress:
    """Prints how much of a step is done while the `with` block runs.

    A thread asks for the count, so the step itself reports nothing: on any
    runner, what it has finished can be seen in its folder.

    Args:
      title: what is being done.
      total: the number of parts; with 0 nothing is printed.
      count: returns the number of finished parts.  What it raises is ignored: a
        listing that fails now and then is no reason to fail a job.
      stream: where to print.
    """

    def __init__(self, title: str, total: int, count: Callable[[], int], stream: TextIO | None = None):
        self._title = title
        self._total = total
        self._count = count
        self._stream = stream or sys.stderr
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._start = time.monotonic()

    def __enter__(self):
        if self._total:
            self._thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self._stop.set()
        if self._total:
            self._thread.join()
            if kind is None:
                self._print(self._total, last=True)
            elif self._stream.isatty():
                self._stream.write("\n")

    def _watch(self):
        terminal = self._stream.isatty()
        while not self._stop.wait(_TERMINAL_SECONDS if terminal else _LOG_SECONDS):
            try:
                self._print(min(self._count(), self._total))
            except Exception:
                continue

    def _print(self, done: int, last: bool = False):
        seconds = time.monotonic() - self._start
        line = f"{self._title}: {100 * done // self._total:3d}% ({done} of {self._total}), {seconds:.0f} s"
        if self._stream.isatty():
            self._stream.write(f"\r{line}" + ("\n" if last else ""))
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()
