import io
import json
import os
import pickle
import socket
import stat
import tempfile
import warnings
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from PIL import Image

from dpgmm_beam.data import images
from dpgmm_beam.encoders import registry
from dpgmm_beam.errors import ConfigError
from tests import small
from tests.transforms.crate import plain
from transforms import embed
from transforms.files import encoded_images, parquet
from transforms.files.cache import finished_shards
from transforms.files.columns import Columns
from transforms.files.inputs import describe_input
from transforms.files.parquet import RowGroups
from transforms.files.shards import SHARD_SUFFIX, plan_shards
from transforms.prepare import Source

ENCODER = "efficientnet_lite0:32"


def picture(number):
    small = np.random.default_rng(number).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(small).resize((30, 30), Image.Resampling.BICUBIC)


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def write_folder(folder, per_label=20, labels="ab"):
    for number, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for i in range(per_label):
            (folder / label / f"{i:03d}.png").write_bytes(encoded(picture(1000 * number + i)))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "images")


def embedded(input_, cache, **options):
    """Runs the transform; returns what it yields."""
    options = {"shard_rows": 16, "threads": 2, **options}
    step = embed.EmbedImages(describe_input(str(input_), ENCODER), ENCODER, str(cache), **options)
    with tempfile.TemporaryDirectory() as out:
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            _ = pipeline | step | beam.combiners.ToList() | beam.Map(save, out)
        return pickle.loads(Path(out, "list").read_bytes())


def run(input_, cache, **options):
    """Runs the transform; returns the row groups of the source that it yields."""
    (source,) = embedded(input_, cache, **options)
    assert source.pattern == str(cache)
    return parquet.read_footers(source.pattern, {file.path: file.pin for file in source.files()}, ENCODER)


def save(elements, folder):
    Path(folder, "list").write_bytes(pickle.dumps(elements))


def rows(row_groups):
    """source -> (label, embedding) of all the cache files."""
    found = {}
    for groups in row_groups:
        assert isinstance(groups, RowGroups)
        with parquet.open_parquet(groups.path) as file:
            table = file.read()
        assert len(table) == sum(groups.rows)
        embeddings = np.array(table["embedding"].to_pylist(), np.float32).reshape(len(table), 1280)
        labels = table["label"].to_pylist() if "label" in table.column_names else [None] * len(table)
        for source, label, embedding in zip(table["source"].to_pylist(), labels, embeddings, strict=True):
            assert source not in found
            found[source] = (label, embedding)
    return found


def expected(data):
    encoder = registry.encoder_for_process(ENCODER)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return encoder.embed(encoder.prepare([image]))[0]


def states(folder):
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


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


def rejected(cache):
    """Names of the images that are privately listed as set aside."""
    return sorted(
        os.path.basename(json.loads(line)["source"])
        for path in Path(cache, "_rejected").iterdir()
        for line in path.read_text().splitlines()
    )


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


def embed_shard(shard, cache, encoder=ENCODER):
    step = embed.EmbedShards(encoder, str(cache), 0, 2)
    step.setup()
    try:
        return next(step.process(("names", shard)))
    finally:
        step.teardown()


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


def test_a_second_run_embeds_nothing(folder, tmp_path, monkeypatch):
    (folder / "a" / "empty.png").write_bytes(b"")
    first = run(folder, tmp_path / "cache")
    before = states(tmp_path / "cache")
    monkeypatch.setattr(registry, "encoder_for_process", lambda *_: pytest.fail("the model was loaded"))
    assert run(folder, tmp_path / "cache") == first
    assert states(tmp_path / "cache") == before


def test_resumption_and_one_new_image(folder, tmp_path):
    first = run(folder, tmp_path / "cache")
    before = states(tmp_path / "cache")
    lost, cut = Path(first[0].path), Path(first[1].path)
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:50])
    again = run(folder, tmp_path / "cache")
    assert [(groups.path, groups.rows) for groups in again] == [
        (groups.path, groups.rows) for groups in first
    ]
    after = states(tmp_path / "cache")
    assert {path for path in after if after[path] != before[path]} == {lost, cut}

    (folder / "a" / "0005.png").write_bytes(encoded(picture(77)))
    third = run(folder, tmp_path / "cache")
    assert len(rows(third)) == 41
    assert len({g.path for g in third} - {g.path for g in first}) == 1
    assert set(after) <= set(states(tmp_path / "cache"))
    run(folder, tmp_path / "cache", prune=True)
    assert finished_shards(str(tmp_path / "cache")) == {Path(groups.path).name for groups in third}


def test_a_source_is_of_its_own_input(folder, tmp_path):
    """The cache may hold other inputs' files: whoever reads it is told which are meant."""
    (first,) = embedded(folder, tmp_path / "cache")
    before = {file.path for file in first.files()}
    other = write_folder(tmp_path / "others", 4, "c")
    (second,) = embedded(other, tmp_path / "cache")
    assert first.names_file != second.names_file
    assert {file.path for file in first.files()} == before
    assert before.isdisjoint(file.path for file in second.files())
    whole = {file.path for file in Source(str(tmp_path / "cache")).files()}
    assert whole == before | {file.path for file in second.files()}
    # Not a word of the images passes through the runner.
    assert "images" not in f"{first}{second}".replace(str(tmp_path), "")


def test_images_that_are_gone_are_an_input_too(folder, tmp_path):
    description = describe_input(str(folder), ENCODER)
    for path in folder.rglob("*.png"):
        path.unlink()
    listed = list(embed.ListShards(ENCODER, str(tmp_path / "cache"), 16, False).process(description))
    assert [shard for _, shard in listed] == [None]
    step = embed.EmbedShards(ENCODER, str(tmp_path / "cache"), 0, 1)
    step.setup()
    (finished,) = step.process(listed[0])
    step.teardown()
    assert embed.as_source(finished, str(tmp_path / "cache")).files() == []


def test_a_changed_image_is_embedded_again(folder, tmp_path):
    first = rows(run(folder, tmp_path / "cache"))
    path = folder / "a" / "003.png"
    path.write_bytes(encoded(picture(99)))
    second = rows(run(folder, tmp_path / "cache"))
    changed = [source for source in first if not np.array_equal(first[source][1], second[source][1])]
    assert changed == [str(path)]


def test_images_that_change_places_are_embedded_again(folder, tmp_path):
    """Of one size, and with the times that they had, as files from an archive have them."""
    one, other = folder / "a" / "003.png", folder / "b" / "004.png"
    for path in (one, other):
        size = max(one.stat().st_size, other.stat().st_size)
        path.write_bytes(path.read_bytes() + bytes(size - path.stat().st_size))
        os.utime(path, (1, 1))
    first = rows(run(folder, tmp_path / "cache", prune=True))
    one.rename(tmp_path / "third")
    other.rename(one)
    (tmp_path / "third").rename(other)
    second = rows(run(folder, tmp_path / "cache", prune=True))
    assert np.array_equal(second[str(one)][1], first[str(other)][1])
    assert np.array_equal(second[str(other)][1], first[str(one)][1])
    one.write_bytes(other.read_bytes())
    os.utime(one, (1, 1))
    third = rows(run(folder, tmp_path / "cache", prune=True))
    assert np.array_equal(third[str(one)][1], second[str(other)][1])


def test_each_rejected_image_has_its_reason(folder, tmp_path):
    """And the owner is told of those that may be other than they look."""
    data = encoded(picture(0))
    (folder / "a" / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "a" / "empty.png").write_bytes(b"")
    (folder / "b" / "text.png").write_bytes(b"text")
    (folder / "b" / "link.png").symlink_to("nowhere")
    deep = Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30))
    (folder / "b" / "deep.png").write_bytes(encoded(deep))
    run(folder, tmp_path / "cache")
    found = {}
    for path in [*(tmp_path / "cache" / "_rejected").iterdir(), *(tmp_path / "cache" / "_notes").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for line in path.read_text().splitlines():
            source, *said = json.loads(line).values()
            found[Path(source).name] = said
    assert found == {
        "cut.png": ["cut"],
        "empty.png": ["empty"],
        "text.png": ["not a picture"],
        "link.png": ["no regular file"],
        "deep.png": [images.Note.SHALLOW],
    }


def test_what_was_left_out_is_told_though_a_worker_dies_behind_it(folder, tmp_path, monkeypatch):
    """A finished shard is never looked at again, so its remarks must be there before it."""
    (folder / "a" / "empty.png").write_bytes(b"")
    shards = list(plan_shards(describe_input(str(folder), ENCODER), ENCODER, 64))
    write_whole = embed.write_whole

    def dying(path, content, **options):
        write_whole(path, content, **options)
        if path.endswith(SHARD_SUFFIX):
            raise OSError("the worker is gone")

    step = embed.EmbedShards(ENCODER, str(tmp_path / "cache"), 0, 1)
    step.setup()
    monkeypatch.setattr(embed, "write_whole", dying)
    for shard in shards:
        with pytest.raises(OSError, match="gone"):
            list(step.process(("names", shard)))
    monkeypatch.undo()
    for shard in shards:
        list(step.process(("names", shard)))
    step.teardown()
    assert rejected(tmp_path / "cache") == ["empty.png"]


def test_double_execution_at_once(folder, tmp_path):
    """Each shard executed by three threads at the same time: one whole file each."""
    description = describe_input(str(folder), ENCODER)
    shards = list(plan_shards(description, ENCODER, 16))
    step = embed.EmbedShards(ENCODER, str(tmp_path / "cache"), 0, 1)
    step.setup()
    with embed.ThreadPoolExecutor(3) as pool:
        attempts = list(pool.map(lambda shard: next(step.process(("names", shard))), shards[:3] * 3))
    step.teardown()
    assert attempts == [("names", 1)] * 9
    names = {shard.name for shard in shards[:3]}
    assert {path.name for path in states(tmp_path / "cache")} == names
    once = run(folder, tmp_path / "other")
    assert len(once) == len(shards)
    for name in names:
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_shards_and_threads_do_not_change_an_embedding(folder, tmp_path):
    one = rows(run(folder, tmp_path / "one", shard_rows=1024, threads=1))
    two = rows(run(folder, tmp_path / "two", shard_rows=5, threads=3))
    three = rows(run(folder, tmp_path / "three", batch_size=7))
    assert all(np.array_equal(one[source][1], two[source][1]) for source in one)
    for source in one:
        np.testing.assert_allclose(one[source][1], three[source][1], atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (pa.array([3, None, 5] * 5), ["3", None, "5"]),
        (pa.array(["x", None, "z"] * 5).dictionary_encode(), ["x", None, "z"]),
        (pa.array(["x", None, "z"] * 5, pa.large_string()), ["x", None, "z"]),
        (None, [None] * 3),
    ],
)
def test_images_in_parquet(tmp_path, labels, shown):
    data = [encoded(picture(i), "JPEG") for i in range(15)]
    data[2], data[7] = None, b"bad"
    columns = {"image": pa.array(data, pa.binary()), "ignored": pa.array(range(15))}
    if labels is not None:
        columns["label"] = labels
    pq.write_table(pa.table(columns), tmp_path / "in.parquet", row_group_size=4)
    out = run(tmp_path / "in.parquet", tmp_path / "cache", shard_rows=8)
    assert [sum(groups.rows) for groups in sorted(out, key=lambda groups: -sum(groups.rows))] == [7, 6]
    found = rows(out)
    sources = [f"{tmp_path}/in.parquet#{i // 4}:{i % 4}" for i in range(15)]
    assert sorted(found) == sorted(s for i, s in enumerate(sources) if i not in (2, 7))
    for i in (0, 1, 5, 14):
        label, embedding = found[sources[i]]
        assert label == shown[i % 3]
        assert np.array_equal(embedding, expected(data[i]))
    assert describe_input(str(tmp_path / "cache"), ENCODER).labelled == (labels is not None)


def test_a_label_that_is_not_text_does_not_fail_the_job(tmp_path):
    offsets, bytes_ = pa.py_buffer(np.array([0, 2, 4], np.int32)), pa.py_buffer(b"\xff\xfeok")
    labels = pa.Array.from_buffers(pa.string(), 2, [None, offsets, bytes_])
    images = pa.array([encoded(picture(0))] * 2)
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "in.parquet")
    (groups,) = run(tmp_path / "in.parquet", tmp_path / "cache")
    assert groups.rows == (2,)
    assert pq.read_table(groups.path)["label"][1].as_py() == "ok"


def test_a_long_label_is_not_repeated(tmp_path):
    """No class can have it: such a row is set aside as one without a label, and costs no gigabytes."""
    labels = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, 0] * 10), pa.array(["x" * 2**20, "ok"]))
    images = pa.array([encoded(picture(0))] * 40)
    table = pa.table({"image": images, "label": labels})
    pq.write_table(table, tmp_path / "in.parquet", compression="zstd", dictionary_pagesize_limit=2**22)
    (groups,) = run(tmp_path / "in.parquet", tmp_path / "cache")
    assert pq.read_table(groups.path)["label"].to_pylist() == [None, "ok", None, None] * 10
    assert os.path.getsize(groups.path) < 2**19


@pytest.mark.parametrize("column", ["image", "label"])
def test_columns_of_nulls(tmp_path, column):
    table = {"image": pa.array([encoded(picture(0))] * 3), "label": pa.array(["a"] * 3)}
    pq.write_table(pa.table({**table, column: pa.nulls(3)}), tmp_path / "in.parquet")
    (groups,) = run(tmp_path / "in.parquet", tmp_path / "cache")
    assert groups.rows == ((0,) if column == "image" else (3,)) or sum(groups.rows) == 0
    assert pq.read_schema(groups.path).field("label").type == pa.string()


def test_a_page_that_cannot_be_decoded_fails_without_its_bytes(tmp_path):
    path = tmp_path / "in.parquet"
    table = pa.table({"image": pa.array([encoded(picture(i)) for i in range(9)])})
    pq.write_table(table, path)
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 400 + data[404:])
    (shard,) = plan_shards(describe_input(str(path), ENCODER), ENCODER, 16)
    with pytest.raises(RuntimeError) as caught:
        embed_shard(shard, tmp_path / "cache")
    assert str(caught.value).startswith(f"{path} could not be read (")
    assert len(str(caught.value)) < len(str(path)) + 50


def test_row_groups_of_a_shard_stay_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("transforms.files.cache.ROW_GROUP_ROWS", 16)
    images = pa.array([encoded(picture(i)) for i in range(50)])
    pq.write_table(pa.table({"image": images}), tmp_path / "in.parquet")
    (groups,) = run(tmp_path / "in.parquet", tmp_path / "cache")
    assert groups.rows == (16, 16, 16, 2)
    assert len(rows([groups])) == 50


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


def test_images_and_labels_of_other_columns(tmp_path):
    """As datasets of Hugging Face hold them: struct<bytes, path> and integers that the schema names."""
    data = [encoded(picture(i)) for i in range(6)]
    struct = pa.array([{"path": f"{i}.png", "bytes": each} for i, each in enumerate(data)])
    feature = {"kind": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    columns = {"img": struct, "kind": pa.array([0, 1, -1, None, 1, 0]), "other": ["x"] * 6}
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=4)

    def cached(label):
        described = describe_input(
            str(tmp_path / "in.parquet"), ENCODER, columns=Columns(image="img", label=label)
        )
        shards = list(plan_shards(described, ENCODER, 16))
        for shard in shards:
            embed_shard(shard, tmp_path / "cache")
        tables = [pq.read_table(tmp_path / "cache" / shard.name) for shard in shards]
        return pa.concat_tables(tables)

    found = cached("kind")
    assert found["label"].to_pylist() == ["cat", "dog", None, None, "dog", "cat"]
    assert all(map(np.array_equal, found["embedding"].to_numpy(), map(expected, data)))
    # Another column's labels are no part of the same cache file.
    assert cached("other")["label"].to_pylist() == ["x"] * 6
    assert cached("").column_names == ["embedding", "source"]


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
