import errno
import os
import tempfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpgmm_beam.errors import ConfigError
from pipelines import paths


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "--x='' is refused: it must be a path"),
        ("a\0b", "be a path"),
        ("a\udcff", r"--x=a\udcff is refused: it must be a path in UTF-8"),
        ("bogus://x", "lie on a file system that Beam can open"),
    ],
)
@pytest.mark.parametrize("check", [paths.check_path, paths.check_writable_place, paths.check_writable_folder])
def test_what_is_no_path(check, path, sentence):
    with pytest.raises(ConfigError) as refused:
        check("--x", path)
    assert sentence in str(refused.value)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("missing")
    (tmp_path / "folder").mkdir(0o700)
    (tmp_path / "to-folder").symlink_to("folder")
    os.mkfifo(tmp_path / "fifo")
    return tmp_path


def everything(folder):
    return sorted((str(path), path.lstat().st_mode, path.lstat().st_ino) for path in folder.rglob("*"))


BAD = [
    *("file", "file/x", "file/x/y", "loop", "loop/x", "dangling", "dangling/x", "fifo", "fifo/x"),
    *("/proc/x", "/proc/x/y", "/sys/x", "/dev/null", "/dev/null/x", "/proc/self/fd/x"),
    *("x" * 256, "new/" + "x" * 256, "x" * 256 + "/new", "/".join(["x" * 200] * 25)),
]


@pytest.mark.parametrize("name", [*BAD, "to-folder", "x" * 240, "new/" + "ü" * 110, "/", "/proc"])
def test_places_where_no_output_can_appear(place, name):
    before = everything(place)
    with pytest.raises(ConfigError, match=r"--x=.* is refused: it must be (a|an empty or a new) folder"):
        paths.check_writable_place("--x", str(place / name))
    assert everything(place) == before


@pytest.mark.parametrize("name", ["new", "new/and/deep", "folder", "folder/new", "to-folder/new", "x" * 180])
def test_places_where_one_can(place, name):
    before = everything(place)
    paths.check_writable_place("--x", str(place / name))
    assert everything(place) == before
    paths.check_writable_place("--x", "crate.txt")


@pytest.mark.parametrize("name", BAD)
def test_private_folders_that_cannot_be(place, name):
    before = everything(place)
    with pytest.raises(ConfigError, match=r"--x=.* is refused: it must be a folder that can be written"):
        paths.check_writable_folder("--x", str(place / name))
    assert everything(place) == before


@pytest.mark.parametrize(
    "name", ["new", "new/and/deep", "folder", "folder/new", "to-folder", "to-folder/x", "x" * 255]
)
def test_private_folders_that_can(place, name):
    before = everything(place)
    paths.check_writable_folder("--x", str(place / name))
    assert everything(place) == before


@pytest.mark.parametrize(
    ("code", "refused"),
    [(errno.EROFS, True), (errno.EACCES, True), (errno.ENOSPC, False), (errno.EDQUOT, False)],
)
def test_a_disk_that_is_full_is_no_fault_of_the_path(tmp_path, monkeypatch, code, refused):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    for check in (paths.check_writable_folder, paths.check_writable_place):
        with pytest.raises(ConfigError if refused else OSError, match=os.strerror(code)) as error:
            check("--x", str(tmp_path / "new"))
        assert isinstance(error.value, ConfigError) is refused


APART = [
    {"--input": "in", "--output": "out", "--private-dir": "private", "--noise-key-file": "key"},
    {"--input": "in", "--output": "in-2"},
    {"--input": "*.parquet", "--output": "out"},
    {"--input": "in/*/*.parquet", "--output": "in-2/x"},
    {"--input": "in.parquet", "--output": "out"},
    {"--input": None, "--output": "out", "--noise-key-file": None},
    # As `dpgmm demo` has it.
    {"--input": "private/x-embeddings", "--private-dir": "private", "--noise-key-file": "private/key"},
    {"--input": "private/runs-of-mine", "--private-dir": "private"},
    {"--input": "gs://a/in", "--output": "gs://a/out", "--private-dir": "gs://b"},
    {"--input": "gs://a/*.parquet", "--output": "gs://a/out"},
    {"--input": "gs://a/b", "--output": "s3://a/b"},
    {"--synthetic": "release", "--test": "private/test", "--output": "network"},
]


@pytest.mark.parametrize("given_paths", APART, ids=str)
def test_paths_that_lie_apart(given_paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths.check_apart(given_paths)


TANGLED = [
    ({"--input": "in", "--output": "in"}, "--output", "--input=in"),
    ({"--input": "in", "--output": "in/out"}, "--output", "--input=in"),
    ({"--input": "out/in", "--output": "out"}, "--output", "--input=out/in"),
    ({"--input": "in/../out", "--output": "./out/"}, "--output", "--input"),
    ({"--input": "*/x.parquet", "--output": "out"}, "--output", "--input"),
    ({"--input": "**", "--output": "deep/out"}, "--output", "--input"),
    ({"--input": "o[tu]t/*.parquet", "--output": "out"}, "--output", "--input"),
    ({"--input": "link/in", "--output": "real"}, "--output", "--input=link/in"),
    ({"--input": "in", "--output": "out", "--private-dir": "out"}, "--output", "--private-dir=out"),
    ({"--output": "out", "--private-dir": "out/private"}, "--output", "--private-dir"),
    ({"--output": "private/out", "--private-dir": "private"}, "--output", "--private-dir"),
    ({"--output": "out", "--noise-key-file": "out/key"}, "--output", "--noise-key-file"),
    ({"--input": "in", "--private-dir": "in"}, "--private-dir", "--input=in"),
    ({"--input": "in", "--private-dir": "in/private"}, "--private-dir", "--input=in"),
    *(
        ({"--input": f"private/{own}", "--private-dir": "private"}, "--private-dir", "--input")
        for own in paths.OWN_FOLDERS
    ),
    ({"--input": "private/*/x.parquet", "--private-dir": "private"}, "--private-dir", "--input"),
    (
        {"--noise-key-file": "private/runs/x/key", "--private-dir": "private"},
        "--private-dir",
        "--noise-key-file",
    ),
    ({"--release": "release", "--private-dir": "release/private"}, "--private-dir", "--release"),
    ({"--input": "gs://a/in", "--output": "gs://a/in/out"}, "--output", "--input"),
    ({"--input": "gs://a", "--output": "gs://a/out"}, "--output", "--input"),
    ({"--input": "gs://a//in/", "--output": "gs://a/in"}, "--output", "--input"),
    ({"--synthetic": "release", "--output": "release/network"}, "--output", "--synthetic=release"),
]


@pytest.mark.parametrize(("given_paths", "named", "other"), TANGLED, ids=str)
def test_paths_in_each_other(given_paths, named, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(ConfigError) as refused:
        paths.check_apart(given_paths)
    assert str(refused.value).startswith(
        f"{named}={given_paths[named]} is refused: it must lie apart from {other}"
    )


def test_a_path_that_is_no_pattern_although_it_looks_like_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in[1]").mkdir()
    paths.check_apart({"--input": "in[1]", "--output": "in1"})
    with pytest.raises(ConfigError):
        paths.check_apart({"--input": "in[1]", "--output": "in[1]/x"})


names = st.lists(st.sampled_from("abc"), max_size=4)


@given(names, names)
@example(["a"], ["a", "b"])
def test_an_output_is_apart_from_what_neither_holds_the_other(one, other):
    places = {"--input": "/".join(["/tmp/x", *one]), "--output": "/".join(["/tmp/x", *other])}
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        with pytest.raises(ConfigError):
            paths.check_apart(places)
    else:
        paths.check_apart(places)
