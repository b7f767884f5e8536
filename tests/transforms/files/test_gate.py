import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from dpgmm_beam.errors import ConfigError
from tests.transforms import crate
from transforms.files import gate


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "charges" / "gate-x.json")


def test_it_is_passed_for_one_state_of_the_data(path):
    gate.go_through(path, "r", b"data")
    gate.go_through(path, "r", b"data")
    with pytest.raises(
        ConfigError, match="release_id=r is refused: it must be new: it names a release of other"
    ):
        gate.go_through(path, "r", b"other")
    assert not gate.shut(path)
    assert not gate.is_shut(path)
    assert gate.read(path) == gate.Passed(gate.told("r", "data", b"data".hex()))


def test_what_is_shut_is_shut_for_good(path):
    assert gate.read(path) is None
    assert gate.shut(path)
    assert gate.shut(path)
    assert gate.is_shut(path)
    with pytest.raises(ConfigError, match="its charge was given back"):
        gate.go_through(path, "r", b"data")


def test_its_name_is_on_the_disk_before_anything_is_drawn(path, monkeypatch):
    forced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: forced.append(os.fstat(descriptor).st_mode))
    gate.go_through(path, "r", b"data")
    assert [stat.S_ISDIR(mode) for mode in forced] == [False, True]


def test_of_two_at_once_one_wins(tmp_path):
    """Never does a worker draw behind a gate that the driver has shut."""

    def passes(path):
        try:
            gate.go_through(path, "r", b"data")
        except ConfigError:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        for number in range(50):
            path = str(tmp_path / f"gate-{number}.json")
            shut, passed = threads.submit(gate.shut, path), threads.submit(passes, path)
            assert shut.result() != passed.result()


def test_a_release_that_was_made_before_comes_out_the_same_or_not_at_all(path):
    gate.open_for(path, "r", gate.Passed(gate.told("r", "data", "aa"), gate.told("r", "state", "bb")))
    gate.go_through(path, "r", bytes.fromhex("aa"))
    gate.check_state(path, "r", "bb")
    with pytest.raises(ConfigError, match="another draw of the same noise"):
        gate.check_state(path, "r", "cc")


def test_without_a_ledger_there_is_no_gate():
    gate.go_through("", "r", b"data")
    gate.check_state("", "r", "bb")


def test_nothing_private_is_in_it(path, tmp_path):
    gate.go_through(path, "r", b"data" * 16)
    text = (tmp_path / "charges" / "gate-x.json").read_text()
    assert (b"data" * 16).hex() not in text
    assert stat.S_IMODE((tmp_path / "charges" / "gate-x.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "charges").stat().st_mode) == 0o700
    assert gate.told("r", "data", "aa") != gate.told("s", "data", "aa")


def test_a_damaged_one_lets_nobody_through(path, tmp_path):
    gate.shut(path)
    for content in ("", "{", "3", '{"x": 1}', "[]"):
        (tmp_path / "charges" / "gate-x.json").write_text(content)
        with pytest.raises(ConfigError, match="damaged"):
            gate.go_through(path, "r", b"data")
        assert not gate.shut(path)


def test_on_an_object_store_nobody_can_tell(tmp_path):
    path = f"{crate.CrateFileSystem.scheme()}://{tmp_path}/gate-x.json"
    assert not gate.shut(path)
    gate.go_through(path, "r", b"data")
    with pytest.raises(ConfigError, match="other data"):
        gate.go_through(path, "r", b"other")
