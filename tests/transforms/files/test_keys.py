import os

import pytest

from dpgmm_beam.errors import ConfigError
from tests import small
from transforms.files import keys


def test_the_bytes_of_the_file_are_the_key(tmp_path):
    one, same = (keys.load(small.write_key(tmp_path / name)) for name in "ab")
    other = keys.load(small.write_key(tmp_path / "c", small.OTHER_KEY))
    assert one == same
    assert one != other


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".txt"])
def test_a_key_is_never_decompressed(tmp_path, suffix):
    """Beam would, by the name."""
    assert keys.load(small.write_key(tmp_path / f"key{suffix}")) == keys.load(
        small.write_key(tmp_path / "key")
    )


def test_line_ends_are_bytes(tmp_path):
    keys.load(small.write_key(tmp_path / "key", b"\r\n" * 16))
    with pytest.raises(ConfigError):
        keys.load(small.write_key(tmp_path / "key", b"x" * 32 + b"\n"))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_another_size_is_refused_and_not_shown(tmp_path, size):
    with pytest.raises(ConfigError) as refused:
        keys.load(small.write_key(tmp_path / "key", b"s" * size))
    assert "ss" not in str(refused.value).replace("must", "")


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        keys.load(str(tmp_path / "missing"))


@pytest.mark.parametrize("byte", [b"\0", b"A"])
def test_one_byte_again_and_again_is_no_key(tmp_path, byte):
    with pytest.raises(ConfigError, match="hold random bytes"):
        keys.load(small.write_key(tmp_path / "key", byte * 32))


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "key")
    with pytest.raises(OSError, match="not a regular file"):
        keys.load(str(tmp_path / "key"))


def test_a_key_shows_nothing_of_itself(tmp_path):
    key = keys.load(small.write_key(tmp_path / "key"))
    for text in (repr(key), str(key)):
        assert small.KEY.hex() not in text
        assert repr(small.KEY)[2:-1] not in text
