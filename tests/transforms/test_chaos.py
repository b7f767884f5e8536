import io
import os
import random
import shutil
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.pvalue import AsList
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dpgmm_beam.plan import Plan
from tests import small
from tests.transforms.chaos import Chaos, Schedule
from transforms import inputs
from transforms.embed import EmbedImages
from transforms.publish import Publication
from transforms.release import Release
from transforms.stage import Execution

SCHEDULES = st.builds(
    Schedule,
    seed=st.integers(0, 2**32),
    attempts=st.integers(1, 3),
    cut=st.sampled_from([0.0, 0.3, 0.6]),
    death=st.sampled_from([0.0, 0.5]),
    restart=st.sampled_from([0.0, 0.5, 1.0]),
    late=st.sampled_from([0.0, 0.5]),
)
CONFIG = small.small_config(dimension=6, samples_per_class=9)


def schedules(count: int):
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@pytest.fixture(scope="module", autouse=True)
def several_parts():
    """Files of three rows a class, so that there are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpgmm_beam.synthesis.PART_ROWS", 9)
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    source = small.write_rows(folder / "in", small.table(90, 6), files=2, row_group=11)
    key = small.write_key(folder / "key")
    return source, key, small.in_memory(source, CONFIG)


def graph(start, config, publication, key, **execution):
    """The release's pipeline, not run: what `Release.expand` builds."""
    pipeline = beam.Pipeline(runner=None)
    release = Release(Plan(config, small.RELEASE_ID), publication, str(key), Execution(**execution))
    start(pipeline) | "Release" >> release
    return pipeline


def check_whole(output: Path, expected: dict[str, bytes]) -> None:
    """The release is there, whole, and nothing else is visible beside it."""
    assert small.contents(output) == expected
    assert [name for name in os.listdir(output.parent) if not name.startswith(".")] == [output.name]
    for hidden in output.parent.glob(".*"):
        # A part written after the publication stays hidden, and is whole.
        for name, data in small.contents(hidden).items():
            assert expected[name] == data


@pytest.fixture(scope="module")
def row_graphs(rows, tmp_path_factory):
    source, key, _ = rows
    where = tmp_path_factory.mktemp("out")

    def start(pipeline):
        return pipeline | beam.Create([str(source)]) | beam.FlatMap(inputs.list_row_groups)

    def build(overwrite, cache):
        output = where / f"{overwrite}-{cache}" / "release"
        publication = Publication(str(output), "run", overwrite)
        # Blocks of 5 rows; a cache of 600 bytes evicts all the time.
        execution = {"block_rows": 5, "cache_bytes": 600 if cache else 0, "cache_token": str(overwrite)}
        return output, graph(start, CONFIG, publication, key, **execution)

    return [build(overwrite=0, cache=1), build(overwrite=1, cache=0)]


@schedules(60)
@given(schedule=SCHEDULES, overwrite=st.integers(0, 1))
def test_a_release_is_the_same_bytes(rows, row_graphs, schedule, overwrite):
    output, pipeline = row_graphs[overwrite]
    shutil.rmtree(output.parent, ignore_errors=True)
    if overwrite:
        (output / "synthetic").mkdir(parents=True)
        (output / "synthetic" / "old.parquet").write_bytes(b"old")
        (output / "manifest.json").write_bytes(b"{}")
    Chaos(pipeline, schedule).run()
    check_whole(output, rows[2])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number, label in enumerate(small.CLASSES):
        (folder / "in" / label).mkdir(parents=True)
        for i in range(9):
            generator = np.random.default_rng(100 * number + i)
            file = io.BytesIO()
            Image.fromarray(generator.integers(60 * number, 255, (6, 6, 3), np.uint8)).save(file, "PNG")
            (folder / "in" / label / f"{i}.png").write_bytes(file.getvalue() if i else b"no image")
    return folder


@pytest.fixture(scope="module")
def image_graph(images):
    output, cache = images / "chaos" / "release", images / "cache"
    described = inputs.describe_input(str(images / "in"), "blocks")
    config = small.small_config(encoder="blocks", dimension=6, samples_per_class=9)
    key = small.write_key(images / "key")
    pipeline = graph(
        lambda pipeline: pipeline | EmbedImages(described, "blocks", str(cache), shard_rows=5, threads=1),
        config,
        Publication(str(output), "run"),
        key,
    )
    return config, output, cache, pipeline


@schedules(12)
@given(schedule=SCHEDULES)
def test_images_to_a_release_is_the_same_bytes(image_graph, schedule):
    config, output, cache, pipeline = image_graph
    shutil.rmtree(output.parent, ignore_errors=True)
    shutil.rmtree(cache, ignore_errors=True)
    Chaos(pipeline, schedule).run()
    check_whole(output, small.in_memory(cache, config))
    embedded = sorted(path.name for path in cache.iterdir())
    assert all(name.startswith(("shard-", "_rejected")) for name in embedded), embedded


def test_embeddings_do_not_depend_on_the_schedule(image_graph):
    _, output, cache, pipeline = image_graph
    found = []
    for seed in range(3):
        shutil.rmtree(output.parent, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)
        Chaos(pipeline, Schedule(seed)).run()
        found.append((small.contents(cache), small.contents(output)))
    assert found[0] == found[1] == found[2]


class Unsafe(beam.DoFn):
    """All that a DoFn must not be: it counts, and it draws."""

    runs = 0

    def process(self, element, *_):
        Unsafe.runs += 1
        yield random.random()


class Together(beam.DoFn):
    """What it says depends on the bundle."""

    def start_bundle(self):
        self.seen = []

    def process(self, element):
        self.seen.append(element)
        yield tuple(self.seen)


def test_chaos_finds_unsafe_transforms():
    """The harness itself: what it is there to find, it finds."""
    pipeline = beam.Pipeline(runner=None)
    numbers = pipeline | beam.Create(range(8))
    drawn = numbers | "Draw" >> beam.ParDo(Unsafe())
    first = pipeline | "I1" >> beam.Impulse() | "R1" >> beam.Map(lambda _, x: sorted(x), AsList(drawn))
    second = pipeline | "I2" >> beam.Impulse() | "R2" >> beam.Map(lambda _, x: sorted(x), AsList(drawn))
    bundles = numbers | beam.ParDo(Together())
    total = numbers | beam.Map(lambda x: (x % 2, x)) | beam.CombinePerKey(sum) | beam.Reshuffle()
    Unsafe.runs, differing, seen = 0, 0, set()
    for seed in range(10):
        chaos = Chaos(pipeline, Schedule(seed))
        chaos.run()
        differing += chaos.output(first) != chaos.output(second)
        seen.add(tuple(sorted(chaos.output(bundles))))
        assert sorted(chaos.output(total)) == [(0, 12), (1, 16)]
        assert len(chaos.output(drawn)) == 8
        assert chaos.deaths
    assert Unsafe.runs > 80
    assert differing
    assert len(seen) > 1
