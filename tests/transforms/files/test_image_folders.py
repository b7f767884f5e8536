import inspect
import os
import shutil
import socket
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpgmm_beam.data import images
from dpgmm_beam.errors import ConfigError
from tests.transforms.crate import plain
from transforms.files import image_folders, image_names
from transforms.files.inputs import InputDescription, describe_input
from transforms.files.left_out import left_out

MODEL = "efficientnet_lite0"

FORMATS = {
    "png": "PNG",
    "jpg": "JPEG",
    "webp": "WEBP",
    "bmp": "BMP",
    "gif": "GIF",
    "tiff": "TIFF",
    "avif": "AVIF",
}


def picture(path, kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (10, 200, 30)).save(path, kind)
    return path


def listed(pattern, labelled=True):
    """Paths below the test's folder, with labels."""
    found = image_folders.find(str(pattern), labelled)
    start = len(str(pattern)) + 1
    return {image.path[start:]: image.label for image in found.images}


def reasons(pattern, labelled=True):
    found = image_folders.find(str(pattern), labelled)
    assert [item.path for item in found.left_out] == sorted(item.path for item in found.left_out)
    return {item.path.removeprefix(f"{pattern}/"): item.reason for item in found.left_out}


def refusal(pattern):
    with pytest.raises(ConfigError) as caught:
        describe_input(str(pattern), MODEL)
    assert caught.value.argument == "input"
    return str(caught.value)


def test_every_format_at_any_depth_below_its_label(tmp_path):
    for number, (suffix, kind) in enumerate(FORMATS.items()):
        picture(tmp_path / "a" / f"1.{suffix}", kind)
        picture(tmp_path / "b" / "2023" / f"{number}.{suffix.upper()}", kind)
        picture(tmp_path / "b" / "2024" / "x" / "y" / f"{number}.{suffix}", kind)
    found = listed(tmp_path)
    assert len(found) == 21
    assert {label: list(found.values()).count(label) for label in "ab"} == {"a": 7, "b": 14}
    assert reasons(tmp_path) == {}
    assert describe_input(str(tmp_path), MODEL) == InputDescription("image_folder", str(tmp_path), None, True)


def test_every_format_of_the_decoder_has_suffixes():
    assert set(images.FORMATS) - {"MPO"} <= set(image_names.SUFFIXES)


ODD_NAMES = [
    "photo.jfif",
    "photo.jpe",
    "photo",
    "photo.jpg ",
    "photo.JPG\t",
    "12.5 cm",
    "photo.image",
    "sub\\1",
]


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("scheme", ["", "crate://"])
def test_what_is_inside_decides_where_the_name_says_nothing(tmp_path, name, scheme):
    picture(tmp_path / "a" / name, "JPEG")
    (tmp_path / "a" / "README").write_text("no picture")
    found = image_folders.find(f"{scheme}{tmp_path}")
    assert [(os.path.basename(image.path), image.label) for image in found.images] == [(name, "a")]
    assert [item.reason for item in found.left_out] == ["no image, by its first bytes"]


def test_what_is_passed_over_has_a_reason(tmp_path):
    picture(tmp_path / "a" / "1.png")
    shutil.copy(tmp_path / "a" / "1.png", tmp_path / "a" / "1.png~")
    shutil.copy(tmp_path / "a" / "1.png", tmp_path / "a" / "1.png.bak")
    picture(tmp_path / "a" / ".2.png")
    picture(tmp_path / "a" / "@eaDir" / "1.png" / "SYNOPHOTO_THUMB_M.jpg", "JPEG")
    picture(tmp_path / ".git" / "3.png")
    picture(tmp_path / "__MACOSX" / "a" / "1.png")
    picture(tmp_path / "outside.png")
    picture(tmp_path / "a\\4.png")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "metadata.csv").write_text("file_name,label")
    (tmp_path / "a" / "empty").write_bytes(b"")
    (tmp_path / "a" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "a" / "new.jxl").write_bytes(b"\xff\x0a" + bytes(20))
    os.symlink("nowhere", tmp_path / "a" / "gone")
    os.mkfifo(tmp_path / "a" / "fifo")
    assert listed(tmp_path) == {"a/1.png": "a"}
    assert reasons(tmp_path) == {
        ".git": "hidden, by its name",
        "__MACOSX": "of the system, by its name",
        "a/.2.png": "hidden, by its name",
        "a/1.png.bak": "a backup or a file half-written, by its name",
        "a/1.png~": "a backup or a file half-written, by its name",
        "a/@eaDir": "of the system, by its name",
        "a/empty": "an empty file",
        "a/fifo": "no regular file",
        "a/gone": "a link to nothing",
        "a/metadata.csv": "no image, by its name's ending .csv; a list of images is an input by itself",
        "a/new.jxl": "in a format that is not read: JPEG XL",
        "a/notes.txt": "no image, by its name's ending .txt",
        "a/phone.heic": "in a format that is not read: HEIF",
        "a\\4.png": "in no label's folder: its name has a backslash, which is no folder here",
        "outside.png": "in no label's folder: directly in the input, beside the labels",
    }
    described = describe_input(str(tmp_path), MODEL)
    assert {item.path: item.reason for item in left_out(described)} == {
        f"{tmp_path}/{path}": reason for path, reason in reasons(tmp_path).items()
    }


def test_near_and_far_find_the_same(tmp_path):
    for name in (
        "a/1.png",
        "a/deep/er/2.JPG",
        "b/3",
        "4.png",
        ".c/5.png",
        "a/.d/6.png",
        "a/7.png~",
        "a/x.txt",
    ):
        picture(tmp_path / name)
    near, far = (image_folders.find(f"{scheme}{tmp_path}") for scheme in ("", "crate://"))
    assert [(i.path, i.label, i.size, i.modified) for i in near.images] == [
        (plain(i.path), i.label, i.size, i.modified) for i in far.images
    ]
    assert len(near.images) == 3
    # Where there are no folders, what lies in a hidden one is passed over by itself.
    hidden = {f"{tmp_path}/.c", f"{tmp_path}/a/.d"}
    assert {item.path for item in near.left_out} - hidden == {plain(item.path) for item in far.left_out} - {
        f"{tmp_path}/.c/5.png",
        f"{tmp_path}/a/.d/6.png",
    }


def test_files_of_known_names_are_not_opened(tmp_path, monkeypatch):
    for number in range(50):
        picture(tmp_path / "a" / f"{number}.png")
        (tmp_path / "a" / f"{number}.txt").write_text("x")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("a file was opened"))
    monkeypatch.setattr(image_names, "why_none_inside", lambda *_: pytest.fail("a file was opened"))
    assert len(listed(tmp_path)) == 50


def test_what_is_no_file_is_not_opened(tmp_path, monkeypatch):
    """A fifo of any name would be waited for."""
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "unnamed")
    os.mkfifo(tmp_path / "a" / "named.png")
    monkeypatch.chdir(tmp_path / "a")
    socket.socket(socket.AF_UNIX).bind("socket")
    assert [(i.path, i.size) for i in image_folders.list_images(str(tmp_path))] == [
        (f"{tmp_path}/a/named.png", image_folders.NO_FILE)
    ]


def test_names_are_in_one_form_of_unicode(tmp_path):
    """As macOS writes them, and as keyboards do."""
    decomposed, composed = (unicodedata.normalize(form, "café") for form in ("NFD", "NFC"))
    picture(tmp_path / decomposed / "1.png")
    picture(tmp_path / composed / "2.png")
    assert set(listed(tmp_path).values()) == {composed}


def test_links_to_folders_are_followed_once(tmp_path):
    picture(tmp_path / "store" / "1.png")
    root = tmp_path / "in"
    picture(root / "b" / "2.png")
    picture(root / "b" / "deep" / "3.png")
    os.symlink(tmp_path / "store", root / "c")
    os.symlink(tmp_path / "store", root / "b" / "store")
    os.symlink("..", root / "b" / "deep" / "up")
    os.symlink(root, root / "d")
    os.symlink("loop", root / "b" / "loop")
    os.symlink(tmp_path / "gone", root / "e")
    assert listed(root) == {"b/2.png": "b", "b/deep/3.png": "b", "b/store/1.png": "b"}
    assert reasons(root) == {
        "b/loop": "a link to nothing",
        "e": "a link to nothing",
        "b/deep/up": f"the same folder as {root}/b",
        "c": f"the same folder as {root}/b/store",
        "d": f"the same folder as {root}",
    }


def test_deep_folders_need_no_recursion(tmp_path):
    (tmp_path / "a").mkdir()
    here, limit = os.getcwd(), sys.getrecursionlimit()
    os.chdir(tmp_path / "a")
    try:
        for _ in range(300):
            os.mkdir("d")
            os.chdir("d")
        Image.new("L", (8, 8)).save("1.png")
        sys.setrecursionlimit(len(inspect.stack()) + 150)
        (image,) = image_folders.list_images(str(tmp_path))
    finally:
        sys.setrecursionlimit(limit)
        os.chdir(here)
    assert image.label == "a"
    assert image.path.count("/d") >= 300


def denied(path):
    raise PermissionError(13, "Permission denied", str(path))


def test_an_unreadable_folder_or_file_is_named(tmp_path, monkeypatch):
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "b" / "deep" / "2.png")
    scandir = os.scandir

    def forbidden(path):
        if str(path).endswith("/deep"):
            denied(path)
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", forbidden)
        assert refusal(tmp_path).endswith(f"be listable ({tmp_path}/b/deep: Permission denied).")
    # As for others than root, who may read whatever has a name.
    monkeypatch.setattr(os, "access", lambda path, mode: "1.png" not in path)
    assert describe_input(str(tmp_path), MODEL).labelled
    monkeypatch.setattr(os, "open", lambda path, flags: denied(path))
    assert refusal(tmp_path).endswith(f"be listable ({tmp_path}/a/1.png: Permission denied).")


@pytest.mark.parametrize("scheme", ["", "crate://"])
@pytest.mark.parametrize(
    ("names", "listed", "first"),
    [
        (("train/cat/1.png", "test/cat/2.png"), "test/ and train/", "test"),
        (("Train/cat/1.png", "val/dog/2.png", "test/dog/3.png"), "Train/, test/ and val/", "Train"),
        (("train/cat/1.png", "test/cat/2.png", "notes/x.txt"), "test/ and train/", "test"),
        (("train/cat/1.png",), "train/", "train"),
    ],
)
def test_parts_of_a_data_set_are_no_labels(tmp_path, scheme, names, listed, first):
    for name in names:
        picture(tmp_path / name) if name.endswith("png") else (tmp_path / name).parent.mkdir()
    assert refusal(f"{scheme}{tmp_path}") == (
        f"input={scheme}{tmp_path} is refused: it must be the folder that holds a folder for each label;"
        f" {scheme}{tmp_path} holds {listed}, which look like parts of a data set with the labels below"
        f" them: name one of them, like {scheme}{tmp_path}/{first}."
    )
    assert describe_input(f"{scheme}{tmp_path}/{first}", MODEL).labelled


@pytest.mark.parametrize("scheme", ["", "crate://"])
def test_parts_one_level_below(tmp_path, scheme):
    picture(tmp_path / "pets" / "train" / "cat" / "1.png")
    picture(tmp_path / "pets" / "test" / "cat" / "1.png")
    assert f"name one of them, like {scheme}{tmp_path}/pets/test" in refusal(f"{scheme}{tmp_path}")


def test_sizes_are_no_labels(tmp_path):
    for size in ("16x16", "22x22", "scalable"):
        for label in ("apps", "places"):
            picture(tmp_path / size / label / "1.png")
    assert "look like sizes with the labels below them" in refusal(tmp_path)
    assert describe_input(f"{tmp_path}/16x16", MODEL).labelled


@pytest.mark.parametrize(
    "names",
    [
        # Flat labels of such names are labels.
        ("train/1.png", "car/2.png", "plane/3.png"),
        ("train/1.png", "test/2.png"),
        ("train/2023/1.png", "car/2023/2.png"),
        ("0/1.png", "1/2.png", "2/3.png"),
        ("16/a/1.png", "32/b/2.png"),
        ("0/2023/1.png", "1/2023/2.png"),
        ("101/train/1.png", "102/train/2.png"),
        ("cat/2023/1.png", "dog/2023/2.png"),
        ("cat/train/1.png", "cat/test/2.png"),
        ("cat/train/1.png", "dog/train/2.png"),
    ],
)
def test_labels_that_look_like_something_else(tmp_path, names):
    for name in names:
        picture(tmp_path / name)
    assert describe_input(str(tmp_path), MODEL).labelled
    assert set(listed(tmp_path).values()) == {name.partition("/")[0] for name in names}


@pytest.mark.parametrize("scheme", ["", "crate://"])
def test_images_without_folders_have_no_labels(tmp_path, scheme):
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.jpg", "JPEG")
    described = describe_input(f"{scheme}{tmp_path}", MODEL)
    assert described == InputDescription("image_folder", f"{scheme}{tmp_path}", None, False)
    assert [image.label for image in image_folders.list_images(described.pattern, False)] == [None, None]


@settings(max_examples=25)
@given(st.sets(st.sampled_from(["a/1.png", "b/2.png", "a/c/3.png", "4.png", "train/5.png", "a/note"])))
def test_no_file_decides_what_an_input_is(tmp_path_factory, names):
    """Whatever images are in the folders, and if there are none: the folders are the layout."""
    root = tmp_path_factory.mktemp("in")
    for folder in ("a/c", "b", "train"):
        (root / folder).mkdir(parents=True)
    for name in names:
        picture(root / name)
    assert describe_input(str(root), MODEL) == InputDescription("image_folder", str(root), None, True)


@pytest.mark.parametrize("scheme", ["", "crate://"])
def test_a_glob_of_folders(tmp_path, scheme):
    for batch in ("batch-1", "batch-2"):
        picture(tmp_path / batch / "cat" / f"{batch}.png")
        picture(tmp_path / batch / "dog" / "deep" / "2.png")
    picture(tmp_path / "other" / "cat" / "9.png")
    (tmp_path / "batch-notes").write_text("beside folders, no Parquet")
    pattern = f"{scheme}{tmp_path}/batch-*"
    assert describe_input(pattern, MODEL).labelled
    found = image_folders.find(pattern)
    assert [image.label for image in found.images] == ["cat", "dog"] * 2
    assert image_folders.base(pattern) == f"{scheme}{tmp_path}"
    assert (
        f"{scheme}{tmp_path}/batch-1/cat holds none: if it is a label's, name the folder that it is in"
    ) in refusal(f"{scheme}{tmp_path}/batch-1/*[!g]")
    picture(tmp_path / "batch-3" / "train" / "cat" / "1.png")
    assert f"{tmp_path}/batch-3 holds train/" in refusal(pattern)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("photo.jpg", "this is a single image"),
        ("a/*.png", "this is a single image, or a glob of images"),
        ("photos.zip", "this is an archive: unpack it"),
    ],
)
def test_files_that_are_no_input(tmp_path, name, words):
    picture(tmp_path / "photo.jpg", "JPEG")
    picture(tmp_path / "a" / "1.png")
    (tmp_path / "photos.zip").write_bytes(b"PK")
    assert words in refusal(tmp_path / name)
