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
        (["--output", "/proc/no"], "--output=/proc/no is refused: it must be a folder that can be written"),
        (["--output", ""], "--output='' is refused: it must be a path."),
        (
            ["--output", "bogus://x"],
            "--output=bogus://x is refused: it must lie on a file system that Beam can open",
        ),
        (["--output", "/dev/null"], "--output=/dev/null is refused: it must be a folder that can be written"),
        (["--threads", "-1"], "--threads=-1 is refused: it must be a whole number from 0 to 256."),
        (["--input", "\udcff"], r"--input=\udcff is refused: it must be a path in UTF-8."),
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
    with pytest.raises(ConfigError, match=r"--input=.* must hold images; these are embeddings already"):
        embed.main([*arguments(tmp_path / "out", tmp_path / "x"), "--encoder", "efficientnet_lite0:64"])
    (tmp_path / "out" / embed.MARKER).unlink()
    with pytest.raises(ConfigError, match="holds Parquet files of something else"):
        embed.main(arguments(folder, tmp_path / "out"))
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"a folder of embeddings only; it holds thesis.tex"):
        embed.main(arguments(folder, tmp_path / "out"))


@pytest.mark.parametrize("rights", [0o755, 0o1777, 0o750])
def test_a_folder_that_others_enter_is_not_taken_over(folder, tmp_path, rights):
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(rights)
    with pytest.raises(ConfigError, match=r"--output=.* must be a folder that only its owner can enter"):
        embed.main(arguments(folder, tmp_path / "out"))
    assert (tmp_path / "out").stat().st_mode & 0o7777 == rights
    assert not os.listdir(tmp_path / "out")


def test_an_empty_folder_of_the_owner_is_taken(folder, tmp_path):
    (tmp_path / "out").mkdir(0o700)
    assert embed.main(arguments(folder, tmp_path / "out")) == 0


@pytest.mark.parametrize("name", ["images", "images/a", "images/new", "."])
def test_an_output_in_or_around_the_images(folder, tmp_path, name):
    """The folder of images would be broken, or become an input of its own."""
    before = small.contents(tmp_path)
    (tmp_path / "images").chmod(0o700)
    (tmp_path / "images" / "a").chmod(0o700)
    with pytest.raises(ConfigError, match="--output="):
        embed.main(arguments(folder, tmp_path / name))
    assert small.contents(tmp_path) == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 10**4, b"[1]", b"x" * 2**17], ids=len)
def test_a_marker_that_is_broken(folder, tmp_path, content):
    (tmp_path / "out").mkdir(0o700)
    (tmp_path / "out" / embed.MARKER).write_bytes(content)
    with pytest.raises(ConfigError, match=r"--output=.* is refused: it must (have a|be new, or hold)"):
        embed.main(arguments(folder, tmp_path / "out"))


def test_weights_that_cannot_be_read_are_a_refusal(folder, tmp_path, capsys):
    """Of a worker, the first to load them."""
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    spec = f"open_clip:ViT-S-32-alt/{tmp_path}/weights.pt"
    assert cli.run(embed.main, [*arguments(folder, tmp_path / "out"), "--encoder", spec]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"dpgmm: --encoder={spec} is refused: it must name weights of that model")
    assert not (tmp_path / "out").exists()
