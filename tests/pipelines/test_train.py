import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpgmm_beam.data.rows import RowFormat
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.network import load_network
from dpgmm_beam.release import manifest
from dpgmm_beam.release.row_statement import RowStatement
from pipelines import cli, train
from pipelines.labelled_rows import Source, read_rows
from pipelines.scores import Confusion
from tests import small

CLASSES = ["a", "b", "c"]
RECIPE = ["--hidden", "16", "--epochs", "6", "--learning-rate", "0.02", "--batch-size", "32"]


def blobs(rows, seed, dimension=10):
    generator = np.random.default_rng(seed)
    targets = np.arange(rows) % 3
    embeddings = np.eye(dimension)[targets] + 0.25 * generator.standard_normal((rows, dimension))
    return embeddings.astype(np.float32), targets


def write(path, embeddings, labels, probabilities=None, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"label": pa.array(labels), "embedding": fixed(embeddings)}
    if probabilities is not None:
        columns["label_probabilities"] = fixed(probabilities)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=100)


def fixed(matrix):
    values = pa.array(np.ascontiguousarray(matrix, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(values, matrix.shape[1])


def release(folder, classes=CLASSES, clip_norm=None, soft=True, encoder="precomputed", release_id="id"):
    """What `dpgmm train` reads of a release; labels that are noise beside probabilities that are not."""
    embeddings, targets = blobs(600, 0)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    probabilities = np.full((600, 3), 0.05) + 0.85 * np.eye(3)[targets]
    labels = [classes[target % len(classes)] for target in (np.roll(targets, 1) if soft else targets)]
    weights = tuple(1 / len(classes) for _ in classes)
    statement = RowStatement(release_id, encoder, tuple(classes), weights, 10, clip_norm, 1.0, 1e-6)
    for part in range(2):
        rows = slice(300 * part, 300 * (part + 1))
        write(
            folder / "synthetic" / f"part-{part}.parquet",
            embeddings[rows],
            labels[rows],
            probabilities[rows] if soft else None,
            statement.metadata(part, 2),
        )
    config = {"classes": classes, "dimension": 10, "clip_norm": clip_norm, "encoder": encoder}
    files = [{"path": f"synthetic/part-{part}.parquet"} for part in range(2)]
    content = {"schema_version": manifest.SCHEMA_VERSION, "config": config, "files": files}
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def folders(tmp_path):
    embeddings, targets = blobs(300, 1)
    write(tmp_path / "test" / "0.parquet", embeddings * 9, [CLASSES[target] for target in targets])
    release(tmp_path / "release")
    return tmp_path


def arguments(folders, *more):
    return [
        *("--synthetic", str(folders / "release"), "--test", str(folders / "test")),
        *("--output", str(folders / "out"), *RECIPE, *more),
    ]


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_a_release_end_to_end(folders, capfd):
    assert train.main(arguments(folders)) == 0
    out, err = capfd.readouterr()
    found = metrics(folders / "out")
    assert f"accuracy {found['accuracy']:.4f} on 300 real test rows" in out
    assert re.search(r"training on \w+: 100%, 6 of 6 epochs, \d\d:\d\d, loss \d", err)
    assert found["accuracy"] > 0.85
    assert found["per_class_accuracy"].keys() == set(CLASSES)
    assert np.mean(list(found["per_class_accuracy"].values())) == pytest.approx(found["accuracy"])
    assert (found["test_rows"], found["train_rows"], found["seed"]) == (300, 600, 0)
    assert found["labels"] == "soft"
    assert found["hyper_parameters"]["hidden"] == 16
    assert sorted(path.name for path in folders.iterdir()) == ["out", "release", "test"]

    # The model takes what the encoder gives, of any norm.
    network = load_network(folders / "out")
    embeddings, targets = blobs(300, 1)
    assert (network.predict(embeddings * 3) == targets).mean() == pytest.approx(found["accuracy"], abs=0.01)

    # A process of its own writes the same bytes.
    command = [sys.executable, "-m", "pipelines.train", *arguments(folders)[:-1], "32"]
    command[command.index("--output") + 1] = str(folders / "again")
    subprocess.run(command, check=True, capture_output=True)
    for name in ("model.pt", "metrics.json"):
        assert (folders / "again" / name).read_bytes() == (folders / "out" / name).read_bytes()


def test_hard_labels_are_the_column_label(folders):
    train.main(arguments(folders, "--labels", "hard"))
    found = metrics(folders / "out")
    assert found["labels"] == "hard"
    assert found["accuracy"] < 0.4


def test_a_release_that_lost_its_probabilities(folders, capsys):
    """Hard labels are another method: only who asks for them gets them."""
    release(folders / "release", soft=False)
    assert "have the column label_probabilities of a release, or train with --labels hard" in refused(
        folders, capsys
    )
    train.main(arguments(folders, "--labels", "hard"))
    assert metrics(folders / "out")["labels"] == "hard"
    assert metrics(folders / "out")["accuracy"] > 0.85


def trained(folders, synthetic, name, *more):
    """The bytes of the network of some rows, trained from a folder of this name."""
    argv = [*arguments(folders), "--synthetic", str(synthetic), "--output", str(folders / name), *more]
    assert train.main(argv) == 0
    return (folders / name / "model.pt").read_bytes()


def test_a_copy_without_the_manifest_trains_the_same_network(folders):
    """In classes whose order is not that of their names, with a norm and an encoder of their own."""
    release(folders / "release", classes=["c", "a", "b"], clip_norm=1.5, encoder="efficientnet_lite0:64")
    whole = trained(folders, folders / "release", "whole")
    shutil.copytree(folders / "release", folders / "copy")
    (folders / "copy" / "manifest.json").unlink()
    shutil.copytree(folders / "copy" / "synthetic", folders / "rows")
    (folders / "copy" / "README.md").write_text("beside them")
    for name, synthetic in {
        "copied": folders / "copy",
        "below": folders / "release" / "synthetic",
        "moved": folders / "rows",
        "matched": folders / "rows" / "*.parquet",
    }.items():
        assert trained(folders, synthetic, name) == whole, name
        assert metrics(folders / name) == metrics(folders / "whole")
    network = load_network(folders / "copied")
    assert (network.classes, network.soft) == (("c", "a", "b"), True)
    assert network.encoder == "efficientnet_lite0:64"
    assert network.module.clip_norm == 1.5
    hard = trained(folders, folders / "rows", "hard", "--labels", "hard")
    assert hard == trained(folders, folders / "release", "hard again", "--labels", "hard") != whole


def test_rows_beside_a_folder_of_that_name(folders):
    """All below a folder is meant, so two kinds of rows are refused; a file that is named is meant alone."""
    shutil.copytree(folders / "release" / "synthetic", folders / "own" / "synthetic")
    embeddings, targets = blobs(90, 2)
    write(folders / "own" / "rows.parquet", embeddings, [CLASSES[target] for target in targets])
    trained(folders, folders / "own" / "rows.parquet", "file")
    assert metrics(folders / "file")["train_rows"] == 90
    with pytest.raises(ConfigError, match="hold files of releases only"):
        trained(folders, folders / "own", "folder")


def test_one_part_of_a_release_is_a_training_set(folders):
    assert trained(folders, folders / "release" / "synthetic" / "part-1.parquet", "one")
    assert metrics(folders / "one")["train_rows"] == 300
    assert metrics(folders / "one")["labels"] == "soft"


def without_metadata(folder):
    for path in folder.glob("*.parquet"):
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def other_release(folder):
    release(folder / "other", classes=["b", "a", "c"])
    (folder / "other" / "synthetic" / "part-0.parquet").rename(folder / "rows" / "part-2.parquet")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: without_metadata(folder / "rows"), "have beside its label_probabilities what tells"),
        (lambda folder: (folder / "rows" / "part-0.parquet").unlink(), "hold all 2 files of rows of release"),
        (other_release, "hold rows of one encoder, norm and length, and of the same classes in one order"),
        (
            lambda folder: write(folder / "rows" / "own.parquet", *real_rows()),
            "hold files of releases only, each with its metadata, or none of them",
        ),
        (
            lambda folder: write(folder / "rows" / "x.parquet", *real_rows(), None, {"dpgmm": "{}"}),
            "x.parquet is refused: it must in its metadata 'dpgmm' hold JSON that states its version",
        ),
    ],
)
def test_copies_that_lack_something(folders, capsys, change, sentence):
    shutil.copytree(folders / "release" / "synthetic", folders / "rows")
    change(folders)
    argv = [*arguments(folders), "--synthetic", str(folders / "rows")]
    assert cli.run(train.main, argv) == 2
    assert sentence in capsys.readouterr().err
    assert not (folders / "out").exists()
    for option in ("--clip-norm", "--dimension"):
        assert cli.run(train.main, [*argv, option, "10"]) == 2


def real_rows():
    embeddings, targets = blobs(9, 1)
    return embeddings, [CLASSES[target] for target in targets]


def test_hard_labels_of_rows_that_lost_their_metadata(folders):
    """The column is there and means what it says; which class a probability is of, nobody knows."""
    without_metadata(folders / "release" / "synthetic")
    trained(folders, folders / "release" / "synthetic", "hard", "--labels", "hard")
    assert metrics(folders / "hard")["labels"] == "hard"


def test_files_that_say_something_else_than_the_manifest(folders, capsys):
    path = folders / "release" / "manifest.json"
    content = json.loads(path.read_text())
    content["config"]["classes"] = ["b", "a", "c"]
    path.write_text(json.dumps(content))
    assert "have in the metadata of its files what its manifest states" in refused(folders, capsys)


def test_test_rows_of_another_encoder(folders, capsys):
    release(folders / "release", encoder="open_clip:ViT-B-32/x")
    embeddings, targets = blobs(300, 1)
    labels = [CLASSES[target] for target in targets]
    write(folders / "test" / "0.parquet", embeddings, labels, None, {"dpgmm.encoder": "efficientnet_lite0"})
    assert cli.run(train.main, arguments(folders)) == 2
    assert (
        "hold embeddings by open_clip:ViT-B-32/x, as --synthetic does, not by efficientnet_lite0"
        in capsys.readouterr().err
    )
    write(folders / "test" / "0.parquet", embeddings, labels, None, {"dpgmm.encoder": "open_clip:ViT-B-32/x"})
    assert cli.run(train.main, arguments(folders)) == 0
    assert "encoder" not in "".join(capsys.readouterr())
    assert load_network(folders / "out").encoder == "open_clip:ViT-B-32/x"
    assert metrics(folders / "out")["encoder"] == "open_clip:ViT-B-32/x"
    # Files that name none are taken, and that is said.
    write(folders / "test" / "0.parquet", embeddings, labels)
    assert cli.run(train.main, arguments(folders, "--overwrite")) == 0
    assert "no encoder is named by --test: only lengths" in capsys.readouterr().err
    release(folders / "release")
    assert cli.run(train.main, arguments(folders, "--overwrite")) == 0
    assert "no encoder is named by --test and --synthetic" in capsys.readouterr().err


def test_rows_that_could_not_be_tested_are_counted_and_named(folders, capsys):
    """As with a class that was declared misspelt: accuracy on the others must not pass for all."""
    test, truth = blobs(300, 1)
    names = [CLASSES[target] for target in truth]
    names[:60] = ["devices"] * 50 + ["a "] * 10
    names[60:64] = [None] * 4
    test[64:70] = np.nan
    write(folders / "test" / "0.parquet", test, names)
    assert train.main(arguments(folders)) == 0
    out, err = capsys.readouterr()
    found = metrics(folders / "out")
    assert (found["test_rows"], found["test_rows_found"]) == (230, 300)
    assert found["test_rows_left_out"] == {"undeclared_label": 60, "no_label": 4, "embedding": 6}
    assert found["undeclared_labels"] == {"devices": 50, "a ": 10}
    assert found["accuracy_of_all_labelled"] == pytest.approx(found["accuracy"] * 230 / 290)
    assert f"accuracy {found['accuracy']:.4f} on 230 of 300 real test rows" in out
    assert (
        "warning: 70 of 300 test rows could not be tested: 60 with a label that is no class"
        " (devices: 50, a : 10); 4 without a label; 6 without a good embedding;"
        f" accuracy {found['accuracy_of_all_labelled']:.4f} if those of no class count as wrong" in err
    )


def test_labels_that_are_many_or_no_text(folders, capsys):
    test, truth = blobs(3000, 1)
    names = [f"\x1b[2J{number}".encode() for number in range(2000)] + [b"\xff\xfe"] * 50
    names += [CLASSES[target].encode() for target in truth[2050:]]
    labels = pa.Array.from_buffers(pa.string(), 3000, pa.array(names, pa.binary()).buffers())
    write(folders / "test" / "0.parquet", test, labels)
    assert train.main(arguments(folders)) == 0
    found = metrics(folders / "out")
    assert found["test_rows_left_out"]["undeclared_label"] == 2050
    assert len(found["undeclared_labels"]) == 1000
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert err.splitlines()[-1].count(": 1,") < 12


def test_metrics_are_private_and_hold_the_confusion(folders):
    train.main(arguments(folders))
    path = folders / "out" / "metrics.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert (folders / "out" / "model.pt").stat().st_mode & 0o044
    found = metrics(folders / "out")
    assert found["private"] is True
    assert "not for others" in found["private_because"]
    embeddings, targets = blobs(300, 1)
    predicted = load_network(folders / "out").predict(embeddings * 9)
    matrix = np.zeros((3, 3), int)
    np.add.at(matrix, (targets, predicted), 1)
    # Rows were put on the lattice before they were tested: a row at an edge may differ.
    assert np.abs(np.array(found["confusion_matrix"]) - matrix).sum() <= 4
    assert found["classes"] == CLASSES
    assert np.trace(found["confusion_matrix"]) / 300 == pytest.approx(found["accuracy"])


def test_confusion_of_few_and_of_many_classes():
    real, predicted = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 1, 1, 0, 2])
    few = Confusion.of(("a", "b", "c", "d"), real, predicted)
    assert few.matrix() == [[1, 2, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert few.accuracy_by_class() == {"a": pytest.approx(1 / 3), "b": 1, "c": 0.5, "d": None}
    assert few.right == 3
    assert few.most_frequent_errors() == [["a", "b", 2], ["c", "a", 1]]
    many = Confusion.of(tuple(map(str, range(8192))), real, predicted)
    assert many.matrix() is None
    assert many.most_frequent_errors() == [["0", "1", 2], ["2", "0", 1]]


def test_real_rows_bad_ones_left_out(folders):
    embeddings, targets = blobs(300, 2)
    labels = [int(target) for target in targets]
    embeddings[0, 0], embeddings[1, 1], embeddings[2] = np.nan, np.inf, 0
    labels[3] = None
    write(folders / "real" / "0.parquet", embeddings, pa.array(labels, pa.int64()))
    test, truth = blobs(300, 1)
    names = [str(target) for target in truth]
    test[0] = np.nan
    names[1], names[2] = None, "undeclared"
    write(folders / "test" / "0.parquet", test, names)
    train.main([*arguments(folders), "--synthetic", str(folders / "real" / "*.parquet")])
    found = metrics(folders / "out")
    assert (found["train_rows"], found["test_rows"], found["labels"]) == (296, 297, "hard")
    assert found["per_class_accuracy"].keys() == {"0", "1", "2"}
    assert found["accuracy"] > 0.85


def test_rows_are_treated_as_the_release_treats_them(folders):
    """Clipped at 1.5, not normalised: shorter rows keep their length."""
    release(folders / "release", clip_norm=1.5)
    train.main(arguments(folders))
    assert load_network(folders / "out").module.clip_norm == 1.5
    source = Source(str(folders / "few.parquet"), RowFormat(tuple(CLASSES), 10, 1.5), soft=False)
    embeddings = np.eye(10, dtype=np.float32)[:2] * np.array([[0.5], [30]], np.float32)
    write(folders / "few.parquet", embeddings, ["a", "c"])
    rows = read_rows("--test", source)
    np.testing.assert_allclose(np.linalg.norm(rows.embeddings, axis=1), [0.5, 1.5], rtol=1e-4)
    assert rows.targets.tolist() == [0, 2]


def test_a_class_without_test_rows_has_no_accuracy(folders):
    embeddings, _ = blobs(30, 1)
    write(folders / "test" / "0.parquet", embeddings[::3], ["a"] * 10)
    train.main(arguments(folders))
    assert metrics(folders / "out")["per_class_accuracy"]["b"] is None


def test_what_is_in_the_output_folder(folders, capsys):
    assert cli.run(train.main, arguments(folders)) == 0
    before = (folders / "out" / "model.pt").read_bytes()
    assert cli.run(train.main, arguments(folders)) == 2
    assert "not hold a training already, unless --overwrite" in capsys.readouterr().err
    assert (folders / "out" / "model.pt").read_bytes() == before
    assert cli.run(train.main, arguments(folders, "--overwrite", "--seed", "3")) == 0
    assert metrics(folders / "out")["seed"] == 3
    (folders / "out" / "letter.txt").write_text("mine")
    assert cli.run(train.main, arguments(folders, "--overwrite")) == 2
    assert (folders / "out" / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--synthetic", "/nowhere"], "--synthetic=/nowhere is refused: it must match a release, or"),
        (["--synthetic", "xyz://a/b"], "--synthetic=xyz://a/b is refused: it must lie on a file system"),
        (["--test", "/nowhere"], "--test=/nowhere is refused: it must match embeddings in Parquet or arrays"),
        (["--test", ""], "--test='' is refused: it must be a path"),
        (["--output", "xyz://a/b"], "--output=xyz://a/b is refused: it must lie on a file system"),
        (["--test", "SHORT"], "hold embeddings of length 10, as --synthetic does"),
        (["--test", "STRANGE"], "hold a row with a declared label and a finite embedding"),
        (["--test", "UNLABELLED"], "have a column 'label'"),
        (["--synthetic", "STRANGE"], "have two classes at least"),
        (["--synthetic", "EMPTY"], "have two classes at least"),
        (["--synthetic", "STRANGE", "--labels", "soft"], "--labels=soft is refused: it must be hard or auto"),
        (["--clip-norm", "2"], "--clip-norm=2.0 is refused: it must be left out"),
        (["--dimension", "10"], "--dimension=10 is refused: it must be left out"),
        (["--synthetic", "STRANGE", "--clip-norm", "-2"], "--clip-norm=-2.0 is refused"),
        (["--epochs", "0"], "--epochs=0 is refused: it must be a whole number from 1 to 10000."),
        (["--label-temperature", "inf"], "--label-temperature=inf is refused"),
        (
            ["--learning-rate", "1e300"],
            "--learning-rate=1e+300 is refused: it must be a number from 1e-09 to 10.",
        ),
        (
            ["--hidden", "1000000000000"],
            "--hidden=1000000000000 is refused: it must be a whole number from 1 to",
        ),
        (
            ["--synthetic", "STRANGE", "--clip-norm", "1e300"],
            "--clip-norm=1e+300 is refused: it must be a number ab",
        ),
        (
            ["--synthetic", "STRANGE", "--dimension", "0"],
            "--dimension=0 is refused: it must be from 1 to 8192",
        ),
        (["--output", "/proc/x"], "--output=/proc/x is refused: it must be a folder that can be written"),
        (["--output", ""], "--output='' is refused: it must be a path"),
        (["--output", "/dev/null"], "--output=/dev/null is refused: it must be an empty or a new folder"),
        (["--test", "\udcff"], r"--test=\udcff is refused: it must be a path in UTF-8"),
        (
            ["--test", "/dev/zero"],
            "--test=/dev/zero is refused: it must be regular files; /dev/zero is none",
        ),
    ],
)
def test_refusals(folders, capsys, change, sentence):
    embeddings, _ = blobs(9, 1)
    write(folders / "SHORT" / "0.parquet", embeddings[:, :7], ["a"] * 9)
    write(folders / "STRANGE" / "0.parquet", embeddings, ["z"] * 9)
    write(folders / "EMPTY" / "0.parquet", embeddings[:0], pa.array([], pa.string()))
    pq.write_table(pa.table({"embedding": fixed(embeddings)}), folders / "UNLABELLED")
    change = [str(folders / text) if text.isupper() else text for text in change]
    assert cli.run(train.main, [*arguments(folders), *change]) == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")
    assert not (folders / "out").exists()


def refused(folders, capsys) -> str:
    """The sentence with which the release is refused, before anything was trained."""
    assert cli.run(train.main, arguments(folders)) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("dpgmm: --synthetic=")
    assert err.count("\n") == 1
    assert not (folders / "out").exists()
    return err


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[" * 10**5, b"\xff", b"null", b'{"schema_version": 1}', b"x" * (manifest.MAX_BYTES + 1)],
    ids=lambda content: str(content[:30]),
)
def test_manifests_that_are_none(folders, capsys, content):
    (folders / "release" / "manifest.json").write_bytes(content)
    refused(folders, capsys)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *[("clip_norm", value) for value in (-1, 0, "x", 1e300)],
        *[("dimension", value) for value in (0, 9, "x", None, 10.0, 10**9)],
        *[("classes", value) for value in ([], ["a", "a"], ["a", ""], "abc", None, [1, 2], {"a": 1, "b": 2})],
    ],
)
def test_manifests_that_state_what_cannot_be(folders, capsys, entry, value):
    path = folders / "release" / "manifest.json"
    content = json.loads(path.read_text())
    content["config"][entry] = value
    path.write_text(json.dumps(content))
    refused(folders, capsys)


def changed(column, change):
    """A change of one column's values, (n, ...) float32."""

    def of_table(content):
        values = change(np.array(content[column].to_pylist(), np.float32))
        return content.set_column(content.column_names.index(column), column, fixed(values))

    return of_table


def put(value):
    def change(values):
        values[7, 1] = value
        return values

    return change


@pytest.mark.parametrize(
    "change",
    [
        *[changed("label_probabilities", put(value)) for value in (np.nan, np.inf, -0.5, 3)],
        *[changed("embedding", put(value)) for value in (np.nan, -np.inf, 1e30)],
        changed("label_probabilities", np.zeros_like),
        changed("label_probabilities", lambda values: values[:, :2]),
        changed("embedding", lambda values: values[:, :9]),
        *[lambda content, name=name: content.drop_columns([name]) for name in ("label", "embedding")],
        lambda content: content.drop_columns(["label_probabilities"]),
        lambda content: content.append_column("label", content["label"]),
        lambda content: content.set_column(0, "label", pa.array([None] * len(content), pa.string())),
        lambda content: content.set_column(0, "label", pa.array(["z"] * len(content))),
        lambda content: content.set_column(2, "label_probabilities", pa.array(["x"] * len(content))),
        lambda content: content.set_column(
            1, "embedding", pa.array([[1.0] * 10, *[[1.0]] * (len(content) - 1)])
        ),
    ],
)
def test_rows_of_a_release_that_are_not_good(folders, capsys, change):
    """In the second of two files: what the first has holds for both."""
    path = folders / "release" / "synthetic" / "part-1.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    refused(folders, capsys)


def damaged(path):
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)


def replaced(make):
    def change(path):
        path.unlink()
        make(path)

    return change


@pytest.mark.parametrize(
    "change",
    [
        damaged,
        lambda path: path.write_bytes(b"PAR1 none PAR1"),
        lambda path: os.truncate(path, 2**40),
        lambda path: path.unlink(),
        replaced(os.mkfifo),
        replaced(lambda path: path.symlink_to("/dev/zero")),
        replaced(lambda path: path.symlink_to(path.name)),
        lambda path: shutil.copy(path, path.with_name("part-z.parquet")),
        lambda path: path.rename(path.with_name("part-z.parquet")),
    ],
)
def test_files_of_a_release_that_are_not_good(folders, capsys, change):
    change(folders / "release" / "synthetic" / "part-1.parquet")
    refused(folders, capsys)


def test_rows_that_memory_cannot_hold(folders, capsys, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    assert "must fit into this machine's memory" in refused(folders, capsys)


def test_a_list_that_memory_cannot_hold(folders, capsys):
    """Among real rows, too, where one of another length is left out as long as it is no matter."""
    pa_lists = pa.array([np.zeros(2**24 + 100, np.float32), np.ones(10, np.float32)])
    pq.write_table(pa.table({"label": ["a", "b"], "embedding": pa_lists}), folders / "test" / "0.parquet")
    assert cli.run(train.main, arguments(folders)) == 2
    assert "--test=" in capsys.readouterr().err


def test_a_private_file_that_is_damaged_is_not_quoted(folders, capsys):
    damaged(folders / "test" / "0.parquet")
    assert cli.run(train.main, arguments(folders)) == 2
    assert capsys.readouterr().err.endswith("/test is refused: it must be readable Parquet throughout.\n")


@pytest.mark.parametrize("name", ["release", "release/network", "test", "test/network"])
def test_an_output_in_what_is_read(folders, capsys, name):
    before = small.contents(folders)
    assert cli.run(train.main, [*arguments(folders), "--output", str(folders / name), "--overwrite"]) == 2
    assert f"--output={folders / name} is refused" in capsys.readouterr().err
    assert small.contents(folders) == before


def test_a_training_that_cannot_be_put_in_its_place_leaves_the_old_one(folders, monkeypatch):
    assert cli.run(train.main, arguments(folders)) == 0
    before = small.contents(folders)
    rename = os.rename

    def fail(source, target):
        if "partial" in source and "replaced" not in source:
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    assert cli.run(train.main, arguments(folders, "--overwrite", "--seed", "3")) == 1
    assert small.contents(folders) == before


def test_a_release_of_one_class(folders, capsys):
    release(folders / "release", classes=["a"])
    assert cli.run(train.main, arguments(folders)) == 2
    assert "have two classes at least" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--direct_num_workers", "--epoch"])
def test_unknown_options_are_refused(folders, option):
    with pytest.raises(ConfigError, match=f"{option}=2 is refused: it must be an option of this verb"):
        train.main(arguments(folders, option, "2"))


def test_test_rows_of_other_columns_and_of_arrays(folders):
    """The same figures of the same rows, whatever holds them; and no column whose name begins alike."""
    quick = ["--epochs", "1"]
    assert train.main(arguments(folders, *quick)) == 0
    first = metrics(folders / "out")
    table = pq.read_table(folders / "test")
    vectors, labels = np.stack(table["embedding"].to_numpy()), table["label"].to_numpy().astype("U")
    named = table.rename_columns({"label": "target", "embedding": "vector"})
    named = named.append_column("vector.norm", pa.array([[0.0] * 20_000] * len(table)))
    (folders / "named" / "deep").mkdir(parents=True)
    pq.write_table(named, folders / "named" / "deep" / "x.PARQUET")
    np.savez(folders / "named.npz", vector=vectors, target=labels)
    columns = ["--label-column", "target", "--embedding-column", "vector"]
    for test in ("named", "named.npz"):
        more = [*quick, "--test", str(folders / test), "--output", str(folders / f"out of {test}")]
        assert train.main(arguments(folders, *more, *columns)) == 0
        assert metrics(folders / f"out of {test}") == first
        assert cli.run(train.main, arguments(folders, *more, "--overwrite")) == 2
