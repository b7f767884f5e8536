import multiprocessing
import os
import stat
import threading

import pytest

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.fit.checkpoint import Checkpoint
from dpgmm_beam.fit.plan import Plan
from tests import small
from tests.transforms import crate  # noqa: F401  (the scheme crate://)
from transforms.files import run_files
from transforms.files.run_files import Workspace

PLAN = Plan(ReleaseConfig("precomputed", ("a",), 4, 1.0, 1e-5), "id")


def some_state(stages: int, value: int) -> Checkpoint:
    return Checkpoint(PLAN, value, bytes(32), stages)


@pytest.fixture(params=["", "crate://"])
def base(request, tmp_path):
    return f"{request.param}{tmp_path}/run/data"


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_names(tmp_path):
    workspace = Workspace("/private/run", "/private/rows", "/key")
    base = workspace.base("d1")
    assert base == "/private/run/d1"
    assert workspace.piece(base, 12) == "/private/rows/d1/piece-00012.npy"
    assert run_files.view_piece(base, "features", 3) == "/private/run/d1/features/piece-00003.npy"
    assert run_files.state_file(base, 7) == "/private/run/d1/state-007.npz"
    far = Workspace("crate://bucket/run", "crate://bucket/rows", "/key")
    assert far.piece(far.base("d1"), 2) == "crate://bucket/rows/d1/piece-00002.npy"
    sums = {run_files.sums_file(base, *each) for each in [(1, 0, "a"), (1, 1, "a"), (2, 0, "a"), (1, 0, "b")]}
    assert len(sums) == 4


def test_a_state_is_written_once(base, tmp_path):
    assert not run_files.has_state(base, 3)
    with pytest.raises(OSError, match="state-003"):
        run_files.load_state(base, 3)
    run_files.write_state(base, some_state(3, 1))
    assert run_files.has_state(base, 3)
    before = small.contents(tmp_path)
    run_files.write_state(base, some_state(3, 2))
    assert small.contents(tmp_path) == before
    assert len(before) == 1
    assert run_files.load_state(base, 3).pieces == 1


def test_only_the_owner_reads(tmp_path):
    base = f"{tmp_path}/run/data"
    umask = os.umask(0)
    try:
        run_files.write_state(base, some_state(0, 1))
    finally:
        os.umask(umask)
    assert mode(run_files.state_file(base, 0)) == 0o600
    assert mode(base) == 0o700


def test_many_threads_at_once_leave_one_whole_state(tmp_path):
    base, together = str(tmp_path), threading.Barrier(8)

    def write(value):
        together.wait(30)
        run_files.write_state(base, some_state(0, value))
        # Whoever has written, or found it written, sees the same one from then on.
        seen.append(run_files.load_state(base, 0).pieces)

    for _ in range(10):
        seen = []
        threads = [threading.Thread(target=write, args=(value,)) for value in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 8
        assert len(set(seen)) == 1
        assert os.listdir(tmp_path) == ["state-000.npz"]
        os.unlink(tmp_path / "state-000.npz")


def write_and_see(base, value, together, seen):
    together.wait(60)
    run_files.write_state(base, some_state(0, value))
    seen.put(run_files.load_state(base, 0).pieces)


def test_processes_at_once_leave_one_whole_state(tmp_path):
    context = multiprocessing.get_context("forkserver")
    together, seen = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=write_and_see, args=(str(tmp_path), value, together, seen))
        for value in range(4)
    ]
    for process in processes:
        process.start()
    found = {seen.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert os.listdir(tmp_path) == ["state-000.npz"]


@pytest.mark.parametrize("position", [0, 200, 1100])
def test_a_damaged_state_is_refused(tmp_path, position):
    base = str(tmp_path)
    run_files.write_state(base, some_state(2, 1))
    path = tmp_path / "state-002.npz"
    broken = bytearray(path.read_bytes())
    broken[position] ^= 0x10
    for content in (broken, broken[:50], b""):
        path.write_bytes(content)
        with pytest.raises(
            RuntimeError, match=r"state-002.npz is damaged .*; start the run anew with --restart"
        ):
            run_files.load_state(base, 2)


def test_finished_stages(base, tmp_path):
    folder = base.rpartition("/")[0]
    assert run_files.finished_stages(folder) == 0
    for stages in (0, 1, 2, 10):
        run_files.write_state(base, some_state(stages, 1))
        assert run_files.finished_stages(folder) == stages
    # Of the data that the run began with last.
    run_files.write_state(f"{folder}/other", some_state(0, 1))
    later = os.stat(tmp_path / "run" / "data" / "state-000.npz").st_mtime + 10
    os.utime(tmp_path / "run" / "other" / "state-000.npz", (later, later))
    assert run_files.bases(folder) == [base, f"{folder}/other"]
    assert run_files.finished_stages(folder) == 0
    run_files.write_state(f"{folder}/other", some_state(3, 1))
    assert run_files.finished_stages(folder) == 3
    # A file that is being written is no state.
    (tmp_path / "run" / "other" / ".state-011.npz-123").write_bytes(b"half")
    assert run_files.finished_stages(folder) == 3


def test_finished_stages_of_a_folder_with_pattern_characters(tmp_path):
    folder = f"{tmp_path}/run [1] what?"
    for stages in (0, 4):
        run_files.write_state(f"{folder}/data", some_state(stages, 1))
    assert run_files.finished_stages(folder) == 4


def test_deleting_twice_is_no_matter(base, tmp_path):
    run_files.write_state(base, some_state(0, 1))
    path = run_files.state_file(base, 0)
    run_files.delete_files([path, path])
    run_files.delete_files([path])
    assert small.contents(tmp_path) == {}
