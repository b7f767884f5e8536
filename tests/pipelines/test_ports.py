"""A local job opens no TCP port, in whatever process of it."""

import contextlib
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from pipelines import cli
from tests import small
from tests.pipelines.listening import listeners, tree
from tests.pipelines.processes import (
    PATIENCE,
    forked,
    needs_prism,
    pool,
    portable,
    server,
    stopped,
    watched,
)


def listened(folder, *arguments, stop_at="") -> set[str]:
    """Addresses at which a command listened at any time.

    They are looked for all the while that it runs, and once when it has stopped itself, in the midst of
    its work, however slow the machine is.
    """
    found, looked = set(), not stop_at
    environment = watched(folder, stop_at)
    with forked("pipelines.cli", *arguments, log=folder / "log", environment=environment) as started:
        end = time.monotonic() + PATIENCE
        while started.poll() is None:
            assert time.monotonic() < end
            halted = stopped(folder)
            with contextlib.suppress(ProcessLookupError):
                found |= listeners(tree(started.pid))
            if halted:
                looked = True
                os.kill(halted, signal.SIGCONT)
            time.sleep(0.002)
    assert started.returncode == 0, (folder / "log").read_text()
    assert looked
    return found


def release(source, encoder, folder):
    return [
        *[
            "release",
            "--input",
            source,
            "--encoder",
            encoder,
            "--classes",
            "a",
            "--epsilon",
            1,
            "--delta",
            1e-5,
        ],
        *["--samples-per-class", 20, "--output", folder / "out", "--private-dir", folder / "private"],
    ]


@pytest.fixture
def parquet(tmp_path):
    return small.write_rows(tmp_path / "in", small.table())


@pytest.mark.parametrize("more", [[], ["--threads", 3, "--runner=DirectRunner"]], ids=str)
def test_embeddings(parquet, tmp_path, more):
    arguments = release(parquet, "precomputed", tmp_path)
    assert listened(tmp_path, *arguments, *more, stop_at="fit: stage 2 of") == set()


def test_images(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "a" / f"{number}.png")
    arguments = release(tmp_path / "images", "blocks", tmp_path)
    assert listened(tmp_path, *arguments, stop_at="rename to shard-") == set()


def test_the_other_verbs(parquet, tmp_path):
    key = ["--noise-key-file", small.write_key(tmp_path / "key")]
    made = release(parquet, "precomputed", tmp_path)
    assert cli.main([str(each) for each in (*made, *key, "--release-id", "r1")]) == 0
    more = ["--input", parquet, *key, "--private-dir", tmp_path / "again"]
    verify = ["verify", "--release", tmp_path / "out", *more]
    assert listened(tmp_path, *verify, stop_at="fit: stage 2 of") == set()
    sample = ["sample", "--release", tmp_path / "out", "--rows", 5000, "--output", tmp_path / "s"]
    assert listened(tmp_path, *sample, stop_at="rename to ") == set()


@needs_prism
def test_a_driver_of_a_job_elsewhere_listens_to_nobody(parquet, tmp_path):
    """Prism and the pool are the user's own; they do listen, or these tests could not fail."""
    (job, prism), (worker, workers) = server(), pool(tmp_path)
    with prism as its, workers as theirs:
        arguments = release(parquet, "precomputed", tmp_path)
        assert listened(tmp_path, *arguments, *portable(job, worker)) == set()
        assert listeners([its.pid])
        assert listeners([theirs.pid])


@pytest.mark.parametrize(
    ("more", "argument"),
    [
        (["--runner=PortableRunner", "--job_endpoint=embed"], "--job_endpoint"),
        (["--runner=PrismRunner", f"--prism_location={small.PRISM}"], "--runner"),
        (["--runner=PortableRunner", "--environment_type=LOOPBACK"], "--environment_type"),
    ],
)
def test_what_would_listen_everywhere_is_not_started(parquet, tmp_path, capsys, more, argument):
    verbs = [
        release(parquet, "precomputed", tmp_path),
        ["embed", "--input", tmp_path, "--output", tmp_path / "e"],
        ["verify", "--release", tmp_path],
    ]
    for verb in verbs:
        assert cli.main([str(each) for each in (*verb, *more)]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"dpgmm: {argument}=")
        assert "opens ports on every interface" in said
