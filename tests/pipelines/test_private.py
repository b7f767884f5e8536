import os
import stat

import pytest

from dpgmm_beam.errors import ConfigError
from pipelines import private
from tests import small
from transforms.files import keys


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_the_default_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert private.default_folder() == str(tmp_path / "dpgmm")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert private.default_folder() == "/home/somebody/.local/state/dpgmm"


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": ""},
        {"HOME": "home"},
        {"HOME": "/home/x", "XDG_STATE_HOME": "state"},
        {"XDG_STATE_HOME": "~/state"},
    ],
    ids=str,
)
def test_no_folder_by_default(environment, monkeypatch, tmp_path):
    """Nor one below the working folder, called ~."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ConfigError, match=r"--private-dir=.* must be given, since neither XDG_STATE_HOME nor HOME"
    ):
        private.open_folder(None)
    assert not small.contents(tmp_path)
    assert private.open_folder("p") == str(tmp_path / "p")


def test_a_user_whom_nobody_knows(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**30)
    with pytest.raises(ConfigError, match="--private-dir=~/"):
        private.open_folder(None)


@pytest.mark.parametrize("umask", [0, 0o022, 0o277])
def test_the_folder_is_its_owners_only(tmp_path, umask):
    before = os.umask(umask)
    try:
        path = private.open_folder(str(tmp_path / "new" / "folder"))
    finally:
        os.umask(before)
    assert mode(path) == mode(tmp_path / "new") == 0o700
    assert private.open_folder(path) == path


@pytest.mark.parametrize("rights", [0o755, 0o750, 0o711, 0o1777, 0o770])
def test_a_folder_that_exists_is_not_taken_over(tmp_path, rights):
    os.chmod(tmp_path, rights)
    with pytest.raises(ConfigError, match=r"only its owner can enter: do chmod 700, or name a new one\.$"):
        private.open_folder(str(tmp_path))
    assert mode(tmp_path) == rights


def test_a_check_makes_nothing(tmp_path):
    assert private.check_folder(str(tmp_path / "new" / "folder")) == str(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path) == []
    before = os.stat(tmp_path).st_mode
    assert private.check_folder(str(tmp_path)) == str(tmp_path)
    assert (os.listdir(tmp_path), os.stat(tmp_path).st_mode) == ([], before)


def test_a_relative_folder_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert private.open_folder("p") == str(tmp_path / "p")


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--private-dir=.* must be a folder that can be written"):
        private.open_folder(str(tmp_path / name))


def test_a_folder_of_somebody_else(tmp_path, monkeypatch):
    """Also for root, who could enter it."""
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(tmp_path).st_uid + 1)
    with pytest.raises(
        ConfigError, match=r"must be a folder of this user \(number .*\), or a new one; number"
    ):
        private.open_folder(str(tmp_path))
    assert mode(tmp_path) == 0o700


def test_links_to_folders(tmp_path):
    (tmp_path / "there").mkdir(0o700)
    (tmp_path / "link").symlink_to("there")
    assert private.open_folder(str(tmp_path / "link")) == str(tmp_path / "link")
    (tmp_path / "there").chmod(0o755)
    with pytest.raises(ConfigError, match="only its owner can enter"):
        private.open_folder(str(tmp_path / "link"))
    for name, target in (("loop", "loop"), ("nowhere", "missing")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(ConfigError, match="must be a folder that can be written"):
            private.open_folder(str(tmp_path / name))


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
        ("key", "a\x1b[2J", r"--release-id=a\x1b[2J is refused: it must be a name of at most 256 printable"),
        ("key", "a\udcff", r"--release-id=a\udcff is refused"),
        ("key", "x" * 257, f"--release-id={'x' * 200}... is refused"),
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
        ("", "r1", "--noise-key-file='' is refused: it must be a readable file of exactly 32 bytes."),
        ("fifo", "r1", "--noise-key-file=fifo is refused: it must be a readable file of exactly 32 bytes."),
        ("short", "r1", "noise_key_file=short is refused: it must hold exactly 32 bytes, not 31 bytes."),
        ("nfs4://x", "r1", "--noise-key-file=nfs4://x is refused: it must lie on a file system"),
    ],
)
def test_keys_and_names_that_are_refused(tmp_path, monkeypatch, key_file, release_id, sentence):
    monkeypatch.chdir(tmp_path)
    small.write_key(tmp_path / "key")
    small.write_key(tmp_path / "short", bytes(31))
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError) as refused:
        private.check_key(key_file, release_id)
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize("rights", [0o644, 0o640, 0o604, 0o660, 0o620, 0o602, 0o610, 0o777])
def test_a_key_that_others_may_read_or_write(tmp_path, rights):
    key = small.write_key(tmp_path / "key")
    os.chmod(key, rights)
    with pytest.raises(ConfigError, match=rf"noise_key_file=.* \(chmod 600\), and has mode {rights:04o}\.$"):
        private.check_key_file(key)
    os.chmod(key, 0o400)
    private.check_key_file(key)


@pytest.mark.parametrize(
    ("owner", "rights", "sentence"),
    [
        # As Kubernetes and systemd hand out a secret: root's, for a group or by an access list.
        (0, 0o440, None),
        (0, 0o400, None),
        (0, 0o444, "chmod 440; Kubernetes' defaultMode"),
        (0, 0o460, "chmod 440; Kubernetes' defaultMode"),
        (1001, 0o400, "be a file of this user (number 1000) or of root's; number 1001 owns it"),
    ],
)
def test_a_key_of_root_and_of_somebody_else(tmp_path, monkeypatch, owner, rights, sentence):
    key = small.write_key(tmp_path / "key")
    found = os.stat_result((0o100000 | rights, 1, 1, 1, owner, 7, 32, 0, 0, 0))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(keys.os, "stat", lambda path: found)
    if sentence is None:
        keys.check_access(key)
        return
    with pytest.raises(ConfigError) as refused:
        keys.check_access(key)
    assert sentence in str(refused.value)


def test_a_key_of_one_byte(tmp_path):
    with pytest.raises(ConfigError, match=r"noise_key_file=.* must hold random bytes .*, not one repeated"):
        private.check_key_file(small.write_key(tmp_path / "key", b"A" * 32))
