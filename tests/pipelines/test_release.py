import collections
import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpgmm_beam.config import Method, ReleaseConfig
from pipelines import cli
from tests import small


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Releases of four stages: what is tested here does not depend on their number."""
    *others, _ = ReleaseConfig.__init__.__defaults__
    monkeypatch.setattr(ReleaseConfig.__init__, "__defaults__", (*others, Method(teacher_steps=2, reduced=8)))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return small.write_rows(tmp_path_factory.mktemp("rows") / "in", small.table(200))


def arguments(source, folder, *more):
    return [
        *["release", "--input", str(source), "--encoder", "precomputed", "--classes", "a,b,c"],
        *["--epsilon", "1", "--delta", "1e-5", "--output", str(folder / "out" / "release")],
        *["--samples-per-class", "20", "--private-dir", str(folder / "private"), *more],
    ]


def keyed(folder):
    return ["--noise-key-file", small.write_key(folder / "key"), "--release-id", "r1"]


def refused(argv, capsys):
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--epsilon", "0"], "--epsilon=0.0 is refused: it must be a number from 0.001 to 1000."),
        (["--epsilon", "-1"], "--epsilon=-1.0 is refused"),
        (["--epsilon", "inf"], "--epsilon=inf is refused"),
        (["--epsilon", "nan"], "--epsilon=nan is refused"),
        (["--delta", "0"], "--delta=0.0 is refused"),
        (["--delta", "1"], "--delta=1.0 is refused"),
        (["--delta", "nan"], "--delta=nan is refused"),
        (["--classes", ""], "--classes='' is refused: it must name at least one class."),
        (["--classes", "a,b,a"], "--classes=a,b,a is refused: it must be distinct"),
        (["--classes", "a,,b"], "--classes=a,,b is refused: it must hold no empty label."),
        (["--input", "/nowhere/*.parquet"], "--input=/nowhere/*.parquet is refused: it must match something"),
        (["--encoder", "vgg"], "--encoder=vgg is refused"),
        (["--encoder", "efficientnet_lite0"], "--encoder=efficientnet_lite0 is refused"),
        (["--samples-per-class", "0"], "--samples-per-class=0 is refused"),
        (["--components", "0"], "--components=0 is refused"),
        (["--block-rows", "0"], "--block-rows=0 is refused: it must be a whole number from 1 to 65536."),
        (["--block-rows", "65537"], "--block-rows=65537 is refused"),
        (["--threads", "-1"], "--threads=-1 is refused"),
        (["--threads", "257"], "--threads=257 is refused: it must be a whole number from 1 to 256."),
        (["--cache-mib", "1"], "--cache-mib=1 is refused"),
        (["--direct_num_workers", "2"], "--direct_num_workers=2 is refused"),
        (["--direct_running_mode", "multi_processing"], "--direct_running_mode=multi_processing is refused"),
        (["--clip-norm", "-2"], "--clip-norm=-2.0 is refused"),
        (["--share", "means/count"], "--share=means/count is refused"),
        (["--release-id", "r"], "--release-id=r is refused: it must come together with --noise-key-file."),
        (["--epsilom", "1"], "--epsilom=1 is refused"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(rows, tmp_path, capsys, change, sentence):
    assert sentence in refused(arguments(rows, tmp_path, *change), capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_key_of_the_wrong_size(rows, tmp_path, capsys, size):
    key = small.write_key(tmp_path / "key", bytes(size))
    more = ["--noise-key-file", key, "--release-id", "r1"]
    sentence = refused(arguments(rows, tmp_path, *more), capsys)
    assert f"--noise-key-file={key} is refused: it must hold exactly 32 bytes, not {size} bytes." in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        ({"embedding": pa.array(["x", "y"])}, "--input="),
        ({"embedding": pa.array([[1.0, 2.0], [3.0]])}, "hold embeddings of one length"),
        ({"image": pa.array(["x", "y"])}, "hold encoded images as binary"),
        ({"other": pa.array([1, 2])}, "have a column 'image' (binary) or 'embedding'"),
        ({"embedding": pa.array([[1.0], [3.0]]), "label": pa.array([0.5, 1])}, "hold strings or integers"),
    ],
)
def test_wrong_columns(tmp_path, capsys, column, sentence):
    pq.write_table(pa.table(column), tmp_path / "in.parquet")
    assert sentence in refused(arguments(tmp_path / "in.parquet", tmp_path), capsys)
    assert not (tmp_path / "out").exists()


def test_a_classes_file_that_is_not_text(rows, tmp_path, capsys):
    (tmp_path / "classes").write_bytes(b"\xff\xfe\x00")
    more = ["--classes", str(tmp_path / "classes")]
    assert "be a readable file of text" in refused(arguments(rows, tmp_path, *more), capsys)


def release(source, folder, *more):
    assert cli.main(arguments(source, folder, *more)) == 0
    return small.contents(folder / "out" / "release")


def test_an_output_that_exists(rows, tmp_path, capsys):
    first = release(rows, tmp_path, *keyed(tmp_path))
    capsys.readouterr()
    sentence = refused(arguments(rows, tmp_path, *keyed(tmp_path)), capsys)
    assert "it must not hold a release already, unless --overwrite is given." in sentence
    assert small.contents(tmp_path / "out" / "release") == first
    (tmp_path / "classes").write_text("a\nb\n\nc\n")
    classes = ["--classes", str(tmp_path / "classes")]
    assert release(rows, tmp_path, *keyed(tmp_path), "--overwrite", *classes) == first
    other = release(rows, tmp_path, *keyed(tmp_path), "--overwrite", "--epsilon", "2")
    assert other.keys() == first.keys()
    assert json.loads(other["manifest.json"])["privacy"]["epsilon"] == 2
    assert os.listdir(tmp_path / "out") == ["release"]


def test_a_folder_of_something_else(rows, tmp_path, capsys):
    (tmp_path / "out" / "release").mkdir(parents=True)
    (tmp_path / "out" / "release" / "thesis.tex").write_text("years of work")
    argv = arguments(rows, tmp_path, "--overwrite")
    assert "it must be an empty or a new folder." in refused(argv, capsys)
    assert small.contents(tmp_path / "out") == {"release/thesis.tex": b"years of work"}


def test_bad_rows_are_set_aside_and_nothing_shows_it(rows, tmp_path, capfd):
    clean = pq.read_table(rows)
    good = release(rows, tmp_path, *keyed(tmp_path))
    said = capfd.readouterr()
    bad = np.ones((9, 16), np.float32)
    bad[0], bad[1], bad[2], bad[3, 5] = np.nan, np.inf, 0, -np.inf
    bad[4] = 3e38
    labels = ["a"] * 5 + [None, "undeclared", "", "A"]
    extra = small.embeddings_table(labels, bad)
    mixed = pa.concat_tables([extra, clean, extra])
    (tmp_path / "2").mkdir()
    dirty = small.write_rows(tmp_path / "2" / "in", mixed)
    assert release(dirty, tmp_path / "2", *keyed(tmp_path)) == good
    said_again = capfd.readouterr()
    assert said_again.err == said.err
    assert said_again.out == said.out.replace(str(tmp_path), str(tmp_path / "2"))


def test_an_empty_class_and_a_class_of_one_row(rows, tmp_path):
    clean = pq.read_table(rows)
    one = small.embeddings_table(["lonely"], np.ones((1, 16)))
    source = small.write_rows(tmp_path / "in", pa.concat_tables([clean, one]))
    files = release(source, tmp_path, "--classes", "a,b,c,lonely,nobody")
    (name,) = (name for name in files if name.startswith("synthetic/"))
    table = pq.read_table(pa.BufferReader(files[name]))
    labels = table["label"].to_pylist()
    assert {label: labels.count(label) for label in labels} == dict.fromkeys(
        ["a", "b", "c", "lonely", "nobody"], 20
    )
    vectors = np.array(table["embedding"].to_pylist())
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_unlabelled_rows_are_one_class(rows, tmp_path, capsys):
    table = pq.read_table(rows).drop_columns(["label"])
    source = small.write_rows(tmp_path / "in", table)
    assert "--classes=a,b,c is refused: it must be one class" in refused(arguments(source, tmp_path), capsys)
    files = release(source, tmp_path, "--classes", "everything")
    assert not json.loads(files["manifest.json"])["config"]["labelled"]


def test_a_key_of_its_own_is_gone_at_the_end(rows, tmp_path, capfd, monkeypatch):
    drawn = []
    token_bytes = os.urandom(32)
    monkeypatch.setattr("secrets.token_bytes", lambda count: drawn.append(count) or token_bytes[:count])
    files = release(rows, tmp_path)
    assert drawn.count(32) == 1
    (report,) = small.contents(tmp_path / "private")
    assert report.startswith("reports/")
    assert os.stat(tmp_path / "private").st_mode & 0o777 == 0o700
    out, err = capfd.readouterr()
    for text in (token_bytes, token_bytes.hex().encode(), repr(token_bytes).encode()):
        assert text not in pickle.dumps(files)
        assert text not in (out + err).encode()


def test_a_failure_is_continued_with_the_key_that_was_drawn(rows, tmp_path, capfd, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.release.run", lambda *_: 1 / 0)
        assert cli.main(arguments(rows, tmp_path)) == 1
    (key,) = (tmp_path / "private").glob("runs/*/noise.key")
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("dpgmm: the job failed and published nothing half-done: ZeroDivisionError")
    release_id = key.parent.name
    files = release(rows, tmp_path)
    assert f"continuing the run that was interrupted (release id {release_id})" in capfd.readouterr().err
    assert json.loads(files["manifest.json"])["release_id"] == release_id
    assert not key.exists()


def test_a_refusal_by_a_worker_is_one_and_leaves_no_key(rows, tmp_path, capfd, monkeypatch):
    """Room for the rows is looked up before the first is read."""
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1000))
    said = refused(arguments(rows, tmp_path), capfd)
    assert "must have room for the prepared rows" in said
    assert not list((tmp_path / "private").glob("runs/*"))


def test_what_was_set_aside_is_the_owners(rows, tmp_path, capfd):
    table = pq.read_table(rows)
    labels = table.column("label").to_pylist()
    labels[:7] = ["zebra"] * 7
    changed = small.write_rows(tmp_path / "in", table.set_column(0, "label", pa.array(labels)))
    files = release(changed, tmp_path, *keyed(tmp_path))
    (report,) = (tmp_path / "private").glob("reports/*.json")
    assert os.stat(report).st_mode & 0o777 == 0o600
    assert json.loads(report.read_text())["input"] == [
        {"rows": 200, "set_aside": {"length": 0, "label": 7, "value": 0}}
    ]
    said = capfd.readouterr()
    assert "zebra" not in said.out + said.err
    assert b"set_aside" not in pickle.dumps(files)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("images") / "in"
    for number, label in enumerate("abc"):
        (folder / label).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng(100 * number + i).integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def test_images_bad_images_and_the_embed_cache_give_one_release(images, tmp_path, capfd):
    encoder = ["--encoder", "efficientnet_lite0:32"]
    expected = release(images, tmp_path, *keyed(tmp_path), *encoder)
    said = capfd.readouterr().err
    cache = tmp_path / "cache"
    assert cli.main(["embed", "--input", str(images), *encoder, "--output", str(cache)]) == 0
    (tmp_path / "2").mkdir()
    assert release(cache, tmp_path / "2", *keyed(tmp_path), *encoder) == expected
    for name, data in {"a/empty.png": b"", "b/broken.jpg": b"\xff\xd8no", "zebra/0.png": b"x"}.items():
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(data)
    capfd.readouterr()
    assert release(images, tmp_path / "2", *keyed(tmp_path), *encoder, "--overwrite") == expected
    err = capfd.readouterr().err
    assert "fit: stage 1" in said
    for word in ("empty.png", "broken", "zebra", "reject"):
        assert word not in err
