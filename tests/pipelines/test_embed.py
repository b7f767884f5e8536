import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dpgmm_beam.errors import ConfigError
from pipelines import cli, embed
from tests import small

ENCODER = "efficientnet_lite0:32"


@pytest.fixture
def folder(tmp_path):
    for number, label in enumerate("abc"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng(100 * number + i).integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i}.png")
    return tmp_path / "images"


def arguments(folder, output, *more):
    return ["--input", str(folder), "--encoder", ENCODER, "--output", str(output), "--shard-rows", "8", *more]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_the_command_line_twice_and_with_more_threads(folder, tmp_path, capfd):
    assert embed.main(arguments(folder, tmp_path / "one")) == 0
    out, err = capfd.readouterr()
    assert "PRIVATE" in out
    assert "embedding: 100%" in err
    one = contents(tmp_path / "one")
    assert sum(map(len, one.values())) > 36 * 1280 * 4
    states = {path.name: path.stat().st_ino for path in (tmp_path / "one").iterdir()}
    assert embed.main(arguments(folder, tmp_path / "one")) == 0
    assert {path.name: path.stat().st_ino for path in (tmp_path / "one").iterdir()} == states

    # A process of its own: `python -m`.
    command = [sys.executable, "-m", "pipelines.embed", *arguments(folder, tmp_path / "two")]
    subprocess.run([*command, "--threads", "3"], check=True, capture_output=True, cwd=small.REPOSITORY)
    assert contents(tmp_path / "two") == one


def test_images_that_went_away_leave_the_folder(folder, tmp_path):
    embed.main(arguments(folder, tmp_path / "out"))
    before = contents(tmp_path / "out")
    for i in range(12):
        os.unlink(folder / "b" / f"{i}.png")
    embed.main(arguments(folder, tmp_path / "out"))
    after = contents(tmp_path / "out")
    assert sum(map(len, after.values())) < sum(map(len, before.values()))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--encoder", "vgg"], "--encoder=vgg is refused"),
        (["--encoder", "precomputed"], "--encoder=precomputed is refused: it must name a model"),
        (["--input", "/nowhere"], "--input=/nowhere is refused: it must match something"),
        (["--shard-rows", "0"], "--shard-rows=0 is refused"),
        (["--batch-size", "-3"], "--batch-size=-3 is refused"),
        (["--direct_num_workers", "2"], "--direct_num_workers=2 is refused: it must be 1"),
        (["--epsilon", "1"], "--epsilon=1 is refused: it must be an option of this verb or of Apache Beam"),
        (["--output", "/proc/no"], "--output=/proc/no is refused: it must be a folder of yours to write"),
    ],
)
def test_refusals(folder, tmp_path, capsys, change, sentence):
    assert cli.run(embed.main, [*arguments(folder, tmp_path / "out"), *change]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_somebody_elses_output(folder, tmp_path):
    embed.main(arguments(folder, tmp_path / "out"))
    with pytest.raises(ConfigError, match="be new, or hold embeddings of the same --input and --encoder"):
        embed.main([*arguments(folder, tmp_path / "out"), "--encoder", "efficientnet_lite0:64"])
    with pytest.raises(ConfigError, match="hold images; these are embeddings already"):
        embed.main([*arguments(tmp_path / "out", tmp_path / "x")])
    (tmp_path / "out" / embed.MARKER).unlink()
    with pytest.raises(ConfigError, match="holds Parquet files of something else"):
        embed.main(arguments(folder, tmp_path / "out"))
