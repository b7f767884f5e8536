"""What a program says: lines for people, or one JSON object for a machine."""

import contextlib
import io
import json
import logging
import os
import sys
from typing import Any, TextIO

from dpgmm_beam.errors import printable


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a line, on standard output unless told otherwise, and never fails.

    A stream that is closed, full or broken is no reason to call a job failed
    whose release stands; characters that a stream can't write are escaped, and
    so are those by which what came from a file could steer a terminal.
    """
    write((printable(text, most=None)) + "\n", stream)


def write(text: str, stream: TextIO | None = None) -> None:
    """As `say`, for text of this program's own, of several lines."""
    stream = sys.stdout if stream is None else stream
    try:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (AttributeError, OSError, ValueError):
        abandon(stream)


def note(text: str) -> None:
    """Says on standard error what goes on; not with --quiet."""
    if not is_quiet():
        say(text, sys.stderr)


def warn(text: str) -> None:
    """Says on standard error what somebody should do something about."""
    say(f"warning: {text}", sys.stderr)


def is_quiet() -> bool:
    """Whether --quiet was given: the level of this project's log says so."""
    return logging.getLogger("dpgmm").level > logging.INFO


def report(text: str, **facts: Any) -> None:
    """Says a verb's result; with --json the facts are in the object that is printed in its place.

    Args:
      text: as `say` prints it.
      facts: the same, for machines: what `json.dumps` takes.  Nothing that the text may not say.
    """
    if isinstance(sys.stdout, Facts):
        sys.stdout.facts.update(facts)
    say(text)


class Facts(io.StringIO):
    """Takes the place of standard output where --json was given: lines are kept, facts collected.

    Attributes:
      facts: what `report` was given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, Any] = {}

    def as_json(self, verb: str | None, status: int, error: str) -> str:
        """The object, in one line.

        Args:
          verb: None where a program is not run as a verb.
          status: the exit status.
          error: the sentence on standard error, "" if there is none.
        """
        lines = self.getvalue().splitlines()
        about = {"verb": verb, "exit_status": status, **({"error": error} if error else {})}
        return json.dumps({**about, "said": lines, **self.facts}, allow_nan=False)


def flush() -> None:
    """Writes out both streams, or gives them up."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            abandon(stream)


def abandon(stream: TextIO | None) -> None:
    """Points a broken stream nowhere: Python ends with status 120 if it can't flush one."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if stream is not None:
            os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
