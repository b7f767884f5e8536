import dataclasses
import hashlib
import os
import threading
from pathlib import Path

import pytest
from apache_beam.io.filesystems import FileSystems

from tests import small
from tests.transforms import crate  # noqa: F401  (the scheme crate://)
from transforms import publish
from transforms.publish import FileRecord, Publication, write_whole

FILES = {"synthetic/part-0.parquet": b"rows" * 9, "mixture/basis.parquet": b"basis"}
MANIFEST = b'{"of": "this release"}\n'
WHOLE = {**FILES, "manifest.json": MANIFEST}


def stage(publication, files=FILES):
    return [publication.stage(path, data, 1) for path, data in files.items()]


def hidden(folder: Path):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture
def publication(tmp_path):
    return Publication(str(tmp_path / "release"), "run")


def old_release(output: Path):
    (output / "synthetic").mkdir(parents=True)
    (output / "synthetic" / "old.parquet").write_bytes(b"old")
    (output / "synthetic" / "part-0.parquet").write_bytes(b"of the same name")
    (output / "manifest.json").write_bytes(b"{}")
    return small.contents(output)


def test_records_and_nothing_visible_before_the_end(publication, tmp_path):
    record, _ = records = stage(publication)
    data = FILES["synthetic/part-0.parquet"]
    assert record == FileRecord("synthetic/part-0.parquet", 36, hashlib.sha256(data).hexdigest(), 1)
    assert not os.path.exists(publication.output)
    assert all(name.startswith(".release.partial-run") for name in os.listdir(tmp_path))
    publication.publish(records, MANIFEST)
    assert small.contents(publication.output) == WHOLE
    assert os.listdir(tmp_path) == ["release"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_again_at_once_and_much_later(tmp_path, overwrite):
    publication = Publication(str(tmp_path / "release"), "run", overwrite)
    if overwrite:
        old_release(tmp_path / "release")
    records = stage(publication)
    publication.publish(records, MANIFEST)
    publication.publish(records, MANIFEST)
    # A sink that runs again when all is over, and the publication after it.
    stage(publication, {"mixture/basis.parquet": b"basis"})
    assert small.contents(publication.output) == WHOLE
    publication.publish(records, MANIFEST)
    assert small.contents(publication.output) == WHOLE
    assert os.listdir(tmp_path) == ["release"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_attempts_at_the_same_time(tmp_path, overwrite):
    for attempt in range(20):
        output = tmp_path / str(attempt) / "release"
        publication = Publication(str(output), "run", overwrite)
        output.parent.mkdir()
        if overwrite:
            old_release(output)
        records = stage(publication)
        failures = []

        def publish_it(publication=publication, records=records, failures=failures):
            try:
                publication.publish(records, MANIFEST)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=publish_it) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert small.contents(output) == WHOLE
        assert os.listdir(output.parent) == ["release"]


def killed(work):
    """Runs `work` in a process that is gone at its first fsync, as SIGKILL would have it."""
    child = os.fork()
    if not child:
        publish.os.fsync = lambda descriptor: os._exit(9)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9


def test_a_writer_that_was_killed_leaves_nothing_in_the_release(publication, tmp_path):
    killed(lambda: publication.stage("synthetic/part-0.parquet", b"rows" * 9, 1))
    assert sum(len(names) for _, _, names in os.walk(tmp_path)) == 1
    publication.publish(stage(publication), MANIFEST)
    assert small.contents(publication.output) == WHOLE
    assert os.listdir(tmp_path) == ["release"]


def test_left_overs_of_another_run_are_not_published(publication):
    stage(publication, {"synthetic/part-9.parquet": b"of a run that had more parts"})
    publication.publish(stage(publication), MANIFEST)
    assert small.contents(publication.output) == WHOLE


@pytest.mark.parametrize("damage", [os.unlink, lambda path: os.truncate(path, 3)])
def test_a_staged_file_that_is_not_whole(publication, damage):
    records = stage(publication)
    damage(os.path.join(publication.staging, "mixture", "basis.parquet"))
    with pytest.raises(RuntimeError, match=r"mixture/basis.parquet is not staged"):
        publication.publish(records, MANIFEST)
    assert not os.path.exists(publication.output)


def test_a_publisher_that_was_killed_can_be_run_again(tmp_path):
    publication = Publication(str(tmp_path / "release"), "run", overwrite=True)
    old = old_release(tmp_path / "release")
    records = stage(publication)
    killed(lambda: publication.publish(records, MANIFEST))
    assert small.contents(publication.output) == old
    publication.publish(stage(publication), MANIFEST)
    assert small.contents(publication.output) == WHOLE
    assert os.listdir(tmp_path) == ["release"]


def test_an_old_release_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    publication = Publication(str(tmp_path / "release"), "run", overwrite=True)
    old = old_release(tmp_path / "release")
    records = stage(publication)
    rename = os.rename

    def fail(source, target):
        if source == publication.staging:
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="no"):
        publication.publish(records, MANIFEST)
    assert small.contents(publication.output) == old


def test_what_is_in_the_way_stays(publication, tmp_path):
    old = old_release(tmp_path / "release")
    records = stage(publication)
    with pytest.raises(OSError, match="not empty"):
        publication.publish(records, MANIFEST)
    assert small.contents(publication.output) == old


def test_an_empty_folder_is_not_in_the_way(publication, tmp_path):
    (tmp_path / "release").mkdir()
    publication.publish(stage(publication), MANIFEST)
    assert small.contents(publication.output) == WHOLE


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    write_whole(str(path), b"one")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_whole(str(path), b"another")
    assert small.contents(tmp_path) == {"folder/file": b"one"}


class Died(BaseException):
    pass


@pytest.fixture
def remote(tmp_path):
    return Publication(f"crate://{tmp_path}/release", "run")


def test_a_remote_release(remote, tmp_path):
    records = stage(remote)
    remote.publish(records, MANIFEST)
    assert small.contents(tmp_path / "release") == WHOLE
    stage(remote, {"mixture/basis.parquet": b"basis"})
    remote.publish(records, MANIFEST)
    assert small.contents(tmp_path / "release") == WHOLE


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_remote_publisher_may_die_at_every_step(tmp_path, monkeypatch, overwrite):
    """After each death there is no manifest, or a whole release; and trying again works."""
    steps = ("rename", "delete", "create")
    originals = {name: getattr(FileSystems, name) for name in steps}
    for deadly in range(12):
        output = tmp_path / str(deadly) / "release"
        publication = Publication(f"crate://{output}", "run", overwrite)
        old = old_release(output) if overwrite else {}
        records = stage(publication)
        done = 0

        def dying(name, deadly):
            def call(*args, **kwargs):
                nonlocal done
                done += 1
                if done > deadly:
                    raise Died
                return originals[name](*args, **kwargs)

            return staticmethod(call)

        for name in steps:
            monkeypatch.setattr(FileSystems, name, dying(name, deadly))
        try:
            publication.publish(records, MANIFEST)
            survived = True
        except Died:
            survived = False
        monkeypatch.undo()
        left = small.contents(output) if output.exists() else {}
        if "manifest.json" in left:
            visible = {name: data for name, data in left.items() if not name.startswith(".partial")}
            assert visible in (WHOLE, old)
        publication.publish(records, MANIFEST)
        visible = {name: data for name, data in small.contents(output).items() if ".partial" not in name}
        assert visible == WHOLE
        if survived:
            break
    assert survived
    assert deadly >= 3


def test_a_remote_file_that_is_gone_is_not_published(remote, tmp_path):
    records = stage(remote)
    with pytest.raises(RuntimeError, match="is not staged"):
        remote.publish([*records, dataclasses.replace(records[0], path="synthetic/never.parquet")], MANIFEST)
    assert not (tmp_path / "release" / "manifest.json").exists()
