"""Processes that tests start, watch and kill."""

import contextlib
import importlib
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

from tests import small
from tests.pipelines import stopping
from transforms import core_dumps

needs_prism = pytest.mark.skipif(
    not os.access(small.PRISM, os.X_OK), reason=f"needs Beam's local runner at {small.PRISM}"
)
PATIENCE = 300
WATCHED = small.REPOSITORY / "tests" / "pipelines" / "watched"

# Whose processes start with all their imports done; see `forked`.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.pipelines.preloaded"])


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
    with _ended(started, port):
        yield started


@contextlib.contextmanager
def _ended(started, port: int | None):
    """Waits until the process listens at its port, if it has one; ends it afterwards."""
    try:
        if port is not None:
            wait_until(lambda: listens(port), started)
        yield
    finally:
        kill(started)


class Forked:
    """A forked process as `subprocess` would show it."""

    def __init__(self, process):
        self._process, self.pid = process, process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("forked", timeout)
        return self.returncode


@contextlib.contextmanager
def forked(module: str, *arguments, log=os.devnull, folder=small.REPOSITORY, port=None, environment=()):
    """As `process`, for `main` of a module: a process of its own, without the seconds of its imports."""
    environment = {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}", **dict(environment)}
    process = _FORKS.Process(
        target=_forked, args=(module, [str(part) for part in arguments], str(log), str(folder), environment)
    )
    process.start()
    started = Forked(process)
    with _ended(started, port):
        yield started


def _forked(module: str, arguments: list[str], log: str, folder: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    # Else the kernel shows its sockets to nobody but root.
    core_dumps._make_undumpable = lambda: None
    stopping.watch()
    sys.exit(importlib.import_module(module).main(arguments))


def exit_code(work, *arguments) -> int | None:
    """How a process ends that does `work`, which may kill it."""
    process = _FORKS.Process(target=work, args=arguments)
    process.start()
    process.join(PATIENCE)
    ended = process.exitcode
    process.kill()
    return ended


def kill(started) -> None:
    """SIGKILL to a process and to all of its group, if it has come so far as to have one."""
    try:
        os.killpg(started.pid, signal.SIGKILL)
    except ProcessLookupError:
        if started.poll() is None:
            os.kill(started.pid, signal.SIGKILL)
    started.wait(PATIENCE)


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


def pool(folder: Path, **options):
    """A worker pool, in a working folder of its own: its port, and the process to enter."""
    port = free_port()
    module = "apache_beam.runners.worker.worker_pool_main"
    return port, forked(module, "--service_port", port, folder=folder, port=port, **options)


def server():
    """Prism as a server: its port, and the process to enter."""
    port = free_port()
    return port, process(small.PRISM, "-job_port", port, "-serve_http=false", port=port)


def job_states(prism) -> list[str]:
    """What Prism, a process of `server`, says of its jobs."""
    address = f"localhost:{prism.args[prism.args.index('-job_port') + 1]}"
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        told = service.GetJobs(beam_job_api_pb2.GetJobsRequest(), timeout=PATIENCE)
    return [beam_job_api_pb2.JobState.Enum.Name(job.state) for job in told.job_info]


def portable(job: int, worker: int) -> list[str]:
    return [
        "--runner=PortableRunner",
        f"--job_endpoint=localhost:{job}",
        "--environment_type=EXTERNAL",
        f"--environment_config=localhost:{worker}",
    ]


def driver(*arguments, **options):
    """A process that runs `tests.small`'s release."""
    return forked("tests.small", *arguments, **options)


def watched(folder: Path, stop_at: str = "") -> dict[str, str]:
    """The environment of a job whose processes stop themselves where `stop_at` matches; see `stopping`.

    It also brings the encoder "blocks" to workers, as an entry point does.

    Args:
      folder: gets the files "stopped" and "reached", new ones.
    """
    for name in ("stopped", "reached"):
        (folder / name).unlink(missing_ok=True)
    path = f"{WATCHED}:{small.REPOSITORY}"
    return {
        "PYTHONPATH": path,
        "STOP_AT": stop_at,
        "STOPPED": str(folder / "stopped"),
        "REACHED": str(folder / "reached"),
    }


def stopped(folder: Path) -> int:
    """The process that stopped itself, or 0."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        pid = int((folder / "stopped").read_text())
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
            return pid
    return 0


def drawn(folder: Path) -> list[int]:
    """Numbers of the stages whose noise was drawn, as processes said."""
    with contextlib.suppress(FileNotFoundError):
        return [
            int(number) for number in re.findall("fit: stage ([0-9]+) of", (folder / "reached").read_text())
        ]
    return []
