import dataclasses
import os
import stat
import subprocess
import sys

import pytest

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit import chain
from dpgmm_beam.privacy.noise import KEY_BYTES, NoiseKey
from pipelines import runs
from tests import small
from transforms.files import register

CONFIG = small.small_config()


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def drawn(folder, source="/in", output="/out", restart=False):
    return runs.open_run(str(folder), CONFIG, source, output, None, None, restart)


def own(folder, key, release_id="r1", restart=False, config=CONFIG):
    return runs.open_run(str(folder), config, "/in", "/out", str(key), release_id, restart)


def leave_a_state(run):
    base = run.workspace.base("data")
    os.makedirs(f"{base}/features")
    for path in (f"{base}/state-001.npz", f"{base}/features/piece-00000.npy"):
        with open(path, "wb") as file:
            file.write(b"x")
    return base


def fail(opened, error, left):
    """Fails a run after a state: `left` gets (run, key, base)."""
    with opened as run:
        with open(run.workspace.key_file, "rb") as file:
            left += [run, file.read(), leave_a_state(run)]
        raise error


def crash(folder, **changes):
    """A run with a drawn key whose driver dies after a state: (release id, key, base)."""
    left = []
    with pytest.raises(ZeroDivisionError):
        fail(drawn(folder, **changes), ZeroDivisionError(), left)
    return left[0].release_id, *left[1:]


def test_a_drawn_key_is_private_and_gone_at_the_end(tmp_path):
    seen = set()
    for _ in range(2):
        with drawn(tmp_path) as run:
            assert run.drawn
            key = open(run.workspace.key_file, "rb").read()  # noqa: SIM115
            assert len(key) == KEY_BYTES
            assert mode(run.workspace.key_file) == 0o600
            assert mode(run.workspace.folder) == 0o700
            leave_a_state(run)
            seen |= {key, run.release_id}
        assert small.contents(tmp_path) == {}
    assert len(seen) == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ConfigError("--a", 1, "be b")])
def test_a_signal_or_a_refusal_leaves_no_drawn_key(tmp_path, error):
    with pytest.raises(error if isinstance(error, type) else type(error)):
        fail(drawn(tmp_path), error, [])
    assert small.contents(tmp_path) == {}


def test_a_crash_is_continued_by_the_same_command(tmp_path, capfd):
    release_id, key, base = crash(tmp_path)
    with drawn(tmp_path) as run:
        assert run.release_id == release_id
        assert open(run.workspace.key_file, "rb").read() == key  # noqa: SIM115
        assert os.path.exists(f"{base}/state-001.npz")
    said = capfd.readouterr().err
    assert "continuing the run that was interrupted" in said
    assert "--restart" in said
    assert small.contents(tmp_path) == {}


@pytest.mark.parametrize("change", [{"source": "/other"}, {"output": "/other"}])
def test_another_command_begins_anew(tmp_path, change):
    release_id, *_ = crash(tmp_path)
    with drawn(tmp_path, **change) as run:
        assert run.release_id != release_id
    assert runs.runs_with_drawn_keys(str(tmp_path)) == [f"{tmp_path}/runs/{release_id}"]


def test_restart_drops_what_was_begun(tmp_path):
    release_id, _, base = crash(tmp_path)
    with drawn(tmp_path, restart=True) as run:
        assert run.release_id != release_id
        assert not os.path.exists(base)
    assert small.contents(tmp_path) == {}


def test_a_run_whose_driver_lives_is_not_taken(tmp_path):
    """Two at once, of the same command: each has its own key."""
    with drawn(tmp_path) as one, drawn(tmp_path) as two:
        assert one.release_id != two.release_id
        assert len(runs.runs_with_drawn_keys(str(tmp_path))) == 2
        assert runs.clean(str(tmp_path)).runs == ()
        assert set(runs.clean(str(tmp_path)).busy) == {one.name, two.name}
        assert os.path.exists(one.workspace.key_file)


def test_two_commands_after_one_crash(tmp_path, capfd):
    """One goes on; the other neither waits for it nor finds a run that is gone."""
    release_id, *_ = crash(tmp_path)
    with drawn(tmp_path) as one:
        with drawn(tmp_path) as two:
            assert one.release_id == release_id != two.release_id
            assert os.path.exists(two.workspace.key_file)
        assert os.path.exists(one.workspace.key_file)
    assert capfd.readouterr().err.count("continuing") == 1
    assert small.contents(tmp_path) == {}


def test_a_run_that_ended_just_before_it_was_locked(tmp_path, monkeypatch):
    gone = tmp_path / "runs" / "gone"
    monkeypatch.setattr(runs, "runs_with_drawn_keys", lambda _: [str(gone)])
    with drawn(tmp_path) as run:
        assert os.path.exists(run.workspace.key_file)
        assert not gone.exists()


def test_the_end_of_a_run_leaves_alone_what_another_driver_is_at(tmp_path):
    key = small.write_key(tmp_path / "key")
    with own(tmp_path, key) as run:
        base = leave_a_state(run)
        half = f"{tmp_path}/rows/data/.piece-00000.npy-half"
        os.makedirs(os.path.dirname(half))
        with open(half, "wb") as file:
            file.write(b"x")
        with own(tmp_path, key):
            pass
        assert os.path.exists(f"{base}/features/piece-00000.npy")
        # Another release of the same data shares its rows.
        with own(tmp_path, key, release_id="r2") as other:
            leave_a_state(other)
        assert os.path.exists(half)
        assert not os.path.exists(f"{other.workspace.base('data')}/features")
    assert not os.path.exists(f"{base}/features")
    assert not os.path.exists(half)


def test_a_killed_driver_lets_go(tmp_path):
    """The system drops the lock of a process that dies, whatever it was doing."""
    code = (
        "import os, signal\n"
        "from pipelines import runs\n"
        "from tests import small\n"
        f"with runs.open_run({str(tmp_path)!r}, small.small_config(), '/in', '/out', None, None) as run:\n"
        "    print(run.release_id, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=small.REPOSITORY, check=False
    )
    assert died.returncode < 0, died.stderr
    with drawn(tmp_path) as run:
        assert run.release_id == died.stdout.strip()


def test_a_run_with_the_users_key_stays_but_for_its_views(tmp_path):
    key = small.write_key(tmp_path / "key")
    private = tmp_path / "private"
    with own(private, key) as run:
        assert not run.drawn
        base = leave_a_state(run)
        rows = os.path.dirname(run.workspace.piece(base, 0))
        os.makedirs(rows)
        for name in ("piece-00000.npy", ".piece-00001.npy-half"):
            with open(f"{rows}/{name}", "wb") as file:
                file.write(b"x")
    left = {name for name in small.contents(private) if not name.endswith("lock")}
    assert left == {f"runs/{run.name}/data/state-001.npz", "rows/data/piece-00000.npy"}
    assert small.contents(tmp_path)["key"] == small.KEY
    with own(private, key) as again:
        assert again == run
        assert os.path.exists(f"{base}/state-001.npz")
    with own(private, key, release_id="r2") as other:
        assert other.name != run.name
    with own(private, key, restart=True):
        assert not os.path.exists(f"{base}/state-001.npz")


def test_after_a_crash_the_users_run_is_whole(tmp_path):
    key = small.write_key(tmp_path / "key")
    left = []
    with pytest.raises(KeyboardInterrupt):
        fail(own(tmp_path, key), KeyboardInterrupt(), left)
    base = left[2]
    assert os.path.exists(f"{base}/state-001.npz")
    assert os.path.exists(f"{base}/features/piece-00000.npy")


def test_clean_removes_all_that_no_driver_holds(tmp_path):
    crash(tmp_path)
    key = small.write_key(tmp_path / "key")
    with own(tmp_path, key) as run:
        leave_a_state(run)
        cleaned = runs.clean(str(tmp_path))
        assert (len(cleaned.runs), cleaned.busy, cleaned.rows) == (1, (run.name,), False)
    cleaned = runs.clean(str(tmp_path))
    assert (cleaned.runs, cleaned.busy, cleaned.rows) == ((run.name,), (), True)
    assert small.contents(tmp_path) == {"key": small.KEY}
    assert runs.clean(str(tmp_path)) == runs.Cleaned((), (), False)


def entered(folder, key, config=CONFIG):
    """The id r1 as `Publish` enters it."""
    secret = NoiseKey(small.KEY if key is None else key)
    entry = register.Entry("r1", config.fit_digest, chain.commitment(secret).hex(), "d", "s")
    path = runs.register_entry(str(folder), "r1")
    register.enter(path, entry)
    return path


def test_a_run_knows_its_ids_entry_and_one_with_a_drawn_key_has_none(tmp_path):
    key = small.write_key(tmp_path / "key")
    with own(tmp_path, key) as run:
        assert run.workspace.register == entered(tmp_path, None)
    with drawn(tmp_path) as run:
        assert run.workspace.register == ""


def test_an_id_is_used_once(tmp_path):
    """Its release is made again, with more rows of it, and nothing else."""
    key = small.write_key(tmp_path / "key")
    path = entered(tmp_path, None)
    assert mode(path) == 0o600
    with own(tmp_path, key) as run:
        pass
    with own(tmp_path, key, config=dataclasses.replace(CONFIG, samples_per_class=41)) as more:
        assert more == run
    with (
        pytest.raises(ConfigError, match=r"release_id=r1 is refused: it must be new.*another configuration"),
        own(tmp_path, key, config=dataclasses.replace(CONFIG, epsilon=3.0)),
    ):
        pass
    other = small.write_key(tmp_path / "other", bytes(range(32)))
    with pytest.raises(ConfigError, match="another noise key"), own(tmp_path, other):
        pass
    # Neither is forgotten when the runs are cleaned up.
    runs.clean(str(tmp_path))
    with pytest.raises(ConfigError, match="another noise key"), own(tmp_path, other):
        pass
    with own(tmp_path, other, release_id="r2"):
        pass


def test_interrupted_runs_are_named(tmp_path):
    release_id, *_ = crash(tmp_path)
    assert runs.interrupted(str(tmp_path)) == [release_id]
    with drawn(tmp_path, source="/other"):
        assert runs.interrupted(str(tmp_path)) == [release_id]
