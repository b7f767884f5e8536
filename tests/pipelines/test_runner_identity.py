"""One release, the same bytes on every runner that this machine has."""

import random
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import threadpoolctl
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability import portable_runner

from tests import small
from tests.pipelines.processes import PATIENCE, driver, needs_prism, pool, portable, server


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(rows, key file, the release's bytes by the mathematics alone)."""
    folder = tmp_path_factory.mktemp("identity")
    source = small.write_rows(folder / "in", small.table())
    return source, small.write_key(folder / "key"), small.in_memory(source)


def test_in_process_equals_the_mathematics_alone(made, tmp_path):
    source, key, expected = made
    assert small.run(source, tmp_path / "out", key) == expected
    assert any(name.startswith("synthetic/") for name in expected)
    assert {"mixture/basis.parquet", "mixture/components.parquet", "manifest.json"} <= set(expected)


@pytest.mark.parametrize(
    "execution",
    [{"block_rows": 64}, {"block_rows": 4096}, {"block_rows": 1, "cache_bytes": 0}],
    ids=str,
)
def test_blocks_and_caches(made, tmp_path, execution):
    source, key, expected = made
    assert small.run(source, tmp_path / "out", key, **execution) == expected


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
    other_key = small.write_key(tmp_path / "key", bytes(32))
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
        for name, data in changed.items():
            assert data != expected[name], (number, name)


def test_two_worker_processes(made, tmp_path):
    source, key, expected = made
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    with driver(source, tmp_path / "out", key, *options) as started:
        assert started.wait(PATIENCE) == 0
    assert small.contents(tmp_path / "out") == expected


@needs_prism
def test_prism_as_the_runner(made, tmp_path):
    source, key, expected = made
    options = ["--runner=PrismRunner", f"--prism_location={small.PRISM}"]
    with driver(source, tmp_path / "out", key, *options) as started:
        assert started.wait(PATIENCE) == 0
    assert small.contents(tmp_path / "out") == expected


@needs_prism
def test_prism_as_a_server_with_a_pool(made, tmp_path):
    source, key, expected = made
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


def test_two_pools_on_two_ports(made, tmp_path, monkeypatch):
    """On Beam's own portable job server: Prism 2.77 mixes up the metrics of two environments."""
    source, key, expected = made
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
