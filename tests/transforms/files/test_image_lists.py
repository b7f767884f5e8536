import csv
import json
import os
import random
import unicodedata

import pytest
from PIL import Image

from dpgmm_beam.errors import ConfigError
from tests.transforms.crate import plain
from transforms.files import image_lists
from transforms.files.columns import Columns
from transforms.files.image_folders import NO_FILE
from transforms.files.inputs import InputDescription, describe_input
from transforms.files.left_out import left_out

MODEL = "efficientnet_lite0"

PLAIN = Columns()


@pytest.fixture
def folder(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/3.png", "dog/a, b.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    return tmp_path


def write(path, text, encoding="utf-8", newline="\n"):
    path.write_bytes(text.replace("\n", newline).encode(encoding))
    return str(path)


def found(path, columns=PLAIN, has_labels=True):
    """Labels by file name, as the list has them."""
    start = os.path.dirname(path) + "/images/"
    return {
        image.path.removeprefix(start): image.label
        for image in image_lists.find(path, columns, has_labels).images
    }


def refusal(pattern, columns=PLAIN, argument="input"):
    with pytest.raises(ConfigError) as caught:
        describe_input(str(pattern), MODEL, columns=columns)
    assert caught.value.argument == argument
    return str(caught.value)


TABLE = 'path,label\nimages/cat/1.png,cat\nimages/dog/3.png,dog\n"images/dog/a, b.png",dog\n'
EXPECTED = {"cat/1.png": "cat", "dog/3.png": "dog", "dog/a, b.png": "dog"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_as_programs_write_them(folder, encoding, newline, separator):
    text = TABLE if separator == "," else TABLE.replace(",", separator).replace(f"a{separator} b", "a, b")
    path = write(folder / "list.csv", text, encoding, newline)
    assert found(path) == EXPECTED
    assert describe_input(path, MODEL) == InputDescription("image_list", path, None, True)
    assert left_out(describe_input(path, MODEL)) == []


def test_tabs(folder):
    path = write(
        folder / "list.TSV", TABLE.replace(",cat", "\tcat").replace("h,l", "h\tl").replace(",dog", "\tdog")
    )
    assert found(path) == EXPECTED


def test_lines_of_json(folder):
    rows = [
        {"file_name": "images/cat/1.png", "label": "cat"},
        {"label": 7, "file_name": "images/dog/3.png", "caption": {"deep": ["x"]}},
        {"file_name": "images/cat/2.png"},
        {"file_name": "images/dog/a, b.png", "label": True},
    ]
    path = write(folder / "list.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n", "utf-8-sig", "\r\n")
    assert describe_input(path, MODEL).labelled
    assert found(path) == {"cat/1.png": "cat", "dog/3.png": "7", "cat/2.png": None, "dog/a, b.png": None}


def test_quoted_line_ends_and_columns_in_any_order(folder):
    text = (
        'note,Label,privacy_id,Image_Path\n"two\nlines",cat,17,images/cat/1.png\n,"d""g",4,images/dog/3.png\n'
    )
    assert found(write(folder / "list.csv", text)) == {"cat/1.png": "cat", "dog/3.png": 'd"g'}


def test_asked_columns(folder):
    path = write(folder / "list.csv", "path,label,thumb,kind\nimages/cat/1.png,x,images/cat/2.png,y\n")
    assert found(path, Columns(image="thumb", label="kind")) == {"cat/2.png": "y"}
    assert describe_input(path, MODEL, columns=Columns(label="")).labelled is False
    assert found(path, Columns(label=""), False) == {"cat/1.png": None}
    assert refusal(path, Columns(image="no"), "image_column") == (
        f"image_column=no is refused: it must be a column of every list; {path} has none of this name."
    )
    assert "be a column of every list" in refusal(path, Columns(label="no"), "label_column")


def test_a_list_without_labels(folder):
    path = write(folder / "list.csv", "filename\nimages/cat/1.png\n")
    assert describe_input(path, MODEL) == InputDescription("image_list", path, None, False)
    text = "filename,class\nimages/cat/1.png,cat\n"
    assert "has 'class', which may be meant" in refusal(
        write(folder / "x.tsv", text.replace(",", "\t")), argument="label_column"
    )
    write(folder / "other.csv", TABLE)
    assert "have labels in all lists or in none" in refusal(f"{folder}/*.csv")


def test_a_first_line_that_is_a_row_is_not_quoted(folder):
    path = write(folder / "list.csv", "images/cat/1.png,secret\nimages/cat/2.png,secret\n")
    sentence = refusal(path)
    assert "have a first line with the columns' names" in sentence
    assert "secret" not in sentence
    assert "have fields in each line, one for paths" in refusal(
        write(folder / "x.jsonl", '{"url": "secret"}\n')
    )
    assert "several" in refusal(write(folder / "y.csv", "path,label,label\nx,y,z\n"))


def test_several_lists_and_any_order_of_lines(folder):
    lines = [*TABLE.splitlines()[1:], "images/cat/1.png,a", "./images//cat/1.png,cat", "images/cat/2.png,cat"]
    expected = {**EXPECTED, "cat/1.png": "a", "cat/2.png": "cat"}
    listed = []
    for seed in range(5):
        random.Random(seed).shuffle(lines)
        for part in (0, 1):
            write(folder / f"{part}.csv", "\n".join(["path,label", *lines[part::2]]))
        assert found(f"{folder}/[01].csv") == expected
        listed.append(image_lists.find(f"{folder}/[01].csv", PLAIN, True).images)
        assert len(image_lists.find(f"{folder}/[01].csv", PLAIN, True).left_out) == 2
    assert all(images == listed[0] for images in listed)


def test_one_file_of_several_names_is_one_row(folder):
    os.symlink("1.png", folder / "images" / "cat" / "0.png")
    path = write(folder / "list.csv", "path,label\nimages/cat/1.png,x\nimages/cat/0.png,y\n")
    assert found(path) == {"cat/0.png": "y"}
    (passed,) = left_out(describe_input(path, MODEL))
    assert (passed.path, passed.reason) == (f"{path}:2", f"the same file as in {path}:3")


def test_paths_of_every_kind(folder):
    image = f"{folder}/images/cat/1.png"
    for text in (
        image,
        f"file://{image}",
        f"file://localhost{image}",
        "images\\cat\\1.png",
        "x/../images/cat/1.png",
    ):
        assert found(write(folder / "list.csv", f"path,label\n{text},cat\n")) == {"cat/1.png": "cat"}, text


def test_what_is_not_there_is_a_row_without_a_file(folder):
    """As a link to nothing is: whether a file is there is a fact about a row."""
    os.mkfifo(folder / "fifo.png")
    odd = ["gone.png", "images", "fifo.png", "x" * 5000, "nosuch://bucket/1.png", "a\0b"]
    path = write(folder / "list.jsonl", "".join(json.dumps({"path": p, "label": "c"}) + "\n" for p in odd))
    listed = image_lists.find(path, PLAIN, True)
    assert [image.size for image in listed.images] == [NO_FILE] * len(odd)
    assert listed.left_out == []


def test_lines_that_are_no_rows_are_named(folder):
    path = write(folder / "list.jsonl", '{"path": "images/cat/1.png", "label": "c"}\n[1]\n{\n{"path": 3}\n')
    path_of_half = '{"path": "\\ud800", "label": "c"}\n'
    with open(path, "a") as file:
        file.write(path_of_half)
    listed = image_lists.find(path, PLAIN, True)
    assert [image.label for image in listed.images] == ["c"]
    assert [(item.path.rpartition(":")[2], item.reason) for item in listed.left_out] == [
        ("2", "no object of JSON"),
        ("3", "no object of JSON"),
        ("4", "no path of an image in this line"),
        ("5", "no path of an image in this line"),
    ]
    long = "x" * (csv.field_size_limit() + 1)
    path = write(
        folder / "list.csv", f'path,label\n,cat\n{long},cat\n\nimages/cat/1.png\nimages/dog/3.png,"dog'
    )
    listed = image_lists.find(path, PLAIN, True)
    assert [image.label for image in listed.images] == [None, "dog"]
    assert [item.path for item in listed.left_out] == [f"{path}:2", f"{path}:3"]


def test_names_that_are_not_utf8(folder):
    os.rename(folder / "images/cat/1.png", os.fsencode(folder) + b"/images/cat/\xe9.png")
    (folder / "list.csv").write_bytes(b"path,label\nimages/cat/\xe9.png,caf\xe9\n")
    (image,) = image_lists.find(f"{folder}/list.csv", PLAIN, True).images
    assert image.size > 0
    assert image.label == "caf\udce9"


def test_labels_are_in_one_form_of_unicode(folder):
    text = f"path,label\nimages/cat/1.png,{unicodedata.normalize('NFD', 'é')}\n"
    assert found(write(folder / "list.csv", text)) == {"cat/1.png": unicodedata.normalize("NFC", "é")}


def test_an_image_that_may_not_be_read_is_named(folder, monkeypatch):
    path = write(folder / "list.csv", TABLE)

    def denied(path, flags):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "access", lambda path, mode: "3.png" not in path)
    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(ConfigError, match=r"3\.png: Permission denied"):
        found(path)


@pytest.mark.parametrize("worth", [1, 100])
def test_any_scheme(folder, worth, monkeypatch):
    """Files are looked up one by one, or their folders are listed."""
    monkeypatch.setattr(image_lists, "_WORTH_LISTING", worth)
    write(folder / "list.csv", TABLE + "images/gone.png,cat\n" + f"crate://{folder}/images/cat/2.png,cat\n")
    path = f"crate://{folder}/list.csv"
    assert describe_input(path, MODEL).labelled
    images = image_lists.find(path, PLAIN, True).images
    near = image_lists.find(plain(path), PLAIN, True).images
    # What is at an address is of it, wherever the list lies.
    assert sorted(plain(image.path) for image in images) == sorted(plain(image.path) for image in near)
    sizes = {os.path.basename(image.path): image.size for image in images}
    assert sizes.pop("gone.png") == NO_FILE
    assert len(sizes) == 4
    assert min(sizes.values()) > 0


def test_empty_lists(folder):
    path = write(folder / "list.csv", "path,label\n")
    assert describe_input(path, MODEL).labelled
    assert found(path) == {}
    path = write(folder / "list.jsonl", "")
    assert describe_input(path, MODEL).labelled
    assert found(path) == {}
    assert "columns' names" in refusal(write(folder / "none.csv", ""))
    assert "match" in refusal(folder / "gone.csv")
    with pytest.raises(ConfigError, match="name a model"):
        describe_input(path, "precomputed")


def test_a_file_system_whose_package_is_missing_is_no_missing_file(folder, monkeypatch):
    """All rows of a bucket would be set aside in silence, and a release be noise."""

    def without_extra(path):
        raise ValueError("Unable to get filesystem from specified path, please use the correct path")

    monkeypatch.setattr(image_lists.FileSystems, "get_filesystem", without_extra)
    path = write(folder / "list.csv", "path,label\nimages/cat/1.png,cat\ngs://bucket/2.png,cat\n")
    with pytest.raises(ConfigError, match="lie on a file system that Beam can open"):
        found(path)
    path = write(folder / "list.csv", "path,label\nimages/cat/1.png,cat\nhttp://host/2.png,cat\n")
    assert set(found(path)) >= {"cat/1.png"}
