"""Progress of long steps, on the user's own terminal."""

import contextlib
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TextIO

from tqdm import tqdm

from pipelines import output

# A terminal's line is rewritten; a log gets a new line, and so seldom.
_TERMINAL_SECONDS, _LOG_SECONDS = 1.0, 30.0
# A count may hang with the file system that it lists.
_JOIN_SECONDS = 2.0
_BAR = "{desc}: {percentage:3.0f}% |{bar:8}| "


class Progress:
    """Prints how much of a step is done while the `with` block runs, with rate and time left.

    A thread asks for the count, so the step itself reports nothing: on any
    runner, what it has finished can be seen in its folder.  Only per cent are
    printed, and a rate of them, for the exact number of parts is a fact about
    the data and a driver's log is anybody's.

    Args:
      title: what is being done, and on which device.
      total: the number of parts; with 0 nothing is printed.
      count: returns the number of finished parts.  What it raises is ignored: a
        listing that fails now and then is no reason to fail a job.
      stream: where to print.  That it is closed or full fails nothing either.
      verbose: print the numbers, too, if the stream is a terminal.
      unit: of the numbers.
      public: the numbers tell nothing about the data, and are always printed.
      ready: until it says so, nothing is printed: another step has the line.
      detail: what to say after the numbers, of which it is given the first: e.g. the step that runs.
      speed: print a rate, too; parts that are all different have none.
    """

    def __init__(
        self,
        title: str,
        total: int,
        count: Callable[[], int],
        stream: TextIO | None = None,
        verbose: bool = False,
        unit: str = "",
        public: bool = False,
        ready: Callable[[], bool] = lambda: True,
        detail: Callable[[int], str] = lambda done: "",
        speed: bool = True,
    ):
        self._title = title
        self._total = total
        self._count = count
        self._line = _Line(stream)
        self._numbers = public or (verbose and self._line.terminal)
        self._unit = unit
        self._ready = ready
        self._detail = detail
        self._speed = speed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._start = time.monotonic()
        self._before: int | None = None
        self._said = False
        self._silent = output.is_quiet() or not total
        self._ended = self._silent

    @property
    def ended(self) -> bool:
        """Whether all parts are finished, and the line is."""
        return self._ended

    def __enter__(self):
        if not self._silent:
            self._thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self._stop.set()
        if self._silent:
            return
        self._thread.join(_JOIN_SECONDS)
        if self._ended:
            return
        if kind is None:
            self._print(self._total)
        elif self._said:
            self._line.end()

    def _watch(self):
        # What an earlier run had done says nothing about the speed of this one.
        self._look(first=True)
        while not self._stop.wait(_TERMINAL_SECONDS if self._line.terminal else _LOG_SECONDS):
            self._look()

    def _look(self, first: bool = False):
        with contextlib.suppress(Exception):
            done = min(self._count(), self._total)
            if self._before is None:
                self._before = done
            # A log needs no line that says nothing yet.
            early = first and not self._line.terminal
            if not early and not self._ended and self._ready() and not self._stop.is_set():
                self._print(done)

    def _print(self, done: int):
        self._said, self._ended = True, done == self._total
        self._line.write(self.text(done, time.monotonic() - self._start), last=self._ended)

    def text(self, done: int, seconds: float) -> str:
        """What is printed when so many parts are done after so many seconds."""
        before, total, unit = min(self._before or 0, done), self._total, self._unit
        fields = [f"{{n_fmt}} of {{total_fmt}} {unit}", "{elapsed}"]
        if not self._numbers:
            done, before, total, unit = 100 * done // total, 100 * before // total, 100, "%"
            fields = ["{elapsed}"]
        if before < done < total:
            fields.append("{remaining} left")
        if detail := self._detail(done):
            fields.append(detail.replace("{", "{{").replace("}", "}}"))
        if before < done < total and self._speed:
            fields.append("{rate_noinv_fmt}")
        start = _BAR if self._line.terminal else "{desc}: {percentage:3.0f}%, "
        text = tqdm.format_meter(
            n=done,
            total=total,
            elapsed=seconds,
            ncols=self._line.columns,
            prefix=self._title,
            unit=unit if unit == "%" else f" {unit}",
            initial=before,
            bar_format=start + ", ".join(fields),
        )
        # Rates are padded to a width.
        return re.sub(", +", ", ", text).rstrip(" ,")


class Steps(Progress):
    """For steps of this process, whose number is public: each is reported when it is done.

    Args:
      title: what is being done.
      total: the number of steps.
      unit: e.g. "rows".
      stream: where to print.
    """

    def __init__(self, title: str, total: int, unit: str, stream: TextIO | None = None):
        self._now, self._text = 0, ""
        super().__init__(
            title,
            total,
            lambda: self._now,
            stream,
            unit=unit,
            public=True,
            detail=lambda _: self._text,
        )

    def add(self, steps: int = 1, detail: str = "") -> None:
        """So many steps more are done."""
        self._now, self._text = self._now + steps, detail


class StageWatch(Progress):
    """One line for all stages of the fit, which is rewritten as they are done.

    For any runner: each stage leaves a file.  Which stages there are is public.

    Args:
      finished: lists the files that stages have left, one for each stage that
        is done.  What it raises is ignored, as in `Progress`.
      names: of all stages, in their order.
      stream: where to print.
      ready: as for `Progress`.
    """

    def __init__(
        self,
        finished: Callable[[], Collection],
        names: Sequence[str],
        stream: TextIO | None = None,
        ready: Callable[[], bool] = lambda: True,
    ):
        super().__init__(
            "fit",
            len(names),
            lambda: len(finished()),
            stream,
            unit="stages",
            public=True,
            ready=ready,
            detail=lambda done: names[done] if done < len(names) else "",
            speed=False,
        )


def device() -> str:
    """Where networks of torch run in this process.

    Loads torch where it is not yet: were it said only once a network is loaded,
    the words would tell whether there was an image to embed.
    """
    import torch

    return "on cuda" if torch.cuda.is_available() else "on cpu"


class _Line:
    """The line of a stream that may be closed, full or none at all."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream or sys.stderr
        self._length = 0
        self.terminal = False
        self.columns: int | None = None
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self.terminal = self._stream.isatty()
        if self.terminal:
            self.columns = max(shutil.get_terminal_size().columns - 1, 20)

    def write(self, text: str, last: bool) -> None:
        """Puts the text in the place of the line, or below it."""
        if self.terminal:
            rest = " " * (self._length - len(text))
            self._length = 0 if last else len(text)
            text = f"\r{text}{rest}" + ("\n" if last else "")
        else:
            text += "\n"
        self._put(text)

    def end(self) -> None:
        """Leaves the line as it is."""
        if self.terminal:
            self._put("\n")

    def _put(self, text: str) -> None:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
