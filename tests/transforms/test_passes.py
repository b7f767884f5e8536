import collections
import os
import shutil
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.fit import chain
from tests import small
from tests.strategies import in_view, quick
from tests.transforms import (
    crate,  # noqa: F401  (the scheme crate://)
    steps,
)
from transforms import passes
from transforms.execution import Execution
from transforms.files import run_files
from transforms.files.run_files import Workspace
from transforms.passes import Pass, fingerprint

STAGES = range(12)
VIEWED = 7
"""The position of a stage that reads its rows in a view."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(plan, workspace, pieces, base) of a run whose stages are done."""
    folder = tmp_path_factory.mktemp("whole")
    source = small.write_rows(folder / "in", small.table(200))
    plan, workspace = steps.setting(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transforms.files.listing.LEAST_PIECE_ROWS", 20)
        pieces = steps.prepare(plan, workspace, source)
    assert len(pieces) == 12
    for position in STAGES:
        assert sorted(steps.run_stage(position, workspace, pieces)) == sorted(pieces)
    return plan, workspace, pieces, pieces[0][0]


def before_stage(whole, position):
    return run_files.load_state(whole[3], position)


def one_pass(whole, position, execution, workspace=None, base=None):
    _, own, pieces, own_base = whole
    running = Pass(base or own_base, before_stage(whole, position), workspace or own, execution)
    for _, number in pieces:
        running.add(number)
    return running


def same(one, other):
    queries = one.queries.keys() == other.queries.keys() and all(
        np.array_equal(one.queries[name], other.queries[name]) for name in one.queries
    )
    return queries and np.array_equal(one.limbs, other.limbs)


@pytest.fixture(scope="module")
def reference(whole, tmp_path_factory):
    """The sums of every stage, from blocks in memory and no file."""
    plan = whole[0]
    source = small.write_rows(tmp_path_factory.mktemp("again") / "in", small.table(200))
    blocks = small.read_blocks(source, plan.config)
    found = []
    for position, stage in enumerate(plan.stages):
        before = before_stage(whole, position)
        summing = chain.Summing(before, steps.SECRET)
        sums = summing.begin()
        for block in blocks:
            summing.add(in_view(stage, block, before.state), sums)
        found.append(summing.finish(sums))
    return found


@pytest.mark.parametrize("block_rows", [1, 7, 512])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_blocks_change_no_sum(whole, reference, threads, block_rows):
    for position in STAGES:
        sums, pieces = one_pass(whole, position, Execution(block_rows, threads)).finish()
        assert same(sums, reference[position])
        assert np.array_equal(pieces, fingerprint(number for _, number in whole[2]))


def test_the_stages_of_the_tests(whole):
    views = [stage.view.name if stage.view else None for stage in whole[0].stages]
    assert len(views) == len(STAGES)
    assert views[VIEWED] is not None


@pytest.fixture
def copied(whole, tmp_path):
    """The same run in other folders, with the folder of its view."""
    _, workspace, _, base = whole
    shutil.copytree(workspace.folder, tmp_path / "run")
    shutil.copytree(workspace.rows, tmp_path / "rows")
    mine = Workspace(str(tmp_path / "run"), str(tmp_path / "rows"), workspace.key_file)
    mine_base = mine.base(os.path.basename(base))
    return mine, mine_base, f"{mine_base}/{whole[0].stages[VIEWED].view.name}"


def marks(folder):
    """What changes of a file when it is written anew."""
    found = {name: os.stat(f"{folder}/{name}") for name in os.listdir(folder)}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def test_a_view_is_written_once_and_read_from_then_on(whole, reference, copied):
    workspace, base, view = copied
    written = small.contents(view)
    assert len(written) == len(whole[2])
    before = marks(view)
    # Neither written again nor made from rows, which are gone.
    shutil.rmtree(workspace.rows)
    sums, _ = one_pass(whole, VIEWED, Execution(threads=2), workspace, base).finish()
    assert same(sums, reference[VIEWED])
    assert marks(view) == before


def test_a_view_that_is_missing_is_made_again(whole, reference, copied):
    workspace, base, view = copied
    written, before = small.contents(view), marks(view)
    lost = sorted(written)[3]
    os.unlink(f"{view}/{lost}")
    sums, _ = one_pass(whole, VIEWED, Execution(block_rows=7), workspace, base).finish()
    assert same(sums, reference[VIEWED])
    assert small.contents(view) == written
    assert {name for name, mark in marks(view).items() if mark != before[name]} == {lost}


def test_far_rows_and_views(whole, reference, copied):
    workspace, base, view = copied
    shutil.rmtree(view)
    far = Workspace(f"crate://{workspace.folder}", f"crate://{workspace.rows}", workspace.key_file)
    for position in (0, VIEWED):
        running = one_pass(whole, position, Execution(block_rows=7, threads=2), far, f"crate://{base}")
        sums, _ = running.finish()
        assert same(sums, reference[position])
    assert len(os.listdir(view)) == len(whole[2])


@pytest.mark.parametrize(("room", "threads"), [(1, 1), (1.1, 1), (2.5, 2), (100, 3)])
def test_large_accumulators_limit_the_threads(whole, reference, monkeypatch, room, threads):
    """So that a pass has a bounded number of them."""
    stage = whole[0].stages[0]
    size = 2 * sum(array.nbytes for array in stage.begin().values())
    monkeypatch.setattr(passes, "ACCUMULATOR_BYTES", int(room * size))
    made = collections.Counter()
    begin = type(stage).begin

    def counted(self):
        made[threading.current_thread().name] += 1
        return begin(self)

    running = one_pass(whole, 0, Execution(threads=3))
    assert running.workers._max_workers == threads
    monkeypatch.setattr(type(stage), "begin", counted)
    for _, number in whole[2]:
        running.add(number)
    sums, pieces = running.finish()
    assert sum(made.values()) <= threads
    assert all(np.array_equal(sums.queries[name], 2 * each) for name, each in reference[0].queries.items())
    assert np.array_equal(pieces, 2 * fingerprint(number for _, number in whole[2]))


def test_a_pass_without_pieces(whole):
    running = Pass(whole[3], before_stage(whole, 0), whole[1], Execution())
    sums, pieces = running.finish()
    assert not any(values.any() for values in (*sums.queries.values(), sums.limbs))
    assert np.array_equal(pieces, fingerprint(()))


def sum_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("sum")]


def test_a_piece_that_is_gone_fails_the_pass_and_ends_its_threads(whole, copied):
    workspace, base, _ = copied
    os.unlink(workspace.piece(base, 4))
    with pytest.raises(FileNotFoundError):
        one_pass(whole, 0, Execution(threads=2), workspace, base).finish()
    assert not sum_threads()


def test_an_abandoned_pass_ends_its_threads(whole):
    running = one_pass(whole, 0, Execution(threads=3))
    running.abandon()
    for thread in sum_threads():
        thread.join(30)
    assert not sum_threads()


def test_another_key_sums_nothing(whole, tmp_path):
    """The first stage hashes rows under the key: another worker's hashes would be worthless."""
    other = Workspace(whole[1].folder, whole[1].rows, small.write_key(tmp_path / "key", small.OTHER_KEY))
    with pytest.raises(RuntimeError, match="not the one that this run began with"):
        Pass(whole[3], before_stage(whole, 0), other, Execution())


@quick
@given(st.lists(st.integers(0, 200), max_size=12), st.data())
def test_a_fingerprint_says_which_pieces_there_are(numbers, data):
    whole = fingerprint(numbers)
    assert whole.shape == (2,)
    assert whole.dtype == np.int64
    shuffled = data.draw(st.permutations(numbers))
    cut = data.draw(st.integers(0, len(numbers)))
    assert np.array_equal(fingerprint(shuffled[:cut]) + fingerprint(shuffled[cut:]), whole)
    other = data.draw(st.lists(st.integers(0, 200), max_size=12))
    assert np.array_equal(fingerprint(other), whole) == (sorted(other) == sorted(numbers))


def test_every_single_change_of_many_pieces_has_another_fingerprint():
    count = 300
    whole = fingerprint(range(count))
    seen = {tuple(whole)}
    for lost in range(count):
        for twice in (lost, (lost + 1) % count, count + lost):
            numbers = [number for number in range(count) if number != lost or twice == lost] + [twice]
            seen.add(tuple(fingerprint(numbers)))
    assert len(seen) == 1 + 3 * count
