import numpy as np
import pyarrow as pa

from transforms import elements


def test_labels_of_single_rows():
    """As Arrow has them in batches; a text that no file can hold is none."""
    labels = ["a", np.str_("b"), 7, np.uint8(7), -1, True, 1.0, None, b"a", "\udcff"]
    assert list(map(elements.as_label, labels)) == ["a", "b", "7", "7", "-1", None, None, None, None, None]


def test_ids_of_elements():
    values = ["7", 7, np.int64(7), b"7", bytearray(b"7"), 7.0, None, True, ["7"], "\ud800", 10**5000]
    assert [elements.as_id(each) for each in values] == [b"7"] * 5 + [None] * 6
    assert elements._ids(values).to_pylist() == [b"7"] * 5 + [None] * 6
    assert elements._ids(np.array([7, 8])).to_pylist() == [b"7", b"8"]
    assert elements._ids(pa.array([1.5])).to_pylist() == [None]
    assert elements._ids("77").to_pylist() == []
