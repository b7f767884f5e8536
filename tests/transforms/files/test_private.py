import os
import stat
import threading

import pytest

from dpgmm_beam.errors import ConfigError
from tests import small
from tests.transforms import crate  # noqa: F401  (the scheme crate://)
from transforms.files import private
from transforms.files.private import make_private_folder, write_private_file, write_private_once


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture(autouse=True)
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize(
    ("path", "local"), [("/a/b", True), ("a:b", True), ("gs://b/x", False), ("memory://x", False)]
)
def test_what_is_local(path, local):
    assert private.is_local(path) is local


def test_only_the_owner_reads(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    write_private_file(str(path), lambda file: file.write(b"secret"))
    assert path.read_bytes() == b"secret"
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700


def test_a_folder_that_exists_is_left_alone(tmp_path):
    os.chmod(tmp_path, 0o755)
    make_private_folder(str(tmp_path))
    write_private_file(str(tmp_path / "file"), lambda file: file.write(b"secret"))
    assert mode(tmp_path) == 0o755
    assert mode(tmp_path / "file") == 0o600
    make_private_folder("memory://folder")


@pytest.mark.parametrize("umask", [0, 0o277])
def test_folders_on_the_way_are_private_too(tmp_path, umask):
    os.umask(umask)
    make_private_folder(str(tmp_path / "a" / "b" / "c"))
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/c")] == [0o700] * 3


def test_a_file_on_the_way(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(FileExistsError):
        make_private_folder(str(tmp_path / "a" / "b"))


def test_a_failed_attempt_leaves_nothing_and_keeps_what_was(tmp_path):
    path = tmp_path / "file"

    def fails(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_private_file(str(path), fails)
    assert small.contents(tmp_path) == {}
    write_private_file(str(path), lambda file: file.write(b"whole"))
    with pytest.raises(KeyboardInterrupt):
        write_private_file(str(path), fails)
    assert small.contents(tmp_path) == {"file": b"whole"}


def test_never_seen_half_written(tmp_path):
    path = tmp_path / "file"

    def write(file):
        file.write(b"half")
        file.flush()
        assert not path.exists()
        (hidden,) = os.listdir(tmp_path)
        assert hidden.startswith(".")
        assert mode(tmp_path / hidden) == 0o600
        file.write(b" and half")

    write_private_file(str(path), write)
    assert small.contents(tmp_path) == {"file": b"half and half"}


def test_two_attempts_at_once_leave_one_whole_file(tmp_path):
    both = threading.Barrier(2)

    def attempt(letter):
        def write(file):
            file.write(letter * 1000)
            both.wait(10)
            file.write(letter * 1000)

        write_private_file(str(tmp_path / "file"), write)

    threads = [threading.Thread(target=attempt, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert small.contents(tmp_path) in ({"file": b"a" * 2000}, {"file": b"b" * 2000})


def test_a_scheme_that_beam_does_not_know():
    private.check_scheme("--x", "/a/b")
    with pytest.raises(ConfigError, match=r"--x=nfs4://x is refused: it must lie on a file system"):
        private.check_scheme("--x", "nfs4://x")


def no_links(*_):
    raise OSError("Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_written_once(tmp_path, monkeypatch, links):
    """Also on a file system that has no links."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "new" / "file"
    write_private_once(str(path), b"first")
    before = path.stat()
    write_private_once(str(path), b"second")
    assert small.contents(tmp_path) == {"new/file": b"first"}
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700


def test_written_once_elsewhere(tmp_path):
    write_private_once(f"crate://{tmp_path}/file", b"first")
    write_private_once(f"crate://{tmp_path}/file", b"second")
    assert small.contents(tmp_path) == {"file": b"first"}


@pytest.mark.parametrize("links", [True, False])
def test_a_second_attempt_between_the_first_ones_steps(tmp_path, monkeypatch, links):
    """The file appears while another attempt has its own bytes ready: it stays."""
    link = os.link if links else no_links
    path = tmp_path / "file"

    def link_after_another(source, target):
        monkeypatch.setattr(os, "link", link)
        write_private_once(str(path), b"another")
        link(source, target)

    monkeypatch.setattr(os, "link", link_after_another)
    write_private_once(str(path), b"mine")
    assert small.contents(tmp_path) == {"file": b"another"}


def test_a_write_once_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_private_once(str(tmp_path / "file"), b"data")
    assert small.contents(tmp_path) == {}


def test_never_seen_half_written_once(tmp_path, monkeypatch):
    path, seen = tmp_path / "file", []
    fsync = os.fsync

    def look(descriptor):
        fsync(descriptor)
        seen.append(path.exists())
        (hidden,) = os.listdir(tmp_path)
        assert hidden.startswith(".")
        assert mode(tmp_path / hidden) == 0o600

    monkeypatch.setattr(os, "fsync", look)
    write_private_once(str(path), b"data")
    assert seen == [False]
