"""Kills and broken disks, for real: nothing half-visible, and the same bytes when run again.

What a run has done before it is killed stays as it is: cache files, prepared
rows and states are the very files that they were, and noise that is in a state
is not drawn again.
"""

import contextlib
import io
import itertools
import os
import resource
import signal
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests import small
from tests.pipelines.processes import (
    PATIENCE,
    drawn,
    driver,
    job_states,
    kill,
    needs_prism,
    pool,
    portable,
    server,
    stopped,
    wait_until,
    watched,
)
from transforms.files import listing

SAMPLES = 9000
SHARDS = 4
STAGES = 12
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
    """Parquet files of images, each a shard of its own, two of them a piece."""
    (tmp_path / "images").mkdir()
    for number in range(SHARDS):
        generator = np.random.default_rng(number)
        encoded = []
        for _ in range(40):
            file = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PNG")
            encoded.append(file.getvalue())
        labels = [small.CLASSES[i] for i in generator.integers(0, 3, 40)]
        copies = listing.LEAST_PIECE_ROWS // 2 // 40 + 1
        pq.write_table(
            pa.table({"image": encoded * copies, "label": labels * copies}),
            tmp_path / "images" / f"{number}.parquet",
        )
    return tmp_path / "images"


def finished(private: Path) -> dict[str, tuple[int, int]]:
    """What a run has finished, by path: the files themselves, not what is in them."""
    return {
        str(path.relative_to(private)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for pattern in ("embeddings/shard-*.parquet", "rows/*/piece-*.npy", "runs/*/*/state-*.npz")
        for path in private.glob(pattern)
    }


def states(files) -> int:
    """Stages whose states are among the files: all up to a last one."""
    numbers = sorted(int(name[-7:-4]) for name in files if "state-" in name)
    assert numbers == list(range(len(numbers)))
    return max(numbers, default=0)


# In the order of a run, as `stopping` sees them.  A stage's progress line comes
# when its noise is drawn and nothing has left the worker yet; its state is linked
# into place, and then the state's hidden name removed.
POINTS = {
    "embedding": r"rename to shard-.* beside [1-9]",
    "preparing": r"rename to piece-.* beside [1-9]",
    "the first statistic": "fit: stage 1 of",
    "just before the second moment's state": "link to state-003",
    "a sketch": r"fit: stage 5 of \d+ done \(sketch",
    "just after a teacher step's state": "removal of .state-011",
    "writing": r"rename to part-.* beside [1-9]",
    "publication": "rename to release beside 0",
}


@contextlib.contextmanager
def attempt(runner, arguments, folder, stop_at=""):
    """One run of the command by a runner of its own: (driver, the other processes by name)."""
    with contextlib.ExitStack() as stack:
        environment = watched(folder, stop_at)
        options, others = [], {}
        if runner == "prism":
            (job, prism), (worker, workers) = server(), pool(folder, environment=environment)
            others = {"prism": stack.enter_context(prism), "pool": stack.enter_context(workers)}
            options = portable(job, worker)
        log = folder / "log"
        yield stack.enter_context(driver(*arguments, *options, log=log, environment=environment)), others


def last_line(folder: Path) -> str:
    """What a driver says last when it fails."""
    last = (folder / "log").read_text().splitlines()[-1]
    assert last.startswith("dpgmm: the job failed and published nothing half-done: ")
    return last


# Prism fails a job within a tenth of a second of its worker's end, but for one moment: where it is
# sending to the worker just then, as it does to ask for progress, it gives up the worker's stream and
# fails nothing (`Control` in its worker.go, 2.77.0), and for ever says that the job runs.
NOTICED = 30


def missed(started, others) -> bool:
    """Whether Prism has not noticed, long after its worker was killed, and the driver waits for its word."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.wait(NOTICED)
    return started.poll() is None and job_states(others["prism"]) == ["RUNNING"]


def end_by_signal(started, others, folder: Path) -> None:
    """What a scheduler does whose patience is at its end: the job is cancelled with its driver."""
    os.kill(started.pid, signal.SIGTERM)
    assert started.wait(PATIENCE) == 128 + signal.SIGTERM
    said = (folder / "log").read_text()
    assert said.splitlines()[-1] == "dpgmm: interrupted; nothing half-done was published", said
    assert job_states(others["prism"]) == ["CANCELLED"]


FEW = ("preparing", "just before the second moment's state", "publication")


@pytest.mark.parametrize(
    ("runner", "victim", "names"),
    [
        ("in process", "driver", tuple(POINTS)),
        pytest.param("prism", "driver", FEW, marks=needs_prism),
        pytest.param("prism", "pool", tuple(POINTS), marks=needs_prism),
        pytest.param("prism", "prism", FEW, marks=needs_prism),
    ],
    ids=["in-process-driver", "prism-driver", "prism-pool", "prism-prism"],
)
def test_killed_in_every_stage(images, key, tmp_path, runner, victim, names):
    """One command, killed again and again, each time further on; then left alone."""
    private, results = tmp_path / "private", tmp_path / "results"
    cache = private / "embeddings"
    results.mkdir()
    arguments = [images, results / "release", key, "--encoder", ENCODER, "--dimension", 6]
    arguments += ["--samples", SAMPLES, "--private-dir", private]
    done: dict[str, tuple[int, int]] = {}
    unnoticed = []
    for name in names:
        with attempt(runner, arguments, tmp_path, POINTS[name]) as (started, others):
            wait_until(lambda: stopped(tmp_path), started)
            worker = stopped(tmp_path)
            kill({"driver": started, **others}[victim])
            assert visible(results) == [], name
            if victim != "driver":
                # Whoever is left goes on.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGCONT)
            if victim == "pool" and missed(started, others):
                unnoticed.append(name)
                end_by_signal(started, others, tmp_path)
            else:
                # Nothing waits for ever for who is dead.
                assert started.wait(PATIENCE) == (-signal.SIGKILL if victim == "driver" else 1), name
                assert victim == "driver" or last_line(tmp_path)
        assert finished(private).items() >= done.items(), name
        # A stage that has a state is not drawn again, by whichever worker.
        assert all(number > states(done) for number in drawn(tmp_path)), name
        done = finished(private)
        if name == "embedding":
            assert 0 < len(done) < SHARDS
        elif name == "preparing":
            assert sum("piece-" in each for each in done) == 1
        if visible(results):
            # The worker that Prism left behind; it was about to publish.
            assert (victim, name) == ("prism", "publication")
            assert small.contents(results / "release") == small.in_memory(cache, config())
    if unnoticed:
        warnings.warn(f"Prism did not notice that its worker was killed: {unnoticed}", stacklevel=1)
    # More of them would be no rare moment, but a fault to be found.
    assert len(unnoticed) <= len(names) // 2, unnoticed
    assert states(done) == STAGES
    with attempt(runner, arguments, tmp_path) as (started, _):
        assert started.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    assert drawn(tmp_path) == []
    assert os.listdir(results) == ["release"]
    assert finished(private) == done
    assert small.contents(results / "release") == small.in_memory(cache, config())


@needs_prism
def test_a_job_that_stands_still_ends_with_its_driver(rows, key, tmp_path):
    """Its worker does nothing more, and nobody says so: a signal to the driver; then the run goes on."""
    private, output = tmp_path / "private", tmp_path / "results" / "release"
    output.parent.mkdir()
    arguments = [rows, output, key, "--private-dir", private]
    with attempt("prism", arguments, tmp_path, POINTS["just before the second moment's state"]) as (
        started,
        others,
    ):
        wait_until(lambda: stopped(tmp_path), started)
        assert job_states(others["prism"]) == ["RUNNING"]
        end_by_signal(started, others, tmp_path)
    assert visible(output.parent) == []
    done = finished(private)
    with attempt("prism", arguments, tmp_path) as (started, _):
        assert started.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    assert drawn(tmp_path) == list(range(states(done) + 1, STAGES + 1))
    assert finished(private).items() >= done.items()
    assert os.listdir(output.parent) == ["release"]
    assert small.contents(output) == small.in_memory(rows)


def test_killed_before_and_after_every_state(rows, key, tmp_path):
    """Noise is drawn again, the same, only where it left no trace."""
    private, output = tmp_path / "private", tmp_path / "results" / "release"
    arguments = [rows, output, key, "--private-dir", private]
    done: dict[str, tuple[int, int]] = {}
    for number, (point, after) in itertools.product(
        range(STAGES + 1), [("link to state-{:03d}", 0), ("removal of .state-{:03d}", 1)]
    ):
        with attempt("in process", arguments, tmp_path, point.format(number)) as (started, _):
            wait_until(lambda: stopped(tmp_path), started)
            kill(started)
        assert drawn(tmp_path) == [number] * (number > 0)
        assert finished(private).items() >= done.items()
        done = finished(private)
        assert sum("state-" in name for name in done) == number + after
    assert visible(output.parent) == []
    with attempt("in process", arguments, tmp_path) as (started, _):
        assert started.wait(PATIENCE) == 0
    assert drawn(tmp_path) == []
    assert finished(private) == done
    assert small.contents(output) == small.in_memory(rows)


@needs_prism
def test_a_driver_is_killed_and_its_job_goes_on_beside_the_next(rows, key, tmp_path):
    """Two jobs of one run at once, on one job server: one release, each stage drawn into one state."""
    private, output = tmp_path / "private", tmp_path / "results" / "release"
    output.parent.mkdir()
    arguments = [rows, output, key, "--private-dir", private]
    environment = watched(tmp_path, "fit: stage 2 of")
    (job, prism), (worker, workers) = server(), pool(tmp_path, environment=environment)
    with prism, workers:
        with driver(*arguments, *portable(job, worker)) as started:
            wait_until(lambda: stopped(tmp_path), started)
            kill(started)
        with driver(*arguments, *portable(job, worker), log=tmp_path / "log") as started:
            # The first job's worker wakes up in the middle of the second's stages.
            wait_until(lambda: states(finished(private)) >= 3, started)
            os.kill(stopped(tmp_path), signal.SIGCONT)
            assert started.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    assert visible(output.parent) == ["release"]
    assert small.contents(output) == small.in_memory(rows)


@contextlib.contextmanager
def failing(folder, *arguments, stop_at="", status=1):
    """A run that must fail, stopped where `stop_at` matches: (driver, what it says last, once it ended)."""
    said: list[str] = []
    with attempt("in process", [*arguments, "--private-dir", folder / "private"], folder, stop_at) as (
        started,
        _,
    ):
        if stop_at:
            wait_until(lambda: stopped(folder), started)
        yield started, said
        if stop_at:
            os.kill(started.pid, signal.SIGCONT)
        assert started.wait(PATIENCE) == status, (folder / "log").read_text()
    assert "Traceback" not in (folder / "log").read_text()
    said.append(last_line(folder) if status == 1 else (folder / "log").read_text().splitlines()[-1])


BIG = ["--samples", SAMPLES]
FIRST = POINTS["the first statistic"]


def same_again(folder, rows, output, key, **changes):
    """The same command, left alone: it goes on where it failed."""
    changed = small.small_config(**changes)
    done = finished(folder / "private")
    released = small.run(rows, output, key, config=changed, private_dir=folder / "private")
    assert released == small.in_memory(rows, changed)
    assert finished(folder / "private").items() >= done.items()
    assert visible(output.parent) == ["release"]


def test_files_that_cannot_grow(rows, key, tmp_path):
    output = tmp_path / "results" / "release"
    output.parent.mkdir()
    # 9,000 rows a class make files of half a megabyte.
    with failing(tmp_path, rows, output, key, *BIG, stop_at=FIRST) as (started, said):
        resource.prlimit(started.pid, resource.RLIMIT_FSIZE, (400_000, 400_000))
    assert "File too large" in said[0]
    assert visible(output.parent) == []
    assert states(finished(tmp_path / "private")) == STAGES
    same_again(tmp_path, rows, output, key, samples_per_class=SAMPLES)


def test_states_that_cannot_be_written(rows, key, tmp_path):
    output = tmp_path / "results" / "release"
    with failing(tmp_path, rows, output, key, stop_at=FIRST) as (started, said):
        resource.prlimit(started.pid, resource.RLIMIT_FSIZE, (1000, 1000))
    assert "File too large" in said[0]
    assert states(finished(tmp_path / "private")) == 0
    same_again(tmp_path, rows, output, key)


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
    same_again(tmp_path, rows, disk / "release", key, samples_per_class=SAMPLES)


def test_a_private_disk_without_room_is_refused_before_rows_are_written(rows, key, disk, tmp_path):
    (tmp_path / "private").symlink_to(disk)
    remount(disk, "size=32k")
    with failing(tmp_path, rows, tmp_path / "results" / "release", key, status=2) as (_, said):
        pass
    assert "--private-dir=" in said[0]
    assert "is refused: it must have room for the prepared rows" in said[0]
    assert not list(disk.rglob("piece-*"))
    remount(disk, "size=50m")
    same_again(tmp_path, rows, tmp_path / "results" / "release", key)


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
    same_again(tmp_path, rows, output, key, samples_per_class=SAMPLES)


def test_something_appears_where_the_release_goes(rows, key, tmp_path):
    output = tmp_path / "results" / "release"
    output.parent.mkdir()
    with failing(tmp_path, rows, output, key, stop_at=FIRST) as (_, said):
        output.write_text("in the way")
    assert f"{output} has changed while the job ran: it must be an empty or a new folder" in said[0]
    assert output.read_text() == "in the way"
    assert visible(output.parent) == ["release"]


# --- An input that changes ------------------------------------------------------------------------


def test_an_input_that_vanishes_when_its_rows_are_prepared(rows, key, tmp_path):
    """It has been read, once."""
    output, expected = tmp_path / "results" / "release", small.in_memory(rows)
    with attempt(
        "in process", [rows, output, key, "--private-dir", tmp_path / "private"], tmp_path, FIRST
    ) as (started, _):
        wait_until(lambda: stopped(tmp_path), started)
        rows.rename(tmp_path / "away")
        os.kill(started.pid, signal.SIGCONT)
        assert started.wait(PATIENCE) == 0
    assert small.contents(output) == expected


def other_rows(path: Path) -> None:
    """Rewrites a file of the input, which keeps its size."""
    size = path.stat().st_size
    content = pq.read_table(path)
    content = content.take(np.arange(len(content))[::-1])
    values = -np.array(content["embedding"].to_pylist())
    pq.write_table(small.embeddings_table(content["label"].to_pylist(), values), path, row_group_size=70)
    assert abs(path.stat().st_size - size) < 2000


def change(rows: Path, how: str) -> None:
    path = rows / "rows-1.parquet"
    if how == "rewritten":
        other_rows(path)
    elif how == "removed":
        path.unlink()
    else:
        pq.write_table(small.table(50, seed=1), rows / "rows-9.parquet")


@pytest.mark.parametrize(
    ("how", "stop_at"),
    [
        ("another file", "rename to piece-"),
        ("rewritten", "link to state-001"),
        ("removed", "removal of .state-004"),
    ],
)
def test_the_input_changes_before_the_run_goes_on(rows, key, tmp_path, how, stop_at):
    """The run starts over with the data as it is now, beside what it had done with the other."""
    private, output = tmp_path / "private", tmp_path / "results" / "release"
    arguments = [rows, output, key, "--private-dir", private]
    with attempt("in process", arguments, tmp_path, stop_at) as (started, _):
        wait_until(lambda: stopped(tmp_path), started)
        kill(started)
    done = finished(private)
    change(rows, how)
    with attempt("in process", arguments, tmp_path) as (started, _):
        assert started.wait(PATIENCE) == 0
    assert drawn(tmp_path) == list(range(1, STAGES + 1))
    assert small.contents(output) == small.in_memory(rows)
    assert finished(private).items() >= done.items()
    new = {Path(name).parent.name for name in finished(private).keys() - done.keys()}
    assert len(new) == 1
    assert not new & {Path(name).parent.name for name in done}


@pytest.mark.parametrize(
    ("how", "sentence"), [("rewritten", "has changed while the job ran"), ("removed", "FileNotFoundError")]
)
def test_the_input_changes_while_its_rows_are_prepared(rows, key, tmp_path, how, sentence):
    private, output = tmp_path / "private", tmp_path / "results" / "release"
    output.parent.mkdir()
    # The listing is pinned, and no row read yet.
    with failing(tmp_path, rows, output, key, stop_at="removal of .state-000") as (_, said):
        change(rows, how)
    assert "rows-1.parquet" in said[0]
    assert sentence in said[0]
    assert not list(private.glob("rows/*/piece-*.npy"))
    assert visible(output.parent) == []
    same_again(tmp_path, rows, output, key)
