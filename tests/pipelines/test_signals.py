"""What signals do, to real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import bounded
from pipelines.signals import Interrupted, published

REPOSITORY = Path(__file__).parents[2]


PROGRAM = """
import atexit, hashlib, os, sys, threading, time
from pipelines import cli, signals

def said(text):
    os.write(1, text.encode() + b"\\n")

def stuck(arguments):
    # A thread that never ends, and one that is no daemon.
    threading.Thread(target=time.sleep, args=(600,)).start()
    atexit.register(said, "exit handler")
    try:
        said("ready")
        time.sleep(600)
    finally:
        said("cleaned up")

def busy(arguments):
    # One step of the interpreter, in which no handler is run; a network's is such a one.
    said("ready")
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

def slow_end(arguments):
    atexit.register(time.sleep, 600)
    said("ready")
    time.sleep(600)

def slow_cleaning(arguments):
    try:
        said("ready")
        time.sleep(600)
    except signals.Interrupted as error:
        error.allow(600)
        said("cleaning")
        time.sleep(600)

def done(arguments):
    with signals.published("released to DIR"):
        said("ready")
        time.sleep(600)

sys.exit(cli.run(globals()[sys.argv[1]], []))
"""


def start(name, *before):
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    started = subprocess.Popen(
        [*before, sys.executable, "-c", PROGRAM, name],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout.readline() == "ready\n"
    return started


def ended(started):
    """(exit status, the rest of what it printed, its errors)."""
    try:
        out, err = started.communicate(timeout=60)
    finally:
        started.kill()
    return started.returncode, out, err


LINE = "dpgmm: interrupted; nothing half-done was published\n"


STATUSES = [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGQUIT", 131), ("SIGXCPU", 152)]


@pytest.mark.parametrize(("number", "status"), STATUSES)
def test_it_cleans_up_and_ends_whatever_still_runs(number, status):
    started = start("stuck")
    started.send_signal(signal.Signals[number])
    assert ended(started) == (status, "cleaned up\nexit handler\n", LINE)


@pytest.mark.parametrize("name", ["busy", "slow_end"])
def test_it_ends_where_no_handler_or_exit_handler_would(name):
    started = start(name)
    started.send_signal(signal.SIGTERM)
    assert ended(started) == (143, "", LINE)


def test_a_second_signal_ends_it_at_once():
    started = start("slow_cleaning")
    started.send_signal(signal.SIGTERM)
    assert started.stdout.readline() == "cleaning\n"
    started.send_signal(signal.SIGINT)
    assert ended(started) == (130, "", "")


def test_what_was_published_is_said():
    started = start("done")
    started.send_signal(signal.SIGINT)
    assert ended(started) == (130, "", "dpgmm: interrupted; released to DIR\n")


def test_a_hangup_that_was_ignored_stays_ignored():
    started = start("stuck", "sh", "-c", "trap '' HUP; exec \"$@\"", "sh")
    started.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert started.poll() is None
    started.send_signal(signal.SIGTERM)
    assert ended(started)[0] == 143


def test_what_an_interruption_says():
    error = Interrupted(signal.SIGTERM)
    assert (error.status, str(error)) == (143, "interrupted; nothing half-done was published")
    error.running = "job 7 may go on"
    assert str(error) == "interrupted; job 7 may go on"
    with pytest.raises(Interrupted) as raised, published("released to A"), published("released to B"):
        raise error
    assert str(raised.value) == "interrupted; released to B"


def test_a_call_with_a_bound():
    assert bounded.within(60, lambda: 7) == 7
    assert bounded.within(60, lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        bounded.within(60, lambda: 1 / 0)
    with pytest.raises(TimeoutError, match=r"within 0\.01 seconds"):
        bounded.within(0.01, lambda: time.sleep(60))
