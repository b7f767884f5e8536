import os
import stat
import threading

import pytest

from tests import small
from tests.transforms import crate  # noqa: F401  (the scheme crate://)
from transforms.files.write import write_whole


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture(autouse=True)
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def test_only_the_owner_reads(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    write_whole(str(path), b"secret", private=True)
    assert path.read_bytes() == b"secret"
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700


def test_a_failed_attempt_leaves_nothing_and_keeps_what_was(tmp_path):
    path = tmp_path / "file"

    def fails(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(str(path), fails, private=True)
    assert small.contents(tmp_path) == {}
    write_whole(str(path), lambda file: file.write(b"whole"), private=True)
    with pytest.raises(KeyboardInterrupt):
        write_whole(str(path), fails, private=True)
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

    write_whole(str(path), write, private=True)
    assert small.contents(tmp_path) == {"file": b"half and half"}


def test_two_attempts_at_once_leave_one_whole_file(tmp_path):
    both = threading.Barrier(2)

    def attempt(letter):
        def write(file):
            file.write(letter * 1000)
            both.wait(60)
            file.write(letter * 1000)

        write_whole(str(tmp_path / "file"), write, private=True)

    threads = [threading.Thread(target=attempt, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert small.contents(tmp_path) in ({"file": b"a" * 2000}, {"file": b"b" * 2000})


def no_links(*_):
    raise OSError("Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_written_once(tmp_path, monkeypatch, links):
    """Also on a file system that has no links."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "new" / "file"
    write_whole(str(path), b"first", private=True, once=True)
    before = path.stat()
    write_whole(str(path), b"second", private=True, once=True)
    assert small.contents(tmp_path) == {"new/file": b"first"}
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700


def test_written_once_elsewhere(tmp_path):
    write_whole(f"crate://{tmp_path}/file", b"first", private=True, once=True)
    write_whole(f"crate://{tmp_path}/file", b"second", private=True, once=True)
    assert small.contents(tmp_path) == {"file": b"first"}


@pytest.mark.parametrize("links", [True, False])
def test_a_second_attempt_between_the_first_ones_steps(tmp_path, monkeypatch, links):
    """The file appears while another attempt has its own bytes ready: it stays."""
    link = os.link if links else no_links
    path = tmp_path / "file"

    def link_after_another(source, target):
        monkeypatch.setattr(os, "link", link)
        write_whole(str(path), b"another", private=True, once=True)
        link(source, target)

    monkeypatch.setattr(os, "link", link_after_another)
    write_whole(str(path), b"mine", private=True, once=True)
    assert small.contents(tmp_path) == {"file": b"another"}


def test_a_write_once_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_whole(str(tmp_path / "file"), b"data", private=True, once=True)
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
    write_whole(str(path), b"data", private=True, once=True)
    assert seen == [False]


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    write_whole(str(path), b"one")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_whole(str(path), b"another")
    assert small.contents(tmp_path) == {"folder/file": b"one"}
