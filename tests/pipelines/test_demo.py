"""What the demo refuses, before it embeds anything; `make demo` is its test otherwise."""

import gzip
import io
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dpgmm_beam.errors import ConfigError
from pipelines import cli, demo, demo_data, fashion_mnist

FILES = {
    "train-images-idx3-ubyte.gz": np.arange(4 * 784, dtype=np.int64).reshape(4, 28, 28) % 256,
    "train-labels-idx1-ubyte.gz": np.array([0, 9, 3, 3]),
    "t10k-images-idx3-ubyte.gz": np.zeros((2, 28, 28)),
    "t10k-labels-idx1-ubyte.gz": np.array([1, 2]),
}


def idx(values) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()
    # Of no time: names of tests hold it.
    return gzip.compress(content, 1, mtime=0)


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    for name, values in FILES.items():
        (tmp_path / "data" / name).write_bytes(idx(values))
    return tmp_path / "data"


def test_the_data_set(data):
    images, labels = fashion_mnist.read(str(data), "train")
    np.testing.assert_array_equal(images, FILES["train-images-idx3-ubyte.gz"])
    assert labels.tolist() == [0, 9, 3, 3]


IMAGES = "train-images-idx3-ubyte.gz"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (IMAGES, b""),
        (IMAGES, b"no gzip"),
        (IMAGES, idx(FILES[IMAGES])[:-20]),
        (IMAGES, idx(FILES[IMAGES])[:20]),
        (IMAGES, gzip.compress(b"", mtime=0)),
        (IMAGES, gzip.compress(bytes(2**27), 1, mtime=0)),
        (IMAGES, idx(np.zeros((4, 27, 28)))),
        (IMAGES, idx(np.zeros((3, 28, 28)))),
        (IMAGES, gzip.compress(gzip.decompress(idx(FILES[IMAGES])) + b"more", mtime=0)),
        ("train-labels-idx1-ubyte.gz", idx(np.array([0, 9, 3, 10]))),
        ("train-labels-idx1-ubyte.gz", idx(np.array([0, 9, 3, 3, 3]))),
    ],
)
def test_files_that_are_not_the_data_set(data, name, content):
    (data / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"--data={data} is refused: it must hold"):
        fashion_mnist.read(str(data), "train")


def test_a_file_that_is_a_fifo(data):
    (data / IMAGES).unlink()
    os.mkfifo(data / IMAGES)
    with pytest.raises(ConfigError, match="--data="):
        fashion_mnist.read(str(data), "train")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--epsilons=-1"], "--epsilons=-1 is refused: it must be a number from 0.001 to 1000."),
        (["--epsilons=1,1e9"], "--epsilons=1e9 is refused: it must be a number from 0.001 to 1000."),
        (["--epsilons="], "--epsilons= is refused: it must be numbers with commas between."),
        (["--size=31"], "--size=31 is refused: it must be a whole number of pixels from 32 to 1024."),
        (["--size=-1"], "--size=-1 is refused: it must be a whole number of pixels from 32 to 1024."),
        (
            ["--full", "--size=64"],
            "--size=64 is refused: it must be left out with --full, which has its own.",
        ),
        (["--keys=0"], "--keys=0 is refused: it must be a whole number from 1 to 100."),
        (["--keys=1000000000"], "--keys=1000000000 is refused: it must be a whole number from 1 to 100."),
        (["--work=FILE"], "FILE is refused: it must be a local folder, or a new one."),
        (["--work=FILE/below"], "below/private is refused: it must be a folder that can be written"),
        (["--work="], "--work='' is refused: it must be a path."),
        (["--work=gs://x"], "--work=gs://x is refused: it must"),
        (
            ["--data=nowhere"],
            "--data=nowhere is refused: it must hold the files train-images-idx3-ubyte.gz, ",
        ),
        (["--direct_num_workers=2"], "--direct_num_workers=2 is refused: it must be 1"),
        (
            ["--epsilon=1"],
            "it must be an option of this verb or of Apache Beam, such as --epsilons.",
        ),
    ],
)
def test_refusals(data, tmp_path, monkeypatch, capsys, change, sentence):
    monkeypatch.setattr(fashion_mnist, "write_parquet", None)
    (tmp_path / "FILE").write_text("mine")
    change = [each.replace("FILE", str(tmp_path / "FILE")) for each in change]
    assert cli.run(demo.main, ["--work", str(tmp_path / "work"), "--data", str(data), *change]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert sentence in err
    assert not (tmp_path / "work").exists()


def test_both_splits_are_read_before_anything_is_written(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo.embed, "main", None)
    (data / "t10k-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    assert cli.run(demo.main, ["--work", str(tmp_path / "work"), "--data", str(data)]) == 2
    assert f"dpgmm: --data={data} is refused" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_images_as_a_user_would_have_them(data, tmp_path):
    fashion_mnist.write_parquet(*fashion_mnist.read(str(data), "train"), str(tmp_path / "new" / "x.parquet"))
    table = pq.read_table(tmp_path / "new" / "x.parquet")
    assert table["label"].to_pylist() == ["t-shirt", "ankle-boot", "dress", "dress"]
    pixels = np.asarray(Image.open(io.BytesIO(table["image"][1].as_py())))
    np.testing.assert_array_equal(pixels, FILES[IMAGES][1])


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without apt and without the data set."""
    monkeypatch.setattr(fashion_mnist, "INSTALLED", str(tmp_path / "installed"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "work"


def test_without_apt_it_says_how_to_bring_the_data_and_what_it_runs_on(nowhere, capsys):
    pytest.importorskip("sklearn")
    found = demo_data.find(None, str(nowhere))
    said = capsys.readouterr().err
    assert said.startswith("warning: Fashion-MNIST is not here")
    assert "make demo FASHION_MNIST=FOLDER" in said
    assert all(name in said for name in fashion_mnist.FILES)
    assert found.title in said
    train, test = found.read("train"), found.read("test")
    assert len(train[1]) == pytest.approx(4 * len(test[1]), abs=4)
    for images, labels in (train, test):
        assert images.dtype == np.uint8
        assert images.max() == 255
        assert set(labels) == set(range(10))


def test_without_apt_and_without_such_a_package(nowhere, monkeypatch):
    monkeypatch.setattr(demo_data, "packaged", lambda: None)
    with pytest.raises(ConfigError, match=r"--data= is refused: it must name a folder .*scikit-learn"):
        demo_data.find(None, str(nowhere))


def test_a_folder_that_is_named_is_not_replaced_by_a_package(nowhere):
    with pytest.raises(ConfigError, match="--data=no is refused: it must hold the files"):
        demo_data.find("no", str(nowhere))


def test_from_images_to_a_table(data, tmp_path, monkeypatch, capsys):
    """Four images of train and two of test: what is said, not how well it learns."""
    monkeypatch.setattr("pipelines.parsers.release.SAMPLES_PER_CLASS", 20)
    (data / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.array([0, 3])))
    arguments = ["--work", str(tmp_path / "work"), "--data", str(data), "--size", "32", "--epsilons", "1"]
    assert cli.main(["demo", *arguments, "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    # Four images are no more than noise, which --quiet does not keep back.
    assert err.startswith("warning: 10 of 10 classes are no more than noise")
    # The release of pictures says so, too.
    assert err.count("\n") == 2
    found = json.loads(out)
    assert found["verb"] == "demo"
    assert found["data"] == "Fashion-MNIST, efficientnet_lite0:32"
    (made,) = found["releases"]
    assert made["train_rows"] == 200
    assert made["test_rows"] == 2
    first, second, _, title, head, row, _, last = found["said"]
    assert first.startswith(f"epsilon 1: accuracy {made['accuracy']:.4f} on 2 real test rows, trained on 200")
    assert second == f"without privacy: accuracy {found['real_accuracy']:.4f}, trained on the real rows"
    assert title.startswith("Fashion-MNIST, efficientnet_lite0:32, delta 1e-05; accuracy")
    assert head.split()[0] == "epsilon"
    assert row.split()[0] == "1"
    assert sorted(os.listdir(tmp_path / "work" / "releases")) == ["epsilon-1-key-1-32", "pictures-epsilon-1"]
    assert last == f"pictures of a release at epsilon 1, dct:28: {found['sheet']}"
    with Image.open(found["sheet"]) as sheet:
        assert sheet.height == 10 * (28 + 2)
