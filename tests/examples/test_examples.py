"""The programs of examples/, run as their docstrings say."""

import os
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dpgmm_beam import Release
from pipelines import cli
from tests import small
from tests.pipelines.processes import needs_prism


def run(name, *arguments) -> str:
    done = subprocess.run(
        [sys.executable, small.REPOSITORY / "examples" / name, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(small.REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fit_in_memory(tmp_path):
    said = run("fit_in_memory.py", tmp_path / "release")
    assert said.startswith("9 files; the teacher agrees")
    assert cli.main(["verify", "--release", str(tmp_path / "release")]) == 0
    said = run("train_and_predict.py", tmp_path / "release", tmp_path / "network.pt")
    agreement = int(re.match(r"the network agrees with the teacher on (\d+)% of new rows", said)[1])
    assert agreement > 90


def test_fit_arrays(tmp_path):
    said = run("fit_arrays.py", tmp_path / "release")
    assert "noise multiplier 4.22 for one one row" in said
    assert "(1000, 16) synthetic rows" in said
    assert cli.main(["verify", "--release", str(tmp_path / "release")]) == 0


RUNNERS = {
    "in this process": ["--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"],
    "Prism": ["--runner=PrismRunner", f"--prism_location={small.PRISM}"],
}
runners = pytest.mark.parametrize(
    "runner", [pytest.param(name, marks=needs_prism if name == "Prism" else ()) for name in RUNNERS]
)


@runners
def test_rows_on_beam(tmp_path, runner):
    (tmp_path / "private").mkdir(mode=0o700)
    run("rows_on_beam.py", tmp_path / "release", tmp_path / "private", *RUNNERS[runner])
    assert cli.main(["verify", "--release", str(tmp_path / "release")]) == 0
    # The drawn key, the rows and all states are gone.
    assert [path for path in (tmp_path / "private" / "runs").rglob("*") if path.is_file()] == []


@runners
def test_sample_on_beam(tmp_path, runner):
    """The rows of `dpgmm sample`, through Beam to Parquet."""
    release = Release.fit(np.eye(4), epsilon=1.0, delta=1e-5, samples_per_class=3)
    release.save(tmp_path / "release")
    run("sample_on_beam.py", tmp_path / "release", tmp_path / "rows" / "part", *RUNNERS[runner])
    table = pa.concat_tables(map(pq.read_table, (tmp_path / "rows").glob("*.parquet")))
    assert sorted(table["embedding"].to_pylist()) == sorted(release.sample(1000, seed=1).embeddings.tolist())


def test_release_on_beam(tmp_path):
    table = small.table(300)
    names = ["cat" if label == "a" else "dog" for label in table["label"].to_pylist()]
    small.write_rows(tmp_path / "in", small.embeddings_table(names, np.array(table["embedding"].to_pylist())))
    (tmp_path / "private").mkdir(mode=0o700)
    runner = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"
    run("release_on_beam.py", tmp_path / "in" / "*.parquet", tmp_path / "out", tmp_path / "private", runner)
    assert cli.main(["verify", "--release", str(tmp_path / "out")]) == 0


def test_custom_encoder(tmp_path):
    for number in range(3):
        (tmp_path / "images" / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(tmp_path / "images" / "a" / f"{number}.png")
    run("custom_encoder.py", tmp_path / "images", tmp_path / "embeddings")
    (path,) = (tmp_path / "embeddings").glob("shard-*.parquet")
    assert sorted(row[0] for row in pq.read_table(path)["embedding"].to_pylist()) == [1.0, 11.0, 21.0]
