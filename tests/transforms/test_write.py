import dataclasses
import io
import os

import pyarrow.parquet as pq
import pytest

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.release import synthesis
from dpgmm_beam.release.manifest import parts_of
from tests import small
from tests.transforms import steps
from transforms.files import publish, register, run_files
from transforms.files.publish import Publication
from transforms.write import Publish, WriteFile


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(plan, workspace, base, the release's files) of a run whose stages are done."""
    folder = tmp_path_factory.mktemp("finished")
    source = small.write_rows(folder / "in", small.table(200))
    plan, workspace = steps.setting(folder)
    pieces = steps.prepare(plan, workspace, source)
    for position in range(len(plan.stages)):
        pieces = steps.run_stage(position, workspace, pieces)
    return plan, workspace, pieces[0][0], small.in_memory(source)


@pytest.fixture
def several(monkeypatch):
    """Files of ten rows a class, so that there are four."""
    monkeypatch.setattr(synthesis, "PART_ROWS", 30)


FILES = [
    "README.md",
    *(
        f"mixture/{name}.parquet"
        for name in ("components", "basis", "classes", "teacher", "features", "ridges")
    ),
]


def written(finished, numbers):
    writer = WriteFile(finished[1].key_file)
    writer.setup()
    return [record for number in numbers for _, record in writer.process((finished[2], number))]


def published(finished, output, records, **workspace):
    step = Publish(Publication(str(output)), dataclasses.replace(finished[1], **workspace))
    return list(step.process((finished[2], iter(records))))


def test_parts_mixture_and_manifest(finished, tmp_path):
    plan, _, base, expected = finished
    count = 1 + len(parts_of(plan.config))
    records = written(finished, range(count))
    # Written again, by another worker, in another order.
    again = written(finished, reversed(range(count)))
    assert sorted(again, key=lambda record: record.path) == sorted(records, key=lambda record: record.path)
    assert {record.path: record.rows for record in records} == {
        **dict(zip(FILES, (0, 6, 16, 3, 3, 16, 256), strict=True)),
        "synthetic/part-00000-of-00001.parquet": 120,
    }
    assert not (tmp_path / "out").exists()
    # Records come twice from a bundle that ran twice.
    assert published(finished, tmp_path / "out", records + again) == []
    assert small.contents(tmp_path / "out") == expected
    assert not [name for name in os.listdir(base) if name.startswith("staged")]


def test_every_number_is_a_file_of_its_own(finished, several):
    assert len(parts_of(finished[0].config)) == 4
    names = [[record.path for record in written(finished, [number])] for number in range(5)]
    assert names == [
        FILES,
        *([f"synthetic/part-0000{part}-of-00004.parquet"] for part in range(4)),
    ]


@pytest.mark.parametrize("lost", [0, 1, 4])
def test_a_release_that_is_not_whole_is_not_published(finished, several, tmp_path, lost):
    records = written(finished, [number for number in range(5) if number != lost])
    with pytest.raises(RuntimeError, match="files of the release are missing: run the same command again"):
        published(finished, tmp_path / "out", records)
    extra = written(finished, range(5))
    folder = run_files.staging(finished[2], extra[0].state)
    extra.append(
        publish.stage(folder, "synthetic/part-00009-of-00004.parquet", b"of no release", 1, extra[0].state)
    )
    with pytest.raises(RuntimeError, match="files of the release are missing"):
        published(finished, tmp_path / "out", extra)
    assert not (tmp_path / "out").exists()


def test_files_of_two_draws_never_meet(finished, tmp_path):
    records = written(finished, [0, 1])
    records[-1] = dataclasses.replace(records[-1], state="0" * 64)
    with pytest.raises(RuntimeError, match="come from different states"):
        published(finished, tmp_path / "out", records)
    records = [dataclasses.replace(record, state="0" * 64) for record in records]
    with pytest.raises(RuntimeError, match="come from different states"):
        published(finished, tmp_path / "out", records)
    assert not (tmp_path / "out").exists()


def test_the_register_is_written_before_the_release_and_keeps_others_out(finished, tmp_path):
    path = str(tmp_path / "register" / "id.json")
    published(finished, tmp_path / "out", written(finished, [0, 1]), register=path)
    entry = register.read(path)
    assert (entry.release_id, entry.fit_digest) == (small.RELEASE_ID, finished[0].fit_digest)
    # Made again, elsewhere, it is the same release.
    published(finished, tmp_path / "again", written(finished, [0, 1]), register=path)
    assert small.contents(tmp_path / "again") == small.contents(tmp_path / "out")
    os.unlink(path)
    register.enter(path, dataclasses.replace(entry, data="0" * 128))
    with pytest.raises(ConfigError, match=r"release_id=small is refused: it must be new: .* of other data"):
        published(finished, tmp_path / "third", written(finished, [0, 1]), register=path)
    assert not (tmp_path / "third").exists()


def test_another_key_writes_nothing(finished, tmp_path):
    writer = WriteFile(small.write_key(tmp_path / "key", small.OTHER_KEY))
    writer.setup()
    with pytest.raises(RuntimeError, match="not the one that this run began with"):
        list(writer.process((finished[2], 1)))
    assert small.contents(tmp_path).keys() == {"key"}


def test_the_final_state_is_loaded_once_a_process(finished, several, monkeypatch):
    loads = []
    load = run_files.load_state
    monkeypatch.setattr(run_files, "load_state", lambda *args: loads.append(args) or load(*args))
    writer = WriteFile(finished[1].key_file)
    for number in range(5):
        list(writer.process((finished[2], number)))
    stages = [stages for _, stages in loads]
    assert stages.count(len(finished[0].stages)) == 1
    assert len(set(stages)) == len(stages)


def test_what_a_reader_gets(finished):
    (name,) = (name for name in finished[3] if name.startswith("synthetic/"))
    schema = pq.read_schema(io.BytesIO(finished[3][name]))
    assert str(schema.field("label").type) == "string"
    assert str(schema.field("embedding").type) == "fixed_size_list<element: float>[16]"
    table = pq.read_table(io.BytesIO(finished[3][name]))
    # Classes take turns, so that every beginning of a file is balanced.
    assert table["component_class"].to_pylist()[:6] == ["a", "b", "c", "a", "b", "c"]
    assert set(table["component"].to_pylist()) == {0, 1}


def test_what_names_the_release(finished):
    """All but the model: a copy of the rows without the manifest still says what it is of."""
    for name, data in finished[3].items():
        assert (os.fsencode(small.RELEASE_ID) in data) == (not name.startswith("mixture/"))
