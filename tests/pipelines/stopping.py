"""Lets a process of a job stop itself at a chosen point, so that a test can kill somebody just then.

With STOP_AT, a regular expression, the first process to reach what it matches
stops (SIGSTOP) at that moment: a progress line of the product, or a file about
to be renamed or linked into place or to be removed.  Its number is then in the
file STOPPED; the file REACHED has every progress line, of whichever process.
The product knows nothing of this.
"""

import contextlib
import logging
import os
import re
import signal
import sys
import threading


def watch() -> None:
    """Called in every process of the job; `watched/sitecustomize.py` does it in those that Python starts."""
    if os.environ.get("REACHED"):
        # Workers show warnings only; a line must be made for it to be seen here.
        logging.getLogger("dpgmm").setLevel(logging.INFO)
        logging.setLogRecordFactory(_record)
        sys.addaudithook(_audit)


def reach(what: str) -> None:
    stop_at = os.environ.get("STOP_AT")
    if stop_at and re.search(stop_at, what):
        with contextlib.suppress(FileExistsError), open(os.environ["STOPPED"], "x") as file:
            file.write(str(os.getpid()))
            file.flush()
            # To this thread: sent to the process, it would let the thread run on for a moment.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _record(*arguments, **keywords) -> logging.LogRecord:
    made = logging.LogRecord(*arguments, **keywords)
    if made.name.startswith("dpgmm."):
        with open(os.environ["REACHED"], "a") as file:
            file.write(made.getMessage() + "\n")
        reach(made.getMessage())
    return made


def _audit(event: str, arguments: tuple) -> None:
    if event == "os.rename":
        folder, name = os.path.split(os.fsdecode(arguments[1]))
        there = sum(not other.startswith((".", "_")) for other in os.listdir(folder))
        reach(f"rename to {name} beside {there}")
    elif event == "os.link":
        reach(f"link to {os.path.basename(os.fsdecode(arguments[1]))}")
    elif event == "os.remove":
        # A state's hidden name goes as soon as its own is there.
        reach(f"removal of {os.path.basename(os.fsdecode(arguments[0]))}")
