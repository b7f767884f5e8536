"""The whole transform, applied to a pipeline of somebody's own."""

import os
import shutil
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from dpgmm_beam.fit import chain
from dpgmm_beam.fit.plan import Plan
from tests import small
from tests.transforms import crate  # noqa: F401  (the scheme crate://)
from transforms.execution import Execution
from transforms.files import parquet, run_files
from transforms.files.publish import Publication
from transforms.files.run_files import Workspace
from transforms.prepare import Source
from transforms.release import Release


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(source, key, files of the release)."""
    folder = tmp_path_factory.mktemp("made")
    source = small.write_rows(folder / "in", small.table(200))
    return source, small.write_key(folder / "key"), small.in_memory(source)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr("transforms.files.listing.LEAST_PIECE_ROWS", 20)


def release(source, workspace, output, overwrite=False, config=None, **execution):
    plan = Plan(config or small.small_config(), small.RELEASE_ID)
    publication = Publication(str(output), overwrite)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        rows = pipeline | beam.Create([Source(str(source))])
        rows | Release(plan, publication, workspace, Execution(**execution))


def test_a_release_is_that_of_the_mathematics(made, tmp_path):
    source, key, expected = made
    workspace = small.workspace(tmp_path, key)
    release(source, workspace, tmp_path / "out", block_rows=7, threads=2)
    assert small.contents(tmp_path / "out") == expected
    # Published already: nothing changes.
    before = small.contents(tmp_path)
    release(source, workspace, tmp_path / "out")
    assert small.contents(tmp_path) == before


def test_however_the_input_is_cut(made, tmp_path):
    """Other files with other row groups, in several parts of sums: the same release."""
    _, key, expected = made
    source = small.write_rows(tmp_path / "in", small.table(200).take(list(range(199, -1, -1))), 2, 33)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpgmm_beam.privacy.queries.SHIPPED", 50)
        release(source, small.workspace(tmp_path, key), tmp_path / "out")
    assert small.contents(tmp_path / "out") == expected


def test_a_run_goes_on_at_its_last_state(made, tmp_path, monkeypatch):
    """Neither its rows nor its input are read for stages that are done."""
    source, key, expected = made
    workspace = small.workspace(tmp_path, key)
    release(source, workspace, tmp_path / "out")
    (base,) = (str(path) for path in Path(workspace.folder).iterdir())
    before = small.contents(base)
    for stages in (8, 9):
        os.unlink(run_files.state_file(base, stages))
    shutil.rmtree(tmp_path / "out")
    drawn = []
    advance = chain.advance
    monkeypatch.setattr(
        chain, "advance", lambda before, *rest: drawn.append(before.stages_done) or advance(before, *rest)
    )
    monkeypatch.setattr(parquet, "open_rows", lambda path: pytest.fail("the input was read again"))
    release(source, workspace, tmp_path / "out")
    assert drawn == [7, 8]
    assert small.contents(base) == before
    assert small.contents(tmp_path / "out") == expected


def test_everything_far(made, tmp_path):
    source, _, expected = made
    key = f"crate://{made[1]}"
    workspace = Workspace(f"crate://{tmp_path}/run", f"crate://{tmp_path}/rows", key)
    release(f"crate://{source}", workspace, f"crate://{tmp_path}/out", threads=2)
    assert small.contents(tmp_path / "out") == expected


def test_without_a_row_every_class_is_there(made, tmp_path):
    source = small.write_rows(tmp_path / "in", small.table(3).slice(0, 0), files=1)
    release(source, small.workspace(tmp_path, made[1]), tmp_path / "out")
    assert small.contents(tmp_path / "out").keys() == made[2].keys()


def test_a_failure_is_told_and_nothing_is_published(made, tmp_path):
    source = small.write_rows(tmp_path / "in", small.table(100), files=1)
    workspace = small.workspace(tmp_path, small.write_key(tmp_path / "key"))
    release(source, workspace, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    small.write_key(tmp_path / "key", small.OTHER_KEY)
    with pytest.raises(RuntimeError, match="not the one that this run began with"):
        release(source, workspace, tmp_path / "out")
    assert not (tmp_path / "out").exists()
