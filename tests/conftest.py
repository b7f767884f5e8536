"""What holds for every test."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# No example has a time to keep, and all are the same on every run.
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

# Threads that wait for each other in small products spin, and take the time of the processes that
# want the same cores: a test of the fit took six times as long.  Tests of threads ask for theirs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_configure():
    """Signals as a terminal's command has them, for the processes that tests start.

    A script's background command ignores SIGINT and SIGQUIT, and so does all that it starts:
    tests that end processes by them would wait for minutes, and fail.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """Files are not forced to the disk, which takes 7 ms each: tests kill processes, none takes the power.

    That it is asked for at the right moment is seen in tests/transforms/files: test_write.py, test_gate.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
