"""Folders of small pictures, and what embedding them makes."""

import io
import json
import os
import pickle
import tempfile
from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from PIL import Image

from dpgmm_beam.encoders import registry
from transforms import embed
from transforms.files import parquet
from transforms.files.inputs import describe_input
from transforms.files.parquet import RowGroups

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


def rejected(cache):
    """Names of the images that are privately listed as set aside."""
    return sorted(
        os.path.basename(json.loads(line)["source"])
        for path in Path(cache, "_rejected").iterdir()
        for line in path.read_text().splitlines()
    )


def embed_shard(shard, cache, encoder=ENCODER):
    step = embed.EmbedShards(encoder, str(cache), 0, 2)
    step.setup()
    try:
        return next(step.process(("names", shard)))
    finally:
        step.teardown()
