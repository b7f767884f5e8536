import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.data.rows import label_indices, normal_form
from dpgmm_beam.errors import ConfigError
from pipelines.classes import read_classes, say_of_blanks
from tests.strategies import quick
from tests.transforms import crate  # noqa: F401  (the scheme crate://)
from transforms.files import small as small_files


def test_a_classes_file_as_some_editors_write_it(tmp_path):
    (tmp_path / "classes.txt").write_bytes("\ufeffä\r\n b \r\n\r\nc".encode())
    assert read_classes(str(tmp_path / "classes.txt")) == ("ä", " b ", "c")
    assert read_classes(" n/a, yes.txt") == (" n/a", " yes.txt")


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), min_size=1, max_size=9)
        | st.sampled_from(["cat ", "\tcat", "a,b", "\x85", "\u2028x", "a\x0cb", '"a"', "#", "\ufeff"]),
        min_size=1,
        max_size=6,
        unique_by=normal_form,
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
)
@quick
def test_labels_are_declared_as_they_stand(tmp_path_factory, labels, end, mark, last):
    """Any text without line ends is a label, letter for letter; so are the rows that have it."""
    path = tmp_path_factory.mktemp("classes") / "classes.txt"
    text = end.join(labels) + (end if last else "")
    # A mark before the text belongs to the file, so one that belongs to a label needs another.
    mark = mark or labels[0].startswith("\ufeff")
    path.write_bytes(("\ufeff" * mark + text).encode())
    assert read_classes(str(path)) == tuple(labels)
    assert label_indices(pa.array(labels), tuple(labels)).tolist() == list(range(len(labels)))
    if not any(set(label) & set(",/\\~") for label in labels) and len(labels) > 1:
        assert read_classes(",".join(labels)) == tuple(labels)


def test_a_list_of_classes_in_json(tmp_path):
    path = tmp_path / "classes.JSON"
    path.write_text('["a", " b\\n", "c,d"]')
    assert read_classes(str(path)) == ("a", " b\n", "c,d")
    for text in ("a\nb", '{"a": 1}', "[1]", "[" * 10**5, "[]"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="is refused"):
            read_classes(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "classes.txt",
        "classes.TXT",
        "./classes",
        "~/classes",
        "~classes",
        "cls/list",
        "c.csv ",
        "names.yaml",
        "a\\b",
    ],
)
def test_what_looks_like_a_file_and_is_none(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_classes(text)
    assert str(caught.value) == (
        f"--classes={text} is refused: it must be labels with commas between, or a file that exists."
    )
    if "/" not in text:
        (tmp_path / text).write_text('["x"]' if "json" in text else "x")
        assert read_classes(text) == ("x",)


def test_a_file_elsewhere_that_is_none(tmp_path, monkeypatch):
    """Also where the store's client raises what is its own, after retries say."""
    place = f"crate://{tmp_path}/classes"
    with pytest.raises(ConfigError, match=r"--classes=crate://.* is refused: it must be a readable file"):
        read_classes(place)

    class RetryError(Exception):
        pass

    def give_up(*_, **__):
        raise RetryError("timed out")

    monkeypatch.setattr(small_files.FileSystems, "open", give_up)
    with pytest.raises(ConfigError, match=r"--classes=crate://.* is refused: .*\(RetryError\)"):
        read_classes(place)


def test_a_label_by_the_name_of_a_folder(tmp_path, monkeypatch):
    """As where one works in the folder of the images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat").mkdir()
    assert read_classes("cat") == ("cat",)


def test_a_blank_round_a_class_is_pointed_out(capsys):
    """What is declared is public; whether a row has such a label is not looked at."""
    say_of_blanks(("a b", "ü", "cat\ufeff", "dog "))
    assert "warning: the class 'cat\\ufeff' begins or ends" in capsys.readouterr().err
    say_of_blanks(("a b", "ü"))
    assert not capsys.readouterr().err
