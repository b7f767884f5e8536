import os
import stat

import pytest

from dpgmm_beam.errors import ConfigError
from transforms.files import private
from transforms.files.private import make_private_folder
from transforms.files.write import write_whole


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


def test_a_folder_that_exists_is_left_alone(tmp_path):
    os.chmod(tmp_path, 0o755)
    make_private_folder(str(tmp_path))
    write_whole(str(tmp_path / "file"), lambda file: file.write(b"secret"), private=True)
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


def test_a_scheme_that_beam_does_not_know():
    private.check_scheme("--x", "/a/b")
    with pytest.raises(ConfigError, match=r"--x=nfs4://x is refused: it must lie on a file system"):
        private.check_scheme("--x", "nfs4://x")
