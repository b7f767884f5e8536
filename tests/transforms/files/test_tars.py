import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile
import tracemalloc
import unicodedata
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpgmm_beam.data import images
from dpgmm_beam.data.rows import MAX_LABEL_BYTES
from dpgmm_beam.errors import ConfigError
from tests.transforms.crate import plain
from transforms.files import tars
from transforms.files.columns import Columns
from transforms.files.image_folders import NO_FILE
from transforms.files.inputs import InputDescription, describe_input
from transforms.files.left_out import left_out

MODEL = "efficientnet_lite0"

PLAIN = Columns()


def encoded(number, kind="PNG"):
    file = io.BytesIO()
    Image.new("L", (8, 8), number).save(file, kind)
    return file.getvalue()


def tar(path, members, **options):
    """Writes a tar of (name, bytes) pairs; a name alone is that of a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for member in members:
            name, data = member if isinstance(member, tuple) else (member, None)
            info = tarfile.TarInfo(name)
            if data is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data or b""))
    return str(path)


def rows(path, columns=PLAIN, labelled=True):
    return {sample.name: sample.label for sample in tars.samples(str(path), columns, labelled)}


def reasons(path, columns=PLAIN):
    return {item.path.partition("#")[2]: item.reason for item in tars.left_out(str(path), columns)}


MEMBERS = [
    ("0001.jpg", encoded(1, "JPEG")),
    ("0001.cls", b"3"),
    ("0002.png", encoded(2)),
    ("0002.json", json.dumps({"label": "cat", "caption": "x"}).encode()),
    ("0003.txt", b"a dog\n"),
    ("0003.webp", encoded(3, "WEBP")),
    ("0004.json", json.dumps({"cls": 5}).encode()),
    ("0004.left.png", encoded(4)),
]
EXPECTED = {"0001.jpg": "3", "0002.png": "cat", "0003.webp": "a dog", "0004.left.png": "5"}


def test_the_layout_of_webdataset(tmp_path):
    path = tar(tmp_path / "x.tar", MEMBERS)
    assert rows(path) == EXPECTED
    samples = list(tars.samples(path, PLAIN, True))
    assert [sample.data for sample in samples] == [MEMBERS[i][1] for i in (0, 2, 5, 7)]
    assert all(sample.size == len(sample.data) for sample in samples)
    assert describe_input(path, MODEL) == InputDescription("image_tars", path, None, True)
    assert left_out(describe_input(path, MODEL)) == []


@settings(max_examples=30)
@given(st.permutations(MEMBERS))
def test_members_in_any_order(tmp_path_factory, members):
    """As `tar` packs a folder: in the order of the disk."""
    path = tar(tmp_path_factory.mktemp("tar") / "x.tar", members)
    assert rows(path) == EXPECTED


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats_of_tar(tmp_path, form):
    names = ["d" * 90 + "/" + "n" * 60, "ü"] if form == tarfile.USTAR_FORMAT else ["d" * 300 + "/n", "ü"]
    members = [pair for name in names for pair in ((name + ".png", encoded(1)), (name + ".cls", b"a"))]
    assert rows(tar(tmp_path / "x.tar", members, format=form)) == {name + ".png": "a" for name in names}


PACKERS = {
    "tar": lambda data: data,
    "tar.gz": gzip.compress,
    "tgz": lambda data: gzip.compress(data[:5000]) + gzip.compress(data[5000:]),
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
    "tar.zst": lambda data: zstandard.compress(data[:5000]) + zstandard.compress(data[5000:]),
}


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("scheme", ["", "crate://"])
def test_compressed_and_far_ones(tmp_path, suffix, scheme):
    plain_tar = tar(tmp_path / "plain", MEMBERS)
    path = tmp_path / "in" / f"x.{suffix}"
    path.parent.mkdir()
    with open(plain_tar, "rb") as file:
        path.write_bytes(PACKERS[suffix](file.read()))
    for pattern in (path, path.parent, f"{path.parent}/*.{suffix}"):
        described = describe_input(f"{scheme}{pattern}", MODEL)
        assert described.kind == tars.IMAGE_TARS
        (file,) = tars.list_tars(described.pattern)
        assert plain(file.path) == str(path)
    assert rows(f"{scheme}{path}") == EXPECTED


def test_compression_is_by_content(tmp_path):
    tar(tmp_path / "plain", MEMBERS)
    (tmp_path / "x.tar").write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    assert describe_input(str(tmp_path / "x.tar"), MODEL).kind == tars.IMAGE_TARS
    assert rows(tmp_path / "x.tar") == EXPECTED


def test_which_word_is_the_label(tmp_path):
    members = [
        ("1.png", encoded(1)),
        ("1.txt", b"caption"),
        ("1.json", b'{"label": "from json", "kind": "asked"}'),
        ("1.cls", b"from cls"),
        ("1.kind", b"from kind"),
        ("2.png", encoded(2)),
        ("2.txt", b"caption"),
        ("2.json", b'{"label": "from json", "kind": "asked"}'),
    ]
    path = tar(tmp_path / "x.tar", members)
    assert rows(path) == {"1.png": "from cls", "2.png": "from json"}
    assert rows(path, Columns(label="txt")) == {"1.png": "caption", "2.png": "caption"}
    assert rows(path, Columns(label="kind")) == {"1.png": "from kind", "2.png": "asked"}
    assert rows(path, Columns(label=""), False) == {"1.png": None, "2.png": None}
    assert describe_input(path, MODEL, columns=Columns(label="")).labelled is False


@pytest.mark.parametrize(
    ("ending", "data", "label"),
    [
        ("cls", b"7\r\n", "7"),
        ("cls", b"\xef\xbb\xbfcat", "cat"),
        ("cls", b"cat ", "cat "),
        ("cls", unicodedata.normalize("NFD", "é").encode(), "é"),
        ("cls", b"", None),
        ("cls", b"x" * (MAX_LABEL_BYTES + 1), None),
        ("cls", b"x" * (2**20 + 1), None),
        ("cls", b"\xff", "\N{REPLACEMENT CHARACTER}"),
        ("json", b"{", None),
        ("json", b"[1]", None),
        ("json", b'{"label": [1]}', None),
        ("json", b'{"label": true}', None),
        ("json", b'{"label": null}', None),
        ("json", b'{"label": "\\ud800"}', None),
        ("json", b'{"label": 1' + b"0" * 4000 + b"}", None),
        ("json", b"[" * 100_000, None),
        ("json", b'{"class_name": "x"}', "x"),
    ],
)
def test_odd_labels(tmp_path, ending, data, label):
    path = tar(tmp_path / "x.tar", [("1.png", encoded(1)), (f"1.{ending}", data)])
    assert rows(path) == {"1.png": label}


def test_a_tar_of_folders_named_by_labels(tmp_path):
    members = ["./cat", ("./cat/1.png", encoded(1)), ("./cat/deep/2.png", encoded(2)), ("dog/3", encoded(3))]
    path = tar(tmp_path / "x.tar", [*members, ("dog/4.png", encoded(4)), ("dog/4.cls", b"wolf")])
    assert rows(path) == {
        "./cat/1.png": "cat",
        "./cat/deep/2.png": "cat",
        "dog/3": "dog",
        "dog/4.png": "wolf",
    }


def test_what_is_passed_over_has_a_reason(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:

        def add(name, data=b"", **how):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in how.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))

        add("1.png", encoded(1))
        add("1.cls", b"a")
        add("1.jpg", encoded(1, "JPEG"))
        add("1.png", encoded(2))
        add("._1.png", b"resource fork")
        add("__meta__/x.json", b"{}")
        add("2.png", type=tarfile.SYMTYPE, linkname="1.png")
        add("3.png", type=tarfile.LNKTYPE, linkname="1.png")
        add("4.png", type=tarfile.FIFOTYPE)
        add("5.cls", b"alone")
        add("6.mp4", b"film")
        add("7", b"what")
        add("8.png~", encoded(1))
    assert rows(path) == {"1.jpg": "a"}
    found = tars.left_out(str(path), PLAIN)
    assert sorted((item.path.partition("#")[2], item.reason) for item in found) == [
        ("._1.png", "hidden, by its name"),
        ("1.png", "another image of the row of 1.jpg"),
        ("1.png", "another image of the row of 1.jpg"),
        ("2.png", "no regular file of its own"),
        ("3.png", "no regular file of its own"),
        ("4.png", "no regular file of its own"),
        ("5", "a label without an image"),
        ("6.mp4", "no image, by its name's ending .mp4"),
        ("7", "no image, by its first bytes"),
        ("8.png~", "a backup or a file half-written, by its name"),
        ("__meta__/x.json", "hidden, by its name"),
    ]
    assert rows(path, Columns(image="png")) == {"1.png": "a"}
    assert {item.path for item in left_out(describe_input(str(path), MODEL))} == {item.path for item in found}


def test_an_image_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    path = tar(
        tmp_path / "x.tar", [("1.png", bytes(1001)), ("1.cls", b"a"), ("2.png", encoded(1)), ("2.cls", b"b")]
    )
    found = {sample.name: (sample.size, sample.data) for sample in tars.samples(path, PLAIN, True)}
    assert found == {"1.png": (NO_FILE, None), "2.png": (len(encoded(1)), encoded(1))}


def test_memory_stays_bounded(tmp_path):
    path = tar(tmp_path / "x.tar", [(f"{i}.png", bytes(2**20)) for i in range(64)])
    tracemalloc.start()
    try:
        assert sum(1 for _ in tars.samples(path, PLAIN, True)) == 64
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def cuts(data):
    """Every place at a block, and some inside of one."""
    return [*range(0, len(data), 512), 100, 700, len(data) - 513]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.zst"])
def test_a_tar_that_was_cut_short_ends_the_job_by_name(tmp_path, suffix):
    plain_tar = tar(tmp_path / "plain", MEMBERS[:4])
    with open(plain_tar, "rb") as file:
        data = file.read()
    last = data.rstrip(b"\0")
    data = data[: len(last) + -len(last) % 512 + 1024]
    whole = PACKERS[suffix](data)
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(whole)
    assert len(rows(path)) == 2
    places = cuts(data)[:-2] if suffix == "tar" else random.Random(0).sample(range(len(whole)), 20)
    for place in places:
        path.write_bytes(whole[:place])
        if place == len(data) - 512:
            # One block of zeros ends a tar, too.
            assert len(rows(path)) == 2
            continue
        with pytest.raises((RuntimeError, OSError)) as caught:
            rows(path)
        assert str(path) in str(caught.value)
        if suffix == "tar":
            with pytest.raises(ConfigError) as refused:
                describe_input(str(path), MODEL)
            assert str(refused.value).endswith(f"{path} has no end mark, so it was cut short.")


def test_a_damaged_header_is_not_the_end(tmp_path):
    path = tar(tmp_path / "x.tar", MEMBERS)
    data = bytearray(Path(path).read_bytes())
    place = data.index(b"0003.txt")
    data[place : place + 4] = b"secr"
    Path(path).write_bytes(data)
    with pytest.raises(RuntimeError) as caught:
        rows(path)
    assert str(caught.value) == f"{path} could not be read (ReadError)"


def test_a_folder_of_tars(tmp_path):
    tar(tmp_path / "a.tar", MEMBERS[:2])
    tar(tmp_path / "deep" / "b.TAR", MEMBERS[2:4])
    os.link(tmp_path / "a.tar", tmp_path / "again.tar")
    os.symlink(tmp_path / "deep", tmp_path / "linked")
    tar(tmp_path / ".hidden.tar", MEMBERS)
    described = describe_input(str(tmp_path), MODEL)
    assert described.kind == tars.IMAGE_TARS
    assert [os.path.basename(file.path) for file in tars.list_tars(described.pattern)] == ["a.tar", "b.TAR"]
    (tmp_path / "deep" / "1.png").write_bytes(encoded(1))
    with pytest.raises(ConfigError, match="either images or tars, not both"):
        describe_input(str(tmp_path), MODEL)
    os.symlink("gone", tmp_path / "gone.tar")
    with pytest.raises(ConfigError, match=r"be regular files; .*/gone\.tar is none"):
        describe_input(str(tmp_path), MODEL)
