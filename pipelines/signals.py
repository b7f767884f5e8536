"""What signals that ask a program to end do: it ends, soon, with one line and the shell's status."""

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

from pipelines.bounded import within

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU)

# Together below ten seconds: to unwind after a signal, then for exit handlers
# such as the end of Beam's job server.
_UNWIND_SECONDS, _EXIT_SECONDS = 6.0, 3.0


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread by a signal that asks the program to end.

    Attributes:
      signal: its number.
      published: what stands although the program was interrupted; "" if nothing does.
      running: what may go on although it was asked to end; "" if nothing does.
    """

    # Beam wraps what is raised inside a DoFn, unless it says that this was done.
    _tagged_with_step = True

    def __init__(self, number: int, limit: "_Limit | None" = None):
        super().__init__(signal.Signals(number).name)
        self.signal = number
        self.published = ""
        self.running = ""
        self._limit = limit

    @property
    def status(self) -> int:
        """The exit status that shells know, 130 of SIGINT, 143 of SIGTERM."""
        return 128 + self.signal

    def allow(self, seconds: float) -> None:
        """Gives whoever handles this so much time from now, before the process ends without being asked."""
        if self._limit is not None:
            self._limit.extend(seconds)

    def __str__(self) -> str:
        if self.published:
            return f"interrupted; {self.published}"
        if self.running:
            return f"interrupted; {self.running}"
        return "interrupted; nothing half-done was published"


class _Limit:
    """The moment at which an interrupted process ends, wherever its main thread is."""

    def __init__(self):
        self._lock = threading.Lock()
        self._end: float | None = None

    def extend(self, seconds: float) -> None:
        with self._lock:
            self._end = time.monotonic() + seconds

    def start(self) -> None:
        with self._lock:
            if self._end is None:
                self._end = time.monotonic() + _UNWIND_SECONDS

    def left(self) -> float:
        with self._lock:
            return 0.0 if self._end is None else self._end - time.monotonic()


class _Handlers:
    def __init__(self):
        self.limit = _Limit()
        self.raised = False
        self.closed = False

    def handle(self, number: int, _frame: object) -> None:
        if self.closed:
            return
        if self.raised and number == signal.SIGXCPU:
            # The system sends it again after each second.
            return
        if self.raised:
            # Whoever asks twice does not want to wait.
            os._exit(128 + number)
        self.raised = True
        self.limit.start()
        raise Interrupted(number, self.limit)

    def watch(self, wake: socket.socket) -> None:
        """Ends the process some time after a signal, even where its main thread is in no Python code.

        Python runs handlers between two steps of the main thread, and a step,
        of a network on a large batch say, may take minutes.
        """
        with wake:
            while data := wake.recv(1):
                if data[0] in HANDLED and not self.closed:
                    self._wait_and_end(data[0])

    def _wait_and_end(self, number: int) -> None:
        self.limit.start()
        while (left := self.limit.left()) > 0:
            time.sleep(min(left, 0.2))
            if self.closed:
                return
        with contextlib.suppress(OSError):
            os.write(2, f"dpgmm: {Interrupted(number)}\n".encode())
        end(128 + number)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """While entered, in the main thread, the first signal raises `Interrupted` there, a second ends at once.

    A signal that was ignored before stays ignored: nohup, or a background job
    of a script.  In other threads this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = _Handlers()
    wake, woken = socket.socketpair()
    woken.setblocking(False)
    before = {
        number: signal.getsignal(number)
        for number in HANDLED
        if signal.getsignal(number) not in (signal.SIG_IGN, None)
    }
    waker = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=handlers.watch, args=(wake,), daemon=True).start()
    for number in before:
        signal.signal(number, handlers.handle)
    try:
        yield
    finally:
        handlers.closed = True
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(waker)
        woken.close()


@contextlib.contextmanager
def published(what: str) -> Iterator[None]:
    """While entered, an `Interrupted` says what stands already, e.g. "released to DIR"."""
    try:
        yield
    except Interrupted as error:
        error.published = error.published or what
        raise


def end(status: int) -> None:
    """Ends the process, whatever threads still run; exit handlers get a few seconds."""
    with contextlib.suppress(BaseException):
        within(_EXIT_SECONDS, atexit._run_exitfuncs)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            within(0.5, stream.flush)
    os._exit(status)
