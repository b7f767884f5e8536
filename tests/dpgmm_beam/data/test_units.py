import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.data import units
from dpgmm_beam.data.rows import UNIT_HASH, RowFormat, Rows, SetAside, accept
from dpgmm_beam.data.units import TABLE, IdHasher, Slice, UnitKeys, bounded, id_bytes, is_id, smallest
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.noise import NoiseKey
from tests.strategies import quick

KEYS = UnitKeys.of(NoiseKey(bytes(range(32))))
OTHER_KEYS = UnitKeys.of(NoiseKey(bytes(range(1, 33))))


def rows_of(owners, seed=0):
    """Rows of one class, each with a number of its own."""
    owners = np.asarray(owners, np.uint64)
    order = np.random.default_rng(seed).permutation(len(owners))
    values = np.column_stack([order, owners]).astype(np.int16)
    hashes = np.column_stack([owners * np.uint64(0x9E3779B97F4A7C15), owners]).astype(UNIT_HASH)
    return Rows(values, np.zeros(len(owners), np.int32), units=hashes)


def values_of(blocks):
    return sorted(tuple(row) for block in blocks for row in block.values.tolist())


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array(["7", None, "", " "]), [b"7", None, None, b" "]),
        (pa.array([7, None, -1], pa.int8()), [b"7", None, b"-1"]),
        (pa.array([2**64 - 1], pa.uint64()), [b"18446744073709551615"]),
        (pa.array([b"\xff\x00", b"", None]), [b"\xff\x00", None, None]),
        (pa.array([b"ab"], pa.binary(2)), [b"ab"]),
        (pa.array(["x", None, "x"]).dictionary_encode(), [b"x", None, b"x"]),
        (pa.chunked_array([["x"], ["y"]]), [b"x", b"y"]),
        (pa.nulls(2), [None, None]),
        (pa.array(["x"], pa.string_view()), [b"x"]),
        # Two ways in which Unicode writes one name are two units.
        (pa.array(["\u00e9", "e\u0301"]), ["\u00e9".encode(), "e\u0301".encode()]),
    ],
)
def test_bytes_decide(ids, expected):
    assert is_id(ids.type)
    assert id_bytes(ids).to_pylist() == expected
    hashes, present, within = IdHasher(KEYS)(ids)
    assert present.tolist() == within.tolist() == [each is not None for each in expected]
    distinct = {each for each in expected if each is not None}
    assert len({bytes(each) for each in hashes[present]}) == len(distinct)


@pytest.mark.parametrize(
    "kind", [pa.float64(), pa.bool_(), pa.date32(), pa.struct([("a", pa.string())]), pa.list_(pa.int8())]
)
def test_what_is_no_id(kind):
    assert not is_id(kind)


def test_hashes_need_the_key_and_say_nothing_else():
    ids = pa.array(["anna", "anna", "bert"])
    one, other = (IdHasher(keys)(ids)[0] for keys in (KEYS, OTHER_KEYS))
    assert (one[0] == one[1]).all()
    assert (one[0] != one[2]).any()
    assert not (one == other).any()
    assert "ids" not in repr(KEYS)
    assert KEYS.ids.hex() not in repr(KEYS)
    assert KEYS.ids != KEYS.rows


owners = st.lists(st.integers(0, 5), max_size=40)


@quick
@given(owners, st.integers(1, 5), st.integers(0, 2**32))
def test_the_choice_is_the_units_own(drawn, most, seed):
    """Whatever the order of rows, the blocks they come in, and the other units."""
    rows = rows_of(drawn)
    expected = values_of(bounded([rows], most, KEYS))
    for owner in set(drawn):
        own = [value for value in expected if value[1] == owner]
        assert len(own) == min(most, drawn.count(owner))
        # Alone it has the same.
        alone = np.flatnonzero(rows.values[:, 1] == owner)
        only = dataclasses.replace(rows.kept(alone), units=rows.units[alone])
        assert values_of(bounded([only], most, KEYS)) == own
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(rows))
    cut = np.sort(generator.integers(0, len(rows) + 1, 3))
    blocks = [
        dataclasses.replace(rows.kept(part), units=rows.units[part]) for part in np.split(shuffled, cut)
    ]
    assert values_of(bounded(blocks, most, KEYS)) == expected
    # Of parts, as of all.
    tables = [units.table_of(block, KEYS, number) for number, block in enumerate(blocks)]
    whole = smallest(np.concatenate([np.zeros(0, TABLE), *tables]), most)
    parts = smallest(np.concatenate([np.zeros(0, TABLE), *(smallest(each, most) for each in tables)]), most)
    np.testing.assert_array_equal(whole, parts)


def test_another_key_chooses_others():
    rows = rows_of([1] * 100)
    one, other = (values_of(bounded([rows], 10, keys)) for keys in (KEYS, OTHER_KEYS))
    # By chance they are the same once in 10**13.
    assert one != other


def test_rows_that_are_equal_count_no_oftener():
    rows = Rows(np.ones((9, 2), np.int16), np.zeros(9, np.int32), units=np.ones((9, 2), UNIT_HASH))
    assert len(bounded([rows], 4, KEYS)[0]) == 4
    assert bounded([rows], 4, KEYS)[0].units is None


def test_a_row_of_another_class_is_another_row():
    rows = Rows(np.ones((2, 2), np.int16), np.array([0, 1], np.int32), units=np.ones((2, 2), UNIT_HASH))
    hashes = units.hashes_of_rows(rows, KEYS)
    assert (hashes[0] != hashes[1]).any()
    other = dataclasses.replace(rows, units=np.zeros((2, 2), UNIT_HASH))
    np.testing.assert_array_equal(units.hashes_of_rows(other, KEYS), hashes)


def test_no_rows():
    assert bounded([], 1, KEYS) == []
    assert len(bounded([rows_of([])], 1, KEYS)[0]) == 0


def test_rows_without_an_id_are_set_aside():
    batch = pa.record_batch(
        {
            "embedding": pa.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [float("nan"), 1.0], None]),
            "label": ["a", "a", "b", "a", "a"],
            "unit": ["x", None, "x", "", "x"],
        }
    )
    rows, aside = accept(batch, RowFormat(("a",), 2, None), IdHasher(KEYS))
    assert aside == SetAside(length=1, label=1, value=0, unit=2)
    np.testing.assert_array_equal(rows.units, IdHasher(KEYS)(pa.array(["x"]))[0])
    assert (aside + SetAside(1, 2, 3, 4, 5)) == SetAside(2, 3, 3, 6, 5)


def test_every_id_is_in_one_slice_whatever_the_key():
    ids = pa.array([*(f"patient {number}" for number in range(400)), None])
    masks = [IdHasher(KEYS, f"{number}/7")(ids)[2] for number in range(1, 8)]
    np.testing.assert_array_equal(sum(mask.astype(int) for mask in masks), [1] * 400 + [0])
    # Of 400 ids that do not change, so this never fails by chance.
    assert all(22 <= mask.sum() <= 95 for mask in masks)
    np.testing.assert_array_equal(IdHasher(OTHER_KEYS, "3/7")(ids)[2], masks[2])
    # One half is two quarters.
    half, first, second = (IdHasher(KEYS, text)(ids)[2] for text in ("1/2", "1/4", "2/4"))
    np.testing.assert_array_equal(half, first | second)
    # In these places for ever: a release that was made before must not share people with one of tomorrow.
    placed = [number for number in range(12) if Slice(1, 3).of([f"patient {number}".encode()])[0]]
    assert placed == [0, 5, 7]


@pytest.mark.parametrize(
    "text", ["", "1", "0/2", "3/2", "1/4097", "01/2", "1/2/3", "-1/2", "1 /2", "a/b", "\u0661/2"]
)
def test_slices_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="be K/N with K from 1 to N"):
        Slice.parse(text)
