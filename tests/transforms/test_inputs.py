import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dpgmm_beam import rows
from dpgmm_beam.errors import ConfigError
from transforms import inputs
from transforms.inputs import InputDescription, RowGroups, describe_input


def vectors(rows, dimension=4, kind=None):
    kind = kind or pa.list_(pa.float32(), dimension)
    data = np.random.default_rng(0).normal(size=(rows, dimension)).astype("float16").tolist()
    return pa.array(data, kind)


def write(path, row_group_size=None, metadata=None, **columns):
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group_size)
    return str(path)


def image_folder(folder, names=("a/1.png", "b/2.JPG", "b/3.jpeg")):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if name.lower().endswith("png") else "JPEG"
        Image.new("L", (8, 8)).save(folder / name, kind)
    return str(folder)


def refusal(*arguments, **options):
    with pytest.raises(ConfigError) as caught:
        describe_input(*arguments, **options)
    return caught.value


def test_a_folder_of_images(tmp_path):
    folder = image_folder(tmp_path, ("b/2.JPG", "a/1.png", "a/.hidden.png", ".git/3.png", "b/3.Jpeg"))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "readme.md").write_text("no label")
    assert describe_input(folder, "efficientnet_lite0") == InputDescription(
        "image_folder", folder, None, True
    )
    assert describe_input(folder + "/", "efficientnet_lite0").pattern == folder
    images = inputs.list_images(folder)
    assert [(os.path.relpath(image.path, folder), image.label) for image in images] == [
        ("a/1.png", "a"),
        ("b/2.JPG", "b"),
        ("b/3.Jpeg", "b"),
    ]
    assert all(image.size == os.path.getsize(image.path) and image.modified > 0 for image in images)


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    image_folder(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    assert describe_input("images", "efficientnet_lite0").pattern == str(tmp_path / "images")


def test_names_with_pattern_characters(tmp_path):
    folder = tmp_path / "set [1] what?"
    image_folder(folder, ("a[b]/1.png",))
    description = describe_input(str(folder), "efficientnet_lite0")
    assert description.kind == inputs.IMAGE_FOLDER
    assert [image.label for image in inputs.list_images(description.pattern)] == ["a[b]"]
    write(folder / "a[b]" / "x.parquet", embedding=vectors(2))
    assert describe_input(str(folder / "a[b]" / "x.parquet"), "precomputed").dimension == 4
    assert describe_input(str(folder / "a[b]"), "precomputed").dimension == 4


@pytest.mark.parametrize("how", ["{0}/one.parquet", "{0}", "{0}/", "{0}/*.parquet", "{0}/[a-z]*.parquet"])
def test_parquet_by_file_folder_and_glob(tmp_path, how):
    write(tmp_path / "one.parquet", 3, embedding=vectors(7), label=pa.array(list("abcabca")))
    (tmp_path / "_dpgmm.json").write_text("{}")
    (tmp_path / "_half.parquet").write_text("skipped")
    (tmp_path / ".one.parquet-tmp.parquet").write_text("skipped")
    pattern = how.format(tmp_path)
    description = describe_input(pattern, "precomputed")
    assert description == InputDescription("embedding_parquet", os.path.abspath(pattern), 4, True)
    assert inputs.list_row_groups(pattern) == [RowGroups(str(tmp_path / "one.parquet"), (3, 3, 1))]


def test_a_folder_named_like_a_file(tmp_path):
    """Spark writes folders named x.parquet."""
    (tmp_path / "x.parquet").mkdir()
    write(tmp_path / "x.parquet" / "part-0.parquet", embedding=vectors(2))
    for pattern in (str(tmp_path / "x.parquet"), str(tmp_path / "x.parquet" / "*")):
        assert describe_input(pattern, "precomputed").kind == inputs.EMBEDDING_PARQUET


@pytest.mark.parametrize(
    "label",
    [
        pa.array(["a", None]),
        pa.array(["a", None], pa.large_string()),
        pa.array(["a", None]).dictionary_encode(),
        pa.array([1, None], pa.int8()),
        pa.array([1, 2], pa.uint64()),
    ],
    ids=lambda label: str(label.type),
)
@pytest.mark.parametrize("value", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_column_types(tmp_path, label, value):
    for name, kind in {"f": pa.list_(value, 4), "l": pa.list_(value), "g": pa.large_list(value)}.items():
        path = write(tmp_path / f"{name}.parquet", embedding=vectors(2, kind=kind), label=label)
        assert describe_input(path, "precomputed") == InputDescription("embedding_parquet", path, 4, True)


def test_unlabelled(tmp_path):
    path = write(tmp_path / "x.parquet", embedding=vectors(2))
    assert not describe_input(path, "precomputed").labelled
    path = write(tmp_path / "y.parquet", image=pa.array([b"x"]))
    assert describe_input(path, "efficientnet_lite0") == InputDescription("image_parquet", path, None, False)


def test_images_in_parquet(tmp_path):
    for kind in (pa.binary(), pa.large_binary()):
        path = write(tmp_path / "x.parquet", image=pa.array([b"x", None], kind), label=pa.array([1, 2]))
        assert describe_input(path, "efficientnet_lite0").kind == inputs.IMAGE_PARQUET
    error = refusal(path, "precomputed")
    assert str(error) == (
        f"--encoder=precomputed is refused: it must name a model, because --input={path} holds images."
    )
    assert "--dimension=7 is refused" in str(refusal(path, "efficientnet_lite0", 7))


def test_both_columns_the_encoder_decides(tmp_path):
    path = write(tmp_path / "x.parquet", image=pa.array([b"x"]), embedding=vectors(1))
    assert describe_input(path, "efficientnet_lite0").kind == inputs.IMAGE_PARQUET
    assert describe_input(path, "precomputed").kind == inputs.EMBEDDING_PARQUET


def test_the_encoder_of_embeddings(tmp_path):
    path = write(tmp_path / "x.parquet", embedding=vectors(2), metadata={inputs.ENCODER_KEY: "open_clip:M/x"})
    for encoder in ("precomputed", "open_clip:M/x"):
        assert describe_input(path, encoder).encoder == "open_clip:M/x"
    assert "be precomputed or open_clip:M/x, which the files name" in str(refusal(path, "efficientnet_lite0"))
    path = write(tmp_path / "x.parquet", embedding=vectors(2))
    error = refusal(path, "efficientnet_lite0")
    assert error.argument == "--encoder"
    assert "be precomputed, because --input=" in str(error)


def test_lengths_of_plain_lists_from_footers(tmp_path):
    plain = pa.list_(pa.float32())
    path = write(tmp_path / "x.parquet", 2, embedding=vectors(5, kind=plain), label=pa.array([1] * 5))
    assert describe_input(path, "precomputed").dimension == 4
    write(tmp_path / "y.parquet", 1, embedding=vectors(2, 3, plain), label=pa.array([1] * 2))
    assert "one length" in str(refusal(str(tmp_path), "precomputed"))
    ragged = pa.array([[1.0], [1.0, 2.0, 3.0], None], plain)
    for bad in (ragged, pa.array([[1.0] * 3, [1.0] * 4], plain), pa.array([], plain)):
        path = write(tmp_path / "y.parquet", 1, embedding=bad)
        error = refusal(path, "precomputed")
        assert error.argument == "--input"
        assert "give --dimension D, and rows of another length are set aside" in str(error)
        assert describe_input(path, "precomputed", 4).dimension == 4


def test_dimension_beside_fixed_size_lists(tmp_path):
    path = write(tmp_path / "x.parquet", embedding=vectors(2))
    assert describe_input(path, "precomputed", 4).dimension == 4
    assert str(refusal(path, "precomputed", 5)) == (
        "--dimension=5 is refused: it must be 4, the length of --input's embeddings."
    )


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"embedding": pa.array([[1, 2]])}, ["in column 'embedding'", "holds list<", "int64"]),
        ({"embedding": pa.array([1.0])}, ["in column 'embedding'", "holds double"]),
        ({"embedding": pa.array(["x"])}, ["in column 'embedding'", "holds string"]),
        ({"image": pa.array(["x"])}, ["as binary in column 'image'", "holds string"]),
        ({"label": pa.array(["x"])}, ["a column 'image' (binary) or 'embedding'", "has label"]),
        ({"embedding": vectors(1), "label": pa.array([1.5])}, ["in column 'label'", "holds double"]),
        ({"embedding": vectors(1), "label": pa.nulls(1)}, ["in column 'label'", "holds null"]),
    ],
)
def test_wrong_columns(tmp_path, columns, words):
    path = write(tmp_path / "x.parquet", **columns)
    error = refusal(path, "precomputed")
    assert error.argument == "--input"
    assert all(word in str(error) for word in [*words, path, "is refused: it must"])


@pytest.mark.parametrize(
    "other",
    [
        {"embedding": vectors(1, 5), "label": pa.array(["x"])},
        {"embedding": vectors(1, kind=pa.list_(pa.float32())), "label": pa.array(["x"])},
        {"embedding": vectors(1, kind=pa.list_(pa.float64(), 4)), "label": pa.array(["x"])},
        {"embedding": vectors(1), "label": pa.array([1])},
        {"embedding": vectors(1)},
        {"image": pa.array([b"x"]), "label": pa.array(["x"])},
        {"embedding": vectors(1), "label": pa.array(["x"]), "metadata": {"dpgmm.encoder": "other"}},
    ],
)
def test_files_must_agree(tmp_path, other):
    write(tmp_path / "a.parquet", embedding=vectors(1), label=pa.array(["x"]))
    write(tmp_path / "b.parquet", **other)
    error = refusal(str(tmp_path), "precomputed")
    assert error.argument == "--input"
    assert "have one schema in all files" in str(error)
    assert "a.parquet" in str(error)
    assert "b.parquet" in str(error)


def test_columns_that_are_not_used_may_differ(tmp_path):
    write(tmp_path / "a.parquet", embedding=vectors(1), label=pa.array(["x"]), note=pa.array([1]))
    write(tmp_path / "b.parquet", label=pa.array(["x"], pa.large_string()), embedding=vectors(1))
    assert describe_input(str(tmp_path), "precomputed").dimension == 4


def test_nothing_matches(tmp_path):
    (tmp_path / "empty").mkdir()
    for pattern in (str(tmp_path / "none"), str(tmp_path / "empty"), str(tmp_path / "*.parquet")):
        assert str(refusal(pattern, "precomputed")) == (
            f"--input={pattern} is refused: it must match something: be a folder of LABEL/*.png|jpg|jpeg"
            " images, or Parquet by file, folder or glob."
        )
    assert "be a folder of" in str(refusal("", "precomputed"))


def test_other_refusals(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no Parquet PAR1")
    assert "be readable Parquet only" in str(refusal(str(tmp_path), "precomputed"))
    (tmp_path / "broken.parquet").unlink()
    write(tmp_path / "x.parquet", embedding=vectors(1))
    image_folder(tmp_path)
    assert "not both" in str(refusal(str(tmp_path), "precomputed"))
    assert "a file system that Beam can open" in str(refusal("nosuch://bucket/x.parquet", "precomputed"))
    folder = image_folder(tmp_path / "images")
    assert "name a model" in str(refusal(folder, "precomputed"))
    assert refusal(folder, "efficientnet_lite0", 3).argument == "--dimension"


@pytest.mark.parametrize("value_type", [pa.float16(), pa.float32(), pa.float64()])
def test_a_null_among_fixed_size_lists_is_read_as_a_null(tmp_path, value_type):
    values = pa.array([[1, 2], None, [3, 4]], pa.list_(value_type, 2))
    labels = pa.array(["a", "b", "a"]).dictionary_encode()
    path = str(tmp_path / "rows.parquet")
    pq.write_table(pa.table({"label": labels, "embedding": values}), path)
    with inputs.open_rows(path) as file:
        (batch,) = file.iter_batches()
    accepted = rows.rows_of_batch(batch, rows.RowFormat(("a", "b"), 2, None))
    assert accepted.classes.tolist() == [0, 0]
    assert accepted.values.shape == (2, 2)
