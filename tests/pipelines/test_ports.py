"""A local job opens no TCP port, in whatever process of it."""

import contextlib
import time

import numpy as np
import pytest
from PIL import Image

from tests import small
from tests.pipelines.listening import listeners, tree
from tests.pipelines.processes import PATIENCE, forked, watched


def listened(folder, *arguments) -> set[str]:
    """Ports at which `dpgmm release` listened at any time; looked for all the while that it runs."""
    found, looks = set(), 0
    with forked(
        "pipelines.cli", "release", *arguments, log=folder / "log", environment=watched(folder)
    ) as started:
        end = time.monotonic() + PATIENCE
        while started.poll() is None:
            assert time.monotonic() < end
            with contextlib.suppress(ProcessLookupError):
                found |= listeners(tree(started.pid))
            looks += 1
            time.sleep(0.002)
    assert started.returncode == 0, (folder / "log").read_text()
    assert looks > 10
    return found


def release(source, encoder, folder):
    return [
        *["--input", source, "--encoder", encoder, "--classes", "a", "--epsilon", 1, "--delta", 1e-5],
        *["--samples-per-class", 20, "--output", folder / "out", "--private-dir", folder / "private"],
    ]


@pytest.fixture
def parquet(tmp_path):
    return small.write_rows(tmp_path / "in", small.table())


@pytest.mark.parametrize("more", [[], ["--threads", 3, "--runner=DirectRunner"]], ids=str)
def test_embeddings(parquet, tmp_path, more):
    assert listened(tmp_path, *release(parquet, "precomputed", tmp_path), *more) == set()


def test_images(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "a" / f"{number}.png")
    assert listened(tmp_path, *release(tmp_path / "images", "blocks", tmp_path)) == set()


def test_a_job_with_a_job_server_is_seen_to_listen(parquet, tmp_path):
    """Else these tests could not fail."""
    more = ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"]
    assert listened(tmp_path, *release(parquet, "precomputed", tmp_path), *more)
