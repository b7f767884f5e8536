import io
import os

import pyarrow.parquet as pq
import pytest

from dpgmm_beam import synthesis
from tests import small
from tests.transforms import steps
from transforms import run_files
from transforms.publish import Publication
from transforms.synthesis import MIXTURE_FILES, Publish, WriteFile, parts_of


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


def written(finished, publication, numbers):
    writer = WriteFile(publication, finished[1].key_file)
    writer.setup()
    return [record for number in numbers for _, record in writer.process((finished[2], number))]


def test_parts_mixture_and_manifest(finished, tmp_path):
    plan, _, base, expected = finished
    publication = Publication(str(tmp_path / "out"), "run")
    count = 1 + len(parts_of(plan))
    records = written(finished, publication, range(count))
    # Written again, by another worker, in another order.
    again = written(finished, publication, reversed(range(count)))
    assert sorted(again, key=lambda record: record.path) == sorted(records, key=lambda record: record.path)
    assert {record.path: record.rows for record in records} == {
        MIXTURE_FILES[0]: 6,
        MIXTURE_FILES[1]: 16,
        "synthetic/part-00000-of-00001.parquet": 120,
    }
    assert not (tmp_path / "out").exists()
    # Records come twice from a bundle that ran twice.
    assert list(Publish(publication).process((base, iter(records + again)))) == []
    assert small.contents(tmp_path / "out") == expected


def test_every_number_is_a_file_of_its_own(finished, several, tmp_path):
    publication = Publication(str(tmp_path / "out"), "run")
    assert len(parts_of(finished[0])) == 4
    names = [[record.path for record in written(finished, publication, [number])] for number in range(5)]
    assert names == [
        list(MIXTURE_FILES),
        *([f"synthetic/part-0000{part}-of-00004.parquet"] for part in range(4)),
    ]


@pytest.mark.parametrize("lost", [0, 1, 4])
def test_a_release_that_is_not_whole_is_not_published(finished, several, tmp_path, lost):
    publication = Publication(str(tmp_path / "out"), "run")
    records = written(finished, publication, [number for number in range(5) if number != lost])
    with pytest.raises(RuntimeError, match="files of the release are missing: run the same command again"):
        list(Publish(publication).process((finished[2], records)))
    assert not (tmp_path / "out").exists()
    extra = written(finished, publication, range(5))
    extra.append(publication.stage("synthetic/part-00009-of-00004.parquet", b"of no release", 1))
    with pytest.raises(RuntimeError, match="files of the release are missing"):
        list(Publish(publication).process((finished[2], extra)))
    assert not (tmp_path / "out").exists()


def test_another_key_writes_nothing(finished, tmp_path):
    publication = Publication(str(tmp_path / "out"), "run")
    writer = WriteFile(publication, small.write_key(tmp_path / "key", bytes(32)))
    writer.setup()
    with pytest.raises(RuntimeError, match="not the one that this run began with"):
        list(writer.process((finished[2], 1)))
    assert small.contents(tmp_path).keys() == {"key"}


def test_the_final_state_is_loaded_once_a_process(finished, several, tmp_path, monkeypatch):
    loads = []
    load = run_files.load_state
    monkeypatch.setattr(run_files, "load_state", lambda *args: loads.append(args) or load(*args))
    publication = Publication(str(tmp_path / "out"), "run")
    writer = WriteFile(publication, finished[1].key_file)
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
    assert table["label"].to_pylist()[:6] == ["a", "b", "c", "a", "b", "c"]


def test_nothing_but_the_manifest_names_the_release(finished):
    """Its files are the same bytes wherever they were made."""
    for name, data in finished[3].items():
        assert (os.fsencode(small.RELEASE_ID) in data) == (name == "manifest.json")
