import hashlib
import unicodedata
import warnings

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.data import rows
from dpgmm_beam.data.digest import DIGEST_LIMBS, digest_limbs, digest_of_limbs
from dpgmm_beam.data.rows import (
    RecordForm,
    RowFormat,
    Rows,
    accept,
    embedding_matrix,
    label_indices,
    rows_of,
    without_long_lists,
)
from dpgmm_beam.privacy import lattice
from tests.strategies import blobs, lattice_rows, quick, real_rows, splits, take

FLOATS = (pa.float16(), pa.float32(), pa.float64())


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_text_labels(kind):
    labels = pa.array(["b", None, "a", "zebra", "", "b"], pa.string()).cast(kind)
    for column in (labels, pa.chunked_array([labels[:2], labels[2:]])):
        indices = label_indices(column, ("a", "b"))
        assert indices.tolist() == [1, -1, 0, -1, -1, 1]
        assert indices.dtype == np.int32


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("sign", ["int", "uint"])
def test_integer_labels(bits, sign):
    kind = getattr(pa, f"{sign}{bits}")()
    labels = pa.array([7, None, 0, 100, 70], kind)
    assert label_indices(labels, ("0", "7", "100")).tolist() == [1, -1, 0, 2, -1]
    assert label_indices(labels.dictionary_encode(), ("0", "7", "100")).tolist() == [1, -1, 0, 2, -1]
    # Only the decimal form itself is the label.
    assert label_indices(labels, ("07", "7.0", "+7")).tolist() == [-1] * 5
    if sign == "int":
        assert label_indices(pa.array([-5], kind), ("-5",)).tolist() == [0]


def test_labels_of_other_kinds_and_none_at_all():
    assert label_indices(pa.array([None, None], pa.null()), ("a",)).tolist() == [-1, -1]
    assert label_indices(pa.chunked_array([], pa.string()), ("a",)).tolist() == []
    assert label_indices(pa.array([b"a", b"\xff\xfe"], pa.binary()), ("a",)).tolist() == [0, -1]
    assert label_indices(pa.array(["x", "a", "b"])[1:], ("a", "b")).tolist() == [0, 1]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    [
        "é",
        "e\u0301",
        "\u212b",
        "\u00c5",
        "K",
        "\u212a",
        "가",
        "\u1100\u1161",
        "a ",
        " a",
        "a\u3000",
        "\x85",
        "A",
    ]
)


@quick
@given(st.lists(TEXT, max_size=12), st.lists(TEXT, max_size=8, unique_by=rows.normal_form))
def test_labels_are_compared_as_they_stand_but_for_the_writing_of_a_character(labels, classes):
    places = {unicodedata.normalize("NFC", label): index for index, label in enumerate(classes)}
    expected = [places.get(unicodedata.normalize("NFC", label), -1) for label in labels]
    plain = pa.array(labels, pa.string())
    views = plain.cast(pa.binary()), plain.cast(pa.string_view()), plain.cast(pa.large_string())
    for column in (plain, plain.dictionary_encode(), *views):
        assert label_indices(column, tuple(classes)).tolist() == expected


def test_a_decomposed_label_between_nulls_and_text_that_is_none():
    labels = pa.array([b"e\xcc\x81", None, b"\xff", "é".encode(), b"\xcc\x81" * 10_000], pa.binary())
    assert label_indices(labels, ("é",)).tolist() == [0, -1, -1, 0, -1]
    # As long as a declared one can be, written the longest way.
    longest = "\u0390" * 1024
    decomposed = unicodedata.normalize("NFD", longest)
    assert len(decomposed.encode()) == 3 * len(longest.encode())
    assert label_indices(pa.array([decomposed]), ("x", longest)).tolist() == [1]


def test_labels_as_a_dictionary():
    """Its values are looked up once each, wherever they are and whatever they are."""
    values = pa.array(["b", "zebra", "a", None, "b"])
    places = pa.array([0, 1, 2, 3, 4, None, 2], pa.int8())
    labels = pa.DictionaryArray.from_arrays(places, values)
    for column in (labels, pa.chunked_array([labels[:3], labels[3:]])):
        assert label_indices(column, ("a", "b")).tolist() == [1, -1, 0, -1, 1, -1, 0]
    assert label_indices(labels[5:6], ("a",)).tolist() == [-1]
    assert label_indices(labels[:0], ("a",)).tolist() == []
    none = pa.DictionaryArray.from_arrays(pa.array([None, None], pa.int32()), pa.array([], pa.string()))
    assert label_indices(none, ("a",)).tolist() == [-1, -1]


def test_a_long_label_is_not_repeated():
    """A thousand rows of a label of 16 MiB: no more is allocated than one of it."""
    long = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 500), pa.array(["x" * 2**24, "a"]))
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        assert label_indices(long, ("a",)).tolist() == [-1, 0] * 500
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 2**25


def list_types(kind):
    return [pa.list_(kind), pa.large_list(kind), pa.list_(kind, 3)]


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("form", range(3))
def test_embeddings_of_every_list_and_width(kind, form):
    values = [np.array([i, 0.5, -2]).astype(np.float16).tolist() for i in range(8)]
    values[2] = None
    values[5] = [1.0, None, 2.0]
    column = pa.array([None if v is None else v for v in values], list_types(kind)[form])
    expected = np.array([[i, 0.5, -2] for i in range(8)])
    expected[5] = [1, np.nan, 2]
    for start, stop in ((0, 8), (1, 8), (3, 5), (2, 3), (4, 4), (0, 6)):
        for part in (column[start:stop], pa.chunked_array([column[start:stop], column[:0]])):
            matrix, keep = embedding_matrix(part, 3)
            wanted = [i for i in range(start, stop) if i != 2]
            assert keep.tolist() == [i != 2 for i in range(start, stop)]
            np.testing.assert_array_equal(matrix.astype(float), expected[wanted].reshape(-1, 3))


@pytest.mark.parametrize("form", range(2))
def test_wrong_lengths_are_set_aside(form):
    column = pa.array([[1, 2], [1, 2, 3], [], None, [1, 2, 3, 4], [4, 5, 6]], list_types(pa.float32())[form])
    matrix, keep = embedding_matrix(column, 3)
    assert keep.tolist() == [False, True, False, False, False, True]
    np.testing.assert_array_equal(matrix, [[1, 2, 3], [4, 5, 6]])
    matrix, keep = embedding_matrix(column, 5)
    assert matrix.shape == (0, 5)
    assert not keep.any()
    assert embedding_matrix(pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), 3)[0].shape == (0, 3)


@pytest.mark.parametrize(
    "column",
    [
        pa.nulls(3),
        pa.array([None, [], [None, None]]),
        pa.array([None, [], [None, None]], pa.large_list(pa.null())),
    ],
    ids=lambda column: str(column.type),
)
def test_embeddings_that_are_all_null(column):
    table = pa.table({"label": pa.nulls(3), "embedding": column})
    found, left_out = rows.accept(table, GOOD)
    assert found.values.shape == (0, 2)
    assert left_out.length + left_out.label + left_out.value == 3


TABLE = pa.table(
    {
        "label": ["a", "b", "zebra", None, "a", "b", "a", "b", "a", "b"],
        "embedding": pa.array(
            [
                [3, 4],
                [0, 2],
                [1, 1],
                [1, 1],
                [np.nan, 1],
                [np.inf, 1],
                [0, 0],
                [1e30, 1],
                None,
                [None, 1],
            ],
            pa.list_(pa.float32(), 2),
        ),
    }
)
GOOD = RowFormat(("a", "b"), 2, None)


@pytest.mark.parametrize("batch", [TABLE, TABLE.to_batches()[0], TABLE[:7]])
def test_bad_rows_are_set_aside(batch):
    found = rows.rows_of_batch(batch, GOOD)
    np.testing.assert_allclose(found.values, lattice.UNIT * np.array([[0.6, 0.8], [0, 1]]), atol=1)
    assert found.classes.tolist() == [0, 1]
    assert found.values.dtype == np.int16
    assert len(found) == 2


def test_rows_without_labels_are_of_the_one_class():
    unlabelled = RowFormat(("all",), 2, None, labelled=False)
    found = rows.rows_of_batch(TABLE.drop_columns("label"), unlabelled)
    assert found.classes.tolist() == [0] * 4


def test_reasons_are_counted():
    """For the owner's private folder: every row is accepted or counted once."""
    found, left_out = rows.accept(TABLE, GOOD)
    assert left_out == rows.SetAside(length=1, label=2, value=5)
    assert len(found) + 1 + 2 + 5 == len(TABLE)
    assert left_out + left_out == rows.SetAside(2, 4, 10)


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
def test_a_signalling_nan_is_set_aside_without_a_word(kind):
    bits = 8 * np.dtype(kind).itemsize
    mantissa = {16: 10, 32: 23, 64: 52}[bits]
    signalling = (kind(2 ** (bits - 1) - 2**mantissa) + kind(1)).astype(kind)
    values = np.array([signalling, 0, 0, 0], kind).view(f"f{bits // 8}")
    values[2:] = 1
    table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(pa.array(values), 2)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, left_out = rows.accept(table, RowFormat(("all",), 2, None, labelled=False))
    assert (len(found), left_out.value) == (1, 1)


@quick
@given(
    st.lists(st.one_of(st.none(), st.lists(st.floats(-5, 5, width=32), max_size=6)), max_size=12),
    st.booleans(),
)
def test_long_lists_can_be_dropped_before_their_turn(lists, large):
    kind = pa.large_list(pa.float32()) if large else pa.list_(pa.float32())
    labels = pa.array(["a", "b", None] * 4)[: len(lists)]
    batch = pa.RecordBatch.from_pydict({"label": labels, "embedding": pa.array(lists, kind)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_SPARE_VALUES", 0)
        shorter = rows.without_long_lists(batch, GOOD)
    assert len(shorter.column("embedding").flatten()) <= 2 * len(batch)
    (found, left_out), (expected, also) = rows.accept(shorter, GOOD), rows.accept(batch, GOOD)
    np.testing.assert_array_equal(found.records(), expected.records())
    assert left_out == also
    assert rows.without_long_lists(batch, GOOD) is batch


@quick
@given(real_rows(dimension=st.integers(1, 6)))
def test_records_are_the_rows(real):
    block = lattice_rows(real, np.arange(len(real)))
    records = block.records()
    assert records.dtype.itemsize == 8 + 2 * real.shape[1]
    again = rows.Rows.of_records(records)
    np.testing.assert_array_equal(again.values, block.values)
    np.testing.assert_array_equal(again.classes, block.classes)
    np.testing.assert_array_equal(again.square_norms(), block.square_norms())
    np.testing.assert_array_equal(again.records(), records)


@pytest.mark.parametrize("block_rows", [1, 3, 64])
def test_a_table_gives_the_same_rows_in_any_blocks(block_rows):
    lists = TABLE.set_column(1, "embedding", TABLE.column(1).cast(pa.list_(pa.float32())))
    batches = pa.concat_tables([lists] * 5).combine_chunks().to_batches(block_rows)
    blocks = [rows.rows_of_batch(batch, GOOD) for batch in batches]
    together = rows.concatenate(blocks, 2)
    expected = rows.rows_of_batch(TABLE, GOOD)
    np.testing.assert_array_equal(together.values, np.tile(expected.values, (5, 1)))
    np.testing.assert_array_equal(together.classes, np.tile(expected.classes, 5))
    np.testing.assert_array_equal(rows.concatenate(list(together.blocks(3)), 2).values, together.values)


def test_no_blocks_are_no_rows():
    empty = rows.concatenate([], 7)
    assert empty.values.shape == (0, 7)
    assert len(empty) == 0
    assert list(empty.blocks(5)) == []
    assert digest_limbs(empty, b"k").tolist() == [0] * DIGEST_LIMBS


@quick
@given(st.data())
def test_the_data_digest_does_not_depend_on_order_and_partition(data):
    block = blobs(12, 4, 3)
    pieces = data.draw(splits(len(block)))
    total = sum(digest_limbs(take(block, piece), b"key") for piece in pieces)
    assert digest_of_limbs(total) == digest_of_limbs(digest_limbs(block, b"key"))


def test_the_data_digest_tells_data_apart():
    block = blobs(12, 4, 3)
    changed = [block, take(block, np.arange(11)), take(block, np.r_[0:12, 3])]
    for row in range(12):
        values = block.values.copy()
        values[row, 2] += 1
        changed.append(rows.Rows(values, block.classes))
        classes = block.classes.copy()
        classes[row] = (classes[row] + 1) % 3
        changed.append(rows.Rows(block.values, classes))
    digests = [digest_of_limbs(digest_limbs(each, b"key")) for each in changed]
    digests.append(digest_of_limbs(digest_limbs(block, b"another key")))
    assert len(set(digests)) == len(digests)
    assert {len(each) for each in digests} == {64}


def test_the_data_digest_is_the_sum_of_the_rows_hashes():
    block = blobs(300, 3, 2)
    hashes = [hashlib.blake2b(record.tobytes(), key=b"key").digest() for record in block.records()]
    total = sum(int.from_bytes(each, "little") for each in hashes) % 2**512
    assert digest_of_limbs(digest_limbs(block, b"key")) == total.to_bytes(64, "little")


@pytest.mark.parametrize("kind", [pa.list_view, pa.large_list_view])
@pytest.mark.parametrize("start", [0, 1, 3])
def test_views_of_lists_as_lists(kind, start):
    values = [[1.0, 2.0], None, [], [3.0], [5.0, 6.0]]
    column = pa.array(values, kind(pa.float32())).slice(start)
    found = rows.without_views(column)
    found.validate(full=True)
    assert found.to_pylist() == values[start:]
    matrix, kept = embedding_matrix(column, 2)
    assert kept.tolist() == [value is not None and len(value) == 2 for value in values[start:]]
    assert matrix.tolist() == [value for value in values[start:] if value and len(value) == 2]


def with_pictures(vectors, seen, labels):
    lists = pa.list_(pa.float32())
    return pa.record_batch(
        {
            "label": pa.array(labels),
            "embedding": pa.array(vectors, lists),
            "picture": pa.array(seen, lists),
        }
    )


def test_a_row_is_kept_or_set_aside_with_its_picture():
    row_format = RowFormat(("a", "b"), 2, None, pictures=3, picture_norm=2.0)
    nan, good = float("nan"), [0.0, 0.0, 2.0]
    batch = with_pictures(
        [[1, 0], None, [0, 1], [1, 0], [nan, 1], [1, 1], [0, 2], [1, 0], [3, 4]],
        [good, good, None, [1, 2], good, [nan, 0, 0], [9, 0, 0], good, [0, 1, 0]],
        ["a", "a", "a", "a", "a", "a", "b", "c", "b"],
    )
    rows, aside = accept(batch, row_format)
    assert rows.classes.tolist() == [0, 1, 1]
    np.testing.assert_allclose(rows.values / lattice.UNIT, [[1, 0], [0, 1], [0.6, 0.8]], atol=1e-4)
    np.testing.assert_allclose(rows.pictures / lattice.UNIT, [[0, 0, 1], [1, 0, 0], [0, 0.5, 0]], atol=1e-4)
    assert (aside.length, aside.label, aside.value) == (3, 1, 2)
    again = Rows.of_records(rows.records())
    np.testing.assert_array_equal(again.pictures, rows.pictures)
    np.testing.assert_array_equal(rows.kept(np.array([2, 0])).pictures, rows.pictures[[2, 0]])
    assert [block.pictures.shape for block in rows.blocks(2)] == [(2, 3), (1, 3)]
    assert row_format.records(units=True).itemsize == RecordForm(2, units=True).itemsize + 6


def test_rows_in_memory_with_pictures():
    found = rows_of(
        np.array([[3.0, 4], [0, 0], [1, 0]]), [0, 1, 2], pictures=np.array([[1.0], [1], [np.nan]])
    )
    assert found.classes.tolist() == [0]
    assert found.pictures.tolist() == [[lattice.LARGEST]]


def test_pictures_that_are_too_long_are_not_carried_on(monkeypatch):
    monkeypatch.setattr("dpgmm_beam.data.rows._SPARE_VALUES", 3)
    batch = with_pictures([[1, 0], [1, 0]], [[1, 2, 3], [0.0] * 50], ["a", "a"])
    shorter = without_long_lists(batch, RowFormat(("a",), 2, None, pictures=3, picture_norm=1.0))
    assert shorter.column("picture").to_pylist() == [[1, 2, 3], None]
