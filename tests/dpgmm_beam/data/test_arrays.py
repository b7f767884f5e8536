import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.data import arrays
from dpgmm_beam.data.rows import RowFormat, concatenate, rows_of
from dpgmm_beam.errors import ConfigError

FORMAT = RowFormat(("a", "b"), 3, None)


@given(
    st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), max_size=30),
    st.sampled_from([np.float32, np.float64]),
    st.integers(1, 8),
)
def test_rows_are_those_of_the_mathematics(values, kind, slice_rows):
    """Whatever the floats, and however the batch is cut."""
    matrix = np.array(values, kind).reshape(-1, 3)
    labels = ["a", "b"] * len(matrix)
    batch = arrays.batch_of(arrays.embedding_column(matrix), arrays.label_column(labels[: len(matrix)] or []))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "SLICE_ROWS", slice_rows)
        found = list(arrays.accepted(batch, FORMAT))
    due = rows_of(matrix, [number % 2 for number in range(len(matrix))])
    rows = concatenate([each for each, _ in found], 3)
    assert np.array_equal(rows.values, due.values)
    assert np.array_equal(rows.classes, due.classes)
    assert sum(aside.value for _, aside in found) == len(matrix) - len(due)


@pytest.mark.parametrize("kind", [np.float16, np.int8, np.uint64, np.longdouble, object])
def test_numbers_of_other_types(kind):
    values = np.array([[1, 2, 3], [4, 5, 6]], kind)
    assert arrays.embedding_column(values).to_pylist() == [[1, 2, 3], [4, 5, 6]]


def test_nothing_is_copied_that_need_not_be():
    values = np.zeros((1000, 64), np.float32)
    column = arrays.embedding_column(values)
    assert column.values.buffers()[1].address == values.ctypes.data


def test_columns_without_rows():
    assert len(arrays.embedding_column(np.zeros((0, 3)))) == 0
    assert len(arrays.embedding_column(pa.chunked_array([], pa.list_(pa.float32())))) == 0
    with pytest.raises(ConfigError, match="one length"):
        arrays.dimension_of(arrays.embedding_column(pa.nulls(3)))


def test_labels_without_a_value():
    assert arrays.label_column(np.array(["a", None, float("nan")], object)).to_pylist() == ["a", None, None]
    assert arrays.label_column([None, None]).null_count == 2


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (np.ones((17, 4)), [{"secret": 1}] * 17),
        (np.ones((17, 4)), ["secret"] * 16),
        (np.ones((17, 4)), np.ones((17, 17))),
        (np.ones((17, 4, 17)), ["secret"] * 17),
        (np.array([["secret"] * 4] * 17, object), ["a"] * 17),
        (np.array([[10**400] * 4] * 17, object), ["a"] * 17),
        ([[10**400] * 4, [1.0]] * 17, ["a"] * 34),
    ],
)
def test_refusals_tell_neither_values_nor_the_number_of_rows(values, labels):
    with pytest.raises(ConfigError) as refused:
        arrays.batch_of(arrays.embedding_column(values), arrays.label_column(labels))
    assert not any(word in str(refused.value) for word in ("secret", "16", "17"))


def test_what_is_masked_is_missing():
    masked = np.ma.masked_array(np.ones((2, 2), np.float32), mask=[[True, False], [False, False]])
    assert arrays.embedding_column(masked).to_pylist()[1] == [1.0, 1.0]
    assert np.isnan(arrays.embedding_column(masked).to_pylist()[0][0])
    labels = np.ma.masked_array(["a", "b"], mask=[True, False])
    assert arrays.label_column(labels).to_pylist() == [None, "b"]
