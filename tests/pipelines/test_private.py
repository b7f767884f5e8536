import os
import stat

import pytest

from dpgmm_beam.errors import ConfigError
from pipelines import private
from tests import small


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_the_default_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert private.default_folder() == str(tmp_path / "dpgmm")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert private.default_folder() == "/home/somebody/.local/state/dpgmm"


@pytest.mark.parametrize("umask", [0, 0o022])
def test_the_folder_is_its_owners_only(tmp_path, umask):
    before = os.umask(umask)
    try:
        path = private.open_folder(str(tmp_path / "new" / "folder"))
    finally:
        os.umask(before)
    assert mode(path) == 0o700
    os.chmod(path, 0o755)
    assert private.open_folder(path) == path
    assert mode(path) == 0o700


def test_a_relative_folder_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert private.open_folder("p") == str(tmp_path / "p")


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--private-dir=.* must be a folder that can be written"):
        private.open_folder(str(tmp_path / name))


def test_a_folder_of_somebody_else_that_others_enter(tmp_path, monkeypatch):
    """Its mode is not ours to change."""
    os.chmod(tmp_path, 0o755)
    monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    with pytest.raises(ConfigError, match="must be a folder that only its owner can enter"):
        private.open_folder(str(tmp_path))
    assert mode(tmp_path) == 0o755


def test_a_scheme_that_beam_does_not_know():
    with pytest.raises(ConfigError, match=r"--private-dir=nfs4://x is refused: it must lie on a file system"):
        private.open_folder("nfs4://x")


def test_a_key_of_the_user(tmp_path):
    private.check_key(small.write_key(tmp_path / "key"), "2026-11")
    private.check_key(None, None)


@pytest.mark.parametrize(
    ("key_file", "release_id", "sentence"),
    [
        ("key", None, "--noise-key-file=key is refused: it must come together with --release-id."),
        (None, "r1", "--release-id=r1 is refused: it must come together with --noise-key-file."),
        ("key", "", "--release-id='' is refused: it must be a name without white space."),
        ("key", "a b", "--release-id='a b' is refused"),
        ("key", "a\n", r"--release-id='a\n' is refused"),
        (
            "missing",
            "r1",
            "--noise-key-file=missing is refused: it must be a readable file of exactly 32 bytes.",
        ),
        (
            "folder",
            "r1",
            "--noise-key-file=folder is refused: it must be a readable file of exactly 32 bytes.",
        ),
        ("short", "r1", "--noise-key-file=short is refused: it must hold exactly 32 bytes, not 31 bytes."),
        ("nfs4://x", "r1", "--noise-key-file=nfs4://x is refused: it must lie on a file system"),
    ],
)
def test_keys_and_names_that_are_refused(tmp_path, monkeypatch, key_file, release_id, sentence):
    monkeypatch.chdir(tmp_path)
    small.write_key(tmp_path / "key")
    small.write_key(tmp_path / "short", bytes(31))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError) as refused:
        private.check_key(key_file, release_id)
    assert str(refused.value).startswith(sentence)
