import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpgmm_beam.data import images
from dpgmm_beam.encoders import registry
from tests.transforms.embedding import (
    ENCODER,
    embedded,
    encoded,
    picture,
    rejected,
    rows,
    run,
    states,
    write_folder,
)
from transforms import embed
from transforms.files.cache import finished_shards
from transforms.files.inputs import describe_input
from transforms.files.shards import SHARD_SUFFIX, plan_shards
from transforms.prepare import Source


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
