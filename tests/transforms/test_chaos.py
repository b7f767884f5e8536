import collections
import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from dpgmm_beam.fit import chain
from dpgmm_beam.fit.checkpoint import Checkpoint
from dpgmm_beam.fit.plan import Plan
from tests import small
from tests.transforms.chaos import Chaos, Died, Schedule
from transforms.embed import EmbedImages
from transforms.execution import Execution
from transforms.files import inputs
from transforms.files.publish import Publication
from transforms.files.run_files import Workspace
from transforms.prepare import Source
from transforms.release import Release

SCHEDULES = st.builds(
    Schedule,
    seed=st.integers(0, 2**32),
    attempts=st.integers(1, 3),
    cut=st.sampled_from([0.0, 0.3, 0.6]),
    death=st.sampled_from([0.0, 0.5]),
    restart=st.sampled_from([0.0, 0.5, 1.0]),
    late=st.sampled_from([0.0, 0.5]),
)
CALM = Schedule(0, attempts=1, death=0.0, restart=0.0, late=0.0)
CONFIG = small.small_config(dimension=6, samples_per_class=9)
STAGES = len(Plan(CONFIG, small.RELEASE_ID).stages)

SIZES: dict[str, dict[str, int]] = {
    "one piece": {},
    # 90 rows in row groups of 11: several units, several pieces in most.
    "small pieces": {"transforms.files.listing.LEAST_PIECE_ROWS": 7},
    # Sums of several parts, which are stored and gathered.
    "small parts": {
        "transforms.files.listing.LEAST_PIECE_ROWS": 20,
        "dpgmm_beam.privacy.queries.SHIPPED": 16,
    },
}


def schedules(count: int):
    return settings(
        max_examples=count,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@pytest.fixture(scope="module", autouse=True)
def several_parts():
    """Files of three rows a class, so that there are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpgmm_beam.release.synthesis.PART_ROWS", 9)
        yield


@pytest.fixture(scope="module", autouse=True)
def advances():
    """How often the noise of a stage was drawn, by position."""
    counts: collections.Counter[int] = collections.Counter()
    advance = chain.advance

    def counted(before, *arguments):
        counts[before.stages_done] += 1
        return advance(before, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain, "advance", counted)
        yield counts


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    source = small.write_rows(folder / "in", small.table(90, 6), files=2, row_group=11)
    key = small.write_key(folder / "key")
    return source, key, small.in_memory(source, CONFIG)


def graph(start, config, publication, workspace, execution):
    """The release's pipeline, not run: what `Release.expand` builds."""
    pipeline = beam.Pipeline(runner=None)
    start(pipeline) | "Release" >> Release(Plan(config, small.RELEASE_ID), publication, workspace, execution)
    return pipeline


def check_whole(output: Path, expected: dict[str, bytes]) -> None:
    """The release is there, whole, and nothing else is visible beside it."""
    assert small.contents(output) == expected
    assert [name for name in os.listdir(output.parent) if not name.startswith(".")] == [output.name]
    for hidden in output.parent.glob(".*"):
        # A part written after the publication stays hidden, and is whole.
        for name, data in small.contents(hidden).items():
            assert expected[name] == data


def check_no_threads() -> None:
    """Threads of passes end, also those of attempts that died."""
    for thread in threading.enumerate():
        if thread.name.startswith("sum"):
            thread.join(60)
            assert not thread.is_alive()


@dataclasses.dataclass
class Job:
    """A release of the rows, which can be run again and again."""

    output: Path
    workspace: Workspace
    sizes: dict[str, int]
    overwrite: bool
    pipeline: beam.Pipeline = dataclasses.field(init=False)

    @contextlib.contextmanager
    def sized(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.sizes.items():
                patch.setattr(name, value)
            yield

    def forget(self, rows: bool) -> None:
        """Removes what earlier runs have left, the release too; prepared rows only if they are to go."""
        shutil.rmtree(self.output.parent, ignore_errors=True)
        shutil.rmtree(self.workspace.folder, ignore_errors=True)
        if rows:
            shutil.rmtree(self.workspace.rows, ignore_errors=True)
        if self.overwrite:
            (self.output / "synthetic").mkdir(parents=True)
            (self.output / "synthetic" / "old.parquet").write_bytes(b"old")
            stated = {"schema_version": 1, "release_id": "old", "config_digest": "", "privacy": {}}
            old = {**stated, "files": [{"path": "synthetic/old.parquet"}]}
            (self.output / "manifest.json").write_text(json.dumps(old))

    def run(self, schedule: Schedule, **hooks) -> None:
        with self.sized():
            Chaos(self.pipeline, schedule, **hooks).run()

    def states(self) -> dict[str, Path]:
        return {path.name: path for path in Path(self.workspace.folder).glob("*/state-*.npz")}

    def read_states(self) -> dict[str, bytes]:
        return {name: path.read_bytes() for name, path in self.states().items()}

    def watch(self):
        """A hook that looks on: the file of a state that is there is never replaced or touched."""
        seen: dict[str, tuple[int, int, int]] = {}

        def look():
            found = {name: path.stat() for name, path in self.states().items()}
            now = {name: (stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in found.items()}
            assert seen.items() <= now.items()
            seen.update(now)

        return look


@pytest.fixture(scope="module")
def jobs(rows, tmp_path_factory):
    source, key, _ = rows
    found = {}
    for number, (name, sizes) in enumerate(SIZES.items()):
        where = tmp_path_factory.mktemp("job")
        output = where / "out" / "release"
        job = Job(output, small.workspace(where / "private", key), sizes, overwrite=number == 1)
        publication = Publication(str(output), job.overwrite)
        with job.sized():
            job.pipeline = graph(
                lambda pipeline: pipeline | beam.Create([Source(str(source))]),
                CONFIG,
                publication,
                job.workspace,
                Execution(block_rows=5, threads=1 + number % 2, piece_bytes=1),
            )
        found[name] = job
    return found


@contextlib.contextmanager
def deadly_steps(seed: int, probability: float) -> Iterator[None]:
    """Processes may end right before or right after a file takes its place."""
    choices = random.Random(seed)

    def deadly(step):
        def call(*arguments, **options):
            chance = choices.random()
            if chance < probability / 2:
                raise Died
            result = step(*arguments, **options)
            if chance > 1 - probability / 2:
                raise Died
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("link", "rename", "replace"):
            patch.setattr(os, name, deadly(getattr(os, name)))
        yield


@schedules(60)
@given(
    schedule=SCHEDULES,
    size=st.sampled_from(sorted(SIZES)),
    again=st.booleans(),
    deadly=st.sampled_from([0.0, 0.0, 0.2]),
)
def test_a_release_is_the_same_bytes(rows, jobs, advances, schedule, size, again, deadly):
    job = jobs[size]
    job.forget(rows=not again)
    advances.clear()
    with deadly_steps(schedule.seed, deadly):
        job.run(schedule, after=job.watch())
    check_whole(job.output, rows[2])
    if not deadly:
        # Whatever ran twice or died between elements: the noise of a stage was drawn once.
        assert advances == dict.fromkeys(range(STAGES), 1)
    # A process that ended before its state was in place drew for nothing; no state was replaced.
    assert advances.keys() == set(range(STAGES))
    assert len(job.states()) == STAGES + 1
    check_no_threads()


def test_the_jobs_have_the_sizes_that_they_are_named_for(jobs):
    counts = {}
    for name, job in jobs.items():
        job.forget(rows=True)
        job.run(CALM)
        pieces = len(list(Path(job.workspace.rows).glob("*/piece-*.npy")))
        parts = sum("Gather" in step.applied.full_label for step in Chaos(job.pipeline, CALM).steps)
        counts[name] = pieces, parts
    # Counts and the teacher's start are one part however small parts are.
    assert counts == {"one piece": (1, 0), "small pieces": (17, 0), "small parts": (5, STAGES - 2)}


def changed(checkpoint: Checkpoint) -> Checkpoint:
    """One of other means."""
    of_classes = checkpoint.state.class_means
    other = dataclasses.replace(of_classes, means=of_classes.means + 1)
    return dataclasses.replace(checkpoint, state=dataclasses.replace(checkpoint.state, class_means=other))


@pytest.fixture(scope="module")
def attics(jobs):
    """By size: the states of a run whose second state is no state that the rows would give, and its release.

    Whoever draws noise for a state that is there, or goes on with another one, is found.
    """
    found = {}
    for size, job in jobs.items():
        job.forget(rows=True)
        job.run(CALM)
        drawn = job.read_states()
        for name, path in job.states().items():
            if name > "state-002.npz":
                path.unlink()
            elif name == "state-002.npz":
                path.write_bytes(changed(Checkpoint.from_bytes(path.read_bytes())).to_bytes())
                for view in (found for found in path.parent.iterdir() if found.is_dir()):
                    shutil.rmtree(view)
        shutil.rmtree(job.output)
        job.run(CALM)
        kept = job.read_states()
        assert [name for name in sorted(kept) if kept[name] != drawn[name]] == sorted(kept)[2:]
        (base,) = (path.parent for path in job.states().values() if path.name == "state-000.npz")
        found[size] = base, kept, small.contents(job.output)
    return found


@schedules(24)
@given(
    schedule=SCHEDULES,
    size=st.sampled_from(sorted(SIZES)),
    there=st.sets(st.integers(3, STAGES)),
    rows_stay=st.booleans(),
    haste=st.sampled_from([0.0, 0.01, 0.05, 0.3]),
)
def test_states_that_are_there_or_appear_half_way(
    rows, jobs, attics, advances, schedule, size, there, rows_stay, haste
):
    """By another driver's hand: some bundles of a stage sum, others find the state and read no row."""
    job, (base, kept, expected) = jobs[size], attics[size]
    assert expected != rows[2]
    job.forget(rows=not rows_stay)
    base.mkdir(parents=True)
    names = sorted(kept)
    placed = []

    def place(name):
        (base / name).write_bytes(kept[name])
        placed.append(name)

    for number in (0, 1, 2, *there):
        place(names[number])
    choices = random.Random(schedule.seed)

    def appear():
        missing = [name for name in names if not (base / name).exists()]
        if missing and choices.random() < haste:
            place(missing[0])

    advances.clear()
    job.run(schedule, between=appear, after=job.watch())
    assert job.read_states() == kept
    assert sum(advances.values()) == len(names) - len(placed)
    check_whole(job.output, expected)


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
    pipeline = graph(
        lambda pipeline: pipeline | EmbedImages(described, "blocks", str(cache), shard_rows=5, threads=1),
        config,
        Publication(str(output)),
        small.workspace(images / "private", small.write_key(images / "key")),
        Execution(block_rows=5),
    )
    return config, output, cache, pipeline


@schedules(12)
@given(schedule=SCHEDULES)
def test_images_to_a_release_is_the_same_bytes(images, image_graph, schedule):
    config, output, cache, pipeline = image_graph
    for folder in (output.parent, cache, images / "private"):
        shutil.rmtree(folder, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transforms.files.listing.LEAST_PIECE_ROWS", 7)
        Chaos(pipeline, schedule).run()
    check_whole(output, small.in_memory(cache, config))
    assert len(list((images / "private" / "rows").glob("*/piece-*.npy"))) > 1


class Unsafe(beam.DoFn):
    """All that a DoFn must not be: it counts, and it draws."""

    runs = 0

    def process(self, element):
        Unsafe.runs += 1
        yield random.random()


class Together(beam.DoFn):
    """What it says depends on the bundle."""

    def start_bundle(self):
        self.seen = []

    def process(self, element):
        self.seen.append(element)
        yield tuple(self.seen)


class Held(beam.DoFn):
    """It holds something of the process."""

    holders = 0

    def setup(self):
        Held.holders += 1

    def teardown(self):
        Held.holders -= 1

    def process(self, element):
        yield element


def in_order(element):
    """What it says depends on the order in which values come."""
    key, values = element
    with pytest.raises(TypeError):
        len(values)
    return key, list(values), list(values)


def test_chaos_finds_unsafe_transforms():
    """The harness itself: what it is there to find, it finds."""
    pipeline = beam.Pipeline(runner=None)
    numbers = pipeline | beam.Create(range(8))
    drawn = numbers | "Draw" >> beam.ParDo(Unsafe())
    first = drawn | "First" >> beam.Map(lambda x: x)
    second = drawn | "Second" >> beam.Map(lambda x: x)
    bundles = numbers | beam.ParDo(Together()) | beam.ParDo(Held())
    pairs = numbers | beam.Map(lambda x: (x % 2, x))
    total = pairs | beam.CombinePerKey(sum) | beam.Reshuffle()
    gathered = pairs | beam.GroupByKey() | "In order" >> beam.Map(in_order)
    elsewhere, looks = [], []
    Unsafe.runs, differing, seen, orders = 0, 0, set(), set()
    for seed in range(10):
        chaos = Chaos(
            pipeline, Schedule(seed), lambda: elsewhere.append(Unsafe.runs), lambda: looks.append(Unsafe.runs)
        )
        chaos.run()
        differing += sorted(chaos.output(first)) != sorted(chaos.output(second))
        seen.add(tuple(sorted(chaos.output(bundles))))
        assert sorted(chaos.output(total)) == [(0, 12), (1, 16)]
        assert len(chaos.output(drawn)) == 8
        assert chaos.deaths
        groups = chaos.output(gathered)
        assert sorted((key, sorted(values)) for key, values, _ in groups) == [
            (0, [0, 2, 4, 6]),
            (1, [1, 3, 5, 7]),
        ]
        assert all(values == again for _, values, again in groups)
        orders.update((key, tuple(values)) for key, values, _ in groups)
    assert Unsafe.runs > 80
    assert differing
    assert len(seen) > 1
    assert len(orders) > 2
    assert Held.holders == 0
    # Somebody else comes between any two elements.
    assert len(set(elsewhere)) > 80
    assert len(looks) > 100


def test_chaos_refuses_side_inputs():
    pipeline = beam.Pipeline(runner=None)
    side = beam.pvalue.AsList(pipeline | "Side" >> beam.Create([1]))
    _ = pipeline | beam.Create([1]) | "With a side" >> beam.Map(lambda x, y: x, side)
    with pytest.raises(AssertionError, match="With a side"):
        Chaos(pipeline, CALM)
