"""A real release on a Flink cluster, its bytes compared with the mathematics alone.

Runs where DPGMM_FLINK_MASTER is set:

- DPGMM_FLINK_MASTER: HOST:PORT of the JobManager's REST address.
- DPGMM_FLINK_JOB_SERVER_JAR: the job server's jar; left out, Beam fetches it from Maven.
- DPGMM_FLINK_VERSION: of the cluster, for the jar from Maven; default 1.20 (Beam's own
  default is a later one).
- DPGMM_FLINK_ENVIRONMENT: HOST:PORT of the worker pools as TaskManagers see it;
  default localhost:50000.
- DPGMM_FLINK_SHARED_DIR: a folder that the driver and the workers share; default /tmp.
- DPGMM_FLINK_KILL: a command that kills a TaskManager (and sees to a new one); it is
  run again and again while a second release is under way.
- DPGMM_FLINK_ROUNDS: stages of the largest release, 24 by default.
- DPGMM_FLINK_PARALLELISM: comma-separated; default 1,2,4.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from dpgmm_beam.config import Method
from tests import small

MASTER = os.environ.get("DPGMM_FLINK_MASTER")
pytestmark = pytest.mark.skipif(not MASTER, reason="needs a Flink cluster, named by DPGMM_FLINK_MASTER")

ROUNDS = int(os.environ.get("DPGMM_FLINK_ROUNDS", "24"))
PARALLELISM = os.environ.get("DPGMM_FLINK_PARALLELISM", "1,2,4").split(",")


@pytest.fixture(scope="module")
def shared():
    folder = Path(tempfile.mkdtemp(prefix="dpgmm-", dir=os.environ.get("DPGMM_FLINK_SHARED_DIR", "/tmp")))
    # Workers may run as another user: nothing here is anybody's.
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def config(rounds: int):
    """As many stages as asked for: four, and steps of the teacher."""
    return small.small_config(
        samples_per_class=6000, method=Method(teacher_steps=max(1, rounds - 4), reduced=8)
    )


@pytest.fixture(scope="module")
def made(shared):
    source = small.write_rows(shared / "in", small.table(4000), files=8, row_group=100)
    key = small.write_key(shared / "key")
    os.chmod(key, 0o644)
    return source, key


def flink(parallelism) -> list[str]:
    options = [
        "--runner=FlinkRunner",
        f"--flink_master={MASTER}",
        f"--flink_version={os.environ.get('DPGMM_FLINK_VERSION', '1.20')}",
        "--environment_type=EXTERNAL",
        f"--environment_config={os.environ.get('DPGMM_FLINK_ENVIRONMENT', 'localhost:50000')}",
        "--environment_cache_millis=120000",
        f"--parallelism={parallelism}",
    ]
    jar = os.environ.get("DPGMM_FLINK_JOB_SERVER_JAR")
    return [*options, f"--flink_job_server_jar={jar}"] if jar else options


def run(made, shared, name, parallelism, rounds):
    """A release into a folder of its own, open to whichever user the workers run as."""
    results = shared / name
    results.mkdir()
    results.chmod(0o777)
    source, key = made
    files = small.run(source, results / "release", key, *flink(parallelism), config=config(rounds))
    assert [each for each in os.listdir(results) if not each.startswith(".")] == ["release"]
    return files


@pytest.mark.parametrize("parallelism", PARALLELISM)
def test_the_same_bytes(made, shared, parallelism):
    files = run(made, shared, f"slots-{parallelism}", parallelism, rounds=6)
    assert files == small.in_memory(made[0], config(6))


def test_many_rounds(made, shared):
    files = run(made, shared, "rounds", PARALLELISM[-1], ROUNDS)
    assert files == small.in_memory(made[0], config(ROUNDS))


@contextlib.contextmanager
def killing(command: str):
    """Runs a command now and again until the block is left; yields the number of runs."""
    over, runs = threading.Event(), []

    def kill():
        while not over.wait(8):
            runs.append(subprocess.run(command, shell=True, check=False).returncode)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield runs
    finally:
        over.set()
        thread.join()


@pytest.mark.skipif(
    "DPGMM_FLINK_KILL" not in os.environ, reason="needs DPGMM_FLINK_KILL, which kills workers"
)
def test_the_same_bytes_while_task_managers_are_killed(made, shared):
    with killing(os.environ["DPGMM_FLINK_KILL"]) as runs:
        files = run(made, shared, "killed", PARALLELISM[-1], ROUNDS)
    assert runs
    assert files == small.in_memory(made[0], config(ROUNDS))
