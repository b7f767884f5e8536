"""Processes that tests start, watch and kill."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import small

needs_prism = pytest.mark.skipif(
    not os.access(small.PRISM, os.X_OK), reason=f"needs Beam's local runner at {small.PRISM}"
)
PATIENCE = 300


@contextlib.contextmanager
def process(*command, port=None, log=subprocess.DEVNULL, **options):
    """A process of its own group, ended with all that it started."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    started = subprocess.Popen(
        [str(part) for part in command],
        cwd=small.REPOSITORY,
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
        stdout=log,
        stderr=log,
        **options,
    )
    try:
        if port is not None:
            wait_until(lambda: listens(port), started)
        yield started
    finally:
        kill(started)


def kill(started) -> None:
    """SIGKILL to a process and to all of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def wait_until(happened, started) -> None:
    """Waits for an event of a process that must be alive for it to happen."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert started.poll() is None, f"it ended with {started.returncode}"
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
        return True
    return False


def pool(folder: Path):
    """A worker pool, in a working folder of its own: its port, and the process to enter."""
    port = free_port()
    command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", "--service_port", port]
    return port, process("env", "-C", folder, *command, port=port)


def server():
    """Prism as a server: its port, and the process to enter."""
    port = free_port()
    return port, process(small.PRISM, "-job_port", port, "-serve_http=false", port=port)


def portable(job: int, worker: int) -> list[str]:
    return [
        "--runner=PortableRunner",
        f"--job_endpoint=localhost:{job}",
        "--environment_type=EXTERNAL",
        f"--environment_config=localhost:{worker}",
    ]


def driver(*arguments, **options):
    """A process that runs `tests.small`'s release."""
    return process(sys.executable, "-m", "tests.small", *arguments, **options)
