import csv
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpgmm_beam.network import TrainConfig, load_network, train_network
from pipelines import cli
from tests import small
from tests.transforms import crate  # noqa: F401  (the scheme crate://)

CLASSES = ("c", "a", "ö,")


def rows(count, seed=0):
    generator = np.random.default_rng(seed)
    targets = np.arange(count) % 3
    values = 3 * np.eye(3, 5)[targets] + 0.5 * generator.standard_normal((count, 5))
    return values.astype(np.float32), targets


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    values, targets = rows(600)
    recipe = TrainConfig(hidden=16, learning_rate=0.02, batch_size=32)
    trained = train_network(values, targets, CLASSES, recipe, encoder="open_clip:A/b")
    folder = tmp_path_factory.mktemp("network")
    (folder / "model.pt").write_bytes(trained.to_bytes())
    return folder


def fixed(values):
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])


@pytest.fixture
def embeddings(tmp_path):
    """Two files; the names tell the order."""
    values, _ = rows(9000, 1)
    for name, part in (("b", values[5000:]), ("a", values[:5000])):
        table = pa.table({"embedding": fixed(part), "source": [f"{name}{n}.png" for n in range(len(part))]})
        table = table.replace_schema_metadata({"dpgmm.encoder": "open_clip:A/b"})
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet")
    return tmp_path / "in"


def predict(network, source, output, *more):
    argv = ["--network", str(network), "--input", str(source), "--output", str(output), *more]
    return cli.main(["predict", *argv])


def test_every_row_in_its_place(network, embeddings, tmp_path, capsys):
    assert predict(network, embeddings, tmp_path / "new" / "out.parquet") == 0
    out, err = capsys.readouterr()
    assert out == f"9000 rows are in {tmp_path / 'new' / 'out.parquet'}, which is as private as they are\n"
    assert not err
    path = tmp_path / "new" / "out.parquet"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    found = pq.read_table(path)
    values, targets = rows(9000, 1)
    loaded = load_network(network)
    assert found.column_names == ["source", "label", "label_probabilities"]
    assert found["label"].to_pylist() == [CLASSES[index] for index in loaded.predict(values)]
    np.testing.assert_allclose(
        np.array(found["label_probabilities"].to_pylist()), loaded.predict_proba(values), atol=1e-6
    )
    assert np.mean(found["label"].to_pylist() == np.array(CLASSES, object)[targets]) > 0.95
    assert found["source"].to_pylist()[4999:5001] == ["a4999.png", "b0.png"]
    assert json.loads(found.schema.metadata[b"dpgmm.classes"]) == list(CLASSES)
    assert b"private" in found.schema.metadata[b"dpgmm.private"]


def test_rows_of_which_nothing_can_be_told_keep_their_place(network, tmp_path, capsys):
    values, _ = rows(8)
    lists = [list(map(float, value)) for value in values]
    lists[1], lists[3], lists[5], lists[6] = None, [1.0], [float("nan")] * 5, [0.0] * 5
    pq.write_table(pa.table({"embedding": pa.array(lists, pa.list_(pa.float32()))}), tmp_path / "in.parquet")
    assert predict(network, tmp_path / "in.parquet", tmp_path / "out.parquet") == 0
    err = capsys.readouterr().err
    assert "no encoder is named by --input" in err
    assert "warning: 4 of 8 rows have no good embedding and got no label" in err
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.column_names == ["label", "label_probabilities"]
    for name in found.column_names:
        assert [value is None for value in found[name].to_pylist()] == [
            number in (1, 3, 5, 6) for number in range(8)
        ]
    assert predict(network, tmp_path / "in.parquet", tmp_path / "out.csv") == 0
    lines = list(csv.reader((tmp_path / "out.csv").open(encoding="utf-8", newline="")))
    assert lines[0] == ["label", "p(c)", "p(a)", "p(ö,)"]
    assert [line[0] for line in lines[1:]] == [label or "" for label in found["label"].to_pylist()]
    assert lines[2] == [""] * 4
    np.testing.assert_allclose(
        np.array(lines[1][1:], float), found["label_probabilities"][0].as_py(), atol=1e-6
    )


def test_csv_and_files_elsewhere(network, embeddings, tmp_path):
    assert predict(network, embeddings, tmp_path / "out.csv") == 0
    lines = list(csv.reader((tmp_path / "out.csv").open(encoding="utf-8", newline="")))
    assert lines[0][:2] == ["source", "label"]
    assert len(lines) == 9001
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o600
    for name in ("far.csv", "far.parquet"):
        assert predict(f"crate://{network}", f"crate://{embeddings}", f"crate://{tmp_path}/{name}") == 0
    assert (tmp_path / "far.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()
    assert pq.read_table(tmp_path / "far.parquet")["label"].to_pylist() == [line[1] for line in lines[1:]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--network", "/nowhere"], "--network=/nowhere is refused: it must be a folder in which"),
        (["--network", "{tmp}/none.pt"], "none.pt is refused: it must be a network that dpgmm train wrote"),
        (["--input", "/nowhere"], "--input=/nowhere is refused"),
        (["--input", "{tmp}/images.parquet"], "hold embeddings, not images: dpgmm embed makes them"),
        (["--input", "{tmp}/short.parquet"], "hold embeddings of length 5, as --network was trained on"),
        (["--input", "{tmp}/other.parquet"], "hold embeddings by open_clip:A/b, as --network does, not by x"),
        (["--input", "{tmp}/torn.parquet"], "--input={tmp}/torn.parquet is refused: it must be readable"),
        (["--dimension", "4"], "--dimension=4 is refused"),
        (["--output", "{tmp}/out.json"], "be a file whose name ends with .parquet or .csv"),
        (["--output", "{tmp}/there.csv"], "not be there already, unless --overwrite is given"),
        (["--output", "{tmp}/folder.csv"], "be a file, or a name that is not taken"),
        (["--output", "/proc/x/out.csv"], "be a file that can be written"),
        (["--output", "{tmp}/in/out.csv"], "lie apart from --input"),
        (["--outputs", "x"], "it must be an option of this verb, such as --output."),
    ],
)
def test_refusals(network, embeddings, tmp_path, capsys, change, sentence):
    values, _ = rows(9)
    tables = {
        "images": pa.table({"image": [b"x"]}),
        "short": pa.table({"embedding": fixed(values[:, :4])}),
        "other": pa.table({"embedding": fixed(values)}).replace_schema_metadata({"dpgmm.encoder": "x"}),
        "torn": pa.table({"embedding": fixed(rows(9000)[0])}),
    }
    for name, table in tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet", compression="none")
    data = bytearray((tmp_path / "torn.parquet").read_bytes())
    data[4:300] = bytes(296)
    (tmp_path / "torn.parquet").write_bytes(data)
    (tmp_path / "none.pt").write_bytes(b"no network")
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    before = small.contents(tmp_path)
    options = [option.format(tmp=tmp_path) for option in change]
    assert predict(network, embeddings, tmp_path / "out.parquet", *options) == 2
    assert sentence.format(tmp=tmp_path) in capsys.readouterr().err
    assert small.contents(tmp_path) == before


def test_a_file_is_replaced_whole_and_on_request(network, embeddings, tmp_path):
    (tmp_path / "out.csv").write_text("old")
    assert predict(network, embeddings, tmp_path / "out.csv", "--overwrite") == 0
    assert (tmp_path / "out.csv").read_text() != "old"
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o600
    shutil.rmtree(embeddings)
    os.mkdir(embeddings)
    assert predict(network, embeddings, tmp_path / "out.csv", "--overwrite") == 2


def test_what_is_in_a_network_file_is_not_run(tmp_path, capsys):
    """A pickle that would make a file."""
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    (tmp_path / "model.pt").write_bytes(pickle.dumps(Evil()))
    assert predict(tmp_path, tmp_path, tmp_path.parent / "out.csv") == 2
    assert "be a network that dpgmm train wrote" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_embeddings_by_any_name_and_labels_are_not_asked_for(network, embeddings, tmp_path):
    """Tensors of a fixed shape and a flat column whose name begins like theirs, too."""
    assert predict(network, embeddings, tmp_path / "wanted.csv") == 0
    for path in embeddings.iterdir():
        table = pq.read_table(path)
        tensor = pa.fixed_shape_tensor(pa.float32(), [5])
        vectors = pa.ExtensionArray.from_storage(tensor, table["embedding"].combine_chunks())
        other = {
            "vec.model": ["m"] * len(table),
            "vec": vectors,
            "source": table["source"].dictionary_encode(),
        }
        renamed = pa.table({**other, "target": ["a"] * len(table)})
        pq.write_table(renamed.replace_schema_metadata(table.schema.metadata), path)
    more = ("--embedding-column", "vec")
    assert predict(network, embeddings, tmp_path / "named.csv", *more) == 0
    assert (tmp_path / "named.csv").read_bytes() == (tmp_path / "wanted.csv").read_bytes()


def test_sources_that_are_no_text_are_left_out(network, embeddings, tmp_path):
    table = pq.read_table(embeddings / "a.parquet")
    table = table.set_column(1, "source", pa.array([{"id": 1}] * len(table)))
    pq.write_table(table, tmp_path / "in.parquet")
    assert predict(network, tmp_path / "in.parquet", tmp_path / "out.parquet") == 0
    assert pq.read_schema(tmp_path / "out.parquet").names == ["label", "label_probabilities"]
