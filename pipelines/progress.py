"""Progress of long steps, on the user's own terminal."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TextIO

# A terminal's line is rewritten; a log gets a new line, and so seldom.
_TERMINAL_SECONDS, _LOG_SECONDS = 1.0, 30.0
_STAGE_SECONDS = 1.0
# A count may hang with the file system that it lists.
_JOIN_SECONDS = 2.0


class Progress:
    """Prints how much of a step is done while the `with` block runs.

    A thread asks for the count, so the step itself reports nothing: on any
    runner, what it has finished can be seen in its folder.  Only per cent are
    printed, for the exact number of parts is a fact about the data.

    Args:
      title: what is being done.
      total: the number of parts; with 0 nothing is printed.
      count: returns the number of finished parts.  What it raises is ignored: a
        listing that fails now and then is no reason to fail a job.
      stream: where to print.  That it is closed or full fails nothing either.
      verbose: print the numbers, too, if the stream is a terminal.
    """

    def __init__(
        self,
        title: str,
        total: int,
        count: Callable[[], int],
        stream: TextIO | None = None,
        verbose: bool = False,
    ):
        self._title = title
        self._total = total
        self._count = count
        self._line = _Line(stream)
        self._numbers = verbose and self._line.terminal
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
            self._thread.join(_JOIN_SECONDS)
            if kind is None:
                self._print(self._total, last=True)
            elif self._line.terminal:
                self._line.write("\n")

    def _watch(self):
        while not self._stop.wait(_TERMINAL_SECONDS if self._line.terminal else _LOG_SECONDS):
            with contextlib.suppress(Exception):
                done = min(self._count(), self._total)
                if not self._stop.is_set():
                    self._print(done)

    def _print(self, done: int, last: bool = False):
        seconds = time.monotonic() - self._start
        numbers = f" ({done} of {self._total})" if self._numbers else ""
        line = f"{self._title}: {100 * done // self._total:3d}%{numbers}, {seconds:.0f} s"
        if self._line.terminal:
            self._line.write(f"\r{line}" + ("\n" if last else ""))
        else:
            self._line.write(f"{line}\n")


class StageWatch:
    """Prints a line for each stage of the fit that is done while the `with` block runs.

    For runners whose workers print elsewhere: each stage leaves a file.
    Stages that an earlier run had done are not printed.

    Args:
      finished: lists the files that stages have left, one for each stage that
        is done.  What it raises is ignored, as in `Progress`.
      names: of all stages, in their order.
      stream: where to print.
    """

    def __init__(
        self, finished: Callable[[], Collection], names: Sequence[str], stream: TextIO | None = None
    ):
        self._finished = finished
        self._names = tuple(names)
        self._line = _Line(stream)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._printed = 0

    def __enter__(self):
        self._look(first=True)
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self._stop.set()
        self._thread.join(_JOIN_SECONDS)
        if kind is None:
            # The job is done, and may have removed its files.
            self._print(len(self._names))
        else:
            self._look()

    def _watch(self):
        while not self._stop.wait(_STAGE_SECONDS):
            self._look()

    def _look(self, first: bool = False):
        with contextlib.suppress(Exception):
            done = min(len(self._finished()), len(self._names))
            if first:
                self._printed = done
            else:
                self._print(done)

    def _print(self, done: int):
        for number in range(self._printed + 1, done + 1):
            name = self._names[number - 1]
            self._line.write(f"fit: stage {number} of {len(self._names)} done ({name})\n")
        self._printed = max(done, self._printed)


class _Line:
    """A stream that may be closed, full or none at all."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream or sys.stderr
        self.terminal = False
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self.terminal = self._stream.isatty()

    def write(self, text: str) -> None:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()
