import io
import logging
import re
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import progress
from pipelines.progress import Progress, StageWatch, Steps
from tests.pipelines.processes import PATIENCE
from tests.pipelines.words import without_times


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True, scope="module")
def quick():
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(progress, "_TERMINAL_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.01)
    yield
    monkeypatch.undo()


def watched(stream, counts, error=None, **options):
    """What is said while a step's count goes through the given numbers."""
    seen = threading.Event()
    pending, asked = [0, *counts], []

    def count():
        number = pending[0]
        if len(pending) > 1:
            pending.pop(0)
        elif asked:
            # The last number was printed.
            seen.set()
        else:
            asked.append(number)
        if isinstance(number, Exception):
            raise number
        return number

    with Progress("embedding", 4, count, stream, **options):
        assert seen.wait(PATIENCE)
        if error:
            raise error
    return stream.getvalue()


def test_a_log_gets_lines():
    lines = watched(io.StringIO(), [0, 1, 3]).splitlines()
    assert re.search(r"embedding:  25%, \d\d:\d\d, \d\d:\d\d left, .+%/s$", "\n".join(lines), re.MULTILINE)
    assert lines[-1].startswith("embedding: 100%, ")


def test_numbers_are_for_the_terminal_of_who_asks_for_them():
    """The exact number of files is a fact about the data, and a log may be anybody's."""
    assert "1 of 4 files, " in watched(Terminal(), [0, 1], verbose=True, unit="files")
    for said in (
        watched(Terminal(), [0, 1], unit="files"),
        watched(io.StringIO(), [0, 1], verbose=True, unit="files"),
    ):
        assert " of " not in said
        assert "files" not in said


@given(total=st.integers(1, 10**6), done=st.integers(0, 10**6), seconds=st.integers(0, 10**5))
def test_what_is_printed_depends_on_per_cent_only(total, done, seconds):
    """A rate of more digits would tell the number of parts."""
    done = min(done, total)
    per_cent = Progress("x", 100, lambda: 0, io.StringIO(), verbose=True)
    assert Progress("x", total, lambda: 0, io.StringIO(), verbose=True).text(done, seconds) == per_cent.text(
        100 * done // total, seconds
    )


def test_public_numbers_are_printed_with_their_rate():
    said = watched(io.StringIO(), [0, 2], public=True, unit="rows")
    assert re.search(r"embedding:  50%, 2 of 4 rows, \d\d:\d\d, \d\d:\d\d left, .+rows/s", said)


def test_what_an_earlier_run_had_done_is_no_speed():
    """Half of it was done before: a quarter in a minute leaves a minute."""
    step = Progress("embedding", 4, lambda: 0, io.StringIO())
    step._before = 2
    assert step.text(3, 60) == "embedding:  75%, 01:00, 01:00 left, 0.42%/s"


def test_a_step_waits_for_another():
    stream, ready = io.StringIO(), []
    with Progress("fit", 2, lambda: 1, stream, ready=lambda: bool(ready)):
        threading.Event().wait(0.2)
        assert not stream.getvalue()
        ready.append(1)
        wait_for(stream, "50%")


def test_quiet():
    logger = logging.getLogger("dpgmm")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        stream = Terminal()
        with Progress("embedding", 4, lambda: 2, stream):
            threading.Event().wait(0.1)
        with pytest.raises(ZeroDivisionError), Steps("rows", 2, "rows", stream):
            raise ZeroDivisionError
        assert stream.getvalue() == ""
    finally:
        logger.setLevel(before)


def test_steps_of_this_process():
    stream = Terminal()
    with Steps("training on cpu", 3, "epochs", stream) as steps:
        wait_for(stream, "0 of 3 epochs")
        steps.add(detail="loss {0.5}")
        wait_for(stream, "1 of 3 epochs")
        assert "loss {0.5}" in stream.getvalue()
        steps.add(2, "loss 0.4")
        wait_for(stream, "3 of 3 epochs")
    assert re.search(r"3 of 3 epochs, \d\d:\d\d, loss 0.4 *\n$", stream.getvalue())


def test_a_terminal_has_one_line():
    said = watched(Terminal(), [0, 1])
    assert said.startswith("\rembedding:   0% |   ")
    assert said.count("\n") == 1
    assert re.search(r"\rembedding: 100% \|█+\| \d\d:\d\d *\n$", said)


def test_a_shorter_line_covers_a_longer_one():
    stream = Terminal()
    line = progress._Line(stream)
    line.write("four and more", last=False)
    line.write("four", last=True)
    assert stream.getvalue() == "\rfour and more\rfour         \n"


def test_a_finished_step_leaves_its_line_to_the_next():
    stream = Terminal()
    with Progress("embedding", 4, lambda: 4, stream) as step:
        wait_for(stream, "\n")
        assert step.ended
    assert stream.getvalue().count("embedding") == 1


def test_a_listing_that_fails_now_and_then_fails_nothing():
    said = watched(io.StringIO(), [0, OSError("busy"), 2])
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


def leave(folder, number):
    (folder / f"state-{number:02d}.npz").touch()


def wait_for(stream, line):
    end = time.monotonic() + PATIENCE
    while line not in stream.getvalue():
        assert time.monotonic() < end, stream.getvalue()[-500:]
        threading.Event().wait(0.01)


def test_stages_have_one_line(tmp_path):
    """By the files that they leave; it names the stage that runs."""
    stream = Terminal()
    with StageWatch(lambda: list(tmp_path.glob("state-*.npz")), NAMES, stream):
        wait_for(stream, "0 of 4 stages")
        leave(tmp_path, 1)
        wait_for(stream, "1 of 4 stages")
        leave(tmp_path, 2)
        leave(tmp_path, 3)
        wait_for(stream, "3 of 4 stages")
        wait_for(stream, ", teacher 2")
        for path in tmp_path.iterdir():
            path.unlink()
    assert stream.getvalue().count("\n") == 1
    assert re.search(r"\rfit: 100% \|█+\| 4 of 4 stages, \d\d:\d\d *\n$", stream.getvalue())


def test_stages_of_a_job_that_fails(tmp_path):
    def fail():
        leave(tmp_path, 1)
        wait_for(stream, "1 of 4 stages")
        raise ZeroDivisionError

    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError), StageWatch(lambda: list(tmp_path.iterdir()), NAMES, stream):
        fail()
    assert "4 of 4" not in stream.getvalue()


def test_a_folder_that_cannot_be_listed():
    stream = io.StringIO()
    with StageWatch(lambda: 1 / 0, NAMES, stream):
        pass
    assert without_times(stream.getvalue()).splitlines() == ["fit: 100%, 4 of 4 stages, "]
