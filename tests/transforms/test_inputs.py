import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dpgmm_beam import rows
from dpgmm_beam.errors import ConfigError
from tests.transforms import crate  # noqa: F401  (the scheme crate://)
from transforms import inputs
from transforms.inputs import InputDescription, describe_input


def vectors(rows, dimension=4, kind=None):
    kind = kind or pa.list_(pa.float32(), dimension)
    data = np.random.default_rng(0).normal(size=(rows, dimension)).astype("float16").tolist()
    return pa.array(data, kind)


def write(path, row_group_size=None, metadata=None, **columns):
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group_size)
    return str(path)


def row_groups(pattern):
    """What a worker finds of an input's files."""
    pins = {file.path: file.pin for file in inputs.list_parquet(str(pattern))}
    return inputs.read_footers(str(pattern), pins, "precomputed")


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
    assert description == InputDescription("embedding_parquet", os.path.abspath(pattern), 4, True, rows=7)
    (found,) = row_groups(pattern)
    assert (found.path, found.rows) == (str(tmp_path / "one.parquet"), (3, 3, 1))
    assert found.pin == inputs.pin_of(found.path)


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
        expected = InputDescription("embedding_parquet", path, 4, True, rows=2)
        assert describe_input(path, "precomputed") == expected


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


def many_files(folder, count):
    folder.mkdir()
    write(folder / "00000.parquet", embedding=vectors(2), label=pa.array(["x", "y"]))
    for number in range(1, count):
        shutil.copy(folder / "00000.parquet", folder / f"{number:05d}.parquet")
    return folder


def test_the_driver_reads_some_footers_and_a_worker_all(tmp_path):
    """A file beyond the driver's with another schema is refused by the worker, in the same sentence."""
    folder = many_files(tmp_path / "in", inputs.DRIVER_FOOTERS + 1)
    assert describe_input(str(folder), "precomputed").rows is None
    assert len(row_groups(folder)) == inputs.DRIVER_FOOTERS + 1
    other = {"embedding": vectors(1, 5), "label": pa.array(["x"])}
    write(folder / f"{inputs.DRIVER_FOOTERS:05d}.parquet", **other)
    assert describe_input(str(folder), "precomputed").dimension == 4
    with pytest.raises(ConfigError) as from_worker:
        row_groups(folder)
    (folder / "00007.parquet").unlink()
    from_driver = refusal(str(folder), "precomputed")
    assert str(from_worker.value) == str(from_driver)
    assert "have one schema in all files" in str(from_driver)
    assert from_driver.argument == "--input"


def test_a_driver_that_reads_all_footers_knows_the_rows_bad_ones_included(tmp_path):
    bad = pa.array([[1.0] * 4, None, [float("nan")] * 4], pa.list_(pa.float32(), 4))
    write(tmp_path / "a.parquet", embedding=bad)
    write(tmp_path / "b.parquet", embedding=vectors(5))
    assert describe_input(str(tmp_path), "precomputed").rows == 8


def test_a_file_of_two_names_is_there_once(tmp_path):
    path = write(tmp_path / "b.parquet", embedding=vectors(2))
    os.symlink(path, tmp_path / "a.parquet")
    os.link(path, tmp_path / "c.parquet")
    shutil.copy(path, tmp_path / "d.parquet")
    found = row_groups(tmp_path)
    assert [os.path.basename(each.path) for each in found] == ["a.parquet", "d.parquet"]


def test_a_pin_tells_a_file_from_the_same_file_changed(tmp_path):
    path = write(tmp_path / "x.parquet", embedding=vectors(2))
    pins = [inputs.pin_of(path)]
    assert pins == [file.pin for file in inputs.list_parquet(path)]
    stat = os.stat(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    pins.append(inputs.pin_of(path))
    # Replaced by its own bytes with its own times: still another file.
    shutil.copy2(path, tmp_path / "y")
    os.replace(tmp_path / "y", path)
    pins.append(inputs.pin_of(path))
    os.unlink(path)
    pins.append(inputs.pin_of(path))
    assert len(set(pins)) == 4
    assert pins[-1] == ""


def test_a_pin_of_a_far_file(tmp_path):
    write(tmp_path / "x.parquet", embedding=vectors(2))
    far = f"crate://{tmp_path}/x.parquet"
    (listed,) = inputs.list_parquet(far)
    assert inputs.pin_of(far) == listed.pin != ""
    with open(tmp_path / "x.parquet", "ab") as file:
        file.write(b"more")
    assert inputs.pin_of(far) != listed.pin
    os.unlink(tmp_path / "x.parquet")
    assert inputs.pin_of(far) == ""


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_ranges_of_google_and_amazon_come_from_arrow(tmp_path, monkeypatch, scheme):
    """No store is asked here: `from_uri` gives a local folder in its place."""
    write(tmp_path / "x.parquet", 2, embedding=vectors(5))
    opened = []

    def from_uri(uri):
        opened.append(uri)
        return pyarrow.fs.LocalFileSystem(), str(tmp_path / uri.partition("://")[2].partition("/")[2])

    monkeypatch.setattr(
        pyarrow.fs, "FileSystem", type("FileSystem", (), {"from_uri": staticmethod(from_uri)})
    )
    monkeypatch.setattr(inputs, "_open", lambda path: pytest.fail("Beam's reader was asked"))
    path = f"{scheme}://bucket/x.parquet"
    with inputs.open_rows(path) as file:
        assert len(file.read()) == 5
    with inputs.open_ranges(path) as file:
        assert file.size() == os.path.getsize(tmp_path / "x.parquet")
        assert file.read_at(4, 0) == b"PAR1"
    assert opened == [path, path]


def test_ranges_of_other_far_files_come_from_beam(tmp_path):
    (tmp_path / "x").write_bytes(b"0123456789")
    with inputs.open_ranges(f"crate://{tmp_path}/x") as file:
        assert (file.size(), file.read_at(3, 6), file.read_at(2, 0)) == (10, b"678", b"01")
    assert inputs.read_bytes(f"crate://{tmp_path}/x") == b"0123456789"
