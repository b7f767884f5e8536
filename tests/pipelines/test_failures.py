"""Kills and broken disks, for real: nothing half-visible, and the same bytes when run again."""

import contextlib
import io
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dpgmm_beam.plan import Plan
from tests import small
from tests.pipelines.processes import (
    PATIENCE,
    driver,
    kill,
    needs_prism,
    pool,
    portable,
    server,
    wait_until,
    watched,
)

SAMPLES = 9000
SHARDS = 4
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


def config():
    return small.small_config(samples_per_class=SAMPLES, encoder=ENCODER, dimension=6)


@pytest.fixture
def images(tmp_path):
    """Parquet files of images, each a shard of its own."""
    (tmp_path / "images").mkdir()
    for number in range(SHARDS):
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


def fit_states(folder: Path) -> dict[str, tuple[int, int]]:
    """The states of the run, by path."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.glob("private/runs/*/*/state-*.npz")
    }


# In the order of a run, as `stopping` sees them.  A stage's progress line comes
# when its noise is drawn and nothing has left the worker yet.
POINTS = {
    "embedding": r"rename to shard-.* beside [1-9]",
    "listing": r"link to input\.json",
    "preparing": r"rename to piece-00000\.npy beside 0",
    "the first statistic": "fit: stage 1 of",
    "the first state": r"link to state-001\.npz",
    "the second moment": r"fit: stage \d of \d done \(moment",
    "a view": r"rename to piece-00000\.npy beside 0",
    "a teacher's state": r"link to state-004\.npz",
    "a middle round": r"fit: stage \d of \d done \(sketch",
    "writing": r"rename to part-.* beside [1-9]",
    "publication": "rename to release beside 0",
}


@contextlib.contextmanager
def attempt(runner, arguments, folder, stop_at=""):
    """One run of the command by a runner of its own: (driver, the other processes by name)."""
    with contextlib.ExitStack() as stack:
        (folder / "stopped").unlink(missing_ok=True)
        environment = watched(stop_at, folder / "stopped")
        options, others = [], {}
        if runner == "prism":
            (job, prism), (worker, workers) = server(), pool(folder, environment=environment)
            others = {"prism": stack.enter_context(prism), "pool": stack.enter_context(workers)}
            options = portable(job, worker)
        log = folder / "log"
        yield stack.enter_context(driver(*arguments, *options, log=log, environment=environment)), others


def stopped(folder: Path) -> int:
    """The process that stopped itself, or 0."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        pid = int((folder / "stopped").read_text())
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
            return pid
    return 0


def last_line(folder: Path) -> str:
    """What a driver says last when it fails."""
    last = (folder / "log").read_text().splitlines()[-1]
    assert last.startswith("dpgmm: the job failed and published nothing half-done: ")
    return last


@pytest.mark.parametrize(
    ("runner", "victim"),
    [
        ("in process", "driver"),
        pytest.param("prism", "pool", marks=needs_prism),
        pytest.param("prism", "prism", marks=needs_prism),
    ],
)
def test_killed_in_every_stage(images, key, tmp_path, runner, victim):
    """One command, killed again and again, each time further on; then left alone."""
    cache, results = tmp_path / "private" / "embeddings", tmp_path / "results"
    results.mkdir()
    arguments = [images, results / "release", key, "--encoder", ENCODER, "--dimension", 6]
    arguments += ["--samples", SAMPLES, "--private-dir", tmp_path / "private"]
    done: dict[str, tuple[int, int]] = {}
    drawn: dict[str, tuple[int, int]] = {}
    for name, stop_at in POINTS.items():
        if (victim, name) == ("prism", "the first state"):
            # The worker that Prism left behind has written it.
            continue
        with attempt(runner, arguments, tmp_path, stop_at) as (started, others):
            wait_until(lambda: stopped(tmp_path), started)
            worker = stopped(tmp_path)
            if victim in others:
                kill(others[victim])
            else:
                os.kill(started.pid, signal.SIGKILL)
            assert visible(results) == [], name
            # Whoever is left goes on.
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGCONT)
            # Nothing waits for ever for who is dead.
            assert started.wait(60) == (-signal.SIGKILL if victim == "driver" else 1), name
            assert victim == "driver" or last_line(tmp_path)
        assert states(cache).items() >= done.items(), name
        assert name != "embedding" or 0 < len(states(cache)) < SHARDS
        done = states(cache)
        # What is drawn is drawn: no attempt writes a state that is there.
        assert fit_states(tmp_path).items() >= drawn.items(), name
        drawn = fit_states(tmp_path)
        if visible(results):
            # The worker that Prism left behind; it was about to publish.
            assert (victim, name) == ("prism", "publication")
            assert small.contents(results / "release") == small.in_memory(cache, config())
    # All stages were done when the last attempts were killed.
    assert len(drawn) == 1 + len(Plan(config(), small.RELEASE_ID).stages)
    with attempt(runner, arguments, tmp_path) as (started, _):
        assert started.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    assert "fit: stage" not in (tmp_path / "log").read_text()
    assert fit_states(tmp_path) == drawn
    assert os.listdir(results) == ["release"]
    assert states(cache) == done
    assert len(done) == SHARDS
    assert small.contents(results / "release") == small.in_memory(cache, config())


@contextlib.contextmanager
def failing(folder, *arguments, stop_at=""):
    """A run that must fail, stopped where `stop_at` matches: (driver, what it says last, once it ended)."""
    said: list[str] = []
    own = ["--private-dir", folder / "private"]
    with attempt("in process", [*arguments, *own], folder, stop_at) as (started, _):
        if stop_at:
            wait_until(lambda: stopped(folder), started)
        yield started, said
        if stop_at:
            os.kill(started.pid, signal.SIGCONT)
        assert started.wait(PATIENCE) == 1, (folder / "log").read_text()
    assert "Traceback" not in (folder / "log").read_text()
    said.append(last_line(folder))


BIG = ["--samples", SAMPLES]
FIRST = POINTS["the first statistic"]


def same_again(rows, output, key, **changes):
    """The same command, left alone."""
    changed = small.small_config(**changes)
    assert small.run(rows, output, key, config=changed) == small.in_memory(rows, changed)
    assert os.listdir(output.parent) == ["release"]


def test_files_that_cannot_grow(rows, key, tmp_path):
    output = tmp_path / "results" / "release"
    output.parent.mkdir()
    # 9,000 rows a class make files of half a megabyte.
    with failing(tmp_path, rows, output, key, *BIG, stop_at=FIRST) as (started, said):
        resource.prlimit(started.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    assert "File too large" in said[0]
    assert visible(output.parent) == []
    same_again(rows, output, key, samples_per_class=SAMPLES)


@pytest.fixture
def disk(tmp_path):
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def test_a_full_disk(rows, key, disk, tmp_path):
    remount(disk, "size=700k")
    with failing(tmp_path, rows, disk / "release", key, *BIG) as (_, said):
        pass
    assert "No space left on device" in said[0]
    assert visible(disk) == []
    remount(disk, "size=50m")
    same_again(rows, disk / "release", key, samples_per_class=SAMPLES)


@pytest.mark.parametrize("point", ["the first statistic", "writing", "publication"])
def test_the_output_turns_read_only(rows, key, disk, tmp_path, point):
    """For root, too: the file system itself."""
    output = disk / "release"
    with failing(tmp_path, rows, output, key, *BIG, stop_at=POINTS[point]) as (_, said):
        remount(disk, "ro")
    assert "Read-only file system" in said[0]
    assert str(disk) in said[0]
    assert visible(disk) == []
    remount(disk, "rw")
    same_again(rows, output, key, samples_per_class=SAMPLES)


def test_something_appears_where_the_release_goes(rows, key, tmp_path):
    output = tmp_path / "results" / "release"
    output.parent.mkdir()
    with failing(tmp_path, rows, output, key, stop_at=FIRST) as (_, said):
        output.write_text("in the way")
    assert "Not a directory" in said[0]
    assert output.read_text() == "in the way"
    assert visible(output.parent) == ["release"]


def test_an_input_file_that_vanishes_before_it_is_read(rows, key, tmp_path):
    output = tmp_path / "results" / "release"
    with failing(tmp_path, rows, output, key, stop_at=POINTS["listing"]) as (_, said):
        (rows / "rows-1.parquet").rename(tmp_path / "away")
    assert "FileNotFoundError" in said[0]
    assert "rows-1.parquet" in said[0]
    assert visible(output.parent) == []
    (tmp_path / "away").rename(rows / "rows-1.parquet")
    same_again(rows, output, key)


def test_an_input_file_that_changes_while_rows_are_prepared(rows, key, tmp_path):
    """Two states of the data are never mixed: not in this run, and not in the one that goes on."""
    output = tmp_path / "results" / "release"
    other = small.write_rows(tmp_path / "other", small.table(seed=1))
    with failing(tmp_path, rows, output, key, stop_at=POINTS["listing"]) as (_, said):
        (other / "rows-1.parquet").rename(rows / "rows-1.parquet")
    assert "rows-1.parquet has changed while the job ran; run it again" in said[0]
    assert visible(output.parent) == []
    assert not list(tmp_path.glob("private/rows/*/piece-*.npy"))
    with attempt("in process", [rows, output, key, "--private-dir", tmp_path / "private"], tmp_path) as (
        started,
        _,
    ):
        assert started.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    assert small.contents(output) == small.in_memory(rows)


def test_data_that_changed_after_a_kill_begin_anew(rows, key, tmp_path):
    output = tmp_path / "results" / "release"
    arguments = [rows, output, key, "--private-dir", tmp_path / "private"]
    with attempt("in process", arguments, tmp_path, POINTS["a middle round"]) as (started, _):
        wait_until(lambda: stopped(tmp_path), started)
        kill(started)
    before = fit_states(tmp_path)
    other = small.write_rows(tmp_path / "other", small.table(seed=1))
    (other / "rows-1.parquet").rename(rows / "rows-1.parquet")
    with attempt("in process", arguments, tmp_path) as (started, _):
        assert started.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    assert "fit: stage 1 of" in (tmp_path / "log").read_text()
    assert small.contents(output) == small.in_memory(rows)
    assert fit_states(tmp_path).items() > before.items()


def test_an_input_that_vanishes_once_it_is_prepared(rows, key, tmp_path):
    """It is read once."""
    output, expected = tmp_path / "results" / "release", small.in_memory(rows)
    arguments = [rows, output, key, "--private-dir", tmp_path / "private"]
    with attempt("in process", arguments, tmp_path, FIRST) as (started, _):
        wait_until(lambda: stopped(tmp_path), started)
        shutil.rmtree(rows)
        os.kill(started.pid, signal.SIGCONT)
        assert started.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    assert small.contents(output) == expected
