import os

import pytest

from dpgmm_beam.errors import ConfigError
from tests.transforms import crate  # noqa: F401  (the scheme crate://)
from transforms.files.small import read_small


@pytest.mark.parametrize("scheme", ["", "crate://"])
def test_the_bytes_of_a_file(tmp_path, scheme):
    path = tmp_path / "file.gz"
    path.write_bytes(b"plain")
    assert read_small("--x", f"{scheme}{path}", 5) == b"plain"
    with pytest.raises(
        ConfigError, match=r"--x=.*file.gz is refused: it must be a readable file of at most 4 b"
    ):
        read_small("--x", f"{scheme}{path}", 4)
    with pytest.raises(ConfigError, match=r"--x=.*missing is refused"):
        read_small("--x", f"{scheme}{tmp_path}/missing", 5)


def test_a_link_to_a_file_is_the_file(tmp_path):
    (tmp_path / "file").write_bytes(b"plain")
    (tmp_path / "link").symlink_to("file")
    assert read_small("--x", str(tmp_path / "link"), 5) == b"plain"


def a_fifo(path):
    os.mkfifo(path)


def a_loop(path):
    path.symlink_to(path.name)


def a_device(path):
    path.symlink_to("/dev/zero")


def a_huge_file(path):
    path.touch()
    os.truncate(path, 2**43)


@pytest.mark.parametrize(
    "make", [os.mkdir, a_fifo, a_loop, a_device, a_huge_file], ids=lambda make: make.__name__
)
def test_what_is_no_small_file_is_not_even_begun(tmp_path, make):
    make(tmp_path / "odd")
    with pytest.raises(
        ConfigError, match=r"--x=.*/odd is refused: it must be a readable file of at most 1,024 b"
    ):
        read_small("--x", str(tmp_path / "odd"), 1024)


@pytest.mark.parametrize("path", ["", "a\0b", "nowhere/below", "bogus://x/y", "\udcff"])
def test_what_is_no_path(path):
    with pytest.raises(ConfigError, match=r"--x=.* is refused"):
        read_small("--x", path, 5)


def test_a_file_that_grows_while_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"plain")
    found = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: found)
    monkeypatch.setattr(os, "fstat", lambda descriptor: found)
    (tmp_path / "file").write_bytes(b"plainer")
    with pytest.raises(ConfigError):
        read_small("--x", str(tmp_path / "file"), 5)


def test_a_file_that_becomes_a_fifo_after_it_was_looked_at(tmp_path, monkeypatch):
    """It is not waited for: nobody writes to it."""
    (tmp_path / "file").write_bytes(b"plain")
    found = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: found)
    (tmp_path / "file").unlink()
    os.mkfifo(tmp_path / "file")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_small("--x", str(tmp_path / "file"), 5)
