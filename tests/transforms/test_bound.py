"""Rows of privacy units, from files and from elements, under the worst schedule."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from dpgmm_beam.config import Method
from dpgmm_beam.data import units
from dpgmm_beam.data.rows import accept
from dpgmm_beam.data.units import IdHasher, UnitKeys, bounded
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release.in_memory import release_in_memory
from tests import small
from tests.transforms.chaos import Chaos, Schedule
from tests.transforms.test_chaos import CALM, SCHEDULES, check_whole, schedules
from transforms import bound
from transforms.execution import Execution
from transforms.files import unit_files
from transforms.files.columns import Columns
from transforms.files.publish import Publication
from transforms.fit import FitMixture
from transforms.prepare import PrepareRows, Source, set_aside
from transforms.rows import PrepareElements
from transforms.write import WriteRelease

MOST = 3
CONFIG = small.small_config(
    dimension=6,
    samples_per_class=9,
    components=1,
    method=Method(teacher_steps=1, subspace_dim=8),
    max_rows_per_unit=MOST,
)
PLAN = Plan(CONFIG, small.RELEASE_ID)
KEYS = UnitKeys.of(NoiseKey(small.KEY))
SIZES = {
    "transforms.files.listing.LEAST_PIECE_ROWS": 7,
    "transforms.rows.SPILL_BYTES": 400,
    "transforms.rows.PIECES": 2,
    "transforms.rows.LEAST_PIECE_ROWS": 7,
    # Several ranges, each merged in several steps.
    "transforms.bound.RANGE_ROWS": 8,
}


def table(count=90):
    generator = np.random.default_rng(5)
    ids = [f"patient {number}" for number in generator.integers(0, 20, count)]
    # Most are one's; some are nobody's.
    ids = [
        None if number % 11 == 0 else "many" if number < count // 2 else each
        for number, each in enumerate(ids)
    ]
    return small.table(count, 6).append_column("patient", pa.array(ids, pa.string()))


TABLE = table()


def counting():
    """The rows that count, and what was set aside of the others."""
    batch = TABLE.rename_columns(["label", "embedding", "unit"]).combine_chunks().to_batches()[0]
    rows, aside = accept(batch, CONFIG.row_format, IdHasher(KEYS))
    kept = bounded([rows], MOST, KEYS)
    return kept, dataclasses.replace(aside, bound=len(rows) - len(kept[0]))


@pytest.fixture(scope="module")
def expected():
    return release_in_memory(PLAN, lambda: counting()[0], NoiseKey(small.KEY))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small.write_rows(tmp_path_factory.mktemp("bound") / "in", TABLE, files=2, row_group=11)


@contextlib.contextmanager
def sized():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SIZES.items():
            patch.setattr(name, value)
        yield


def prepared_from(kind, source, workspace, execution):
    if kind == "files":
        start = beam.Create([Source(str(source), columns=Columns(unit="patient"))])
        return lambda pipeline: pipeline | start | PrepareRows(PLAN, workspace, execution)
    elements = TABLE.to_pylist() if kind == "rows" else TABLE.to_batches(max_chunksize=7)
    return lambda pipeline: (
        pipeline | beam.Create(elements) | PrepareElements(PLAN, workspace, execution, unit_field="patient")
    )


def pipeline_of(kind, source, workspace, output, execution):
    pipeline = beam.Pipeline(runner=None)
    pieces = prepared_from(kind, source, workspace, execution)(pipeline)
    (pieces | FitMixture(PLAN, workspace, execution) | WriteRelease(Publication(str(output)), workspace))
    return pipeline


@pytest.mark.parametrize("kind", ["files", "rows", "batches"])
@schedules(2)
@given(schedule=SCHEDULES)
def test_any_schedule_gives_the_bytes_of_the_rows_that_count(
    kind, schedule, source, expected, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("job")
    workspace = small.workspace(folder / "private", small.write_key(folder / "key"))
    output, execution = folder / "out" / "release", Execution(block_rows=5, piece_bytes=1)
    with sized():
        Chaos(pipeline_of(kind, source, workspace, output, execution), schedule).run()
    check_whole(output, expected)
    (rows,) = Path(workspace.rows).iterdir()
    found = set_aside(str(rows))
    assert found == {"rows": len(TABLE), "set_aside": dataclasses.asdict(counting()[1])}
    assert found["set_aside"]["unit"] == 9
    assert len(list((rows / "units").glob("chosen-*"))) > 1


def test_what_a_killed_run_has_left_is_gone_on_with(source, expected, tmp_path):
    """Whichever private files are gone or cut short."""
    workspace = small.workspace(tmp_path / "private", small.write_key(tmp_path / "key"))
    execution = Execution(block_rows=5, piece_bytes=1)
    generator = np.random.default_rng(1)
    for attempt in range(4):
        output = tmp_path / f"out-{attempt}" / "release"
        with sized():
            Chaos(pipeline_of("files", source, workspace, output, execution), CALM).run()
        check_whole(output, expected)
        for path in sorted(Path(workspace.folder).rglob("state-*")):
            if not path.name.startswith("state-000"):
                path.unlink()
        for path in sorted(Path(workspace.rows).rglob("*")):
            if path.is_file() and not path.name.endswith(".json") and generator.random() < 0.4:
                if generator.random() < 0.5:
                    path.unlink()
                else:
                    os.truncate(path, path.stat().st_size - 3)


def test_rows_with_hashes_are_deleted_when_it_is_decided_and_hold_no_id(source, tmp_path):
    workspace = small.workspace(tmp_path / "private", small.write_key(tmp_path / "key"))
    with sized():
        Chaos(
            pipeline_of("files", source, workspace, tmp_path / "out" / "r", Execution(piece_bytes=1)), CALM
        ).run()
    names = [path.name for path in Path(workspace.rows).rglob("*.npy")]
    assert names
    assert not any(name.startswith("rows-") for name in names)
    for path in [*tmp_path.rglob("*")]:
        if path.is_file():
            assert b"patient 1" not in path.read_bytes()
            assert path.name.startswith("part-") or b"many" not in path.read_bytes() or path.suffix == ".md"


def test_units_and_their_bound_come_together(source, tmp_path):
    workspace = small.workspace(tmp_path / "private", small.write_key(tmp_path / "key"))
    unbounded = Plan(dataclasses.replace(CONFIG, max_rows_per_unit=None), small.RELEASE_ID)
    for plan, columns in ((PLAN, Columns()), (unbounded, Columns(unit="patient"))):
        pipeline = beam.Pipeline(runner=None)
        start = pipeline | beam.Create([Source(str(source), columns=columns)])
        start | PrepareRows(plan, workspace, Execution())
        with pytest.raises(ConfigError, match=r"max_rows_per_unit=.* come together"):
            Chaos(pipeline, CALM).run()
        rows = beam.Pipeline(runner=None) | beam.Create(TABLE.to_pylist())
        with pytest.raises(ConfigError, match=r"unit_field=.* max_rows_per_unit only"):
            rows | PrepareElements(plan, workspace, unit_field=columns.unit)
    assert not Path(workspace.rows).exists()


def test_tables_are_read_by_ranges(tmp_path):
    """As many ranges as one likes hold each row once; of each piece its own positions come back."""
    generator = np.random.default_rng(0)
    rows = np.zeros(1000, units.TABLE)
    rows["unit"], rows["row"] = (generator.integers(0, 2**64, (1000, 2), np.uint64) for _ in range(2))
    rows["unit"][:5] = 0
    rows["unit"][5:10] = 2**64 - 1
    rows["piece"], rows["position"] = generator.integers(0, 4, 1000), np.arange(1000)
    table = units.smallest(rows, 2)
    path = str(tmp_path / "table")
    unit_files.write_table(path, table)
    assert unit_files.is_whole(path)
    assert unit_files.rows_in_table(path) == len(table)
    for count in (1, 2, 64, unit_files.FENCES):
        ranges = [unit_files.read_table(path, number, count) for number in range(count)]
        np.testing.assert_array_equal(np.concatenate(ranges), table)
        # A unit is in one range.
        assert sum(len(set(map(bytes, each["unit"]))) for each in ranges) == len(
            set(map(bytes, table["unit"]))
        )
    paths = [str(tmp_path / f"choice-{half}") for half in range(2)]
    for half, choice in enumerate(paths):
        unit_files.write_choice(choice, table[half::2], 4)
    for piece in range(4):
        found = unit_files.read_choices(paths, piece, 4)
        assert found.tolist() == sorted(table["position"][table["piece"] == piece])
    os.truncate(path, 100)
    assert not unit_files.is_whole(path)
    assert not unit_files.is_whole(str(tmp_path / "none"))
    Path(path).write_bytes(b"")
    assert not unit_files.is_whole(path)


def test_memory_of_a_merge_does_not_grow_with_the_rows_of_a_unit(monkeypatch):
    monkeypatch.setattr(bound, "RANGE_ROWS", 100)
    held = []
    real = units.smallest
    monkeypatch.setattr(units, "smallest", lambda rows, most: held.append(len(rows)) or real(rows, most))

    def tables():
        for piece in range(200):
            rows = np.zeros(50, units.TABLE)
            rows["row"][:, 0], rows["piece"] = np.arange(50) * 200 + piece, piece
            yield rows

    found = bound.merged(tables(), 2)
    assert found["row"][:, 0].tolist() == [0, 1]
    assert len(held) > 40
    assert max(held) <= 2 * 100 + 50 + 2


def test_pieces_that_are_missing_are_noticed(source, tmp_path):
    workspace = small.workspace(tmp_path / "private", small.write_key(tmp_path / "key"))
    with sized():
        Chaos(
            pipeline_of("files", source, workspace, tmp_path / "out" / "r", Execution(piece_bytes=1)), CALM
        ).run()
    (base,) = (str(path) for path in Path(workspace.folder).iterdir())
    with pytest.raises(RuntimeError, match="pieces of the input are missing"):
        list(bound.CutRanges(workspace).process((base, [(0, 5), (1, 7)])))
    with pytest.raises(RuntimeError, match="ranges of units are missing"):
        list(bound.ListPieces().process((base, [(0, 4), (1, 4), (3, 4), (3, 4)])))


def test_reports_add_up(source, tmp_path):
    workspace = small.workspace(tmp_path / "private", small.write_key(tmp_path / "key"))
    with sized():
        Chaos(
            pipeline_of("files", source, workspace, tmp_path / "out" / "r", Execution(piece_bytes=1)),
            Schedule(3, attempts=2),
        ).run()
    (rows,) = Path(workspace.rows).iterdir()
    found = set_aside(str(rows), small.CLASSES)
    assert found["rows"] == sum(found["classes"].values()) + sum(found["set_aside"].values()) == len(TABLE)
    for path in rows.glob("piece-*.json"):
        facts = json.loads(path.read_text())
        assert sum(facts["classes"]) == len(np.load(path.with_suffix(".npy")))
