"""Images of every layout, from the files to embeddings and to a release."""

import csv
import dataclasses
import io
import json
import os
import random
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines import cli
from tests import small
from tests.transforms.crate import CrateFileSystem
from transforms import embed
from transforms.files.cache import finished_shards
from transforms.files.inputs import describe_input
from transforms.files.shards import plan_shards

ENCODER = "efficientnet_lite0:32"

FAR = f"{CrateFileSystem.scheme()}://"

FORMATS = {
    "PNG": "png",
    "JPEG": "jpg",
    "WEBP": "webp",
    "BMP": "BMP",
    "GIF": "gif",
    "TIFF": "tiff",
    "AVIF": "avif",
}


def picture(number):
    pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(pixels).resize((40, 30), Image.Resampling.BICUBIC)


def encoded(number, kind="PNG"):
    file = io.BytesIO()
    picture(number).save(file, kind)
    return file.getvalue()


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def embedded(source, cache, *options):
    """Labels by source, as `dpgmm embed` writes them."""
    argv = ["embed", "--input", str(source), "--encoder", ENCODER, "--output", str(cache), *options]
    assert cli.main(argv) == 0
    tables = [pq.read_table(path) for path in Path(cache).glob("*.parquet")]
    sources = [source for table in tables for source in table["source"].to_pylist()]
    labels = [label for table in tables for label in table["label"].to_pylist()]
    assert len(set(sources)) == len(sources)
    return dict(zip(sources, labels, strict=True))


def test_a_messy_folder_of_42_images_in_7_formats(tmp_path):
    """Two levels deep, with odd names among them and other files beside them."""
    root, expected = tmp_path / "photos", {}
    odd = {0: "{} copy.{}", 1: "{}.{} ", 2: "{}", 3: "{}.x\\{}"}
    for number in range(42):
        kind, suffix = list(FORMATS.items())[number % 7]
        name = odd.get(number, "{}.{}").format(f"IMG_{number}", suffix)
        label = ("cat", "dog")[number % 2]
        path = root / label / ("2023", "2024/summer", "")[number % 3] / name
        put(path, encoded(number, kind))
        expected[str(path)] = label
    for name in (
        "cat/notes.txt",
        "dog/2023/.DS_Store",
        "Thumbs.db",
        "dog/IMG_1.jpg~",
        "cat/@eaDir/1/thumb.jpg",
    ):
        put(root / name, encoded(99, "JPEG"))
    os.symlink(root / "cat", root / "dog" / "see also")
    os.symlink("gone.jpg", root / "dog" / "dangling.jpg")
    found = embedded(root, tmp_path / "cache")
    assert len(found) == 42
    assert {os.path.realpath(source): label for source, label in found.items()} == {
        path: expected[path] if "cat/" not in path else "cat" for path in expected
    }


def test_a_glob_of_folders_is_embedded(tmp_path):
    for batch in ("batch-2023", "batch-2024"):
        for number, label in enumerate(("cat", "cat", "dog")):
            put(tmp_path / "in" / batch / label / f"{number}.png", encoded(number))
    found = embedded(tmp_path / "in" / "batch-*", tmp_path / "cache")
    assert len(found) == 6
    assert sorted(found.values()) == ["cat"] * 4 + ["dog"] * 2
    assert all(os.path.isfile(source) for source in found)


def test_a_list_and_its_missing_file(tmp_path):
    for number in range(3):
        put(tmp_path / "store" / f"{number}.png", encoded(number))
    rows = [["path", "label"], ["0.png", "a"], [f"{tmp_path}/store/1.png", "b"]]
    bad = ["gone.png", "x" * 5000, "a\0b", "nosuch://bucket/1.png"]
    rows += [[name, "a"] for name in bad]
    with open(tmp_path / "store" / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    found = embedded(tmp_path / "store" / "list.csv", tmp_path / "cache")
    assert found == {f"{tmp_path}/store/0.png": "a", f"{tmp_path}/store/1.png": "b"}
    rejected = [
        json.loads(line)
        for path in (tmp_path / "cache" / "_rejected").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert sorted(row["source"].removeprefix(f"{tmp_path}/store/") for row in rejected) == sorted(bad)
    assert {row["reason"] for row in rejected} == {"no regular file"}


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_a_tar_and_its_bad_members(tmp_path):
    members = [
        ("1.png", encoded(1)),
        ("1.cls", b"cat"),
        ("2.png", b"no picture"),
        ("2.cls", b"dog"),
        ("3.png", encoded(3)),
    ]
    tar(tmp_path / "in.tar", members)
    found = embedded(tmp_path / "in.tar", tmp_path / "cache")
    assert found == {f"{tmp_path}/in.tar#1.png": "cat", f"{tmp_path}/in.tar#3.png": None}
    (rejected,) = (tmp_path / "cache" / "_rejected").iterdir()
    assert json.loads(rejected.read_text())["source"] == f"{tmp_path}/in.tar#2.png"


def test_a_changed_tar_is_embedded_again(tmp_path):
    tar(tmp_path / "in" / "a.tar", [("1.png", encoded(1)), ("1.cls", b"cat")])
    tar(tmp_path / "in" / "b.tar", [("1.png", encoded(2)), ("1.cls", b"dog")])
    assert sorted(embedded(tmp_path / "in", tmp_path / "cache").values()) == ["cat", "dog"]
    before = finished_shards(str(tmp_path / "cache"))
    tar(tmp_path / "in" / "b.tar", [("1.png", encoded(2)), ("1.cls", b"fox")])
    assert sorted(embedded(tmp_path / "in", tmp_path / "cache").values()) == ["cat", "fox"]
    assert len(before & finished_shards(str(tmp_path / "cache"))) == 1


def test_every_layout_gives_the_same_release(tmp_path):
    """The same pictures and labels, whatever holds them and in whatever order."""
    rows = [(number, small.CLASSES[number % 3]) for number in range(24)]
    generator = random.Random(1)

    def shuffled():
        return generator.sample(rows, len(rows))

    for number, label in rows:
        put(
            tmp_path / "folder" / label / ("deep/er" if number % 2 else "") / f"{number}.png", encoded(number)
        )
        put(tmp_path / "glob" / f"batch-{number % 4}" / label / f"x{number}", encoded(number))
    paths = [next((tmp_path / "folder").rglob(f"{number}.png")) for number, _ in rows]
    with open(tmp_path / "list.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["Label", "file_name"], *((label, paths[n]) for n, label in shuffled())])
    lines = [
        {"label": label, "path": f"folder/../{paths[n].relative_to(tmp_path)}"} for n, label in shuffled()
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines * 2))
    members = [
        member for n, label in rows for member in ((f"{n}.png", encoded(n)), (f"{n}.cls", label.encode()))
    ]
    generator.shuffle(members)
    tar(tmp_path / "one.tar", members)
    for part in range(3):
        tar(tmp_path / "tars" / f"{part}.tar", [m for m in members if int(m[0][:-4]) % 3 == part])
    order = shuffled()
    table = {"image": pa.array([encoded(n) for n, _ in order]), "label": [label for _, label in order]}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")

    names = (
        "folder",
        "glob/batch-*",
        "list.csv",
        "list.jsonl",
        "one.tar",
        "tars",
        "tars/*.tar",
        "in.parquet",
    )
    found = [rows_of(tmp_path / name, tmp_path / "near" / name) for name in names]
    found += [rows_of(f"{FAR}{tmp_path / name}", tmp_path / "far" / name) for name in names]
    assert len(found[0]) == 24
    assert all(other == found[0] for other in found)
    config = dataclasses.replace(small.small_config(), encoder="blocks", dimension=small.Blocks.dimension)
    key = small.write_key(tmp_path / "key")
    first, *others = (
        small.run(tmp_path / name, tmp_path / "out" / name, key, config=config)
        for name in ("folder", "list.jsonl", "tars")
    )
    assert len(first) > 3
    assert others == [first, first]


def test_images_without_labels_are_one_class(tmp_path, capsys):
    for number in range(6):
        put(tmp_path / "in" / f"{number}.png", encoded(number))
    argv = [
        *("release", "--input", f"{tmp_path}/in", "--encoder", "blocks", "--epsilon", "1", "--delta", "1e-5"),
        *("--output", f"{tmp_path}/out", "--private-dir", f"{tmp_path}/private", "--samples-per-class", "5"),
    ]
    assert cli.main([*argv, "--classes", "cat,dog"]) == 2
    assert "be one class, for the data has no labels" in capsys.readouterr().err
    assert cli.main([*argv, "--classes", "pet"]) == 0
    assert not json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]["labelled"]
    (report,) = (tmp_path / "private" / "reports").glob("*.json")
    assert json.loads(report.read_text())["input"][0]["rows"] == 6


def rows_of(source, cache):
    """Label and embedding of every row, sorted."""
    step = embed.EmbedShards("blocks", str(cache), 0, 1)
    step.setup()
    try:
        for shard in plan_shards(describe_input(str(source), "blocks"), "blocks", 16):
            next(step.process(("names", shard)))
    finally:
        step.teardown()
    tables = [pq.read_table(path, columns=["label", "embedding"]) for path in Path(cache).glob("*.parquet")]
    return sorted((row["label"], row["embedding"]) for table in tables for row in table.to_pylist())
