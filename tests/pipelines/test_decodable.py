"""Releases that hold what makes pictures of their embeddings, by the commands: scikit-learn's digits."""

import io
import json
import os
import re
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dpgmm_beam import Release
from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.data.rows import SetAside, rows_of_batch
from dpgmm_beam.encoders.registry import load_encoder
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release import manifest
from dpgmm_beam.release.in_memory import release_in_memory
from pipelines import cli
from tests import small
from tests.pipelines.processes import needs_prism, pool, portable, server
from transforms.files import listing
from transforms.files.columns import Columns

digits = pytest.importorskip("sklearn.datasets").load_digits()
CLASSES = tuple("0123")
COUNT = 300


@pytest.fixture(scope="module", autouse=True)
def fewer_stages():
    """What is tested here does not depend on their number."""
    *others, _ = ReleaseConfig.__init__.__defaults__
    with pytest.MonkeyPatch.context() as patch:
        defaults = (*others, Method(teacher_steps=2, subspace_dim=8))
        patch.setattr(ReleaseConfig.__init__, "__defaults__", defaults)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "in"
    for label in CLASSES:
        (folder / label).mkdir(parents=True)
    wanted = np.flatnonzero(digits.target < len(CLASSES))[:COUNT]
    for number in wanted:
        picture = Image.fromarray(np.uint8(255 / 16 * digits.images[number]))
        picture.save(folder / str(digits.target[number]) / f"{number}.png")
    return folder


def arguments(source, folder, *more):
    return [
        *["release", "--input", str(source), "--encoder", "blocks", "--classes", ",".join(CLASSES)],
        *["--epsilon", "20", "--delta", "1e-5", "--output", str(folder / "release"), "--components", "1"],
        *["--samples-per-class", "5", "--private-dir", str(folder / "private"), "--decodable", "8"],
        *["--noise-key-file", small.write_key(folder / "key"), "--release-id", "digits", *more],
    ]


def decode(release, output, *more):
    return cli.main(
        ["decode", "--release", str(release), "--output", str(output), "--decoder", "private_linear", *more]
    )


@pytest.fixture(scope="module")
def released(images, tmp_path_factory):
    """The folder that holds `release`, `key` and `private`."""
    folder = tmp_path_factory.mktemp("decodable")
    assert cli.main(arguments(images, folder)) == 0
    return folder


def refused(argv, capsys):
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.strip().splitlines()) == 1
    return err


def test_a_decodable_release_is_verified_and_derived_again(images, released, tmp_path, capsys):
    folder = released / "release"
    stated = json.loads((folder / "manifest.json").read_text())
    assert stated["config"]["decodable"] == "8"
    names = [each["name"] for each in stated["privacy"]["mechanisms"]]
    assert [name for name in names if name.startswith("pictures/")] == [
        "pictures/sum",
        "pictures/cross",
        "pictures/square",
    ]
    assert {"mixture/picture_means.parquet", "mixture/picture_directions.parquet"} <= set(
        small.contents(folder)
    )
    assert cli.main(["verify", "--release", str(folder)]) == 0
    again = ["--input", str(images), "--noise-key-file", str(released / "key")]
    assert cli.main(["verify", "--release", str(folder), *again, "--private-dir", str(tmp_path / "p")]) == 0
    assert "derived again, everything is the same" in capsys.readouterr().out


def in_python(images, key, pictures_of=Image.open, **others):
    """`Release.fit` on what the command reads, and the counts of what was set aside."""
    paths = sorted(images.glob("*/*.png"))
    encoder, said = load_encoder("blocks"), []
    embeddings = encoder.embed(encoder.prepare([Image.open(path).convert("RGB") for path in paths]))
    options = {
        **{"classes": CLASSES, "epsilon": 20.0, "delta": 1e-5, "encoder": "blocks", "n_components": 1},
        **{"samples_per_class": 5, "key": key.read_bytes(), "release_id": "digits", "decodable": "8"},
        "method": Method(teacher_steps=2, subspace_dim=8),
    }
    release = Release.fit(
        embeddings,
        [path.parent.name for path in paths],
        pictures=[pictures_of(path) for path in paths],
        report=said.append,
        **{**options, **others},
    )
    return release, said[0]


@pytest.mark.parametrize("pictures_of", [Image.open, lambda path: np.asarray(Image.open(path))])
def test_python_fits_the_same_release_to_pictures_in_memory(images, released, pictures_of):
    release, _ = in_python(images, released / "key", pictures_of)
    for path, content in small.contents(released / "release").items():
        assert release.read(path) == content, path
    embeddings = release.sample(4, seed=1).embeddings
    assert release.picture_map is not None
    assert embeddings.shape[0] == 4


def test_rows_without_a_picture_are_set_aside_in_python(images, released):
    broken = {0: None, 1: "no picture", 2: np.zeros((8, 8, 7), np.uint8), 3: np.zeros((8, 8))}
    numbers = iter(range(COUNT))

    def picture_of(path):
        number = next(numbers)
        return broken[number] if number in broken else Image.open(path)

    _, said = in_python(images, released / "key", picture_of)
    assert said == SetAside(length=len(broken))


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ({"pictures": None, "decodable": "8"}, "decodable=8 is refused: it must come together with pictures"),
        ({"decodable": None}, "decodable=None is refused: it must come together with pictures"),
        ({"pictures": np.zeros((4, 8, 8))}, "pictures=an array of float64 is refused"),
        ({"pictures": np.zeros((3, 8, 8), np.uint8)}, "pictures=another number of them is refused"),
        ({"decodable": "800"}, "decodable=800 is refused"),
    ],
)
def test_pictures_that_do_not_fit_are_refused_in_python(others, sentence):
    given = {"pictures": np.zeros((4, 8, 8), np.uint8), "decodable": "8", **others}
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        Release.fit(np.eye(4), list("0123"), classes=CLASSES, epsilon=1.0, delta=1e-5, **given)


def test_the_report_says_what_pictures_cost(released, tmp_path):
    given = ["report", "--release", str(released / "release"), "--output", str(tmp_path / "report.html")]
    assert cli.main(given) == 0
    page = (tmp_path / "report.html").read_text()
    assert "its embedding times its picture, both clipped" in page
    assert "decodable" in page


def test_pictures_of_its_embeddings_look_like_the_data(released, tmp_path, capsys):
    """Real digits by the nearest mean of decoded ones; chance is .25."""
    wanted = ["--images-per-class", "60", "--labels", "drawn"]
    assert decode(released / "release", tmp_path / "out", *wanted) == 0
    assert cli.main(["verify", "--release", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "they are covered by the release's epsilon 20 and delta 1e-05 and spend nothing" in said
    about = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert about["decoding"]["decoder"] == "private_linear"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`private_linear`, was\n  fitted to the private images by the release itself" in card
    assert "--decoder private_linear" in (released / "release" / "README.md").read_text()
    means = [
        np.mean([np.asarray(Image.open(path)) for path in folder.iterdir()], axis=0)
        for folder in (tmp_path / "out" / "images" / label for label in CLASSES)
    ]
    own = digits.target < len(CLASSES)
    real = 255 / 16 * digits.images[own]
    nearest = ((real[:, None] - np.stack(means)) ** 2).sum(axis=(2, 3)).argmin(axis=1)
    assert (nearest == digits.target[own]).mean() > 0.8


def test_the_same_pictures_with_any_number_of_threads(released, tmp_path):
    for threads in ("1", "3"):
        more = ["--images-per-class", "20", "--threads", threads]
        assert decode(released / "release", tmp_path / threads, *more) == 0
    one, three = (small.contents(tmp_path / threads) for threads in ("1", "3"))
    assert one == three


def test_folders_tars_caches_and_other_ways_to_run_give_one_release(images, released, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "LEAST_PIECE_ROWS", 40)
    expected = small.contents(released / "release")
    cache = tmp_path / "cache"
    embed = ["embed", "--input", str(images), "--encoder", "blocks", "--decodable", "8"]
    assert cli.main([*embed, "--output", str(cache)]) == 0
    tar = tmp_path / "digits.tar"
    with tarfile.open(tar, "w") as file:
        for path in sorted(images.rglob("*.png")):
            label = path.parent.name.encode()
            for suffix, data in ((".png", path.read_bytes()), (".cls", label)):
                info = tarfile.TarInfo(path.stem + suffix)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    for number, (source, more) in enumerate(
        [(cache, ()), (cache, ("--encoder", "precomputed")), (tar, ("--label-column", "cls"))]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        given = arguments(source, folder, "--block-rows", "37", "--threads", "3", *more)
        assert cli.main(given) == 0
        found = small.contents(folder / "release")
        if "precomputed" in more:
            # Another configuration, which names no encoder: noise of its own.
            assert found.keys() == expected.keys()
        else:
            assert found == expected
    # And the mathematics alone.
    config = manifest.plan_of(json.loads(expected["manifest.json"])).config
    assert in_memory(cache, config) == expected


def in_memory(cache, config):
    """The files of the release of a cache's rows."""
    batches = [batch for path in cache.glob("shard-*") for batch in pq.ParquetFile(path).iter_batches(50)]
    blocks = [rows_of_batch(batch, config.row_format) for batch in batches]
    return release_in_memory(Plan(config, "digits"), lambda: blocks, NoiseKey(small.KEY))


@needs_prism
def test_prism_gives_the_same_release(images, tmp_path):
    embed = ["embed", "--input", str(images), "--encoder", "blocks", "--decodable", "8"]
    assert cli.main([*embed, "--output", str(tmp_path / "cache")]) == 0
    # Workers know nothing of this encoder, and need not.
    config = ReleaseConfig("precomputed", CLASSES, 6, 20.0, 1e-5, samples_per_class=5, decodable="8")
    key = small.write_key(tmp_path / "key")
    (job, prism), (worker, workers) = server(), pool(tmp_path)
    with prism, workers:
        found = small.run(
            tmp_path / "cache",
            tmp_path / "out",
            key,
            *portable(job, worker),
            config=config,
            release_id="digits",
            columns=Columns(picture="picture"),
        )
    assert found == in_memory(tmp_path / "cache", config)


def test_a_cache_without_the_option_is_what_it_was(images, tmp_path):
    for name, more in (("plain", ()), ("decodable", ("--decodable", "8"))):
        embed = ["embed", "--input", str(images), "--encoder", "blocks", "--output", str(tmp_path / name)]
        assert cli.main([*embed, *more]) == 0
    plain, decodable = (pq.read_table(tmp_path / name) for name in ("plain", "decodable"))
    assert set(decodable.column_names) - set(plain.column_names) == {"picture"}
    keys = [("source", "ascending")]
    embeddings = [each.sort_by(keys).column("embedding").to_pylist() for each in (plain, decodable)]
    assert embeddings[0] == embeddings[1]
    # And a cache of embeddings like another: one release, decodable or not.
    found = []
    for name in ("plain", "decodable"):
        (tmp_path / "of" / name).mkdir(parents=True)
        given = arguments(tmp_path / name, tmp_path / "of" / name)
        del given[(place := given.index("--decodable")) : place + 2]
        assert cli.main(given) == 0
        found.append(small.contents(tmp_path / "of" / name / "release"))
    assert found[0] == found[1]


def test_people_with_several_images(images, tmp_path):
    """Ids of people, and a bound: pictures go with the rows that count."""
    people = tmp_path / "in"
    for path in images.rglob("*.png"):
        folder = people / path.parent.name / f"person-{int(path.stem) % 40}"
        folder.mkdir(parents=True, exist_ok=True)
        os.link(path, folder / path.name)
    more = ["--privacy-unit-level", "1", "--max-rows-per-unit", "2"]
    found = []
    for threads in ("1", "3"):
        folder = tmp_path / threads
        folder.mkdir()
        assert cli.main(arguments(people, folder, *more, "--threads", threads)) == 0
        assert cli.main(["verify", "--release", str(folder / "release")]) == 0
        found.append(small.contents(folder / "release"))
    assert found[0] == found[1]
    release = Release.of(found[0].__getitem__, "here")
    assert release.picture_map.fits(release.config.picture_form, CLASSES, 6)


def test_bad_images_are_set_aside_with_their_pictures(images, released, tmp_path):
    worse = tmp_path / "in"
    for path in images.rglob("*.png"):
        (worse / path.parent.name).mkdir(parents=True, exist_ok=True)
        os.link(path, worse / path.parent.name / path.name)
    (worse / "0" / "empty.png").write_bytes(b"")
    (worse / "1" / "broken.png").write_bytes(b"\x89PNG no")
    assert cli.main(arguments(worse, tmp_path)) == 0
    assert small.contents(tmp_path / "release") == small.contents(released / "release")


def test_an_empty_folder_is_released_like_any_other(tmp_path):
    (tmp_path / "in" / "0").mkdir(parents=True)
    assert cli.main(arguments(tmp_path / "in", tmp_path)) == 0
    assert decode(tmp_path / "release", tmp_path / "out", "--images-per-class", "3") == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ["--decodable", "7"],
            "--decodable=7 is refused: it must be SIDE from 8 to 64 pixels (grey), or SIDE:rgb",
        ),
        (["--decodable", "x"], "--decodable=x is refused"),
        (["--encoder", "dct:8"], "--decodable=8 is refused: it must be left out with dct:8"),
        (["--share", "pictures/none=1"], "--share=pictures/none=1 is refused"),
    ],
)
def test_refusals(images, tmp_path, capsys, change, sentence):
    assert sentence in refused([*arguments(images, tmp_path), *change], capsys)
    assert not (tmp_path / "release").exists()


def test_embeddings_without_pictures_are_refused(images, tmp_path, capsys):
    sentence = "be left out of embeddings that have no pictures of that form beside them"
    rows = small.write_rows(tmp_path / "rows", small.table(30))
    assert sentence in refused([*arguments(rows, tmp_path), "--encoder", "precomputed"], capsys)
    np.savez(tmp_path / "rows.npz", embedding=np.eye(4), label=np.array(list("0123")))
    assert sentence in refused(
        [*arguments(tmp_path / "rows.npz", tmp_path), "--encoder", "precomputed"], capsys
    )
    # Pictures of another form.
    embed = ["embed", "--input", str(images), "--encoder", "blocks", "--decodable", "9"]
    assert cli.main([*embed, "--output", str(tmp_path / "cache")]) == 0
    capsys.readouterr()
    assert sentence in refused(arguments(tmp_path / "cache", tmp_path), capsys)
    said = refused([*embed[:-1], "7", "--output", str(tmp_path / "other")], capsys)
    assert "--decodable=7 is refused" in said


def test_other_releases_are_not_decodable(tmp_path, capsys):
    rows = np.eye(4)[np.arange(40) % 4]
    Release.fit(rows, np.arange(40) % 4, classes=CLASSES, epsilon=1.0, delta=1e-5).save(tmp_path / "release")
    capsys.readouterr()
    given = ["decode", "--release", str(tmp_path / "release"), "--output", str(tmp_path / "out")]
    sentence = refused([*given, "--decoder", "private_linear"], capsys)
    assert "it must be of a release that was made with --decodable SIDE" in sentence
