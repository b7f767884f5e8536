import dataclasses
import itertools
import os
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpgmm_beam.data.rows import RecordForm, Rows, concatenate
from tests.strategies import quick
from tests.transforms import crate  # noqa: F401  (the scheme crate://)
from transforms.files import prepared

SCHEMES = ("", "crate://")
FORM = RecordForm(2)


def some_rows(count: int, dimension: int, seed: int = 0) -> Rows:
    generator = np.random.default_rng(seed)
    # Nine values of norm 2**15 at most.
    values = generator.integers(-10_000, 10_001, (count, dimension)).astype(np.int16)
    return Rows(values, generator.integers(0, 2**31 - 1, count).astype(np.int32))


def same(one: Rows, other: Rows) -> bool:
    return np.array_equal(one.values, other.values) and np.array_equal(one.classes, other.classes)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@quick
@given(
    scheme=st.sampled_from(SCHEMES),
    counts=st.lists(st.integers(0, 40), max_size=4),
    dimension=st.integers(1, 9),
    block_rows=st.integers(1, 50),
    seed=st.integers(0, 9),
)
def test_what_was_written_is_read(scratch, scheme, counts, dimension, block_rows, seed):
    path = scheme + str(scratch / "rows.npy")
    blocks = [some_rows(count, dimension, seed + i) for i, count in enumerate(counts)]
    form = RecordForm(dimension)
    prepared.write(path, form, blocks)
    found = list(prepared.read(path, form, block_rows))
    assert same(concatenate(found, dimension), concatenate(blocks, dimension))
    assert [len(block) for block in found[:-1]] == [block_rows] * (len(found) - 1)
    assert prepared.is_whole(path, form)
    assert not prepared.is_whole(path, RecordForm(dimension + 1))
    assert os.path.getsize(scratch / "rows.npy") == prepared.file_bytes(sum(counts), form)
    # Numpy alone reads it, and maps it where there is something to map.
    for mode in (None, "r"):
        records = np.load(scratch / "rows.npy", mmap_mode=mode)
        assert records.dtype == form.dtype
        assert same(Rows.of_records(records), concatenate(blocks, dimension))


def test_far_rows_are_read_by_ranges_of_whole_blocks(tmp_path, monkeypatch):
    rows, path = some_rows(100, 3), f"crate://{tmp_path}/rows.npy"
    prepared.write(path, RecordForm(3), [rows])
    opened = []
    open_ranges = prepared.open_ranges

    class Counted:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def size(self):
            return self.file.size()

        def read_at(self, size, offset):
            opened.append(size)
            return self.file.read_at(size, offset)

    monkeypatch.setattr(prepared, "open_ranges", lambda path: Counted(open_ranges(path)))
    monkeypatch.setattr(prepared, "_RANGE_BYTES", 250)
    found = list(prepared.read(path, RecordForm(3), 7))
    assert same(concatenate(found, 3), rows)
    # Records of 14 bytes: two blocks of seven are the most in 250 bytes.
    assert opened[1:] == [196] * 7 + [28]
    assert prepared.is_whole(path, RecordForm(3))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_cut_and_every_flipped_byte_is_found(tmp_path, scheme):
    path = tmp_path / "rows.npy"
    prepared.write(str(path), FORM, [some_rows(3, 2)])
    whole = path.read_bytes()
    far = scheme + str(path)
    assert prepared.is_whole(far, FORM)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert not prepared.is_whole(far, FORM), size
    path.write_bytes(whole + b"\0")
    assert not prepared.is_whole(far, FORM)
    for position in range(len(whole)):
        for bits in (0x01, 0x80, 0xFF):
            broken = bytearray(whole)
            broken[position] ^= bits
            path.write_bytes(broken)
            assert not prepared.is_whole(far, FORM), (position, bits)
    path.write_bytes(whole)
    assert prepared.is_whole(far, FORM)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_file_that_is_not_there_or_is_another(tmp_path, scheme):
    path = scheme + str(tmp_path / "rows.npy")
    assert not prepared.is_whole(path, FORM)
    with pytest.raises(OSError, match=r"rows\.npy"):
        list(prepared.read(path, FORM, 5))
    prepared.write(path, RecordForm(3), [some_rows(4, 3)])
    with pytest.raises(ValueError, match="rows of 2 values"):
        list(prepared.read(path, FORM, 5))
    np.save(tmp_path / "rows.npy", np.zeros(4))
    with pytest.raises(ValueError, match="rows of 2 values"):
        list(prepared.read(path, FORM, 5))


@settings(quick, max_examples=20)
@given(cuts=st.lists(st.integers(0, 30), max_size=5))
def test_a_second_attempt_writes_the_same_bytes(scratch, cuts):
    """However its blocks are cut."""
    rows = some_rows(30, 4)
    prepared.write(str(scratch / "one.npy"), RecordForm(4), [rows])
    edges = [0, *sorted(cuts), 30]
    pieces = [Rows(rows.values[a:b], rows.classes[a:b]) for a, b in itertools.pairwise(edges)]
    prepared.write(f"crate://{scratch}/other.npy", RecordForm(4), iter(pieces))
    assert (scratch / "one.npy").read_bytes() == (scratch / "other.npy").read_bytes()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_blocks_that_fail_leave_no_file(tmp_path, scheme):
    def blocks():
        yield some_rows(5, 2)
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        prepared.write(scheme + str(tmp_path / "rows.npy"), FORM, blocks())
    assert os.listdir(tmp_path) == []


def test_only_the_owner_reads(tmp_path):
    path = tmp_path / "folder" / "rows.npy"
    prepared.write(str(path), FORM, [some_rows(5, 2)])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("scheme", ["", "crate://"])
def test_pictures_go_with_their_rows(scratch, scheme):
    path = scheme + str(scratch / "rows.npy")
    rows = dataclasses.replace(some_rows(20, 3), pictures=np.arange(100, dtype=np.int16).reshape(20, 5))
    form = RecordForm(3, pictures=5)
    prepared.write(path, form, rows.blocks(6))
    found = list(prepared.read(path, form, 8))
    np.testing.assert_array_equal(np.concatenate([each.pictures for each in found]), rows.pictures)
    assert same(concatenate(found, 3), concatenate([rows], 3))
    assert prepared.is_whole(path, form)
    assert not prepared.is_whole(path, RecordForm(3))
    assert not prepared.is_whole(path, RecordForm(3, pictures=6))
    assert os.path.getsize(scratch / "rows.npy") == prepared.file_bytes(20, form)
