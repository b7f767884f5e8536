import json
import os
import socket
import stat
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dpgmm_beam.data import images
from dpgmm_beam.encoders import registry
from dpgmm_beam.errors import ConfigError
from tests import small
from tests.transforms.crate import plain
from tests.transforms.embedding import (
    ENCODER,
    embed_shard,
    embedded,
    encoded,
    expected,
    picture,
    rejected,
    rows,
    run,
    states,
)
from transforms import embed
from transforms.files import encoded_images
from transforms.files.cache import finished_shards
from transforms.files.inputs import describe_input
from transforms.files.shards import plan_shards


def test_a_folder_is_embedded(folder, tmp_path):
    out = run(folder, tmp_path / "cache")
    assert len(out) > 2
    assert all(sum(groups.rows) <= 16 for groups in out)
    found = rows(out)
    assert sorted(found) == sorted(str(path) for path in folder.rglob("*.png"))
    for source in list(found)[::7]:
        label, embedding = found[source]
        assert label == Path(source).parent.name
        assert np.array_equal(embedding, expected(Path(source).read_bytes()))
    schema = pq.read_schema(out[0].path)
    assert schema.names == ["label", "embedding", "source"]
    assert schema.field("embedding").type == pa.list_(pa.float32(), 1280)
    assert schema.metadata[b"dpgmm.encoder"] == ENCODER.encode()
    described = describe_input(str(tmp_path / "cache"), ENCODER)
    assert (described.kind, described.dimension, described.labelled) == ("embedding_parquet", 1280, True)


def test_the_cache_is_its_owners_alone(folder, tmp_path):
    (folder / "a" / "bad.png").write_bytes(b"")
    before = os.umask(0)
    try:
        run(folder, tmp_path / "cache")
    finally:
        os.umask(before)
    assert (tmp_path / "cache" / "_rejected").is_dir()
    for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_bad_images_are_left_out(folder, tmp_path):
    good = {str(path) for path in folder.rglob("*.png")}
    (folder / "a" / "empty.png").write_bytes(b"")
    (folder / "b" / "text.jpg").write_bytes(b"not an image")
    (folder / "c").mkdir()
    (folder / "c" / "cut.png").write_bytes(encoded(picture(1))[:100])
    out = run(folder, tmp_path / "cache")
    assert set(rows(out)) == good
    rejected = [
        json.loads(line)["source"]
        for path in (tmp_path / "cache" / "_rejected").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert sorted(os.path.relpath(path, folder) for path in rejected) == [
        "a/empty.png",
        "b/text.jpg",
        "c/cut.png",
    ]


def test_pictures_whose_resizing_would_be_enormous_are_left_out(folder, tmp_path):
    """A kilobyte each; a worker that resized them needed 6 GB, or died."""
    before = rows(run(folder, tmp_path / "before"))
    for label, size in (("a", (1, 2**19)), ("a", (2**19, 1)), ("b", (1, 2**22))):
        name = f"long-{size[0]}.png"
        (folder / label / name).write_bytes(encoded(Image.new("L", size)))
    after = rows(run(folder, tmp_path / "cache"))
    assert rejected(tmp_path / "cache") == ["long-1.png", "long-1.png", "long-524288.png"]
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[source][1], before[source][1]) for source in before)


def test_what_is_no_file_is_never_opened(folder, tmp_path):
    """A fifo with an image's name would be waited for until somebody writes to it."""
    good = {str(path) for path in folder.rglob("*.png")}
    os.mkfifo(folder / "a" / "fifo.png")
    os.symlink("/dev/zero", folder / "a" / "device.png")
    os.symlink(folder / "nowhere", folder / "b" / "dangling.png")
    os.symlink("loop.png", folder / "b" / "loop.png")
    (folder / "b" / "folder.png").mkdir()
    here = os.getcwd()
    os.chdir(folder / "b")
    try:
        # By a short name: a socket's may have a hundred bytes.
        socket.socket(socket.AF_UNIX).bind("socket.png")
    finally:
        os.chdir(here)
    assert rows(run(folder, tmp_path / "cache")).keys() == good
    assert rejected(tmp_path / "cache") == [
        "dangling.png",
        "device.png",
        "fifo.png",
        "loop.png",
        "socket.png",
    ]


def test_files_beyond_the_bound_are_not_read(folder, tmp_path, monkeypatch):
    large = folder / "a" / "large.png"
    large.write_bytes(encoded(picture(1)) + bytes(2**16))
    monkeypatch.setattr(images, "MAX_BYTES", 2**16)
    read_bounded = encoded_images.read_bounded
    opened = []
    monkeypatch.setattr(
        encoded_images, "read_bounded", lambda path, most: opened.append(path) or read_bounded(path, most)
    )
    found = rows(run(folder, tmp_path / "cache"))
    assert len(found) == 40
    assert rejected(tmp_path / "cache") == ["large.png"]
    assert str(large) not in opened
    assert len(opened) == 40


def test_a_file_that_grows_fails_the_job(folder, tmp_path):
    """It is not the input that was listed."""
    shard, *_ = plan_shards(describe_input(str(folder), ENCODER), ENCODER, 16)
    with open(folder / shard.files[0], "ab") as file:
        file.write(b"more")
    with pytest.raises(RuntimeError, match="do not change the input"):
        embed_shard(shard, tmp_path / "cache")


def test_a_file_that_becomes_a_fifo_is_not_waited_for(folder, tmp_path):
    shard, *_ = plan_shards(describe_input(str(folder), ENCODER), ENCODER, 16)
    path = folder / shard.files[0]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RuntimeError, match="could not be read"):
        embed_shard(shard, tmp_path / "cache")


class Odd(small.Blocks):
    """Fails for pictures that are 31 wide, has another form for 32, and wants one picture at a time."""

    def prepare(self, images):
        (image,) = images
        if image.width == 31:
            raise MemoryError
        return super().prepare(images)[:, : 1 if image.width == 32 else 2]


@pytest.fixture
def odd(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    registry.register_encoder("odd", lambda argument, batch_size: Odd())
    yield "odd"
    registry._loaded.clear()


def test_a_picture_that_cannot_be_prepared_is_its_own_trouble(folder, tmp_path, odd):
    for number in range(3):
        (folder / "a" / f"31-{number}.png").write_bytes(encoded(Image.new("L", (31, 9))))
    (folder / "b" / "32.png").write_bytes(encoded(Image.new("L", (32, 9))))
    for shard in plan_shards(describe_input(str(folder), odd), odd, 1024):
        embed_shard(shard, tmp_path / "cache", odd)
    tables = [pq.read_table(path) for path in (tmp_path / "cache").glob("*.parquet")]
    assert sum(map(len, tables)) == 40
    assert rejected(tmp_path / "cache") == ["31-0.png", "31-1.png", "31-2.png", "32.png"]


def test_an_encoder_that_prepares_nothing_fails_the_job(folder, tmp_path, odd, monkeypatch):
    """Not row by row, in silence: that would be a release of noise."""
    monkeypatch.setattr(Odd, "prepare", lambda self, images: 1 // 0)
    shard, *_ = plan_shards(describe_input(str(folder), odd), odd, 1024)
    with pytest.raises(ZeroDivisionError):
        embed_shard(shard, tmp_path / "cache", odd)


def test_what_numpy_would_warn_of_is_not_said(folder, tmp_path, odd, monkeypatch, capfd):
    def embed_badly(self, prepared):
        return np.log(np.zeros((len(prepared), 6))) * 0

    monkeypatch.setattr(Odd, "embed", embed_badly)
    shard, *_ = plan_shards(describe_input(str(folder), odd), odd, 1024)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embed_shard(shard, tmp_path / "cache", odd)
    assert capfd.readouterr().err == ""


def test_an_empty_folder_is_embedded(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (source,) = embedded(tmp_path / "images", tmp_path / "cache")
    assert source.files() == []


def test_a_shard_without_good_rows_is_a_valid_file(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for i in range(3):
        (tmp_path / "images" / "a" / f"{i}.png").write_bytes(b"bad")
    out = run(tmp_path / "images", tmp_path / "cache")
    assert [sum(groups.rows) for groups in out] == [0] * len(out)
    assert describe_input(str(tmp_path / "cache"), "precomputed").dimension == 1280


def test_shards_and_threads_do_not_change_an_embedding(folder, tmp_path):
    one = rows(run(folder, tmp_path / "one", shard_rows=1024, threads=1))
    two = rows(run(folder, tmp_path / "two", shard_rows=5, threads=3))
    three = rows(run(folder, tmp_path / "three", batch_size=7))
    assert all(np.array_equal(one[source][1], two[source][1]) for source in one)
    for source in one:
        np.testing.assert_allclose(one[source][1], three[source][1], atol=1e-4)


def test_an_image_that_vanishes_is_named(folder, tmp_path):
    shard, *_ = plan_shards(describe_input(str(folder), ENCODER), ENCODER, 16)
    (folder / shard.files[0]).unlink()
    step = embed.EmbedShards(ENCODER, str(tmp_path / "cache"), 0, 1)
    step.setup()
    with pytest.raises(RuntimeError, match="could not be read") as caught:
        next(step.process(("names", shard)))
    step.teardown()
    assert str(caught.value).startswith(f"{folder / shard.files[0]} could not be read (FileNotFoundError)")
    assert not states(tmp_path / "cache")


def test_file_names_that_are_not_text(tmp_path):
    odd = os.fsencode(tmp_path / "images" / "a") + b"/\xff.png"
    (tmp_path / "images" / "a").mkdir(parents=True)
    with open(odd, "wb") as file:
        file.write(encoded(picture(0)))
    assert [groups.rows for groups in run(tmp_path / "images", tmp_path / "cache")] == [(1,)]


def test_any_scheme(folder, tmp_path):
    (folder / "a" / "bad.png").write_bytes(b"")
    far_out = run(f"crate://{folder}", f"crate://{tmp_path}/cache")
    assert all(groups.path.startswith("crate://") for groups in far_out)
    near = rows(run(folder, tmp_path / "near"))
    far = rows(far_out)
    assert {source.removeprefix("crate://") for source in far} == set(near)
    assert all(np.array_equal(far[source][1], near[plain(source)][1]) for source in far)
    assert finished_shards(f"crate://{tmp_path}/cache") == {
        os.path.basename(groups.path) for groups in far_out
    }
    described = describe_input(f"crate://{tmp_path}/cache/*.parquet", "precomputed")
    assert described.pattern.startswith("crate://")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shard_rows": 0}, "shard_rows=0 is refused: it must be a whole number from 1 to 8192."),
        ({"shard_rows": 9000}, "shard_rows=9000 is refused"),
        ({"batch_size": -1}, "batch_size=-1 is refused"),
    ],
)
def test_refusals(folder, tmp_path, options, sentence):
    with pytest.raises(ConfigError) as refusal:
        run(folder, tmp_path / "cache", **options)
    assert sentence in str(refusal.value)
    assert not (tmp_path / "cache").exists()


def test_a_decodable_cache_has_the_picture_of_each_image(folder, tmp_path):
    (folder / "a" / "broken.png").write_bytes(b"no")
    (wide := Image.new("RGB", (40, 20), (255, 128, 0))).save(folder / "a" / "wide.png")
    plain, (source,) = (
        run(folder, tmp_path / "plain"),
        embedded(folder, tmp_path / "cache", decodable="16:rgb"),
    )
    assert source.columns.picture == "picture"
    found = {}
    for file in source.files():
        table = pq.read_table(file.path)
        assert table.schema.metadata[b"dpgmm.picture"] == b"16:rgb"
        found |= {row["source"]: row for row in table.to_pylist()}
    # Embeddings are what they are without pictures, in files of other names.
    expected_rows = rows(plain)
    assert found.keys() == expected_rows.keys()
    assert len(found) == 41
    for name, (label, embedding) in expected_rows.items():
        assert found[name]["label"] == label
        np.testing.assert_array_equal(np.float32(found[name]["embedding"]), embedding)
    names = [{path.name for path in (tmp_path / each).glob("shard-*")} for each in ("plain", "cache")]
    assert not names[0] & names[1]
    encoder = registry.load_encoder("dct:16:rgb")
    made = found[str(folder / "a" / "wide.png")]["picture"]
    np.testing.assert_array_equal(np.float32(made), encoder.embed(encoder.prepare([wide]))[0])


def test_forms_of_pictures_that_are_refused(folder, tmp_path):
    described = describe_input(str(folder), ENCODER)
    with pytest.raises(ConfigError, match="decodable=4 is refused"):
        embed.EmbedImages(described, ENCODER, str(tmp_path), decodable="4")
