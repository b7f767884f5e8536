"""Kills and broken disks, for real: nothing half-visible, and the same bytes when run again."""

import contextlib
import fcntl
import io
import os
import resource
import signal
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dpgmm_beam.config import Method
from dpgmm_beam.plan import Plan
from tests import small
from tests.pipelines.processes import driver, kill, needs_prism, pool, portable, server, wait_until

STEPS = 4
SAMPLES = 9000
ENCODER = "blocks"


@pytest.fixture
def rows(tmp_path):
    return small.write_rows(tmp_path / "in", small.table())


@pytest.fixture
def key(tmp_path):
    return small.write_key(tmp_path / "key")


def visible(folder: Path) -> list[str]:
    """Names that somebody who looks for a release sees."""
    return [name for name in os.listdir(folder) if not name.startswith(".")] if folder.exists() else []


def config(**changes):
    method = Method(teacher_steps=STEPS, reduced=8)
    return small.small_config(samples_per_class=SAMPLES, method=method, **changes)


@pytest.fixture
def images(tmp_path):
    """Eight Parquet files of images, each a shard of its own."""
    (tmp_path / "images").mkdir()
    for number in range(8):
        generator = np.random.default_rng(number)
        encoded = []
        for _ in range(40):
            file = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "PNG")
            encoded.append(file.getvalue())
        labels = [small.CLASSES[i] for i in generator.integers(0, 3, 40)]
        pq.write_table(
            pa.table({"image": encoded, "label": labels}), tmp_path / "images" / f"{number}.parquet"
        )
    return tmp_path / "images"


def states(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.parquet")}


def test_the_driver_is_killed_in_every_stage(images, key, tmp_path):
    """One command, killed again and again, each time further on; then left alone."""
    cache, results, log = tmp_path / "private" / "embeddings", tmp_path / "results", tmp_path / "log"
    results.mkdir()
    output = results / "release"
    parts = 4
    expected_config = config(encoder=ENCODER, dimension=6)
    last = len(Plan(expected_config, "id").stages)

    def says(text):
        return lambda: text in log.read_text()

    def staged():
        found = {path.name for path in results.glob(".release*/**/*.parquet")}
        return len(found) == parts + 2

    points = {
        "embedding": lambda: states(cache),
        "the first statistic": says(f"fit: stage 1 of {last} done"),
        "a middle step": says(f"fit: stage 5 of {last} done"),
        "sampling": says(f"fit: stage {last} of {last} done"),
        "writing": says("synthetic rows: part 1 of"),
        "publication": staged,
    }
    arguments = [images, output, key, "--encoder", ENCODER, "--dimension", 6, "--steps", STEPS]
    arguments += ["--samples", SAMPLES, "--private-dir", tmp_path / "private"]
    done: dict[str, tuple[int, int]] = {}
    # Whoever holds this lock is publishing: until it is free the driver waits.
    publishing = os.open(results, os.O_RDONLY)
    fcntl.flock(publishing, fcntl.LOCK_EX)
    for name, reached in points.items():
        with open(log, "w") as file, driver(*arguments, log=file) as started:
            wait_until(reached, started)
            kill(started)
            assert started.returncode == -signal.SIGKILL, name
        assert visible(results) == [], name
        assert states(cache).items() >= done.items(), name
        done = states(cache)
        assert 0 < len(done) <= 8
    os.close(publishing)
    with open(log, "w") as file, driver(*arguments, log=file) as started:
        assert started.wait() == 0, log.read_text()
    assert os.listdir(results) == ["release"]
    assert states(cache) == done
    assert len(done) == 8
    assert small.contents(output) == small.in_memory(cache, expected_config)


@pytest.fixture
def blocking(tmp_path):
    """A key file whose readers wait for ever."""
    path = tmp_path / "blocking"
    os.mkfifo(path)
    # With a writer that writes nothing, a reader neither fails nor ends.
    writer = os.open(path, os.O_RDWR)
    yield path
    os.close(writer)


def has_reader(fifo: Path) -> bool:
    """Whether another process has opened the key: a worker at its first statistic."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == str(fifo) and link.parts[2] != str(os.getpid()):
                return True
    return False


def children(pid: int) -> list[int]:
    """All processes below a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == pid:
                child = int(stat.parent.name)
                found += [child, *children(child)]
    return found


def ends_badly_or_is_ended(started) -> None:
    """A runner that lost a worker may fail, or wait for ever: then its user ends it."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        assert started.wait(8) != 0
    kill(started)


def test_a_worker_process_is_killed(rows, key, blocking, tmp_path):
    output = tmp_path / "results" / "release"
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    with driver(rows, output, blocking, *options) as started:
        wait_until(lambda: has_reader(blocking), started)
        workers = children(started.pid)
        assert len(workers) >= 2
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        ends_badly_or_is_ended(started)
    assert visible(output.parent) == []
    assert small.run(rows, output, key) == small.in_memory(rows)


@needs_prism
@pytest.mark.parametrize("victim", ["pool", "prism"])
def test_the_pool_or_prism_is_killed(rows, key, blocking, tmp_path, victim):
    output = tmp_path / "results" / "release"
    log = tmp_path / "log"
    (job, prism), (worker, workers) = server(), pool(tmp_path)
    with (
        open(log, "w") as file,
        prism as prism_,
        workers as workers_,
        driver(rows, output, blocking, *portable(job, worker), log=file) as started,
    ):
        wait_until(lambda: has_reader(blocking), started)
        kill({"pool": workers_, "prism": prism_}[victim])
        ends_badly_or_is_ended(started)
    assert visible(output.parent) == []
    assert small.run(rows, output, key) == small.in_memory(rows)


def failed(*arguments, **options) -> str:
    """The last line that a driver says when it fails, which it must."""
    log = Path(str(arguments[1]) + ".log")
    with open(log, "w") as file, driver(*arguments, log=file, **options) as started:
        assert started.wait() == 1, log.read_text()
    text = log.read_text()
    log.unlink()
    last = text.splitlines()[-1]
    assert last.startswith("dpgmm: the job failed and published nothing: ")
    return last


def limit_files():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_files_that_cannot_grow(rows, key, tmp_path):
    output = tmp_path / "results" / "release"
    output.parent.mkdir()
    # 9,000 rows a class make files of half a megabyte.
    last = failed(rows, output, key, "--samples", SAMPLES, preexec_fn=limit_files)
    assert "File too large" in last
    assert visible(output.parent) == []
    changed = small.small_config(samples_per_class=SAMPLES)
    assert small.run(rows, output, key, config=changed) == small.in_memory(rows, changed)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk(rows, key, small_disk):
    last = failed(rows, small_disk / "release", key, "--samples", SAMPLES)
    assert "No space left on device" in last
    assert visible(small_disk) == []
    # With room again, the same command ends well.
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    changed = small.small_config(samples_per_class=SAMPLES)
    assert small.run(rows, small_disk / "release", key, config=changed) == small.in_memory(rows, changed)


def test_something_appears_where_the_release_goes(rows, key, tmp_path):
    """A stand-in for a folder that turns read-only, which root could still write."""
    output, log = tmp_path / "results" / "release", tmp_path / "log"
    with open(log, "w") as file, driver(rows, output, key, "--steps", STEPS, log=file) as started:
        wait_until(lambda: "fit: stage 1 of" in log.read_text(), started)
        output.parent.mkdir(exist_ok=True)
        output.write_text("in the way")
        assert started.wait() == 1
    last = log.read_text().splitlines()[-1]
    assert last.startswith("dpgmm: the job failed and published nothing: ")
    assert "Not a directory" in last
    assert output.read_text() == "in the way"
    assert visible(output.parent) == ["release"]


def test_an_input_file_that_vanishes_between_the_rounds(rows, key, tmp_path):
    output, log = tmp_path / "results" / "release", tmp_path / "log"
    with open(log, "w") as file, driver(rows, output, key, "--steps", 10, log=file) as started:
        wait_until(lambda: "fit: stage 1 of" in log.read_text(), started)
        (rows / "rows-1.parquet").rename(tmp_path / "away")
        assert started.wait() == 1, log.read_text()
    last = log.read_text().splitlines()[-1]
    assert "FileNotFoundError" in last
    assert "rows-1.parquet" in last
    assert visible(output.parent) == []
