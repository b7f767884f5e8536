"""From public images to a decoder, and from a gallery of them to pictures."""

import io
import json
import math
import shutil
from statistics import NormalDist

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dpgmm_beam import Release, load_release
from dpgmm_beam.decoders.convolution import trained_from_bytes
from dpgmm_beam.encoders import dct
from dpgmm_beam.mixture import matrix_of
from pipelines import cli

SIDE = 12


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """Gray pictures of a bar at one of four places, in folders by place."""
    folder = tmp_path_factory.mktemp("public") / "images"
    generator = np.random.default_rng(0)
    for number in range(80):
        place = number % 4
        pixels = np.zeros((SIDE, SIDE), np.uint8)
        pixels[:, 3 * place : 3 * place + 3] = generator.integers(150, 256)
        (folder / str(place)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / str(place) / f"{number}.png")
    (folder / "0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    return folder


def bars(folder):
    form = dct.PictureForm(SIDE, 1)
    paths = sorted(folder.rglob("[0-9]*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])[..., None] / 255
    return dct.coefficients_of(pixels, form), [path.parent.name for path in paths]


@pytest.fixture(scope="module")
def release(public, tmp_path_factory):
    """Of the same bars many times over, so that hardly any noise is seen."""
    folder = tmp_path_factory.mktemp("release") / "release"
    rows, labels = (np.repeat(each, 200, axis=0) for each in bars(public))
    classes = ["0", "1", "2", "3"]
    options = {"epsilon": 100.0, "delta": 1e-5, "samples_per_class": 1, "n_components": 1}
    Release.fit(rows, labels, classes=classes, encoder=f"dct:{SIDE}", **options).save(folder)
    return folder


def train(public, output, *more):
    arguments = ["--public-images", str(public), "--output", str(output), *map(str, more)]
    if "--encoder" not in more:
        arguments += ["--encoder", f"dct:{SIDE}"]
    return cli.main(["train-decoder", *arguments])


def decode(release, output, decoder, *more):
    options = ["--release", str(release), "--output", str(output), "--decoder", decoder, *map(str, more)]
    return cli.main(["decode", *options])


def columns_of(folder, place):
    """Mean brightness of each quarter of the pictures that are labelled so."""
    pictures = [np.asarray(Image.open(path).convert("L")) for path in (folder / str(place)).glob("*.png")]
    whole = np.mean(pictures, axis=0) / 255
    return whole.reshape(whole.shape[0], 4, -1).mean(axis=(0, 2))


def test_trained_and_used(public, release, tmp_path, capsys):
    file = tmp_path / "decoder.pt"
    assert train(public, file, "--side", 28, "--steps", 120, "--batch-size", 16, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["images"], said["held_out"], said["channels"]) == (72, 8, 1)
    assert said["error"] < said["mean_error"]
    trained = trained_from_bytes(file.read_bytes(), "")
    assert (trained.encoder, trained.side) == (f"dct:{SIDE}", 28)
    again = tmp_path / "again.pt"
    assert train(public, again, "--side", 28, "--steps", 120, "--batch-size", 16, "--threads", 3) == 0
    assert again.read_bytes() == file.read_bytes()
    assert decode(release, tmp_path / "out", f"torch:{file}", "--images-per-class", 20) == 0
    for place in range(4):
        assert columns_of(tmp_path / "out" / "images", place).argmax() == place


def test_fewer_images_of_all_kinds(public, tmp_path, capsys):
    assert train(public, tmp_path / "decoder.pt", "--max-images", 40, "--steps", 1, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["images"] + said["held_out"] == 40


def test_the_inverse_of_the_encoder(public, release, tmp_path):
    assert decode(release, tmp_path / "out", f"dct:{SIDE}", "--images-per-class", 20) == 0
    for place in range(4):
        assert columns_of(tmp_path / "out" / "images", place).argmax() == place


def test_another_release_labels_what_it_sees(public, release, tmp_path, capsys):
    """Its teacher is given the pictures, embedded again, and its budget is told of."""
    rows, labels = (np.repeat(each, 50, axis=0) for each in bars(public))
    options = {"delta": 1e-5, "samples_per_class": 1, "n_components": 1, "classes": ["0", "1", "2", "3"]}
    Release.fit(rows, labels, epsilon=50.0, encoder=f"dct:{SIDE}", **options).save(tmp_path / "labels")
    given = ("--images-per-class", 20, "--format", "parquet", "--label-release", tmp_path / "labels")
    capsys.readouterr()
    assert decode(release, tmp_path / "out", f"dct:{SIDE}", *given) == 0
    assert (
        "epsilon 100 and delta 1e-05, their labels by epsilon 50 and delta 1e-05," in capsys.readouterr().out
    )
    assert cli.main(["verify", "--release", str(tmp_path / "out")]) == 0
    table = pq.read_table(tmp_path / "out" / "images")
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in table["image"].to_pylist()])
    again = dct.coefficients_of(pixels[..., None] / 255, dct.PictureForm(SIDE, 1)).astype(np.float32)
    seen = load_release(tmp_path / "labels").labeller.probabilities(again)
    np.testing.assert_array_equal(matrix_of(table["label_probabilities"]), seen)
    assert table["label"].to_pylist() == [str(index) for index in seen.argmax(axis=1)]
    about = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert about["label_release"]["privacy"]["epsilon"] == 50
    card = (tmp_path / "out" / "README.md").read_text()
    assert "of epsilon = 50 and\n  delta = 1e-05" in card
    # Two Gaussian mechanisms are one of the root of the sum of their squared mus.
    mus = [about[name]["privacy"]["operational"]["mu"] for name in ("release", "label_release")]
    most = NormalDist().cdf(np.hypot(*mus) / 2)
    assert f"at most {math.ceil(1000 * most) / 10:.12g} times in 100" in card
    about["label_release"]["privacy"]["epsilon"] = 1.0
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(about))
    assert cli.main(["verify", "--release", str(tmp_path / "out")]) == 1


@pytest.mark.parametrize(
    ("classes", "encoder", "said"),
    [
        (["0", "1", "3", "2"], f"dct:{SIDE}", "have the classes of --release, in order"),
        (["0", "1", "2", "3"], "precomputed", "be of an encoder that can embed pictures"),
        (["0", "1", "2", "3"], "nobody", "be one of"),
        (None, "", "be a folder with a manifest.json"),
    ],
)
def test_a_release_that_can_t_label(public, release, tmp_path, capsys, classes, encoder, said):
    if classes:
        rows, labels = bars(public)
        options = {"epsilon": 50.0, "delta": 1e-5, "samples_per_class": 1, "n_components": 1}
        Release.fit(rows, labels, classes=classes, encoder=encoder, **options).save(tmp_path / "labels")
    options = ("--label-release", tmp_path / "labels")
    assert decode(release, tmp_path / "out", f"dct:{SIDE}", *options) == 2
    err = capsys.readouterr().err
    assert err.startswith("dpgmm: --label-release=")
    assert said in err


@pytest.fixture(scope="module")
def gallery(public, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery") / "embedded"
    options = ["--input", str(public), "--encoder", f"dct:{SIDE}", "--output", str(folder)]
    assert cli.main(["embed", *options, "--shard-rows", "16"]) == 0
    return folder


def test_the_nearest_of_a_gallery(public, release, gallery, tmp_path, monkeypatch):
    spec = f"retrieval:{gallery},side={SIDE}"
    assert decode(release, tmp_path / "out", spec, "--images-per-class", 20) == 0
    # Each picture is one of the gallery, of the same place.
    real = {np.asarray(Image.open(path)).tobytes(): path.parent.name for path in public.rglob("[0-9]*.png")}
    for path in (tmp_path / "out" / "images").rglob("*.png"):
        assert real[np.asarray(Image.open(path).convert("L")).tobytes()] == path.parent.name
    about = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert about["decoding"]["decoder"] == f"retrieval:embedded,side={SIDE}"
    # The same whatever the blocks.
    from dpgmm_beam.decoders import retrieval

    monkeypatch.setattr(retrieval, "_BLOCK_ROWS", 3)
    assert decode(release, tmp_path / "blocks", spec, "--images-per-class", 20) == 0
    one, two = ((tmp_path / name / "manifest.json").read_bytes() for name in ("out", "blocks"))
    assert one == two


def test_exact_search_and_the_first_of_equal_ones(tmp_path):
    import pyarrow as pa

    from dpgmm_beam.decoders.retrieval import Gallery, nearest
    from dpgmm_beam.mixture import fixed_size_list

    generator = np.random.default_rng(0)
    rows = generator.normal(size=(300, 16)).astype(np.float32)
    # The same direction at other lengths, and rows that are none.
    rows[200] = 3 * rows[10]
    rows[250], rows[0] = np.nan, 0
    for part in range(3):
        block = slice(100 * part, 100 * part + 100)
        sources = [str(number) for number in range(300)[block]]
        table = pa.table({"embedding": fixed_size_list(rows[block]), "source": sources})
        pq.write_table(table, tmp_path / f"shard-{part}.parquet")
    queries = generator.normal(size=(50, 16)).astype(np.float32)
    queries[7] = rows[10]
    gallery = Gallery(str(tmp_path), "mine", str(tmp_path), 8)
    with np.errstate(invalid="ignore"):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = np.nan_to_num(queries @ unit.T, nan=-np.inf)
    found = nearest(queries, gallery)
    # Of equal ones the first: never number 200.
    cosines[:, 200] = -np.inf
    assert [int(each) for each in found] == cosines.argmax(axis=1).tolist()
    assert found[7] == "10"


def test_an_image_of_the_gallery_that_is_gone(public, release, tmp_path, capsys):
    images = shutil.copytree(public, tmp_path / "images")
    options = ["--input", str(images), "--encoder", f"dct:{SIDE}", "--output", str(tmp_path / "embedded")]
    assert cli.main(["embed", *options]) == 0
    shutil.rmtree(images)
    assert decode(release, tmp_path / "out", f"retrieval:{tmp_path}/embedded") == 1
    assert "not where it was when it was embedded" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--side", 30), "--side=30 is refused: it must be one of 28, 32, 48, 64"),
        (("--steps", 0), "--steps=0"),
        (("--noise", "nan"), "--noise=nan"),
        (("--max-images", 3), "--max-images=3"),
        (("--encoder", "nobody"), "--encoder=nobody"),
        (("--encoder", "precomputed"), "--encoder=precomputed"),
        (("--output", "{public}/decoder.pt"), "lie apart from --public-images"),
        (("--public-images", "{tmp}/nowhere"), "--public-images="),
    ],
)
def test_refusals(public, tmp_path, capsys, options, said):
    options = [str(option).format(public=public, tmp=tmp_path) for option in options]
    assert train(public, tmp_path / "decoder.pt", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dpgmm: --")
    assert said in line
    assert not (tmp_path / "decoder.pt").exists()


def test_a_file_that_is_there_stays(public, tmp_path, capsys):
    (tmp_path / "decoder.pt").write_text("mine")
    assert train(public, tmp_path / "decoder.pt") == 2
    assert "unless --overwrite is given" in capsys.readouterr().err
    assert (tmp_path / "decoder.pt").read_text() == "mine"


def test_too_few_images(tmp_path, capsys):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for number in range(9):
        Image.new("L", (8, 8)).save(tmp_path / "images" / "a" / f"{number}.png")
    assert train(tmp_path / "images", tmp_path / "decoder.pt") == 2
    assert "hold at least 10 images, not 9" in capsys.readouterr().err


def test_private_images_are_refused(public, release, gallery, tmp_path, monkeypatch, capsys):
    """Embeddings, whatever lies in a private folder, and what links lead there."""
    private = tmp_path / "private"
    for name in ("runs", "rows", "embeddings"):
        (private / name).mkdir(parents=True, mode=0o700)
    shutil.copytree(public, private / "images")
    shutil.copytree(gallery, private / "gallery")
    (tmp_path / "link").symlink_to(private / "images")
    cases = [(gallery, "not embeddings"), (gallery / "*.parquet", "not embeddings")]
    cases += [(each, "keeps private runs") for each in (private / "images", tmp_path / "link")]
    for path, said in cases:
        assert train(path, tmp_path / "decoder.pt") == 2
        assert said in capsys.readouterr().err
    # One that is named, or the user's own, is known whatever is in it.
    for name in ("runs", "rows", "embeddings"):
        (private / name).rmdir()
    assert train(private / "images", tmp_path / "decoder.pt", "--private-dir", private) == 2
    assert "not lie in the private folder" in capsys.readouterr().err
    monkeypatch.setenv("XDG_STATE_HOME", str(private))
    (private / "images").rename(private / "dpgmm")
    assert train(private / "dpgmm", tmp_path / "decoder.pt") == 2
    assert "not lie in the private folder" in capsys.readouterr().err
    spec = f"retrieval:{private}/gallery"
    assert decode(release, tmp_path / "out", spec, "--private-dir", private) == 2
    assert "not lie in the private folder" in capsys.readouterr().err
    # Its images count, too.
    assert decode(release, tmp_path / "out", f"retrieval:{gallery}", "--private-dir", public.parent) == 2
    assert "not lie in the private folder" in capsys.readouterr().err
    assert not (tmp_path / "decoder.pt").exists()
    assert not (tmp_path / "out").exists()


def test_an_output_in_the_gallery(release, gallery, capsys):
    assert decode(release, gallery / "out", f"retrieval:{gallery}") == 2
    assert "lie apart from --decoder" in capsys.readouterr().err
