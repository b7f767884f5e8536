import hashlib
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import cli
from tests import small
from tests.transforms import crate  # noqa: F401  (the scheme crate://)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    source = small.write_rows(folder / "in", small.table(300))
    small.run(source, folder / "release", small.write_key(folder / "key"))
    return folder / "release"


def sample(release, output, *more):
    return cli.main(["sample", "--release", str(release), "--output", str(output), *map(str, more)])


def test_rows_like_those_of_the_release(release, tmp_path, capsys):
    assert sample(release, tmp_path / "more", "--rows", 20_000, "--seed", 7) == 0
    assert capsys.readouterr().out == f"20000 rows are in {tmp_path / 'more'} (seed 7)\n"
    more, own = (pq.read_table(folder) for folder in (tmp_path / "more", release / "synthetic"))
    assert more.schema.equals(own.schema)
    labels = more["component_class"].to_pylist()
    assert {label: labels.count(label) for label in small.CLASSES} == {"a": 6667, "b": 6667, "c": 6666}
    # Class by class their means are those of the release's few rows, within 6 deviations.
    for label in small.CLASSES:
        one, two = (
            np.array(table["embedding"].to_pylist())[np.array(table["component_class"].to_pylist()) == label]
            for table in (more, own)
        )
        error = np.sqrt(two.var(axis=0) / len(two) + one.var(axis=0) / len(one))
        assert (np.abs(one.mean(axis=0) - two.mean(axis=0)) < 6 * error).all()
    about = json.loads((tmp_path / "more" / "_sample.json").read_text())
    assert about == {"release_id": small.RELEASE_ID, "rows": 20_000, "seed": 7}
    assert os.listdir(tmp_path) == ["more"]


def test_they_are_labelled_as_the_release_labels(release, tmp_path):
    """A row of the release has the probabilities that the released teacher gives it."""
    from pipelines.sample import load

    labeller = load(str(release)).mixture.labeller
    own = pq.read_table(release / "synthetic")
    embeddings = np.array(own["embedding"].to_pylist(), np.float32)
    probabilities = labeller.probabilities(embeddings)
    np.testing.assert_array_equal(probabilities, np.array(own["label_probabilities"].to_pylist(), np.float32))
    assert own["label"].to_pylist() == [small.CLASSES[index] for index in probabilities.argmax(axis=1)]


def test_the_seed_makes_the_rows_whatever_the_threads(release, tmp_path):
    for name, *more in (("one", 1), ("two", 3)):
        assert sample(release, tmp_path / name, "--rows", 9000, "--seed", 1, "--threads", *more) == 0
    assert sample(release, f"crate://{tmp_path}/far", "--rows", 9000, "--seed", 1) == 0
    assert sample(f"crate://{release}", tmp_path / "other", "--rows", 9000, "--seed", 2) == 0
    assert sample(release, tmp_path / "drawn", "--rows", 9000) == 0
    one, two, far, other, drawn = (
        small.contents(tmp_path / name) for name in ("one", "two", "far", "other", "drawn")
    )
    assert one == two == far
    part = "part-00000-of-00002.parquet"
    assert len({one[part], other[part], drawn[part]}) == 3


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        (("--rows", "0"), "--rows=0"),
        (("--rows", 2**31 + 1), "--rows="),
        (("--rows", "5", "--seed", "-1"), "--seed=-1"),
        (("--rows", "5", "--threads", "300"), "--threads=300"),
        (("--rows", "5", "--output", "{release}"), "--output="),
        (("--rows", "5", "--release", "{release}/mixture"), "--release="),
    ],
)
def test_refusals(release, tmp_path, capsys, options, argument):
    options = [str(option).format(release=release, tmp=tmp_path) for option in options]
    assert sample(release, tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dpgmm: {argument}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["components", "basis", "classes", "teacher", "features", "ridges"])
def test_a_mixture_that_is_not_as_its_manifest_says(release, tmp_path, capsys, name):
    copy = shutil.copytree(release, tmp_path / "copy")
    path = copy / "mixture" / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert sample(copy, tmp_path / "out", "--rows", 5) == 2
    assert f"must hold mixture/{name}.parquet as its manifest says" in capsys.readouterr().err
    path.unlink()
    assert sample(copy, tmp_path / "out", "--rows", 5) == 2


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("components", lambda table: table.drop_columns(["mean"])),
        ("components", lambda table: table.slice(0, 1)),
        ("components", lambda table: table.replace_schema_metadata(None)),
        ("components", lambda table: table.set_column(4, "mean", pa.array(["x"] * len(table)))),
        ("basis", lambda table: table.slice(0, 0)),
        ("classes", lambda table: table.slice(0, 1)),
        ("classes", lambda table: table.set_column(0, "class", pa.array(["c", "b", "a"]))),
        ("teacher", lambda table: table.rename_columns([f"{name}x" for name in table.column_names])),
        ("features", None),
        ("ridges", None),
        ("ridges", lambda table: table.slice(0, 5)),
        ("ridges", lambda table: table.drop_columns(["scale"])),
    ],
)
def test_a_mixture_that_its_manifest_says_and_that_is_none(release, tmp_path, capsys, name, change):
    copy = shutil.copytree(release, tmp_path / "copy")
    path = copy / "mixture" / f"{name}.parquet"
    if change is None:
        path.write_bytes(b"no Parquet")
    else:
        pq.write_table(change(pq.read_table(path)), path)
    manifest = json.loads((copy / "manifest.json").read_text())
    (entry,) = [file for file in manifest["files"] if file["path"] == f"mixture/{name}.parquet"]
    entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert sample(copy, tmp_path / "out", "--rows", 5) == 2
    assert "must hold a mixture that rows can be drawn from" in capsys.readouterr().err


@pytest.mark.parametrize("entry", ["release_id", "files", "config"])
def test_a_manifest_that_lacks_something(release, tmp_path, capsys, entry):
    copy = shutil.copytree(release, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest[entry]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert sample(copy, tmp_path / "out", "--rows", 5) == 2
    assert "that states its id and its files" in capsys.readouterr().err


def test_what_fails_leaves_nothing(release, tmp_path, monkeypatch, capsys):
    from pipelines import sample as verb

    write = verb.write_whole

    def full(path, data):
        if "part-00001" in path:
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(verb, "write_whole", full)
    assert sample(release, tmp_path / "out", "--rows", 9000) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
