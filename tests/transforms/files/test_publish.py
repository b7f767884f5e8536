import dataclasses
import errno
import hashlib
import json
import os
import stat
import threading
from pathlib import Path

import pytest
from apache_beam.io.filesystems import FileSystems

from tests import small
from tests.pipelines.processes import exit_code
from tests.transforms import crate  # noqa: F401  (the scheme crate://)
from transforms.files import publish
from transforms.files.publish import FileRecord, Publication

FILES = {"README.md": b"card", "synthetic/part-0.parquet": b"rows" * 9, "mixture/basis.parquet": b"basis"}
STATE = "12ab"


def manifest_of(files, release_id):
    """What of a manifest publications look at."""
    stated = {"schema_version": 2, "release_id": release_id, "config_digest": "", "privacy": {}}
    return json.dumps({**stated, "files": [{"path": path} for path in files]}).encode()


MANIFEST = manifest_of(FILES, "this")
WHOLE = {**FILES, "manifest.json": MANIFEST}


@dataclasses.dataclass
class Steps:
    """A publication with its staging folder."""

    publication: Publication
    staged: str

    def stage(self, files=FILES):
        return [publish.stage(self.staged, path, data, 1, STATE) for path, data in files.items()]

    def publish(self, records, manifest=MANIFEST):
        self.publication.publish(self.staged, records, manifest)


def steps(folder: Path, output: str = "", overwrite: bool = False) -> Steps:
    private = folder / "private"
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Steps(Publication(output or str(folder / "release"), overwrite), str(private / "staged-12ab"))


@pytest.fixture
def once(tmp_path):
    return steps(tmp_path)


def old_release(output: Path):
    files = {"synthetic/part-9.parquet": b"old", "synthetic/part-0.parquet": b"of the same name"}
    for path, data in files.items():
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        (output / path).write_bytes(data)
    (output / "manifest.json").write_bytes(manifest_of(files, "old"))
    return small.contents(output)


def left(folder: Path):
    """Names in the output's parent and in the private folder."""
    return sorted(os.listdir(folder)), os.listdir(folder / "private")


def test_records_and_nothing_outside_the_private_folder_before_the_end(once, tmp_path):
    _, record, _ = records = once.stage()
    data = FILES["synthetic/part-0.parquet"]
    assert record == FileRecord("synthetic/part-0.parquet", 36, hashlib.sha256(data).hexdigest(), 1, STATE)
    assert os.listdir(tmp_path) == ["private"]
    once.publish(records)
    assert small.contents(tmp_path / "release") == WHOLE
    assert left(tmp_path) == (["private", "release"], [])
    assert stat.S_IMODE(os.stat(tmp_path / "release").st_mode) == 0o777 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("overwrite", [False, True])
def test_again_at_once_and_much_later(tmp_path, overwrite):
    work = steps(tmp_path, overwrite=overwrite)
    if overwrite:
        old_release(tmp_path / "release")
    records = work.stage()
    work.publish(records)
    work.publish(records)
    # A sink that runs again when all is over, and the publication after it.
    work.stage({"mixture/basis.parquet": b"basis"})
    assert small.contents(tmp_path / "release") == WHOLE
    work.publish(records)
    assert small.contents(tmp_path / "release") == WHOLE
    assert left(tmp_path) == (["private", "release"], [])


@pytest.mark.parametrize("overwrite", [False, True])
def test_attempts_at_the_same_time(tmp_path, overwrite):
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        work = steps(folder, overwrite=overwrite)
        if overwrite:
            old_release(folder / "release")
        records = work.stage()
        failures = []

        def publish_it(work=work, records=records, failures=failures):
            try:
                work.publish(records)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=publish_it) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert small.contents(folder / "release") == WHOLE
        assert left(folder) == (["private", "release"], [])


def test_a_file_is_staged_while_others_publish(tmp_path):
    """They rename the staging folder away, and remove it, at any moment."""
    work, over, failures = steps(tmp_path), threading.Event(), []

    def publish_again():
        while not over.wait(0.02):
            publish.discard(work.staged)

    def stage_again():
        try:
            for _ in range(50):
                work.stage()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=stage_again) for _ in range(2)]
    other = threading.Thread(target=publish_again)
    for thread in (*threads, other):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    other.join()
    assert failures == []


def killed(work, *arguments):
    """Runs `work` in a process that is gone at its first fsync, as SIGKILL would have it."""
    assert exit_code(until_its_fsync, work, *arguments) == 9


def until_its_fsync(work, *arguments):
    publish.os.fsync = lambda descriptor: os._exit(9)
    work(*arguments)


def test_a_writer_that_was_killed_leaves_nothing_in_the_release(once, tmp_path):
    killed(once.stage, {"synthetic/part-0.parquet": b"rows" * 9})
    assert sum(len(names) for _, _, names in os.walk(tmp_path)) == 1
    once.publish(once.stage())
    assert small.contents(tmp_path / "release") == WHOLE
    assert left(tmp_path) == (["private", "release"], [])


def test_left_overs_of_another_run_are_not_published(once, tmp_path):
    once.stage({"synthetic/part-9.parquet": b"of a run that had more parts"})
    once.publish(once.stage())
    assert small.contents(tmp_path / "release") == WHOLE


def swapped(path):
    """Another file of the same size, as another draw of the same release would be."""
    with open(path, "r+b") as file:
        file.write(b"BASIS")


@pytest.mark.parametrize("damage", [os.unlink, lambda path: os.truncate(path, 3), swapped])
@pytest.mark.parametrize("near", [True, False])
def test_a_staged_file_that_is_not_as_it_was_written(tmp_path, damage, near):
    work = steps(tmp_path, "" if near else f"crate://{tmp_path}/release")
    records = work.stage()
    damage(os.path.join(work.staged, "mixture", "basis.parquet"))
    with pytest.raises(RuntimeError, match=r"mixture/basis.parquet is not staged"):
        work.publish(records)
    assert not (tmp_path / "release" / "manifest.json").exists()
    assert not near or left(tmp_path)[0] == ["private"]


def test_a_publisher_that_was_killed_can_be_run_again(tmp_path):
    work = steps(tmp_path, overwrite=True)
    old = old_release(tmp_path / "release")
    records = work.stage()
    killed(work.publish, records)
    assert small.contents(tmp_path / "release") == old
    work.publish(work.stage())
    assert small.contents(tmp_path / "release") == WHOLE
    assert left(tmp_path) == (["private", "release"], [])


@pytest.fixture
def another_disk(monkeypatch):
    """Every rename out of the private folder fails as between two disks."""
    rename = os.rename

    def fail(source, target):
        if "/private/" in source and "/private/" not in target:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_private_folder_on_another_disk(tmp_path, another_disk, overwrite):
    work = steps(tmp_path, overwrite=overwrite)
    if overwrite:
        old_release(tmp_path / "release")
    work.publish(work.stage())
    assert small.contents(tmp_path / "release") == WHOLE
    assert left(tmp_path) == (["private", "release"], [])
    assert stat.S_IMODE(os.stat(tmp_path / "release").st_mode) == 0o777 & ~umask()


@pytest.mark.parametrize("disks", [1, 2])
def test_what_fails_at_the_end_leaves_nothing_beside_the_output(tmp_path, monkeypatch, request, disks):
    """Two such failures and a success left three releases in a public folder once, at epsilon 1.8 for 1."""
    if disks == 2:
        request.getfixturevalue("another_disk")
    work = steps(tmp_path)
    (tmp_path / "release").mkdir()
    records = work.stage()
    (tmp_path / "release" / "notes").write_bytes(b"put there while the job ran")
    with pytest.raises(
        RuntimeError, match="has changed while the job ran: it must be an empty or a new folder"
    ):
        work.publish(records)
    monkeypatch.setattr(publish, "occupied", lambda *_: "")
    with pytest.raises(OSError, match="not empty"):
        work.publish(records)
    assert os.listdir(tmp_path) == ["private", "release"] or os.listdir(tmp_path) == ["release", "private"]
    assert small.contents(tmp_path / "release").keys() == {"notes"}
    # What is staged stays, for the next attempt, where nobody else can enter.
    assert "staged-12ab" in os.listdir(tmp_path / "private")


def test_a_copy_on_another_disk_is_hidden_from_others(tmp_path, another_disk, monkeypatch):
    work = steps(tmp_path)
    records = work.stage()
    modes = []
    write = publish.write_whole

    def watch(path, *args, **options):
        write(path, *args, **options)
        if ".publishing" in path:
            modes.append(stat.S_IMODE(os.stat(tmp_path / ".release.publishing").st_mode))

    monkeypatch.setattr(publish, "write_whole", watch)
    work.publish(records)
    assert modes[:2] == [0o700, 0o700]


def test_an_old_release_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    work = steps(tmp_path, overwrite=True)
    old = old_release(tmp_path / "release")
    records = work.stage()
    rename = os.rename

    def fail(source, target):
        if source == work.staged:
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="no"):
        work.publish(records)
    assert small.contents(tmp_path / "release") == old


@pytest.mark.parametrize("scheme", ["", "crate://"])
def test_a_release_that_came_while_the_job_ran_stays(tmp_path, scheme):
    work = steps(tmp_path, f"{scheme}{tmp_path}/release")
    records = work.stage()
    old = old_release(tmp_path / "release")
    with pytest.raises(RuntimeError, match="must not hold a release already, unless --overwrite is given"):
        work.publish(records)
    assert small.contents(tmp_path / "release") == old


OLD = {**FILES, "manifest.json": manifest_of(FILES, "old")}
NOT_OURS = {
    "a web site": {"manifest.json": b'{"name": "site", "icons": []}', "index.html": b"<html>"},
    "no JSON": {"manifest.json": b"{"},
    "deep": {"manifest.json": b"[" * 10**5},
    "a list": {"manifest.json": b"[]"},
    "beside a release": {**OLD, "notes.txt": b"mine"},
    "below a release": {**OLD, "synthetic/photos/cat.png": b"mine"},
    "a key in it": {**OLD, "noise.key": bytes(32)},
}


@pytest.mark.parametrize("scheme", ["", "crate://"])
@pytest.mark.parametrize("name", NOT_OURS)
def test_only_a_release_and_nothing_else_is_ever_replaced(tmp_path, name, scheme):
    for path, data in NOT_OURS[name].items():
        (tmp_path / "release" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "release" / path).write_bytes(data)
    work = steps(tmp_path, f"{scheme}{tmp_path}/release", overwrite=True)
    wanted = "hold a release of this program and nothing else, to be replaced"
    assert publish.occupied(work.publication.output, True) == wanted
    with pytest.raises(RuntimeError, match=wanted):
        work.publish(work.stage())
    assert small.contents(tmp_path / "release") == NOT_OURS[name]


def test_empty_folders_and_links_are_not_ours_either(tmp_path):
    old_release(tmp_path / "release")
    assert publish.is_release(str(tmp_path / "release"))
    (tmp_path / "release" / "albums").mkdir()
    assert not publish.is_release(str(tmp_path / "release"))
    (tmp_path / "release" / "albums").rmdir()
    (tmp_path / "release" / "albums").symlink_to(tmp_path)
    assert not publish.is_release(str(tmp_path / "release"))


def test_an_empty_folder_is_not_in_the_way(once, tmp_path):
    (tmp_path / "release").mkdir()
    once.publish(once.stage())
    assert small.contents(tmp_path / "release") == WHOLE


def test_left_overs_are_found(tmp_path):
    for name in (".release.partial-0123", ".release.publishing", ".other.publishing", "release"):
        (tmp_path / name).mkdir()
    found = publish.left_overs(str(tmp_path / "release"))
    assert found == [str(tmp_path / ".release.partial-0123"), str(tmp_path / ".release.publishing")]
    assert publish.left_overs(str(tmp_path / "new" / "release")) == []


class Died(BaseException):
    pass


@pytest.fixture(params=["near", "far"])
def remote(tmp_path, request):
    """A remote release, with a private folder on the same store or on this disk."""
    work = steps(tmp_path, f"crate://{tmp_path}/release")
    scheme = "crate://" if request.param == "far" else ""
    return dataclasses.replace(work, staged=f"{scheme}{work.staged}")


def test_a_remote_release(remote, tmp_path):
    records = remote.stage()
    assert os.listdir(tmp_path) == ["private"]
    remote.publish(records)
    assert small.contents(tmp_path / "release") == WHOLE
    remote.stage({"mixture/basis.parquet": b"basis"})
    remote.publish(records)
    assert small.contents(tmp_path / "release") == WHOLE
    assert small.contents(tmp_path / "private") == {}


def test_somebodys_own_readme_on_a_store_stays(remote, tmp_path):
    """That of a publication that was killed comes after its other files, and is in nobody's way."""
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "README.md").write_bytes(b"mine")
    records = remote.stage()
    with pytest.raises(RuntimeError, match="it must be an empty or a new folder"):
        remote.publish(records)
    assert small.contents(tmp_path / "release") == {"README.md": b"mine"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_remote_publisher_may_die_at_every_step(tmp_path, monkeypatch, overwrite):
    """After each death there is no manifest, or a whole release; and trying again works."""
    names = ("delete", "create")
    originals = {name: getattr(FileSystems, name) for name in names}
    for deadly in range(12):
        folder = tmp_path / str(deadly)
        work = steps(folder, f"crate://{folder}/release", overwrite)
        old = old_release(folder / "release") if overwrite else {}
        records = work.stage()
        done = 0

        def dying(name, deadly):
            def call(*args, **kwargs):
                nonlocal done
                done += 1
                if done > deadly:
                    raise Died
                return originals[name](*args, **kwargs)

            return staticmethod(call)

        for name in names:
            monkeypatch.setattr(FileSystems, name, dying(name, deadly))
        try:
            work.publish(records)
            survived = True
        except Died:
            survived = False
        monkeypatch.undo()
        left = small.contents(folder / "release") if (folder / "release").exists() else {}
        if "manifest.json" in left:
            assert left in (WHOLE, old)
        work.publish(records)
        assert small.contents(folder / "release") == WHOLE
        if survived:
            break
    assert survived
    assert deadly >= 3


def test_a_remote_file_that_is_gone_is_not_published(remote, tmp_path):
    records = remote.stage()
    with pytest.raises(RuntimeError, match="is not staged"):
        remote.publish([*records, dataclasses.replace(records[0], path="synthetic/never.parquet")])
    assert not (tmp_path / "release" / "manifest.json").exists()
