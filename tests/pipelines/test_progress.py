import io
import threading

import pytest

from pipelines import progress
from pipelines.progress import Progress, StageWatch


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(progress, "_TERMINAL_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_STAGE_SECONDS", 0.01)


def watched(stream, counts, error=None, **options):
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

    with Progress("embedding", 4, count, stream, **options):
        assert seen.wait(10)
        if error:
            raise error
    return stream.getvalue()


def test_a_log_gets_lines():
    lines = watched(io.StringIO(), [0, 1, 3]).splitlines()
    assert lines[0].startswith("embedding:   0%, ")
    assert lines[1].startswith("embedding:  25%, ")
    assert lines[-1].startswith("embedding: 100%, ")


def test_numbers_are_for_the_terminal_of_who_asks_for_them():
    """The exact number of files is a fact about the data, and a log may be anybody's."""
    assert "(1 of 4)" in watched(Terminal(), [1], verbose=True)
    assert " of " not in watched(Terminal(), [1])
    assert " of " not in watched(io.StringIO(), [1], verbose=True)


def test_a_terminal_has_one_line():
    said = watched(Terminal(), [0, 1])
    assert said.startswith("\rembedding:   0%")
    assert said.count("\n") == 1
    assert said.endswith(" s\n")


def test_a_listing_that_fails_now_and_then_fails_nothing():
    said = watched(io.StringIO(), [OSError("busy"), 2])
    assert "busy" not in said
    assert " 50%, " in said


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


class Full(io.StringIO):
    def write(self, _):
        raise OSError("no space")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [Full(), closed()], ids=["full", "closed"])
def test_a_stream_that_takes_nothing_fails_nothing(stream):
    with Progress("embedding", 4, lambda: 1, stream), StageWatch(lambda: [1], ["moment"], stream):
        pass
    with (
        pytest.raises(ZeroDivisionError),
        Progress("embedding", 4, lambda: 1, stream),
        StageWatch(lambda: [1], ["moment"], stream),
    ):
        raise ZeroDivisionError


NAMES = ["moment", "mean", "teacher 1", "teacher 2"]
LINES = [f"fit: stage {number} of 4 done ({name})" for number, name in enumerate(NAMES, 1)]


def leave(folder, number):
    (folder / f"state-{number:02d}.npz").touch()


def wait_for(stream, line):
    for _ in range(1000):
        if line in stream.getvalue():
            return
        threading.Event().wait(0.01)
    raise AssertionError(stream.getvalue())


def test_stages_are_said_once_each(tmp_path):
    """By the files that they leave."""
    stream = io.StringIO()
    with StageWatch(lambda: list(tmp_path.glob("state-*.npz")), NAMES, stream):
        assert stream.getvalue() == ""
        leave(tmp_path, 1)
        wait_for(stream, LINES[0])
        leave(tmp_path, 2)
        leave(tmp_path, 3)
        wait_for(stream, LINES[2])
        for path in tmp_path.iterdir():
            path.unlink()
    assert stream.getvalue().splitlines() == LINES


def test_stages_of_an_earlier_run_are_not_said(tmp_path):
    stream = io.StringIO()
    leave(tmp_path, 1)
    leave(tmp_path, 2)
    with StageWatch(lambda: list(tmp_path.iterdir()), NAMES, stream):
        pass
    assert stream.getvalue().splitlines() == LINES[2:]


def test_stages_of_a_job_that_fails(tmp_path):
    def fail():
        leave(tmp_path, 1)
        raise ZeroDivisionError

    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError), StageWatch(lambda: list(tmp_path.iterdir()), NAMES, stream):
        fail()
    assert stream.getvalue().splitlines() == LINES[:1]


def test_a_folder_that_cannot_be_listed():
    stream = io.StringIO()
    with StageWatch(lambda: 1 / 0, NAMES, stream):
        pass
    assert stream.getvalue().splitlines() == LINES
