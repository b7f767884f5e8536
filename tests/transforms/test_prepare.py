import collections
import json
import os
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpgmm_beam.data.rows import RecordForm, Rows, concatenate
from dpgmm_beam.errors import ConfigError
from tests import small
from tests.transforms import (
    crate,
    steps,
)
from transforms import prepare
from transforms.execution import Execution
from transforms.files import parquet, prepared, run_files
from transforms.files.private import make_private_folder
from transforms.files.run_files import Workspace
from transforms.prepare import PrepareUnits, Source


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr("transforms.files.listing.LEAST_PIECE_ROWS", 20)


@pytest.fixture
def setting(tmp_path):
    return steps.setting(tmp_path)


def files_of(workspace, pieces):
    """Path of each piece's rows."""
    return [Path(workspace.piece(base, number)) for base, number in pieces]


def read(workspace, pieces, dimension=16) -> Rows:
    blocks = [
        block
        for path in files_of(workspace, pieces)
        for block in prepared.read(str(path), RecordForm(dimension), 64)
    ]
    return concatenate(blocks, dimension)


def sorted_rows(rows: Rows) -> list[bytes]:
    return sorted(record.tobytes() for record in rows.records())


def expected(source, plan) -> list[bytes]:
    return sorted_rows(concatenate(small.read_blocks(source, plan.config), plan.config.dimension))


def marks(workspace):
    """What changes of a file when it is written anew."""
    found = {path: path.stat() for path in Path(workspace.rows).rglob("*") if path.is_file()}
    return {str(path): (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


SHAPES = {
    "one row group": (1, 1000, 600),
    "row groups of one row": (1, 1, 60),
    "many small files": (100, 1000, 200),
    "files of row groups": (3, 70, 600),
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_whatever_the_files_every_row_is_prepared_once(setting, tmp_path, shape, threads):
    plan, workspace = setting
    files, row_group, count = SHAPES[shape]
    source = small.write_rows(tmp_path / "in", small.table(count), files, row_group)
    pieces = steps.prepare(plan, workspace, source, Execution(threads=threads))
    assert sorted_rows(read(workspace, pieces)) == expected(source, plan)
    assert len(pieces) > 2
    assert max(len(read(workspace, [piece])) for piece in pieces) <= 30
    # In their order, too: bytes of a piece are a function of the listing.
    again = Workspace(f"{tmp_path}/again/run", f"{tmp_path}/again/rows", workspace.key_file)
    other = steps.prepare(plan, again, source)
    assert [path.read_bytes() for path in files_of(again, other)] == [
        path.read_bytes() for path in files_of(workspace, pieces)
    ]


def test_slices_that_are_decoded_at_once_do_not_matter(setting, tmp_path, monkeypatch):
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(200), 1, 1000)
    pieces = steps.prepare(plan, workspace, source)
    before = [path.read_bytes() for path in files_of(workspace, pieces)]
    for rows in (1, 7):
        shutil.rmtree(workspace.rows)
        monkeypatch.setattr(prepare, "SLICE_ROWS", rows)
        steps.prepare(plan, workspace, source)
        assert [path.read_bytes() for path in files_of(workspace, pieces)] == before


def test_rows_are_the_owners_alone(setting, tmp_path):
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(100))
    umask = os.umask(0)
    try:
        # Whoever opens the run makes its folder.
        make_private_folder(workspace.folder)
        steps.prepare(plan, workspace, source)
    finally:
        os.umask(umask)
    folders = [Path(workspace.folder), Path(workspace.rows)]
    paths = [*folders, *(path for folder in folders for path in folder.rglob("*"))]
    assert len(paths) > 10
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def bad_rows() -> pa.Table:
    """Fifteen rows of which ten are set aside: two, three and five by their three reasons."""
    good = [[float(i + 1)] * 16 for i in range(5)]
    vectors = [*good, None, [1.0] * 15, *good[:3], [float("nan")] * 16, [0.0] * 16, [float("inf")] * 16]
    vectors += [[1.0] * 15 + [None], [1e300] * 16]
    labels = ["a"] * 7 + ["zebra", None, "d"] + ["b"] * 5
    return pa.table({"label": labels, "embedding": pa.array(vectors, pa.list_(pa.float64()))})


def test_bad_rows_are_set_aside_and_counted_in_private(setting, tmp_path, caplog, capfd):
    plan, workspace = setting
    (tmp_path / "in").mkdir()
    pq.write_table(bad_rows(), tmp_path / "in" / "x.parquet")
    pq.write_table(bad_rows().slice(0, 9), tmp_path / "in" / "y.parquet")
    with caplog.at_level("DEBUG"):
        pieces = steps.prepare(plan, workspace, tmp_path / "in")
    assert read(workspace, pieces).classes.tolist() == [0] * 10
    (folder,) = Path(workspace.rows).iterdir()
    reports = sorted(folder.glob("piece-*.json"))
    assert len(reports) == len(pieces)
    total = {"rows": 24, "set_aside": {"length": 4, "label": 5, "value": 5}}
    assert prepare.set_aside(str(folder)) == total
    assert prepare.set_aside(f"crate://{folder}") == total
    assert sum(json.loads(path.read_text())["rows"] for path in reports) == 24
    # Exact numbers are for the owner: neither the log nor the screen has one.
    said = "".join(record.getMessage() for record in caplog.records) + "".join(capfd.readouterr())
    assert not re.search(r"\b(10|14|24)\b", said)


def test_columns_of_nulls(setting, tmp_path):
    """Rows of a file in which every label or embedding is null are bad rows, and its type no trouble."""
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(30), files=1)
    good = expected(source, plan)
    pq.write_table(pa.table({"label": ["a"] * 3, "embedding": pa.nulls(3)}), source / "a.parquet")
    labels = {"label": pa.nulls(5), "embedding": small.table(5)["embedding"]}
    pq.write_table(pa.table(labels), source / "b.parquet")
    pieces = steps.prepare(plan, workspace, source)
    assert sorted_rows(read(workspace, pieces)) == good
    (folder,) = Path(workspace.rows).iterdir()
    assert prepare.set_aside(str(folder)) == {
        "rows": 38,
        "set_aside": {"length": 3, "label": 5, "value": 0},
    }


def test_long_lists_and_labels_beside_good_rows(setting, tmp_path, monkeypatch):
    plan, workspace = setting
    monkeypatch.setattr("dpgmm_beam.data.rows._SPARE_VALUES", 100)
    lists = small.table(40)["embedding"].to_pylist()
    lists[3], lists[7], lists[8] = [0.0] * 1000, [], [1.0] * 1000
    labels = pa.array(["a", "x" * 10_000] * 20).dictionary_encode()
    (tmp_path / "in").mkdir()
    table = pa.table({"label": labels, "embedding": pa.array(lists, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "in" / "x.parquet")
    pieces = steps.prepare(plan, workspace, tmp_path / "in")
    (folder,) = Path(workspace.rows).iterdir()
    total = {"rows": 40, "set_aside": {"length": 3, "label": 18, "value": 0}}
    assert prepare.set_aside(str(folder)) == total
    assert sorted_rows(read(workspace, pieces)) == expected(tmp_path / "in", plan)


def test_a_list_that_no_worker_could_hold_is_refused(setting, tmp_path, monkeypatch):
    """By the worker as by the driver, which does not look at every footer."""
    plan, workspace = setting
    (tmp_path / "in").mkdir()
    lists = pa.array([[0.0] * 16, [0.0] * 150], pa.list_(pa.float32()))
    pq.write_table(pa.table({"label": ["a", "b"], "embedding": lists}), tmp_path / "in" / "x.parquet")
    assert steps.list_units(plan, workspace, tmp_path / "in")
    monkeypatch.setattr(parquet, "MAX_EXTRA_VALUES", 100)
    os.utime(tmp_path / "in" / "x.parquet", (1, 1))
    with pytest.raises(ConfigError, match="16 values a row and 100 in a row group"):
        steps.list_units(plan, workspace, tmp_path / "in")


def test_an_input_without_rows_is_one_empty_piece(setting, tmp_path):
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(3).slice(0, 0), files=1)
    pieces = steps.prepare(plan, workspace, source)
    assert [number for _, number in pieces] == [0]
    assert len(read(workspace, pieces)) == 0
    assert run_files.load_state(pieces[0][0], 0).pieces == 1


def test_found_pieces_are_not_read_again(setting, tmp_path, monkeypatch):
    """By no later run: the input may be slow, and need not be readable any more."""
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(200))
    pieces = steps.prepare(plan, workspace, source)
    before = marks(workspace)
    monkeypatch.setattr(parquet, "open_rows", lambda path: pytest.fail("the input was read again"))
    assert steps.prepare(plan, workspace, source) == pieces
    # Nor by another run over the same data.
    other = Workspace(f"{tmp_path}/other", workspace.rows, workspace.key_file)
    assert [number for _, number in steps.prepare(plan, other, source)] == [number for _, number in pieces]
    assert marks(workspace) == before


def damages():
    yield "cut short", lambda data: data[: len(data) // 2]
    yield "flipped", lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:]
    yield "empty", lambda data: b""


@pytest.mark.parametrize(("name", "damage"), list(damages()), ids=[name for name, _ in damages()])
def test_a_damaged_piece_is_written_again(setting, tmp_path, name, damage):
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(200))
    pieces = steps.prepare(plan, workspace, source)
    whole, before = small.contents(workspace.rows), marks(workspace)
    damaged = files_of(workspace, pieces)[2]
    damaged.write_bytes(damage(damaged.read_bytes()))
    steps.prepare(plan, workspace, source)
    assert small.contents(workspace.rows) == whole
    changed = {path for path, mark in marks(workspace).items() if mark != before[path]}
    assert changed == {str(damaged), str(damaged.with_suffix(".json"))}


def test_a_damaged_view_is_dropped_and_a_whole_one_stays(setting, tmp_path):
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(200))
    pieces = steps.prepare(plan, workspace, source)
    for position in range(5):
        steps.run_stage(position, workspace, pieces)
    base = pieces[0][0]
    (view, _), *_ = plan.views
    folder = Path(base, view.name)
    assert len(list(folder.iterdir())) == len(pieces)
    broken = folder / "piece-00001.npy"
    broken.write_bytes(broken.read_bytes()[:-9])
    steps.prepare(plan, workspace, source)
    assert {path.name for path in folder.iterdir()} == {
        f"piece-{number:05d}.npy" for _, number in pieces if number != 1
    }


def test_a_missing_piece_costs_one_unit(setting, tmp_path, monkeypatch):
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(200))
    pieces = steps.prepare(plan, workspace, source)
    whole = small.contents(workspace.rows)
    files_of(workspace, pieces)[3].unlink()
    opened = []
    open_rows = parquet.open_rows
    monkeypatch.setattr(
        parquet, "open_rows", lambda path, *more: opened.append(path) or open_rows(path, *more)
    )
    steps.prepare(plan, workspace, source)
    assert small.contents(workspace.rows) == whole
    assert opened == [str(source / "rows-0.parquet")]


def replace_rows(path, count=67, seed=5):
    pq.write_table(small.table(count, seed=seed), path, row_group_size=70)


def test_a_file_that_changes_before_it_is_read_fails_and_leaves_no_piece(setting, tmp_path):
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(200))
    units = steps.list_units(plan, workspace, source)
    replace_rows(source / "rows-0.parquet")
    with pytest.raises(RuntimeError, match=r"rows-0.parquet has changed while the job ran; run it again"):
        steps.prepare_units(units[:1], workspace)
    assert not marks(workspace)
    # The other files' units can be prepared, and a run that begins again sees other data.
    assert steps.prepare_units(units[1:], workspace)
    again = steps.list_units(plan, workspace, source)
    assert {base for base, _ in again}.isdisjoint(base for base, _ in units)


def test_a_file_that_lost_rows_or_is_gone(setting, tmp_path):
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(200))
    units = steps.list_units(plan, workspace, source)
    replace_rows(source / "rows-0.parquet", 30)
    with pytest.raises(RuntimeError, match="has changed while the job ran"):
        steps.prepare_units(units[:1], workspace)
    os.unlink(source / "rows-0.parquet")
    with pytest.raises(FileNotFoundError, match=r"rows-0.parquet"):
        steps.prepare_units(units[:1], workspace)
    assert not [path for path in marks(workspace) if "piece-00002" in path]


def test_a_file_that_changes_while_it_is_read(setting, tmp_path, monkeypatch):
    """After its last row was decoded: rows of two states of the data must not be mixed."""
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(200), files=1, row_group=1000)
    (unit,) = steps.list_units(plan, workspace, source)
    accept, blocks = prepare.accept, []

    def accept_and_change(batch, *others):
        blocks.append(len(batch))
        if sum(blocks) == 40:
            os.utime(source / "rows-0.parquet")
        return accept(batch, *others)

    monkeypatch.setattr(prepare, "SLICE_ROWS", 20)
    monkeypatch.setattr(prepare, "accept", accept_and_change)
    with pytest.raises(RuntimeError, match=r"rows-0.parquet has changed while the job ran; run it again"):
        steps.prepare_units([unit], workspace)
    # What was written before is whole, and nothing else is there.
    left = small.contents(workspace.rows)
    assert {os.path.basename(name) for name in left} == {"piece-00000.npy", "piece-00000.json"}
    # Should the file's own state come back (it cannot here), the piece is of that state.
    assert all(prepared.is_whole(path, RecordForm(16)) for path in marks(workspace) if path.endswith(".npy"))


def test_a_file_that_cannot_be_decoded_fails_without_a_value_in_the_message(setting, tmp_path):
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(60), files=1)
    path = source / "rows-0.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 400 + data[404:])
    units = steps.list_units(plan, workspace, source)
    with pytest.raises(RuntimeError) as caught:
        steps.prepare_units(units, workspace)
    assert re.fullmatch(rf"{re.escape(str(path))} could not be read \(\w+\)", str(caught.value))
    assert not marks(workspace)


def test_a_file_of_two_names_is_read_once(setting, tmp_path):
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(90), files=2)
    once = expected(source, plan)
    os.symlink(source / "rows-0.parquet", source / "another.parquet")
    os.link(source / "rows-1.parquet", source / "third.parquet")
    pieces = steps.prepare(plan, workspace, source)
    assert sorted_rows(read(workspace, pieces)) == once


def test_names_that_are_meant(tmp_path):
    source = small.write_rows(tmp_path / "in", small.table(90), files=3)
    (tmp_path / "names.json").write_text(json.dumps(["rows-0.parquet", "rows-2.parquet", "gone.parquet"]))
    meant = Source(str(source), str(tmp_path / "names.json"))
    assert [os.path.basename(file.path) for file in meant.files()] == ["rows-0.parquet", "rows-2.parquet"]


@pytest.fixture
def disk(monkeypatch):
    """Sets how much room the disk has."""
    Usage = collections.namedtuple("Usage", "total used free")

    def has(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free))

    return has


def test_too_little_room_is_refused_before_anything_is_written(setting, tmp_path, disk):
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(600))
    disk(40 * 600)
    with pytest.raises(ConfigError) as refused:
        steps.list_units(plan, workspace, source)
    sentence = str(refused.value)
    assert sentence == (
        f"private_dir={tmp_path} is refused: it must have room for the prepared rows and their features:"
        " 8 + 2 d bytes a row, twice."
    )
    assert not re.search(r"\d{2,}", sentence.replace(str(tmp_path), ""))
    assert not Path(workspace.folder).exists()
    disk(10**6)
    steps.list_units(plan, workspace, source)


def test_room_that_is_used_already_counts(setting, tmp_path, disk):
    """A run that goes on needs room for what is not there yet only."""
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(600))
    disk(10**6)
    pieces = steps.prepare(plan, workspace, source)
    base = pieces[0][0]
    views = sum(
        prepared.file_bytes(len(read(workspace, [piece])), RecordForm(dimension))
        for piece in pieces
        for _, dimension in plan.views
    )
    disk(views)
    steps.list_units(plan, workspace, source)
    disk(views - 1)
    with pytest.raises(ConfigError):
        steps.list_units(plan, workspace, source)
    for position in range(10):
        steps.run_stage(position, workspace, pieces)
    disk(0)
    assert {each for each, _ in steps.list_units(plan, workspace, source)} == {base}


def test_room_of_a_private_folder_by_a_relative_name(setting, tmp_path, disk, monkeypatch):
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(100))
    monkeypatch.chdir(tmp_path)
    disk(0)
    with pytest.raises(ConfigError, match="have room"):
        steps.list_units(plan, Workspace("run", "rows", workspace.key_file), source)


def test_far_folders(setting, tmp_path, disk):
    """Input, rows and states elsewhere: the same bytes as near."""
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(200))
    near = steps.prepare(plan, workspace, source)
    far = Workspace(f"crate://{tmp_path}/far/run", f"crate://{tmp_path}/far/rows", workspace.key_file)
    disk(0)
    pieces = steps.prepare(plan, far, f"crate://{source}")
    found = [Path(crate.plain(far.piece(*piece))).read_bytes() for piece in pieces]
    assert found == [path.read_bytes() for path in files_of(workspace, near)]
    before = small.contents(tmp_path / "far")
    assert steps.prepare(plan, far, f"crate://{source}") == pieces
    assert small.contents(tmp_path / "far") == before
    os.utime(source / "rows-1.parquet", (1, 1))
    Path(crate.plain(far.piece(*pieces[5]))).unlink()
    with pytest.raises(RuntimeError, match=r"rows-1.parquet has changed"):
        steps.prepare_units([(pieces[0][0], 1)], far)


def test_another_key_does_not_go_on_with_a_run(setting, tmp_path):
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(100))
    steps.prepare(plan, workspace, source)
    other = Workspace(workspace.folder, workspace.rows, small.write_key(tmp_path / "other", small.OTHER_KEY))
    with pytest.raises(RuntimeError, match="not the one that this run began with"):
        steps.list_units(plan, other, source)


def test_a_worker_prepares_units_of_two_runs(setting, tmp_path):
    """It keeps the listing of the last one only."""
    plan, workspace = setting
    one = small.write_rows(tmp_path / "one", small.table(100))
    two = small.write_rows(tmp_path / "two", small.table(100, seed=1))
    units = [*steps.list_units(plan, workspace, one), *steps.list_units(plan, workspace, two)]
    worker = PrepareUnits(workspace, steps.EXECUTION)
    worker.setup()
    mixed = units[::2] + units[1::2]
    pieces = [piece for unit in mixed for piece in worker.process(unit)]
    for source in (one, two):
        (base,) = {base for base, _ in steps.list_units(plan, workspace, source)}
        mine = sorted(piece for piece in pieces if piece[0] == base)
        assert sorted_rows(read(workspace, mine)) == expected(source, plan)


def test_unlabelled_rows(tmp_path):
    plan, workspace = steps.setting(tmp_path, classes=("all",), labelled=False)
    table = small.table(50).drop_columns(["label"])
    source = small.write_rows(tmp_path / "in", table)
    pieces = steps.prepare(plan, workspace, source)
    assert np.array_equal(read(workspace, pieces).classes, np.zeros(50))


def test_footers_are_read_once(setting, tmp_path, monkeypatch):
    """A job that begins again, as Flink's do, lists the files and asks none of them."""
    plan, workspace = setting
    source = small.write_rows(tmp_path / "in", small.table(100))
    units = steps.list_units(plan, workspace, source)
    monkeypatch.setattr(parquet, "read_footers", lambda *_: pytest.fail("footers were read again"))
    assert steps.list_units(plan, workspace, source) == units
    # A file that changed is another state of the data.
    monkeypatch.undo()
    os.utime(source / "rows-0.parquet", (1, 1))
    assert steps.list_units(plan, workspace, source)[0][0] != units[0][0]
