import dataclasses
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpgmm_beam.data.digest import DIGEST_LIMBS
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.checkpoint import Checkpoint
from dpgmm_beam.privacy import queries
from tests import small
from tests.strategies import quick
from tests.transforms import steps
from transforms import fit
from transforms.files import run_files
from transforms.files.run_files import Workspace
from transforms.fit import StorePart, SumParts, SumPieces, final_checkpoint, load_part
from transforms.passes import fingerprint

STAGES = 12


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """(plan, workspace, pieces) of a run before its first stage, in several pieces."""
    folder = tmp_path_factory.mktemp("begun")
    source = small.write_rows(folder / "in", small.table(200))
    plan, workspace = steps.setting(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transforms.files.listing.LEAST_PIECE_ROWS", 40)
        pieces = steps.prepare(plan, workspace, source)
    assert len(pieces) == 6
    return plan, workspace, pieces


@pytest.fixture
def run(begun, tmp_path):
    """The same in a folder of its own: (plan, workspace, pieces, base)."""
    plan, workspace, pieces = begun
    mine = copied(workspace, tmp_path)
    base = mine.base(os.path.basename(pieces[0][0]))
    return plan, mine, [(base, number) for _, number in pieces], base


def copied(workspace: Workspace, folder: Path) -> Workspace:
    shutil.copytree(workspace.folder, folder / "run")
    shutil.copytree(workspace.rows, folder / "rows")
    return Workspace(str(folder / "run"), str(folder / "rows"), workspace.key_file)


def added(*sums):
    """Vectors by part, from those of several bundles, as the runner combines them."""
    combine, totals = SumParts(), {}
    for each in sums:
        for (_, part), vector in each.items():
            totals[part] = combine.add_input(totals.get(part, combine.create_accumulator()), vector)
    return list(totals.items())


def states(workspace: Workspace) -> dict[str, bytes]:
    found = small.contents(workspace.folder)
    return {name: data for name, data in found.items() if os.path.basename(name).startswith("state-")}


def test_bundles_add_up(run):
    plan, workspace, pieces, base = run
    whole = steps.sum_pieces(0, workspace, pieces)
    assert whole.keys() == {(base, number) for number in range(queries.part_count(plan.stages[0].queries))}
    halves = [steps.sum_pieces(0, workspace, pieces[start::2]) for start in (0, 1)]
    assert all(np.array_equal(vector, whole[base, part]) for part, vector in added(*halves))
    assert np.array_equal(whole[base, 0][:2], fingerprint(range(len(pieces))))
    assert all(vector.dtype == np.int64 for vector in whole.values())


def test_an_empty_bundle_says_nothing(run):
    assert steps.sum_pieces(0, run[1], []) == {}


def test_a_bundle_of_two_runs(run, tmp_path):
    """Elements of both may meet in one bundle; each has its own sums."""
    _, workspace, pieces, base = run
    other = f"{workspace.folder}/{'0' * 32}"
    shutil.copytree(base, other)
    shutil.copytree(f"{workspace.rows}/{os.path.basename(base)}", f"{workspace.rows}/{'0' * 32}")
    mixed = [piece for number, piece in enumerate(pieces) for piece in ((other, number), piece)][:-2]
    found = steps.sum_pieces(0, workspace, mixed)
    assert {each for each, _ in found} == {base, other}
    assert np.array_equal(found[other, 0], found[base, 0])


def test_a_worker_goes_from_bundle_to_bundle_and_loads_the_state_once(run, monkeypatch):
    _, workspace, pieces, base = run
    loads = []
    load = run_files.load_state
    monkeypatch.setattr(run_files, "load_state", lambda *args: loads.append(args) or load(*args))
    worker = SumPieces(0, workspace, steps.EXECUTION)
    worker.setup()
    found = []
    for piece in pieces:
        worker.start_bundle()
        worker.process(piece)
        found.append(dict(output.value for output in worker.finish_bundle()))
        # Runners keep it: it must hold neither rows nor sums then.
        assert worker.passes == {}
    worker.teardown()
    assert loads == [(base, 0)]
    whole = steps.sum_pieces(0, workspace, pieces)
    assert all(np.array_equal(vector, whole[base, part]) for part, vector in added(*found))


def test_no_row_is_read_when_the_state_is_there(run):
    _, workspace, pieces, base = run
    assert steps.run_stage(0, workspace, pieces) == pieces
    shutil.rmtree(workspace.rows)
    found = steps.sum_pieces(0, workspace, pieces)
    assert found.keys() == {(base, 0)}
    assert np.array_equal(found[base, 0], fingerprint(()))
    before = states(workspace)
    assert steps.draw(0, workspace, base, list(zip([0], found.values(), strict=True))) == pieces
    assert states(workspace) == before


@quick
@given(
    st.lists(st.lists(st.integers(-(2**40), 2**40), max_size=4), max_size=8),
    st.data(),
)
def test_parts_add_in_any_grouping_and_shorter_ones_too(values, data):
    combine = SumParts()
    accumulators = [combine.create_accumulator()]
    for value in values:
        if data.draw(st.booleans()):
            accumulators.append(combine.create_accumulator())
        accumulators[-1] = combine.add_input(accumulators[-1], np.array(value, np.int64))
    order = data.draw(st.permutations(accumulators))
    total = combine.extract_output(combine.merge_accumulators(iter(order)))
    longest = max(map(len, values), default=0)
    padded = [value + [0] * (longest - len(value)) for value in values]
    assert total.tolist() == [sum(column) for column in zip(*padded, strict=True)]
    assert total.dtype == np.int64


def test_what_was_added_stays_as_it_was():
    """Runners hand one accumulator to several."""
    combine, part = SumParts(), np.arange(4)
    total = combine.add_input(combine.add_input(combine.create_accumulator(), part), part)
    combine.merge_accumulators([total, part])
    assert part.tolist() == [0, 1, 2, 3]
    assert total.tolist() == [0, 2, 4, 6]


def test_a_stored_part(tmp_path):
    base = str(tmp_path / "base")
    vector = np.arange(-5, 5) * 2**50
    umask = os.umask(0)
    try:
        ((found, path),) = StorePart(3).process(((base, 7), vector))
    finally:
        os.umask(umask)
    assert found == base
    number, loaded = load_part(path)
    assert (number, loaded.tolist()) == (7, vector.tolist())
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    # Stored again, it is the same file; other sums, another stage or part are another.
    assert list(StorePart(3).process(((base, 7), vector))) == [(base, path)]
    paths = {path}
    for position, part, values in [(3, 7, vector + 1), (4, 7, vector), (3, 8, vector)]:
        ((_, path),) = StorePart(position).process(((base, part), values))
        paths.add(path)
    assert len(paths) == len(small.contents(base)) == 4


def test_noise_is_drawn_once(run, monkeypatch):
    """Run again, in whatever order its inputs come, the step finds the state and draws nothing."""
    _, workspace, pieces, base = run
    parts = added(steps.sum_pieces(0, workspace, pieces))
    assert steps.draw(0, workspace, base, parts) == pieces
    before = states(workspace)
    assert len(before) == 2
    with monkeypatch.context() as patch:
        patch.setattr(chain, "advance", lambda *_: pytest.fail("noise was drawn again"))
        assert steps.draw(0, workspace, base, parts[::-1]) == pieces
        # Also when what it is handed is not whole: sums of attempts that found the state.
        assert steps.draw(0, workspace, base, [(0, fingerprint(()))]) == pieces
        assert steps.draw(0, workspace, base, []) == pieces
    assert states(workspace) == before
    # Should a state be lost, the noise is the same again.
    os.unlink(run_files.state_file(base, 1))
    assert steps.draw(0, workspace, base, parts) == pieces
    assert states(workspace) == before


def test_what_the_last_stage_hands_on(run):
    _, workspace, pieces, base = run
    parts = added(steps.sum_pieces(0, workspace, pieces))
    assert steps.draw(0, workspace, base, parts, 3) == [(base, 0), (base, 1), (base, 2)]


@settings(quick, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(numbers=st.lists(st.integers(0, 6), max_size=9))
def test_pieces_that_are_missing_or_twice_draw_no_noise(begun, numbers):
    """In whichever bundles they were."""
    plan, workspace, pieces = begun
    base = pieces[0][0]
    parts = [(part, vector.copy()) for part, vector in zero_parts(plan, 0)]
    for _, vector in parts:
        vector[:2] = fingerprint(numbers)
    before = small.contents(workspace.folder)
    if sorted(numbers) == list(range(len(pieces))):
        # The one that is right; `test_noise_is_drawn_once` has it.
        return
    with pytest.raises(RuntimeError, match="stage 1 was handed sums in which pieces are missing or twice"):
        steps.draw(0, workspace, base, parts)
    assert small.contents(workspace.folder) == before


def zero_parts(plan, position):
    asked = plan.stages[position].queries
    check = np.zeros(2 + DIGEST_LIMBS, np.int64)
    return [
        (number, np.concatenate([check, part])) for number, part in queries.split(asked, queries.zeros(asked))
    ]


@pytest.fixture
def small_parts(monkeypatch):
    """Sums of several parts."""
    monkeypatch.setattr(queries, "SHIPPED", 1)


def stored(position, base, parts):
    return [path for part, vector in parts for _, path in StorePart(position).process(((base, part), vector))]


def test_sums_of_several_parts_give_the_same_state(run, monkeypatch, tmp_path):
    plan, workspace, pieces, base = run
    sums = added(steps.sum_pieces(0, workspace, pieces))
    steps.draw(0, workspace, base, sums)
    expected = states(workspace)
    os.unlink(run_files.state_file(base, 1))
    monkeypatch.setattr(queries, "SHIPPED", 1)
    count = queries.part_count(plan.stages[0].queries)
    assert count > 2
    parts = added(*(steps.sum_pieces(0, workspace, pieces[start::3]) for start in range(3)))
    assert len(parts) == count
    paths = stored(0, base, parts)
    assert len(small.contents(base)) == 2 + count
    assert steps.draw(0, workspace, base, iter(paths)) == pieces
    assert states(workspace) == expected
    # Exact sums are gone with it.
    assert not any("sums" in name for name in small.contents(base))
    # A part that a late attempt stores is deleted by whoever comes late, too.
    late = stored(0, base, parts[:1])
    steps.draw(0, workspace, base, late)
    assert not any("sums" in name for name in small.contents(base))


@pytest.mark.parametrize("broken", ["missing", "twice", "without sums", "other pieces"])
def test_parts_that_do_not_fit_draw_no_noise(run, small_parts, broken):
    _, workspace, pieces, base = run
    parts = added(steps.sum_pieces(0, workspace, pieces))
    match broken:
        case "missing":
            parts = parts[:1] + parts[2:]
        case "twice":
            parts[1] = (parts[1][0], 2 * parts[1][1])
        case "without sums":
            parts[1] = (parts[1][0], fingerprint(()))
        case "other pieces":
            parts[1] = added(steps.sum_pieces(0, workspace, pieces[1:]))[1]
    paths = stored(0, base, parts)
    before = small.contents(workspace.folder)
    with pytest.raises(
        RuntimeError, match="missing or twice, and no state is there: run the same command again"
    ):
        steps.draw(0, workspace, base, paths)
    assert small.contents(workspace.folder) == before


def test_another_key_draws_no_noise(run, tmp_path):
    _, workspace, pieces, base = run
    parts = added(steps.sum_pieces(0, workspace, pieces))
    other = Workspace(workspace.folder, workspace.rows, small.write_key(tmp_path / "key", small.OTHER_KEY))
    with pytest.raises(RuntimeError, match="not the one that this run began with"):
        steps.draw(0, other, base, parts)
    assert len(states(workspace)) == 1


def test_a_state_that_appears_while_noise_is_drawn_stays(run, monkeypatch):
    """Two workers may draw at once; what counts is the file of the first."""
    _, workspace, pieces, base = run
    parts = added(steps.sum_pieces(0, workspace, pieces))
    advance = chain.advance

    def slow(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(chain, "advance", advance)
            steps.draw(0, workspace, base, parts)
        appeared.append((states(workspace), os.stat(run_files.state_file(base, 1)).st_ino))
        return advance(*arguments)

    appeared = []
    monkeypatch.setattr(chain, "advance", slow)
    assert steps.draw(0, workspace, base, parts) == pieces
    assert appeared == [(states(workspace), os.stat(run_files.state_file(base, 1)).st_ino)]


def test_another_attempt_may_delete_the_parts_that_are_being_read(run, small_parts, monkeypatch):
    """It has written the state by then.  Where nobody has, parts that are gone are a failure."""
    _, workspace, pieces, base = run
    paths = stored(0, base, added(steps.sum_pieces(0, workspace, pieces)))
    assert len(paths) > 1
    load = fit.load_part

    def load_after_another(path):
        monkeypatch.setattr(fit, "load_part", load)
        steps.draw(0, workspace, base, paths)
        written.update(states(workspace))
        return load(path)

    written: dict[str, bytes] = {}
    monkeypatch.setattr(fit, "load_part", load_after_another)
    assert steps.draw(0, workspace, base, paths) == pieces
    assert states(workspace) == written
    os.unlink(run_files.state_file(base, 1))
    with pytest.raises(FileNotFoundError):
        steps.draw(0, workspace, base, paths)
    assert len(states(workspace)) == 1


@pytest.fixture(scope="module")
def finished(begun, tmp_path_factory):
    """(plan, workspace, base, final state of the fit in memory) of a run whose stages are done."""
    plan, workspace, pieces = begun
    folder = tmp_path_factory.mktemp("finished")
    mine = copied(workspace, folder)
    base = mine.base(os.path.basename(pieces[0][0]))
    current = [(base, number) for _, number in pieces]
    for position in range(STAGES):
        current = steps.run_stage(position, mine, current)
    blocks = small.read_blocks(Path(workspace.folder).parent / "in", plan.config)
    return plan, mine, base, chain.fit(plan, lambda: blocks, steps.SECRET)


def test_the_final_state_is_that_of_the_fit_in_memory(finished):
    plan, _, base, expected = finished
    found = final_checkpoint(base)
    assert found.plan == expected.plan == dataclasses.replace(plan, counted=expected.plan.counted)
    assert found.pieces == 6
    # The one thing in which they differ.
    assert dataclasses.replace(found, pieces=0).digest() == expected.digest()


def test_the_covariance_is_in_one_state_only_and_comes_back_at_the_end(finished):
    base = finished[2]
    found = [run_files.load_state(base, stages).covariance is not None for stages in range(STAGES + 1)]
    assert found == [stages == 4 for stages in range(STAGES + 1)]
    assert final_checkpoint(base).covariance is not None


def test_there_is_no_final_state_before_the_last(finished, tmp_path):
    _, workspace, base, _ = finished
    mine = copied(workspace, tmp_path)
    base = mine.base(os.path.basename(base))
    os.unlink(run_files.state_file(base, STAGES))
    with pytest.raises(OSError, match=f"state-{STAGES:03d}"):
        final_checkpoint(base)


@pytest.mark.parametrize("position", [0, 3])
def test_a_damaged_state_stops_the_stage(finished, tmp_path, position):
    _, workspace, base, _ = finished
    mine = copied(workspace, tmp_path)
    base = mine.base(os.path.basename(base))
    for stages in range(position + 1, STAGES + 1):
        os.unlink(run_files.state_file(base, stages))
    Path(run_files.state_file(base, position)).write_bytes(b"half")
    with pytest.raises(RuntimeError, match="is damaged"):
        steps.sum_pieces(position, mine, [(base, 0)])
    with pytest.raises(RuntimeError, match="is damaged"):
        steps.draw(position, mine, base, [])


def test_nothing_of_the_data_is_in_a_state(finished):
    """But for the data digest, which is keyed: a state has noisy sums and what follows from them."""
    _, _, base, _ = finished
    fields = {field.name for field in dataclasses.fields(Checkpoint)}
    assert fields == {
        *("plan", "pieces", "key_commitment", "stages_done", "data_digest"),
        *("state", "covariance", "covariance_at"),
    }
    for stages in range(1, STAGES + 1):
        assert len(run_files.load_state(base, stages).data_digest) == 64


def test_the_log_has_no_number_of_the_data(run, caplog):
    plan, workspace, pieces, _ = run
    with caplog.at_level("DEBUG"):
        steps.run_stage(0, workspace, pieces)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("dpgmm")] == [
        f"fit: stage 1 of {STAGES} done ({plan.stages[0].name})"
    ]
