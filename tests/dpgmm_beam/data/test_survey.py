import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.data import survey
from dpgmm_beam.data.rows import MAX_LABEL_BYTES
from dpgmm_beam.data.survey import LabelCounts, compare, difference, near_matches, one_letter_apart

LETTERS = st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=2, max_size=12)


def distance(one, other):
    """Of edits, with neighbours that change places: the textbook's table."""
    rows = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i in range(len(one) + 1):
        for j in range(len(other) + 1):
            if not i or not j:
                rows[i][j] = i + j
                continue
            same = one[i - 1] == other[j - 1]
            rows[i][j] = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (not same))
            if i > 1 and j > 1 and one[i - 1] == other[j - 2] and one[i - 2] == other[j - 1]:
                rows[i][j] = min(rows[i][j], rows[i - 2][j - 2] + 1)
    return rows[-1][-1]


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_one_letter_is_what_the_textbook_says(one, other):
    expected = distance(one, other) == 1 and min(len(one), len(other)) >= 2
    assert one_letter_apart(one, other) == one_letter_apart(other, one) == expected


@given(LETTERS, st.lists(LETTERS, max_size=8, unique=True))
def test_near_matches_are_all_that_are_near(label, declared):
    found = [match.declared for match in near_matches([label], declared)]
    assert len(set(found)) == len(found)
    assert set(found) == {each for each in declared if difference(label, each)}


@given(
    LETTERS,
    st.sampled_from([str.upper, str.title, lambda s: f" {s}", lambda s: f"{s}\t", lambda s: f"{s}\u00a0"]),
)
def test_a_label_in_another_dress_is_near(label, dress):
    if dress(label) != label:
        (match,) = near_matches([dress(label)], [label])
        assert match.declared == label
        assert match.difference in ("case", "blanks at the ends")


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("cat", "cat", None),
        ("cat", "Cat", "case"),
        ("cat ", "cat", "blanks at the ends"),
        ("café", "cafe", "accents"),
        (unicodedata.normalize("NFD", "café"), "café", "the form of Unicode"),
        ("golden_retriever", "golden retriever", "blanks, hyphens or underscores"),
        (
            " Golden-Retriever",
            "golden retriever",
            "blanks at the ends, blanks, hyphens or underscores and case",
        ),
        ("devises", "devices", "one letter"),
        ("Devises", "devices", "one letter"),
        ("device", "devices", "one letter"),
        ("dveices", "devices", "one letter"),
        ("straße", "STRASSE", "case"),
        ("a", "b", None),
        ("7", "8", None),
        ("cat", "dog", None),
    ],
)
def test_differences_in_words(one, other, said):
    assert difference(one, other) == said
    assert (difference(other, one) is None) == (said is None)


def test_labels_against_the_declared_ones():
    found = compare(LabelCounts({"cat": 5, "Dog": 2, "fish ": 1, "x": 9}, null=3), ["cat", "dog", "fish"])
    assert found.classes == {"cat": 5, "dog": 0, "fish": 0}
    assert found.missing == ("dog", "fish")
    assert found.undeclared == LabelCounts({"Dog": 2, "fish ": 1, "x": 9}, null=3)
    assert [(match.label, match.declared) for match in found.near] == [("Dog", "dog"), ("fish ", "fish")]
    assert found.to_json()["labels_not_declared"] == {
        "rows": {"Dog": 2, "fish ": 1, "x": 9},
        "null": 3,
        "other_labels": 0,
    }


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["a", "b", None, "a"]),
        pa.array(["a", "b", None, "a"], pa.large_string()),
        pa.array(["a", "b", None, "a"]).dictionary_encode(),
        pa.chunked_array([["a", "b"], [None, "a"]]),
    ],
)
def test_labels_of_any_type_are_counted(labels):
    counts = LabelCounts()
    counts.add_all(labels)
    assert counts == LabelCounts({"a": 2, "b": 1}, null=1)


def test_integers_nulls_and_bytes_that_are_no_text():
    counts = LabelCounts()
    counts.add_all(pa.array([7, 7, None]))
    counts.add_all(pa.nulls(4))
    offsets = pa.py_buffer(b"\0\0\0\0\2\0\0\0")
    counts.add_all(pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")]))
    counts.add_all(pa.array(["x" * (MAX_LABEL_BYTES + 1)]))
    assert counts.null == 5
    assert counts.rows == {"7": 2, "\\xff\\xfe": 1, "(a label too long to be declared)": 1}


def test_many_labels_take_little_room_and_declared_ones_are_always_counted():
    counts = LabelCounts(known=frozenset({"late"}))
    counts.add_all(pa.array([str(number) for number in range(5000)]))
    counts.add_all(pa.array(["late"] * 3))
    assert counts.rows["late"] == 3
    assert len(counts.rows) <= survey.MAX_LABELS + 2
    assert counts.total == 5003
    again = LabelCounts.from_json(counts.to_json())
    again.merge(LabelCounts({"late": 1}, null=1))
    assert (again.rows["late"], again.null, again.others) == (4, 1, counts.others)
