import io
import threading

import pytest

from pipelines import progress
from pipelines.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(progress, "_TERMINAL_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.01)


def watched(stream, counts, error=None):
    """What is said while a step's count goes through the given numbers."""
    seen = threading.Event()
    pending = list(counts)

    def count():
        number = pending.pop(0)
        if not pending:
            pending.append(number)
            seen.set()
        if isinstance(number, Exception):
            raise number
        return number

    with Progress("embedding", 4, count, stream):
        assert seen.wait(10)
        if error:
            raise error
    return stream.getvalue()


def test_a_log_gets_lines():
    lines = watched(io.StringIO(), [0, 1, 3]).splitlines()
    assert lines[0].startswith("embedding:   0% (0 of 4), ")
    assert lines[1].startswith("embedding:  25% (1 of 4), ")
    assert lines[-1].startswith("embedding: 100% (4 of 4), ")


def test_a_terminal_has_one_line():
    said = watched(Terminal(), [0, 1])
    assert said.startswith("\rembedding:   0%")
    assert said.count("\n") == 1
    assert said.endswith(" s\n")


def test_a_listing_that_fails_now_and_then_fails_nothing():
    said = watched(io.StringIO(), [OSError("busy"), 2])
    assert "busy" not in said
    assert "50% (2 of 4)" in said


def test_never_more_than_all():
    """Two attempts at one file are one file; a folder may hold more."""
    assert "175%" not in watched(io.StringIO(), [7])


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_step_that_fails_is_not_called_done(stream):
    with pytest.raises(ZeroDivisionError):
        watched(stream, [1], ZeroDivisionError())
    assert "100%" not in stream.getvalue()
    assert stream.getvalue().endswith("\n")


def test_nothing_to_do_says_nothing():
    stream = io.StringIO()
    with Progress("embedding", 0, lambda: 1 / 0, stream):
        pass
    assert stream.getvalue() == ""
