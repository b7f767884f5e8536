"""One release, the same bytes on every runner that this machine has."""

import random
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import threadpoolctl
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability import portable_runner

from dpgmm_beam.fit.plan import Plan
from tests import small
from tests.pipelines.processes import PATIENCE, driver, needs_prism, pool, portable, server
from transforms.files import listing


def prepared_for(folder, content, **layout):
    """(rows, key file, the release's bytes by the mathematics alone)."""
    source = small.write_rows(folder / "in", content, **layout)
    return source, small.write_key(folder / "key"), small.in_memory(source)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return prepared_for(tmp_path_factory.mktemp("identity"), small.table())


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Rows for several pieces of the product's own size."""
    content = small.table(4 * listing.LEAST_PIECE_ROWS)
    return prepared_for(tmp_path_factory.mktemp("many"), content, row_group=1000)


def piece_files(private):
    return sorted(Path(private).rglob("piece-*.npy"))


def test_in_process_equals_the_mathematics_alone(made, tmp_path):
    source, key, expected = made
    assert small.run(source, tmp_path / "out", key) == expected
    assert any(name.startswith("synthetic/") for name in expected)
    assert {"mixture/basis.parquet", "mixture/components.parquet", "manifest.json"} <= set(expected)


def test_default_options(tmp_path):
    """As many stages as a release has that nobody configured."""
    source, key = small.write_rows(tmp_path / "in", small.table()), small.write_key(tmp_path / "key")
    config = small.default_config()
    assert len(Plan(config, small.RELEASE_ID).stages) == 35
    released = small.run(source, tmp_path / "out", key, config=config)
    assert released == small.in_memory(source, config)


@pytest.mark.parametrize(
    ("piece_rows", "pieces", "execution"),
    [
        (50, 9, {"block_rows": 1, "threads": 2}),
        (50, 9, {"block_rows": 64, "threads": 3}),
        (1, 60, {"block_rows": 4096, "threads": 1}),
        (1, 600, {"block_rows": 512, "threads": 2, "piece_bytes": 1}),
    ],
    ids=str,
)
def test_blocks_threads_and_pieces(made, tmp_path, monkeypatch, piece_rows, pieces, execution):
    source, key, expected = made
    monkeypatch.setattr(listing, "LEAST_PIECE_ROWS", piece_rows)
    assert small.run(source, tmp_path / "out", key, private_dir=tmp_path / "p", **execution) == expected
    assert pieces <= len(piece_files(tmp_path / "p" / "rows")) <= 1.2 * pieces


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(many, tmp_path, threads):
    source, key, expected = many
    assert small.run(source, tmp_path / "out", key, private_dir=tmp_path / "p", threads=threads) == expected
    assert len(piece_files(tmp_path / "p" / "rows")) >= 3


def test_shuffled_files_and_rows_and_other_row_groups(made, tmp_path):
    source, key, expected = made
    content = pq.read_table(source)
    order = np.random.default_rng(1).permutation(len(content))
    shuffled = small.write_rows(tmp_path / "in", content.take(order), files=4, row_group=33)
    names = [path.name for path in shuffled.iterdir()]
    for name, other in zip(names, random.Random(0).sample(names, len(names)), strict=True):
        (shuffled / name).rename(shuffled / f"x-{other}")
    assert small.run(shuffled, tmp_path / "out", key) == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_of_linear_algebra(made, tmp_path, threads):
    source, key, expected = made
    with threadpoolctl.threadpool_limits(threads, user_api="blas"):
        assert small.run(source, tmp_path / "out", key) == expected


def test_another_key_id_or_row_is_another_release(made, tmp_path):
    source, key, expected = made
    other_key = small.write_key(tmp_path / "key", small.OTHER_KEY)
    content = pq.read_table(source)
    less = small.write_rows(tmp_path / "less", content.slice(1))
    for number, changed in enumerate(
        [
            small.run(source, tmp_path / "1", other_key),
            small.run(source, tmp_path / "2", key, release_id="another"),
            small.run(less, tmp_path / "3", key),
        ]
    ):
        assert changed.keys() == expected.keys()
        # A card says what was configured, and the release's id; so few rows have no ridges.
        same = {name for name, data in changed.items() if data == expected[name]}
        assert same <= {"README.md", "mixture/ridges.parquet"}, number


@needs_prism
def test_prism_as_the_runner(many, tmp_path):
    source, key, expected = many
    options = ["--runner=PrismRunner", f"--prism_location={small.PRISM}"]
    with driver(source, tmp_path / "out", key, *options) as started:
        assert started.wait(PATIENCE) == 0
    assert small.contents(tmp_path / "out") == expected


@needs_prism
def test_prism_as_a_server_with_a_pool(many, tmp_path):
    source, key, expected = many
    (job, prism), (worker, workers) = server(), pool(tmp_path)
    with prism, workers:
        assert small.run(source, tmp_path / "out", key, *portable(job, worker)) == expected


class TwoPools(portable_runner.PortableRunner):
    """Sends every other part of the job to a second worker pool."""

    second = ""
    moved = 0

    def run_portable_pipeline(self, pipeline, options):
        environments = pipeline.components.environments
        (first,) = environments
        environments["other"].CopyFrom(environments[first])
        payload = beam_runner_api_pb2.ExternalPayload.FromString(environments[first].payload)
        payload.endpoint.url = TwoPools.second
        environments["other"].payload = payload.SerializeToString()
        for transform in pipeline.components.transforms.values():
            part = transform.unique_name.split("/")[1:2]
            if transform.environment_id and part and sum(map(ord, part[0])) % 2:
                transform.environment_id = "other"
                TwoPools.moved += 1
        return super().run_portable_pipeline(pipeline, options)


def test_two_pools_on_two_ports(many, tmp_path, monkeypatch):
    """On Beam's own portable job server: Prism 2.77 mixes up the metrics of two environments."""
    source, key, expected = many
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    (one, first), (two, second) = pool(tmp_path / "1"), pool(tmp_path / "2")
    monkeypatch.setattr(TwoPools, "second", f"localhost:{two}")
    monkeypatch.setattr(TwoPools, "moved", 0)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[TwoPools.__module__])
    options = [f"--runner={__name__}.TwoPools", *portable(0, one)[1:], "--job_endpoint=embed"]
    with first, second:
        assert small.run(source, tmp_path / "out", key, *options) == expected
    assert TwoPools.moved > 10
