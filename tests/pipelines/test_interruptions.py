"""The command itself, as a process: killed, asked to end, and run twice at once."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from pipelines import cli
from tests import small
from tests.pipelines.processes import PATIENCE, drawn, forked, kill, stopped, wait_until, watched

STAGES = 9


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return small.write_rows(tmp_path_factory.mktemp("rows") / "in", small.table())


def release(rows, folder, *more):
    """A release of one class has no teacher, and so few stages without an option of its own."""
    return [
        *["release", "--input", rows, "--encoder", "precomputed", "--classes", "a"],
        *["--components", 2, "--rounds", 2, "--epsilon", 1, "--delta", 1e-5, "--samples-per-class", 20],
        *["--output", folder / "out" / "release", "--private-dir", folder / "private", *more],
    ]


def keyed(folder):
    return ["--noise-key-file", small.write_key(folder / "key"), "--release-id", "r1"]


@contextlib.contextmanager
def command(arguments, folder, stop_at=""):
    """A process of the command; with `stop_at`, once it has stopped itself there."""
    with forked(
        "pipelines.cli", *arguments, log=folder / "log", environment=watched(folder, stop_at)
    ) as started:
        if stop_at:
            wait_until(lambda: stopped(folder), started)
        yield started


def said(folder) -> str:
    return (folder / "log").read_text()


def left(private: Path) -> list[str]:
    """What runs with drawn keys have left."""
    return sorted(path.name for path in (private / "runs").iterdir()) if (private / "runs").exists() else []


def killed(arguments, folder, stop_at) -> str:
    """The command is killed: the name of its run."""
    with command(arguments, folder, stop_at) as started:
        kill(started)
    (name,) = left(folder / "private")
    return name


def ended(arguments, folder, status=0) -> str:
    with command(arguments, folder) as started:
        assert started.wait(PATIENCE) == status, said(folder)
    assert "Traceback" not in said(folder)
    return said(folder)


def manifest(folder):
    return json.loads((folder / "out" / "release" / "manifest.json").read_text())


def holds(folder, rows=None, key=None) -> bool:
    """Whether the release verifies."""
    again = ["--input", str(rows), "--noise-key-file", key, "--private-dir", f"{folder}/v"] if key else []
    return cli.main(["verify", "--release", str(folder / "out" / "release"), *again]) == 0


@pytest.mark.parametrize("stop_at", ["rename to piece-", "link to state-003", "rename to release beside"])
def test_a_killed_run_with_a_drawn_key_is_continued(rows, tmp_path, stop_at):
    name = killed(release(rows, tmp_path), tmp_path, stop_at)
    run = tmp_path / "private" / "runs" / name
    key = (run / "noise.key").read_bytes()
    assert run.stat().st_mode & 0o777 == 0o700
    there = [int(path.name[6:9]) for path in run.glob("*/state-*.npz")]
    small.write_key(tmp_path / "key-of-the-run", key)
    log = ended(release(rows, tmp_path), tmp_path)
    assert f"continuing the run that was interrupted (release id {name}); --restart drops it" in log
    assert drawn(tmp_path) == list(range(max(there) + 1, STAGES + 1))
    assert manifest(tmp_path)["release_id"] == name
    # The key is the one that the killed run had drawn.
    assert holds(tmp_path, rows, str(tmp_path / "key-of-the-run"))
    assert left(tmp_path / "private") == []
    assert all(key not in data for data in small.contents(tmp_path / "private").values())


def test_restart_draws_anew(rows, tmp_path):
    name = killed(release(rows, tmp_path), tmp_path, "link to state-003")
    log = ended(release(rows, tmp_path, "--restart"), tmp_path)
    assert "continuing" not in log
    assert drawn(tmp_path) == list(range(1, STAGES + 1))
    assert manifest(tmp_path)["release_id"] != name
    assert holds(tmp_path)
    assert left(tmp_path / "private") == []


SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGXCPU, 152)]


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_leaves_no_drawn_key(rows, tmp_path, number, status):
    with command(release(rows, tmp_path), tmp_path, "link to state-002") as started:
        before = len(said(tmp_path).splitlines())
        os.kill(started.pid, number)
        os.kill(started.pid, signal.SIGCONT)
        assert started.wait(PATIENCE) == status
    assert said(tmp_path).splitlines()[before:] == ["dpgmm: interrupted; nothing half-done was published"]
    assert left(tmp_path / "private") == []
    assert not list((tmp_path / "private").rglob("*.key"))
    assert not (tmp_path / "out" / "release").exists()


def test_a_signal_leaves_the_run_of_the_users_key(rows, tmp_path):
    arguments = release(rows, tmp_path, *keyed(tmp_path))
    with command(arguments, tmp_path, "link to state-002") as started:
        os.kill(started.pid, signal.SIGTERM)
        os.kill(started.pid, signal.SIGCONT)
        assert started.wait(PATIENCE) == 143
    states = {path.name: path.stat().st_ino for path in (tmp_path / "private").rglob("state-*.npz")}
    assert {"state-000.npz", "state-001.npz"} <= states.keys()
    assert (tmp_path / "key").read_bytes() == small.KEY
    ended(arguments, tmp_path)
    assert 1 not in drawn(tmp_path)
    now = {path.name: path.stat().st_ino for path in (tmp_path / "private").rglob("state-*.npz")}
    assert now.items() >= states.items()
    assert holds(tmp_path, rows, str(tmp_path / "key"))


@contextlib.contextmanager
def two(arguments, folder, stop_at):
    """Two processes of one command, both stopped at the same point: (process, folder) of each."""
    places = [folder / name for name in ("one", "other")]
    with contextlib.ExitStack() as stack:
        found = []
        for place in places:
            place.mkdir()
            found.append((stack.enter_context(command(arguments, place, stop_at)), place))
        yield found


def go_on(found) -> list[int]:
    for started, _ in found:
        os.kill(started.pid, signal.SIGCONT)
    return sorted(started.wait(PATIENCE) for started, _ in found)


@pytest.mark.parametrize("stop_at", ["rename to piece-", "link to state-002"])
def test_two_at_once_with_the_users_key(rows, tmp_path, stop_at):
    """They share states and rows, and publish one release."""
    with two(release(rows, tmp_path, *keyed(tmp_path)), tmp_path, stop_at) as found:
        assert go_on(found) == [0, 0], [said(place) for _, place in found]
    assert os.listdir(tmp_path / "out") == ["release"]
    assert holds(tmp_path, rows, str(tmp_path / "key"))


def test_two_at_once_with_drawn_keys(rows, tmp_path):
    """Each is a release of its own; the first one is published, the other says that it is not."""
    arguments = release(rows, tmp_path)
    with two(arguments, tmp_path, "link to state-002") as found:
        names = left(tmp_path / "private")
        assert len(names) == 2
        assert go_on(found) == [0, 1]
    (lost,) = left(tmp_path / "private")
    assert manifest(tmp_path)["release_id"] in set(names) - {lost}
    assert holds(tmp_path)
    # What the other has spent is not lost: the same command, allowed to replace, goes on with it.
    assert f"(release id {lost})" in ended([*arguments, "--overwrite"], tmp_path)
    assert drawn(tmp_path) == []
    assert manifest(tmp_path)["release_id"] == lost
    assert left(tmp_path / "private") == []
    assert os.listdir(tmp_path / "out") == ["release"]


def test_two_at_once_after_a_kill(rows, tmp_path):
    """One goes on with the run that was killed; the other begins its own."""
    name = killed(release(rows, tmp_path), tmp_path, "link to state-003")
    with two(release(rows, tmp_path, "--overwrite"), tmp_path, "link to state-004") as found:
        logs = [said(place) for _, place in found]
        assert sorted("continuing the run that was interrupted" in log for log in logs) == [False, True]
        assert len(left(tmp_path / "private")) == 2
        assert name in left(tmp_path / "private")
        assert go_on(found) == [0, 0]
    assert left(tmp_path / "private") == []
    assert holds(tmp_path)
