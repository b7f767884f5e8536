"""Keys of releases in a folder, and in Vault as a fake of its protocol speaks it."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from dpgmm_beam.errors import ConfigError, PassingError
from pipelines import cli, key_store
from tests.pipelines.vault_server import TOKEN, fake_vault

IDS = ["2026-11", "a/b", "ü", "../x", "A b".replace(" ", "_"), "x" * 256, "a", "A"]


@pytest.fixture
def vault(monkeypatch, tmp_path):
    with fake_vault() as server:
        monkeypatch.setenv("VAULT_ADDR", server.url)
        monkeypatch.setenv("VAULT_TOKEN", TOKEN)
        monkeypatch.setenv("HOME", str(tmp_path))
        yield server


@pytest.fixture(params=["folder", "vault"])
def store(request, tmp_path):
    if request.param == "folder":
        return key_store.store_of(str(tmp_path / "keys"))
    request.getfixturevalue("vault")
    return key_store.store_of("vault:secret/dpgmm/photos")


def test_a_key_is_drawn_once_for_each_id(store):
    store.check()
    keys = {each: store.key(each) for each in IDS}
    assert len(set(keys.values())) == len(IDS)
    assert all(len(key) == 32 for key in keys.values())
    assert {each: store.key(each) for each in IDS} == keys


def test_many_at_once_get_the_same(store):
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(store.key, ["r"] * 16))) == 1


def test_a_destroyed_key_is_never_drawn_again(store):
    store.key("r")
    other = store.key("s")
    assert store.forget("r")
    for _ in range(2):
        with pytest.raises(
            ConfigError, match="--release-id=r is refused: it must be new: the key of its release"
        ):
            store.key("r")
        assert not store.forget("r")
    # Not even where there was none.
    assert not store.forget("t")
    with pytest.raises(ConfigError, match="--release-id=t"):
        store.key("t")
    assert store.key("s") == other


def test_a_folder_is_its_owners_alone(tmp_path):
    folder = tmp_path / "keys"
    store = key_store.store_of(str(folder))
    secret = store.key("r")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == secret
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"--release-key-store=.*chmod 600"):
        store.key("r")
    path.chmod(0o600)
    store.forget("r")
    assert all(secret not in left.read_bytes() for left in folder.iterdir())
    folder.chmod(0o755)
    with pytest.raises(ConfigError, match="only its owner can enter"):
        store.key("s")


def test_a_forgetting_that_was_killed_half_way_has_forgotten(tmp_path):
    store = key_store.store_of(str(tmp_path / "keys"))
    secret = store.key("r")
    (path,) = (tmp_path / "keys").iterdir()
    store.forget("r")
    path.write_bytes(secret)
    with pytest.raises(ConfigError, match="was destroyed"):
        store.key("r")
    assert store.forget("r")
    assert not path.exists()


@pytest.mark.parametrize("size", [0, 31, 33, 5000])
def test_what_is_no_key(tmp_path, size):
    store = key_store.store_of(str(tmp_path / "keys"))
    store.key("r")
    (path,) = (tmp_path / "keys").iterdir()
    path.write_bytes(os.urandom(size))
    with pytest.raises(ConfigError, match="--release-key-store="):
        store.key("r")


def test_destroyed_in_vault_is_destroyed_in_all_versions(vault):
    store = key_store.store_of("vault:secret/dpgmm")
    secret = store.key("r").hex()
    ((path, versions),) = vault.secrets.items()
    assert path.startswith("dpgmm/r-")
    assert versions == [{"key": secret, "release_id": "r"}]
    store.forget("r")
    assert versions == [None, {"forgotten": "true", "release_id": "r"}]


def test_a_key_that_somebody_deleted_in_vault_is_not_drawn_anew(vault):
    store = key_store.store_of("vault:secret/dpgmm")
    store.key("r")
    (versions,) = vault.secrets.values()
    versions[0] = None
    with pytest.raises(ConfigError, match="was destroyed"):
        store.key("r")


def test_troubles_with_vault_are_one_sentence(vault, monkeypatch):
    store = key_store.store_of("vault:secret/dpgmm")
    vault.sealed = True
    with pytest.raises(PassingError, match="Vault could not be used"):
        store.key("r")
    vault.sealed = False
    monkeypatch.setenv("VAULT_TOKEN", "hvs.other")
    with pytest.raises(ConfigError, match="be a path that Vault lets this token use") as refused:
        store.key("r")
    assert "hvs" not in str(refused.value)
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:1")
    with pytest.raises(PassingError, match="Vault can't be reached"):
        store.check()
    monkeypatch.delenv("VAULT_ADDR")
    with pytest.raises(ConfigError, match="come with VAULT_ADDR"):
        store.check()


@pytest.mark.parametrize(
    "text", ["vault:", "vault:secret", "vault:/", "vault:secret/../x", "gs://a/b", "", "a\0"]
)
def test_what_is_no_store(text):
    with pytest.raises(ConfigError, match="--release-key-store="):
        key_store.store_of(text).check()


def test_forget_key_is_a_command(tmp_path, capsys):
    folder = str(tmp_path / "keys")
    key_store.store_of(folder).key("r")
    command = ["ledger", "forget-key", "--release-key-store", folder, "--release-id"]
    assert cli.main([*command, "r"]) == 0
    assert capsys.readouterr().out == "destroyed the key of r\n"
    assert cli.main([*command, "r"]) == 0
    assert capsys.readouterr().out == "there was no key, and there will be none, of r\n"
    assert cli.main(command[:-1]) == 2
    assert "--release-id=(not given) is refused" in capsys.readouterr().err
