"""From a release to pictures, by the command."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dpgmm_beam import Release
from dpgmm_beam.decoders import registry
from dpgmm_beam.decoders.decoder import Decoder
from pipelines import cli
from tests import small
from tests.transforms import crate  # noqa: F401  (the scheme crate://)

CLASSES = ("a/b", "..", "Dog", "dog")
FOLDERS = ("a%2Fb", "%2E%2E", "Dog~0eb129bf", "dog~cd6357ef")


class Shades(Decoder):
    """The decoder "shades" of the encoder "mine": a shade of the embedding, and noise."""

    batch_size = 8

    def __init__(self, argument):
        self.argument = argument

    def decode(self, drawn, generators):
        if self.argument == "nan":
            return np.full((8, 4, 6, 3), np.nan)
        noise = np.stack([generator.random((4, 6, 3)) for generator in generators])
        return 0.5 * np.abs(drawn.embeddings[:, :1, None, None]) + 0.5 * noise


registry.register_decoder(
    "shades", lambda argument, origin: Shades(argument), lambda argument: ("mine",), piece_images=13
)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decode") / "release"
    generator = np.random.default_rng(0)
    labels = np.array(CLASSES)[generator.integers(0, 4, 2000)]
    rows = np.array([CLASSES.index(label) for label in labels])[:, None] == np.arange(4)
    rows = rows + 0.2 * generator.normal(size=rows.shape)
    options = {"epsilon": 4.0, "delta": 1e-5, "samples_per_class": 5, "n_components": 1}
    Release.fit(rows, labels, classes=CLASSES, encoder="mine", **options).save(folder)
    return folder


def decode(release, output, *more):
    arguments = ["--release", str(release), "--output", str(output), *map(str, more)]
    if "--decoder" not in more:
        arguments += ["--decoder", "shades"]
    return cli.main(["decode", *arguments])


def verify(folder):
    return cli.main(["verify", "--release", str(folder)])


def test_pictures_by_label(release, tmp_path, capsys):
    assert decode(release, tmp_path / "out", "--images-per-class", 10) == 0
    said = capsys.readouterr().out
    assert said == (
        f"40 pictures are in {tmp_path / 'out'}: they are covered by the release's epsilon 4 and delta 1e-05"
        " and spend nothing\n"
    )
    files = small.contents(tmp_path / "out")
    pictures = {path: data for path, data in files.items() if path.startswith("images/")}
    assert set(files) - set(pictures) == {"README.md", "manifest.json", "sheet.png"}
    assert {path.split("/")[1] for path in pictures} <= set(FOLDERS)
    # The numbers are those of the draw, and each picture is filed under its teacher's label.
    labels = Release.sample(Release.of(lambda path: (release / path).read_bytes(), ""), 40, seed=0).labels
    named = dict(zip(CLASSES, FOLDERS, strict=True))
    assert set(pictures) == {f"images/{named[label]}/{number:08d}.png" for number, label in enumerate(labels)}
    assert Image.open(io.BytesIO(next(iter(pictures.values())))).size == (6, 4)
    about = json.loads(files["manifest.json"])
    assert about["folders"] == {f"images/{name}": label for label, name in named.items()}
    stated = json.loads((release / "manifest.json").read_text())
    assert about["release"]["privacy"] == stated["privacy"]
    assert about["decoding"]["decoder"] == "shades"
    assert str(tmp_path).encode() not in b"".join(files.values())
    card = files["README.md"].decode()
    assert "epsilon = 4 and\ndelta = 1e-05" in card
    assert "`shades`" in card
    assert os.listdir(tmp_path) == ["out"]
    assert verify(tmp_path / "out") == 0


def test_the_same_bytes_whatever_the_threads_the_place_and_the_runner_s_order(release, tmp_path):
    assert decode(release, tmp_path / "one", "--images-per-class", 9, "--threads", 1) == 0
    assert decode(release, tmp_path / "two", "--images-per-class", 9, "--threads", 3) == 0
    assert decode(f"crate://{release}", f"crate://{tmp_path}/far", "--images-per-class", 9) == 0
    assert decode(release, tmp_path / "other", "--images-per-class", 9, "--seed", 1) == 0
    one, two, far, other = (small.contents(tmp_path / name) for name in ("one", "two", "far", "other"))
    assert one == two == far
    assert one["sheet.png"] != other["sheet.png"]
    assert verify(f"crate://{tmp_path}/far") == 0
    # An object store has no folders: empty ones are the imitation's.
    assert not [path for path in tmp_path.glob(".*/**/*") if path.is_file()]


def test_parquet_and_tars(release, tmp_path):
    for kind in ("png", "parquet", "webdataset"):
        assert decode(release, tmp_path / kind, "--images-per-class", 10, "--format", kind) == 0
        assert verify(tmp_path / kind) == 0
    pictures = {}
    for path, data in small.contents(tmp_path / "png" / "images").items():
        pictures[int(path.split("/")[1].removesuffix(".png"))] = data
    table = pq.read_table(tmp_path / "parquet" / "images")
    assert table["image"].to_pylist() == [pictures[number] for number in range(40)]
    assert table["component_class"].to_pylist() == list(CLASSES) * 10
    tars = sorted((tmp_path / "webdataset" / "images").iterdir())
    assert [path.name for path in tars] == [f"part-{piece:05d}-of-00004.tar" for piece in range(4)]
    labels, found = [], []
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.endswith(".json"):
                    about = json.loads(data)
                    labels.append(about["label"])
                    assert np.isclose(sum(about["label_probabilities"]), 1)
                else:
                    found.append(data)
    assert labels == table["label"].to_pylist()
    assert found == table["image"].to_pylist()


def test_labels_of_the_class_drawn(release, tmp_path):
    options = ("--images-per-class", 10, "--labels", "drawn", "--format", "parquet")
    assert decode(release, tmp_path / "out", *options) == 0
    assert verify(tmp_path / "out") == 0
    table = pq.read_table(tmp_path / "out" / "images")
    assert table["label"].to_pylist() == table["component_class"].to_pylist()
    assert "the class in whose mixture a picture was drawn, 10 of each" in (
        (tmp_path / "out" / "README.md").read_text()
    )


@pytest.mark.parametrize("kind", ["png", "parquet", "webdataset"])
def test_what_is_written_is_embedded_with_its_labels(release, tmp_path, kind):
    """Pictures are images like any others; a label that no folder can be named for is its folder's name."""
    assert decode(release, tmp_path / "out", "--images-per-class", 10, "--format", kind) == 0
    options = ["--input", f"{tmp_path}/out/images", "--encoder", "blocks", "--output", f"{tmp_path}/rows"]
    assert cli.main(["embed", *options]) == 0
    shards = [pq.read_table(path) for path in (tmp_path / "rows").glob("*.parquet")]
    found = Counter(label for shard in shards for label in shard["label"].to_pylist())
    read = Release.of(lambda path: (release / path).read_bytes(), "")
    named = dict(zip(CLASSES, FOLDERS if kind == "png" else CLASSES, strict=True))
    assert found == Counter(named[label] for label in read.sample(40, seed=0).labels)


def test_again_changes_nothing_and_another_has_no_place(release, tmp_path, capsys):
    assert decode(release, tmp_path / "out", "--images-per-class", 3) == 0
    before = {path: os.stat(tmp_path / "out" / path).st_mtime_ns for path in small.contents(tmp_path / "out")}
    assert decode(release, tmp_path / "out", "--images-per-class", 3) == 0
    assert "are in" in capsys.readouterr().out.splitlines()[-1]
    assert before == {
        path: os.stat(tmp_path / "out" / path).st_mtime_ns for path in small.contents(tmp_path / "out")
    }
    assert decode(release, tmp_path / "out", "--images-per-class", 4) == 2
    assert "must be an empty or a new folder, or hold these pictures" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert decode(release, tmp_path / "full", "--images-per-class", 3) == 2
    assert "be an empty or a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--images-per-class", 0), "--images-per-class=0 is refused: it must be a whole number above 0"),
        (("--images-per-class", 50_001), "be at most 50000 for 4 classes (more with --format parquet)"),
        (("--seed", -1), "--seed=-1"),
        (("--threads", 1000), "--threads=1000"),
        (("--decoder", "dct:28"), "be of the release's encoder, mine; it decodes embeddings of dct:28"),
        (("--decoder", "nobody"), "--decoder=nobody is refused: it must be one of"),
        (("--decoder", "torch:{tmp}/none.pt"), "name a file that dpgmm train-decoder wrote"),
        (("--encoder", "efficientnet_lite0"), "be left out: the release says that its encoder is mine"),
        (("--output", "{release}/in"), "lie apart from --release"),
        (("--release", "{release}/mixture"), "--release="),
    ],
)
def test_refusals(release, tmp_path, capsys, options, said):
    options = [str(option).format(release=release, tmp=tmp_path) for option in options]
    assert decode(release, tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dpgmm: --")
    assert said in line
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("version", [2, "decoded"])
def test_a_release_of_another_version(release, tmp_path, capsys, version):
    copy = shutil.copytree(release, tmp_path / "copy")
    content = json.loads((copy / "manifest.json").read_text())
    content["schema_version"] = version
    (copy / "manifest.json").write_text(json.dumps(content))
    assert decode(copy, tmp_path / "out") == 2
    assert "hold a manifest of schema version" in capsys.readouterr().err


def test_pictures_are_no_release(release, tmp_path, capsys):
    assert decode(release, tmp_path / "out", "--images-per-class", 1) == 0
    assert decode(tmp_path / "out", tmp_path / "more") == 2
    assert "hold a manifest.json written by dpgmm release" in capsys.readouterr().err


def test_a_mixture_that_is_not_as_its_manifest_says(release, tmp_path, capsys):
    copy = shutil.copytree(release, tmp_path / "copy")
    path = copy / "mixture" / "components.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert decode(copy, tmp_path / "out") == 2
    assert "hold mixture/components.parquet as its manifest says" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_decoder_that_makes_no_numbers(release, tmp_path, capsys):
    assert decode(release, tmp_path / "out", "--decoder", "shades:nan") == 1
    assert "the decoder shades:nan made pixels that are no finite numbers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_publishes_nothing_and_the_same_command_goes_on(release, tmp_path, monkeypatch, capsys):
    from transforms import decode as transform

    stage, failing = transform.publish.stage, [True]

    def full(folder, path, *rest, **options):
        if failing and path.endswith("00000027.png"):
            raise OSError(28, "No space left on device")
        return stage(folder, path, *rest, **options)

    monkeypatch.setattr(transform.publish, "stage", full)
    assert decode(release, tmp_path / "out", "--images-per-class", 10) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    # Another command's pictures do not mix with these, and are told of.
    failing.clear()
    assert decode(release, tmp_path / "out", "--images-per-class", 2) == 0
    assert "was left by an interrupted dpgmm decode" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    # Finished pieces are not decoded again: there are three of four, or fewer.
    made = []
    decode_again = transform.pictures
    monkeypatch.setattr(transform, "pictures", lambda *given: made.append(1) or decode_again(*given))
    assert decode(release, tmp_path / "out", "--images-per-class", 10) == 0
    assert 1 <= len(made) < 4
    monkeypatch.undo()
    assert decode(release, tmp_path / "whole", "--images-per-class", 10) == 0
    assert small.contents(tmp_path / "out") == small.contents(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


DRIVER = """
import sys, time
import tests.pipelines.test_decode as own
from pipelines import cli
if sys.argv.pop(1) == "stuck":
    decode, batches = own.Shades.decode, []
    def stuck(self, *given):
        batches.append(given)
        # A piece is of two.
        if len(batches) > 2:
            time.sleep(600)
        return decode(self, *given)
    own.Shades.decode = stuck
sys.exit(cli.main(["decode", "--decoder", "shades", *sys.argv[1:]]))
"""


def driver(speed, *arguments):
    command = [sys.executable, "-c", DRIVER, speed, *map(str, arguments)]
    return subprocess.Popen(command, cwd=small.REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def test_killed_in_the_middle_it_goes_on(release, tmp_path):
    arguments = ("--release", release, "--output", tmp_path / "out", "--images-per-class", 20, "--threads", 1)
    process = driver("stuck", *arguments)
    end = time.monotonic() + 120
    while not list(tmp_path.glob(".out.decoding-*-pieces/*.json")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode != 0
    assert not (tmp_path / "out").exists()
    assert decode(release, tmp_path / "out", "--images-per-class", 20) == 0
    assert decode(release, tmp_path / "whole", "--images-per-class", 20) == 0
    assert small.contents(tmp_path / "out") == small.contents(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


def test_twice_at_once(release, tmp_path):
    arguments = ("fast", "--release", release, "--output", tmp_path / "out", "--images-per-class", 40)
    processes = [driver(*arguments) for _ in range(2)]
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said
    assert verify(tmp_path / "out") == 0
    assert os.listdir(tmp_path) == ["out"]


def test_pieces_are_the_rows_once_each():
    from dpgmm_beam.release.decoded import Decoding, Labels
    from dpgmm_beam.release.picture_files import Format

    for classes, images, piece in ((3, 7, 4), (1, 1000, 512), (1000, 1, 13), (7, 5000, 2048), (9000, 2, 100)):
        labels = tuple(map(str, range(classes)))
        decoding = Decoding("", "", "", "", False, images, 0, Format.PNG, Labels.TEACHER, labels, piece)
        pieces = [decoding.piece(number) for number in range(decoding.pieces)]
        rows = [row for each in pieces for row in range(each.first, each.first + each.stop - each.start)]
        assert rows == list(range(classes * images))
        assert max(each.stop - each.start for each in pieces) <= piece


def test_one_class_of_a_thousand_and_a_hundred_classes(tmp_path):
    generator = np.random.default_rng(0)
    options = {"epsilon": 4.0, "delta": 1e-5, "samples_per_class": 1, "n_components": 1, "encoder": "mine"}
    Release.fit(generator.normal(size=(300, 4)), **options).save(tmp_path / "one")
    assert decode(tmp_path / "one", tmp_path / "pictures", "--images-per-class", 1000) == 0
    assert len(os.listdir(tmp_path / "pictures" / "images" / "all")) == 1000
    names = [f"class {number}" for number in range(100)]
    Release.fit(generator.normal(size=(100, 4)), names, classes=names, **options).save(tmp_path / "many")
    assert decode(tmp_path / "many", tmp_path / "others", "--images-per-class", 1) == 0
    assert len(list((tmp_path / "others" / "images").rglob("*.png"))) == 100
    # The sheet shows fifty of them.
    assert Image.open(tmp_path / "others" / "sheet.png").height == 50 * (4 + 2)


def tampered(folder, change):
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda about: about["release"]["privacy"].update(epsilon=0.1), "epsilon of the privacy statement"),
        (lambda about: about["release"]["config"].update(epsilon=0.1), "is not what follows"),
        (lambda about: about.update(decoded_version=7), "of version 7"),
        (lambda about: about["decoding"].update(decoder="dct:28"), "README.md is not what follows"),
        (lambda about: about["decoding"].update(encoder="other"), "encoder is not the release's"),
        (lambda about: about["decoding"].update(more=1), "malformed"),
        (lambda about: about.update(folders={}), "folders is not what follows"),
        (lambda about: about["files"].pop(), "is there and not of the release"),
        (lambda about: about["files"][0].update(path="../../etc/passwd"), "is missing"),
        (lambda about: about.pop("release"), "of which release"),
    ],
)
def test_a_manifest_that_lies(release, tmp_path, capsys, change, said):
    assert decode(release, tmp_path / "out", "--images-per-class", 2) == 0
    tampered(tmp_path / "out", change)
    assert verify(tmp_path / "out") == 1
    assert said in capsys.readouterr().out


def test_a_picture_that_was_changed(release, tmp_path, capsys):
    assert decode(release, tmp_path / "out", "--images-per-class", 2) == 0
    path = next((tmp_path / "out" / "images").rglob("*.png"))
    path.write_bytes(path.read_bytes() + b"x")
    assert verify(tmp_path / "out") == 1
    assert "does not have the digest" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["link", "file", "open to all"])
def test_what_somebody_else_has_put_beside_the_output_is_not_published(
    release, tmp_path, kind, capsys, monkeypatch
):
    """Names of what is staged follow from what is public, and the folder may be anybody's."""
    from transforms.decode import Job

    staged = []
    monkeypatch.setattr(
        Job, "foreign", lambda self, foreign=Job.foreign: staged.append(self.staged) or foreign(self)
    )
    assert decode(release, tmp_path / "first", "--images-per-class", 1) == 0
    name = os.path.basename(staged[0]).replace("first", "out")
    place = tmp_path / f"{name}-pieces"
    if kind == "link":
        (tmp_path / "there").mkdir()
        place.symlink_to(tmp_path / "there")
    elif kind == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        place.chmod(0o777)
    assert decode(release, tmp_path / "out", "--images-per-class", 1) == 2
    assert f"lie where nobody else has put {place}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_release_that_is_replaced_meanwhile(release, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(release, tmp_path / "copy")
    from transforms import decode as transform

    load = transform.load_decoder

    def replaced(*given):
        path = copy / "manifest.json"
        path.write_text(path.read_text().replace('"release_id"', ' "release_id"'))
        return load(*given)

    monkeypatch.setattr(transform, "load_decoder", replaced)
    assert decode(copy, tmp_path / "out", "--images-per-class", 1) == 1
    assert "was replaced while the job ran" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_program_of_the_documentation(tmp_path, capsys):
    page = (small.REPOSITORY / "docs" / "decoders.md").read_text()
    (program,) = re.findall(r"```python\n(import numpy.+?)```", page, re.DOTALL)
    exec(program, {})
    rows = 200 * np.random.default_rng(0).random((100, 3))
    options = {"epsilon": 4.0, "delta": 1e-5, "samples_per_class": 1, "n_components": 1, "clip_norm": 400.0}
    Release.fit(rows, encoder="mean_colour", **options).save(tmp_path / "release")
    options = ("--decoder", "swatch", "--images-per-class", 70)
    assert decode(tmp_path / "release", tmp_path / "out", *options) == 0
    pictures = [Image.open(path) for path in (tmp_path / "out" / "images" / "all").iterdir()]
    assert len(pictures) == 70
    assert {(picture.size, len(picture.getcolors())) for picture in pictures} == {((32, 32), 1)}
