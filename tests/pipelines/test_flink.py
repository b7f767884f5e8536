"""Releases of default options on a Flink cluster, their bytes compared with the mathematics alone.

Runs where DPGMM_FLINK_MASTER is set.  The cluster must have one worker pool for
each TaskManager, that only this TaskManager asks: workers of a pool that several
share are lost to all of them when one of them is killed.

- DPGMM_FLINK_MASTER: HOST:PORT of the JobManager's REST address.
- DPGMM_FLINK_JOB_SERVER_JAR: the job server's jar; left out, Beam fetches it from Maven.
- DPGMM_FLINK_VERSION: of the cluster, for the jar from Maven; default 1.20 (Beam's own
  default is a later one).
- DPGMM_FLINK_ENVIRONMENT: HOST:PORT of its worker pool as each TaskManager sees it;
  default localhost:50000.
- DPGMM_FLINK_SHARED_DIR: a folder that the driver and the workers share; default /tmp.
- DPGMM_FLINK_KILL: a command that kills a TaskManager (and sees to a new one); it is
  run while releases are under way.
- DPGMM_FLINK_ROWS: of the input; default 20000.
- DPGMM_FLINK_PARALLELISM: comma-separated; default 1,2,4.
- DPGMM_FLINK_SECONDS: how long one release may take; default 900.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from dpgmm_beam.fit.plan import Plan
from pipelines import flink
from tests import small
from tests.pipelines.processes import driver

MASTER = os.environ.get("DPGMM_FLINK_MASTER", "")
pytestmark = pytest.mark.skipif(not MASTER, reason="needs a Flink cluster, named by DPGMM_FLINK_MASTER")

KILL = os.environ.get("DPGMM_FLINK_KILL", "")
ROWS, DIMENSION = int(os.environ.get("DPGMM_FLINK_ROWS", "20000")), 128
PARALLELISM = os.environ.get("DPGMM_FLINK_PARALLELISM", "1,2,4").split(",")
SECONDS = float(os.environ.get("DPGMM_FLINK_SECONDS", "900"))
# A TaskManager that was killed is back after so long, or never.
BACK_SECONDS = 180
# A driver that is asked to end has cancelled its job after so long.
CANCEL_SECONDS = 60
KILL_SECONDS = 60


@pytest.fixture(scope="module")
def shared():
    folder = Path(tempfile.mkdtemp(prefix="dpgmm-", dir=os.environ.get("DPGMM_FLINK_SHARED_DIR", "/tmp")))
    # Workers may run as another user: nothing here is anybody's.
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def made(shared):
    """(rows, key file, the release's bytes by the mathematics alone)."""
    source = small.write_rows(shared / "in", small.table(ROWS, DIMENSION), files=8, row_group=500)
    key = small.write_key(shared / "key")
    os.chmod(key, 0o644)
    config = small.default_config(DIMENSION)
    assert len(Plan(config, small.RELEASE_ID).stages) == 35
    return source, key, small.in_memory(source, config)


def options(parallelism) -> list[str]:
    found = [
        "--runner=FlinkRunner",
        f"--flink_master={MASTER}",
        f"--flink_version={os.environ.get('DPGMM_FLINK_VERSION', '1.20')}",
        "--environment_type=EXTERNAL",
        f"--environment_config={os.environ.get('DPGMM_FLINK_ENVIRONMENT', 'localhost:50000')}",
        f"--parallelism={parallelism}",
    ]
    jar = os.environ.get("DPGMM_FLINK_JOB_SERVER_JAR")
    return [*found, f"--flink_job_server_jar={jar}"] if jar else found


@contextlib.contextmanager
def releasing(made, shared, name, parallelism):
    """A driver process of a release: (the process, a function that waits for it and gives the files)."""
    results = shared / name
    results.mkdir()
    results.chmod(0o777)
    source, key, _ = made
    log = shared / f"{name}.log"
    arguments = [source, results / "release", key, "--defaults", "--dimension", DIMENSION]
    arguments += ["--private-dir", shared / f"{name}-private", *options(parallelism)]

    def files() -> dict[str, bytes]:
        assert started.wait(SECONDS) == 0, log.read_text()[-5000:]
        assert [each for each in os.listdir(results) if not each.startswith(".")] == ["release"]
        return small.contents(results / "release")

    with driver(*arguments, log=log) as started:
        try:
            yield started, files
        finally:
            if started.poll() is None:
                # It cancels its job, which a SIGKILL would leave to the cluster.
                os.kill(started.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    started.wait(CANCEL_SECONDS)


@pytest.mark.parametrize("parallelism", PARALLELISM)
def test_the_same_bytes(made, shared, parallelism):
    with releasing(made, shared, f"slots-{parallelism}", parallelism) as (_, files):
        assert files() == made[2]


def task_managers() -> set[str]:
    with contextlib.suppress(OSError, ValueError):
        return {each["id"] for each in flink.ask(MASTER, "/taskmanagers")["taskmanagers"]}
    return set()


class Killing:
    """Kills TaskManagers while the `with` block runs, the next one when the last is back.

    Args:
      most: how many, at most.
      seconds: between two, at least, and before the first.

    Attributes:
      kills: how many there were.
      failed: what went wrong.
    """

    def __init__(self, most: int, seconds: float):
        self._most, self._seconds = most, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.kills = 0
        self.failed = ""

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(2 * KILL_SECONDS)

    def _run(self):
        while self.kills < self._most and not self._over.wait(self._seconds):
            before = task_managers()
            try:
                subprocess.run(KILL, shell=True, check=True, timeout=KILL_SECONDS)
            except subprocess.SubprocessError as error:
                self.failed = str(error)
                return
            self.kills += 1
            end = time.monotonic() + BACK_SECONDS
            # Its successor has a name of its own.
            while not task_managers() - before and not self._over.wait(1):
                if time.monotonic() > end:
                    self.failed = f"no TaskManager came back within {BACK_SECONDS} seconds"
                    return


@pytest.mark.skipif(not KILL, reason="needs DPGMM_FLINK_KILL, which kills TaskManagers")
@pytest.mark.parametrize(("most", "seconds"), [(1, 20.0), (10_000, 30.0)], ids=["once", "every 30 seconds"])
def test_the_same_bytes_while_task_managers_are_killed(made, shared, most, seconds):
    """It ends: what has a state is not done again, however often the job begins anew."""
    with (
        releasing(made, shared, f"killed-{most}", PARALLELISM[-1]) as (_, files),
        Killing(most, seconds) as killing,
    ):
        assert files() == made[2]
    assert not killing.failed
    assert killing.kills
