import dataclasses
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dpgmm_beam.data import rows
from dpgmm_beam.errors import ConfigError
from tests.transforms import crate
from transforms.files import finding, image_folders, opening, parquet
from transforms.files.inputs import InputDescription, describe_input


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
    pins = {file.path: file.pin for file in finding.list_parquet(str(pattern))}
    return parquet.read_footers(str(pattern), pins, "precomputed")


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
    images = image_folders.list_images(folder)
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
    assert description.kind == image_folders.IMAGE_FOLDER
    assert [image.label for image in image_folders.list_images(description.pattern)] == ["a[b]"]
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
    assert found.pin == finding.pin_of(found.path)


def test_a_folder_named_like_a_file(tmp_path):
    """Spark writes folders named x.parquet."""
    (tmp_path / "x.parquet").mkdir()
    write(tmp_path / "x.parquet" / "part-0.parquet", embedding=vectors(2))
    for pattern in (str(tmp_path / "x.parquet"), str(tmp_path / "x.parquet" / "*")):
        assert describe_input(pattern, "precomputed").kind == parquet.EMBEDDING_PARQUET


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
        assert describe_input(path, "efficientnet_lite0").kind == parquet.IMAGE_PARQUET
    error = refusal(path, "precomputed")
    assert str(error) == (
        f"encoder=precomputed is refused: it must name a model, because the input {path} holds images."
    )
    assert "dimension=7 is refused" in str(refusal(path, "efficientnet_lite0", 7))


def test_a_list_holds_no_embeddings(tmp_path):
    (tmp_path / "x.csv").write_text("label,x0,x1\na,0.5,1\n")
    said = str(refusal(str(tmp_path / "x.csv"), "precomputed"))
    assert said.endswith("x.csv is a list of images; embeddings come as Parquet, .npz or .npy.")


def test_both_columns_the_encoder_decides(tmp_path):
    path = write(tmp_path / "x.parquet", image=pa.array([b"x"]), embedding=vectors(1))
    assert describe_input(path, "efficientnet_lite0").kind == parquet.IMAGE_PARQUET
    assert describe_input(path, "precomputed").kind == parquet.EMBEDDING_PARQUET


def test_the_encoder_of_embeddings(tmp_path):
    metadata = {parquet.ENCODER_KEY: "open_clip:M/x"}
    path = write(tmp_path / "x.parquet", embedding=vectors(2), metadata=metadata)
    for encoder in ("precomputed", "open_clip:M/x"):
        assert describe_input(path, encoder).encoder == "open_clip:M/x"
    assert "be precomputed or open_clip:M/x, which the files name" in str(refusal(path, "efficientnet_lite0"))
    path = write(tmp_path / "x.parquet", embedding=vectors(2))
    error = refusal(path, "efficientnet_lite0")
    assert error.argument == "encoder"
    assert "be precomputed, because the input " in str(error)


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
        assert error.argument == "input"
        assert "state the dimension, and rows of another length are set aside" in str(error)
        assert describe_input(path, "precomputed", 4).dimension == 4


def test_dimension_beside_fixed_size_lists(tmp_path):
    path = write(tmp_path / "x.parquet", embedding=vectors(2))
    assert describe_input(path, "precomputed", 4).dimension == 4
    assert str(refusal(path, "precomputed", 5)) == (
        "dimension=5 is refused: it must be 4, the length of the embeddings."
    )


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"embedding": pa.array([[1, 2]])}, ["in column 'embedding'", "holds list<", "int64"]),
        ({"embedding": pa.array([1.0])}, ["in column 'embedding'", "holds double"]),
        ({"embedding": pa.array(["x"])}, ["in column 'embedding'", "holds string"]),
        (
            {"image": pa.array(["x"])},
            ["as binary, or as struct<bytes: binary, path>, in column 'image'", "holds string"],
        ),
        ({"label": pa.array(["x"])}, ["a column 'image' (binary) or 'embedding'", "has label"]),
        ({"embedding": vectors(1), "label": pa.array([1.5])}, ["in column 'label'", "holds double"]),
    ],
)
def test_wrong_columns(tmp_path, columns, words):
    path = write(tmp_path / "x.parquet", **columns)
    error = refusal(path, "precomputed")
    assert error.argument == "input"
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
    assert error.argument == "input"
    assert "have one schema in all files" in str(error)
    assert "a.parquet" in str(error)
    assert "b.parquet" in str(error)


def test_columns_that_are_not_used_may_differ(tmp_path):
    write(tmp_path / "a.parquet", embedding=vectors(1), label=pa.array(["x"]), note=pa.array([1]))
    write(tmp_path / "b.parquet", label=pa.array(["x"], pa.large_string()), embedding=vectors(1))
    assert describe_input(str(tmp_path), "precomputed").dimension == 4


def test_nothing_matches(tmp_path):
    for pattern in (str(tmp_path / "none"), str(tmp_path / "*.parquet"), str(tmp_path / "*" / "*")):
        assert str(refusal(pattern, "precomputed")) == (
            f"input={pattern} is refused: it must match something: be a folder of LABEL/*.png|jpg|... images,"
            " a .csv or .jsonl list of images, .tar files of images, or Parquet or arrays (.npz,"
            " embeddings.npy and labels.npy) by file, folder or glob."
        )
    assert "be a folder of" in str(refusal("", "precomputed"))


def test_an_empty_folder_is_a_data_set_without_rows(tmp_path):
    """Whatever a folder is for, the last of its rows may leave it."""
    folder = str(tmp_path)
    images = InputDescription("image_folder", folder, None, True)
    assert describe_input(folder, "efficientnet_lite0") == dataclasses.replace(images, labelled=False)
    (tmp_path / "a").mkdir()
    assert describe_input(folder, "efficientnet_lite0") == images
    (tmp_path / "a" / "notes.txt").write_text("no image")
    assert describe_input(folder, "efficientnet_lite0") == images
    embeddings = InputDescription("embedding_parquet", folder, 7, True, rows=0)
    assert describe_input(folder, "precomputed", 7) == embeddings
    assert image_folders.list_images(folder) == finding.list_parquet(folder) == row_groups(folder) == []
    assert str(refusal(folder, "precomputed")) == (
        f"input={folder} is refused: it must hold Parquet files, or be an empty data set: state"
        " its dimension then."
    )
    assert refusal(folder, "efficientnet_lite0", 7).argument == "dimension"


def test_an_empty_far_folder(tmp_path):
    far = f"crate://{tmp_path}/in"
    assert "match something" in str(refusal(far, "efficientnet_lite0"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "_SUCCESS").write_text("")
    assert describe_input(far, "efficientnet_lite0").kind == image_folders.IMAGE_FOLDER
    assert describe_input(far, "precomputed", 7).rows == 0


PLAIN = pa.list_(pa.float32())
NULLS = {
    "labels": {"embedding": vectors(2), "label": pa.nulls(2)},
    "embeddings": {"embedding": pa.nulls(2), "label": pa.array(["x", "y"])},
    "lists of nulls": {"embedding": pa.array([None, [None]]), "label": pa.array(["x", "y"])},
}


@pytest.mark.parametrize("other", NULLS)
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_column_of_nulls_agrees_with_any(tmp_path, other, order):
    """Its type says nothing but that: the rows are bad, and are set aside as such."""
    write(tmp_path / f"{order[0]}.parquet", embedding=vectors(3), label=pa.array(["x", "y", None]))
    write(tmp_path / f"{order[1]}.parquet", **NULLS[other])
    assert describe_input(str(tmp_path), "precomputed") == InputDescription(
        "embedding_parquet", str(tmp_path), 4, True, rows=5
    )
    assert sum(sum(groups.rows) for groups in row_groups(tmp_path)) == 5
    (tmp_path / "plain").mkdir()
    write(
        tmp_path / "plain" / f"{order[0]}.parquet", embedding=vectors(3, kind=PLAIN), label=pa.array([1] * 3)
    )
    write(tmp_path / "plain" / f"{order[1]}.parquet", embedding=pa.nulls(2), label=pa.nulls(2))
    assert describe_input(str(tmp_path / "plain"), "precomputed").dimension == 4
    write(tmp_path / "c.parquet", embedding=vectors(1), label=pa.array([1]))
    assert "have one schema in all files" in str(refusal(str(tmp_path), "precomputed"))


def test_nothing_but_nulls(tmp_path):
    for number, columns in enumerate([*NULLS.values(), {"embedding": pa.array([None, None], PLAIN)}]):
        path = write(tmp_path / f"{number}.parquet", **columns)
        described = describe_input(path, "precomputed", 4)
        assert (described.kind, described.dimension, described.rows) == ("embedding_parquet", 4, 2)
        if number:
            assert "state the dimension" in str(refusal(path, "precomputed"))
        with parquet.open_rows(path) as file:
            (batch,) = file.iter_batches()
        row_format = rows.RowFormat(("x", "y"), 4, None, "label" in columns)
        assert len(rows.rows_of_batch(batch, row_format)) == 0
    path = write(tmp_path / "images.parquet", image=pa.nulls(2), label=pa.nulls(2))
    assert describe_input(path, "efficientnet_lite0").kind == parquet.IMAGE_PARQUET


def test_two_columns_of_one_name(tmp_path):
    for name in ("label", "embedding", "image"):
        columns = {"label": pa.array(["x"]), "embedding": vectors(1), "image": pa.array([b"x"])}
        table = pa.table([*columns.values(), columns[name]], [*columns, name])
        pq.write_table(table, tmp_path / "x.parquet")
        error = refusal(str(tmp_path / "x.parquet"), "precomputed")
        assert error.argument == "input"
        assert f"have one column '{name}'; {tmp_path}/x.parquet has several" in str(error)


def test_columns_whose_names_begin_alike(tmp_path):
    """As flattened JSON has them: the path of a leaf has dots, and so may a name."""
    plain = vectors(3, kind=PLAIN)
    columns = {
        "embedding.model": pa.array(["m"] * 3),
        "nested": pa.array([{"x": 1, "y": [{"z": 2}]}] * 3),
        "pairs": pa.array([[("k", "v")]] * 3, pa.map_(pa.string(), pa.string())),
        "label.source": pa.array([1.5] * 3),
        "kind": pa.array(["k"] * 3).dictionary_encode(),
        "embedding": plain,
        "label": pa.array(["x", "y", "x"]),
    }
    path = write(tmp_path / "x.parquet", **columns)
    assert describe_input(path, "precomputed").dimension == 4
    with parquet.open_rows(path) as file:
        (batch,) = file.iter_batches(columns=["embedding", "label"])
    assert pa.types.is_dictionary(batch.schema.field("label").type)
    assert rows.rows_of_batch(batch, rows.RowFormat(("x", "y"), 4, None)).classes.tolist() == [0, 1, 0]


def refused_twice(pattern, encoder="precomputed", dimension=None):
    """The driver's refusal, which a worker's reading of the footers repeats."""
    error = refusal(str(pattern), encoder, dimension)
    pins = {file.path: file.pin for file in finding.list_parquet(str(pattern))}
    with pytest.raises(ConfigError) as from_worker:
        parquet.read_footers(str(pattern), pins, encoder, dimension)
    assert str(from_worker.value) == str(error)
    assert error.argument == "input"
    return str(error)


def test_a_row_group_of_one_enormous_list(tmp_path, monkeypatch):
    """300 million zeros are 36 bytes in a file."""
    monkeypatch.setattr(parquet, "MAX_EXTRA_VALUES", 1000)
    lists = [[1.0] * 4] * 5 + [[0.0] * 1004]
    path = write(tmp_path / "x.parquet", embedding=pa.array(lists, PLAIN))
    assert describe_input(path, "precomputed", 4).dimension == 4
    write(tmp_path / "x.parquet", embedding=pa.array([*lists, [0.0] * 5], PLAIN))
    assert refused_twice(path, dimension=4) == (
        f"input={path} is refused: it must hold at most 4 values a row and 1,000 in a row group; {path}"
        " holds more."
    )


def test_row_groups_of_enormous_labels_and_images(tmp_path, monkeypatch):
    path = str(tmp_path / "x.parquet")
    long = pa.array(["x" * 1000, "y"])
    monkeypatch.setattr(parquet, "MAX_LABEL_CHUNK", 3000)
    write(path, embedding=vectors(2), label=long)
    describe_input(path, "precomputed")
    monkeypatch.setattr(parquet, "MAX_LABEL_CHUNK", 999)
    assert "128 MiB and 16 bytes a row of labels in a row group" in refused_twice(path)
    write(path, image=pa.array([b"x", b"y"]), label=long)
    assert "128 MiB and 16 bytes a row of labels in a row group" in refused_twice(path, "efficientnet_lite0")

    monkeypatch.setattr(parquet, "MAX_IMAGE_CHUNKS", ((1000, 5500), (10_000, 1000)))
    few, many = [b"x" * 5000, b"y" * 5000], [b"%d" % i * 4500 for i in range(3)]
    for images in (few, many[:2], many[:1], []):
        write(path, image=pa.array(images, pa.binary()))
        assert describe_input(path, "efficientnet_lite0").kind == parquet.IMAGE_PARQUET
    for images in ([b"x" * 7000], [b"x" * 12_500, b"y"], many):
        write(path, image=pa.array(images))
        sentence = refused_twice(path, "efficientnet_lite0")
        assert "at most 1 GiB and 1 MiB a row, of images in a row group" in sentence


def streams(path, row_groups):
    ((footer, _),) = parquet.agreeing(path, [path], "precomputed")
    return list(parquet.streams(footer.metadata, footer.columns, row_groups, 4))


def test_row_groups_of_one_stream(tmp_path):
    """A slice of so many rows must not gather the enormous ones of many small row groups."""
    normal, long = [[1.0] * 4] * 3, [[1.0] * 4, [0.0] * 2**21, [1.0] * 4]
    lists = pa.array(normal * 2 + long * 6 + normal * 2, PLAIN)
    labels = pa.array(["a"] * len(lists))
    path = write(tmp_path / "x.parquet", 3, embedding=lists, label=labels)
    # 16 MiB in double precision each, of 64.
    assert streams(path, range(10)) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert streams(path, [5]) == [[5]]
    path = write(tmp_path / "y.parquet", 3, embedding=pa.array(normal * 2, PLAIN))
    assert streams(path, [0, 1]) == [[0, 1]]


def test_too_many_rows(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", embedding=vectors(3))
    write(tmp_path / "b.parquet", embedding=vectors(4))
    monkeypatch.setattr("dpgmm_beam.privacy.lattice.MAX_ROWS", 7)
    assert describe_input(str(tmp_path), "precomputed").rows == 7
    write(tmp_path / "c.parquet", embedding=vectors(1))
    assert "have at most 7 rows" in refused_twice(tmp_path)


def test_what_is_no_file_is_refused_and_not_opened(tmp_path):
    write(tmp_path / "a.parquet", embedding=vectors(3))
    os.mkfifo(tmp_path / "b.parquet")
    os.mkfifo(tmp_path / "fifo")
    for pattern, path in (
        (tmp_path, tmp_path / "b.parquet"),
        (tmp_path / "*.parquet", tmp_path / "b.parquet"),
        (tmp_path / "fifo", tmp_path / "fifo"),
        ("/dev/zero", "/dev/zero"),
    ):
        assert str(refusal(str(pattern), "precomputed")) == (
            f"input={pattern} is refused: it must be regular files; {path} is none."
        )
    os.unlink(tmp_path / "b.parquet")
    os.symlink("gone.parquet", tmp_path / "b.parquet")
    assert "b.parquet is none" in str(refusal(str(tmp_path), "precomputed"))
    # Hidden ones are nobody's data.
    os.rename(tmp_path / "b.parquet", tmp_path / "_b.parquet")
    assert describe_input(str(tmp_path), "precomputed").rows == 3


def test_label_folders_may_be_links(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    image_folder(elsewhere, ("1.png", "2.png"))
    image_folder(tmp_path / "in", ("b/1.png",))
    os.symlink(elsewhere, tmp_path / "in" / "a")
    # A link that leads nowhere, or back to where it is, is no label.
    os.symlink(tmp_path / "gone", tmp_path / "in" / "c")
    os.symlink(".", tmp_path / "in" / "d")
    os.symlink("e", tmp_path / "in" / "e")
    found = image_folders.list_images(str(tmp_path / "in"))
    assert [os.path.relpath(image.path, tmp_path / "in") for image in found] == [
        "a/1.png",
        "a/2.png",
        "b/1.png",
    ]
    assert [image.label for image in found] == ["a", "a", "b"]
    assert all(image.size > 0 for image in found)


def test_an_image_of_several_names_is_one_row(tmp_path):
    image_folder(tmp_path, ("a/1.png", "b/2.png", "b/3.png"))
    os.link(tmp_path / "a" / "1.png", tmp_path / "a" / "9.png")
    os.symlink(tmp_path / "b" / "2.png", tmp_path / "a" / "0.png")
    os.symlink(tmp_path / "b", tmp_path / "c")
    shutil.copy(tmp_path / "a" / "1.png", tmp_path / "c" / "copy.png")
    found = image_folders.list_images(str(tmp_path))
    assert [os.path.relpath(image.path, tmp_path) for image in found] == [
        "a/0.png",
        "a/1.png",
        "b/3.png",
        "b/copy.png",
    ]


def test_listings_are_those_of_beam(tmp_path):
    """Of ordinary folders, by either way: what is found on the local disk and elsewhere is the same."""
    names = ("a/1.png", "a/x.parquet/2.png", ".h/3.png", "b/.4.png", "b/c/5.png", "6.png", "b/7.JPEG")
    image_folder(tmp_path, names)
    for name in ("x.parquet", "b/y.parquet", "b/.z.parquet", "b/_z.parquet", "b/c/w.parquet"):
        write(tmp_path / name, embedding=vectors(1))
    near, far = (image_folders.list_images(f"{scheme}{tmp_path}") for scheme in ("", "crate://"))
    assert [(image.label, image.size) for image in near] == [(image.label, image.size) for image in far]
    assert [image.modified for image in near] == [image.modified for image in far]
    for pattern in (
        "",
        "/b",
        "/*/*.parquet",
        "/b/[!a-x].parquet",
        "/b/?.parquet",
        "/*",
        "/**",
        "/**/w.*",
        "/b/y.parquet",
    ):
        near, far = (finding.list_parquet(f"{scheme}{tmp_path}{pattern}") for scheme in ("", "crate://"))
        assert [(file.path, file.size) for file in near] == [
            (crate.plain(file.path), file.size) for file in far
        ], pattern


def test_the_whole_disk_is_no_input(monkeypatch):
    for name in ("scandir", "walk", "listdir"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("the disk was walked"))
    assert "be a folder" in str(refusal("/", "efficientnet_lite0"))
    assert "be a folder" in str(refusal("//", "efficientnet_lite0"))
    assert finding.list_parquet("") == []


def test_every_folder_is_listed_once_and_none_for_no_pattern(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "round").symlink_to(tmp_path)
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    assert finding.list_tables("") == listed == []
    assert finding.list_tables(str(tmp_path)) == []
    assert listed == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]


@pytest.mark.parametrize("pattern", ["", "/*/*.parquet"])
def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch, pattern):
    """What is below it would be left out in silence otherwise, a whole class perhaps."""
    image_folder(tmp_path)
    scandir = os.scandir

    def forbidden(path):
        if os.path.basename(path) == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert str(refusal(f"{tmp_path}{pattern}", "efficientnet_lite0")) == (
        f"input={tmp_path}{pattern} is refused: it must be listable ({tmp_path}/b: Permission denied)."
    )


def test_a_glob_of_image_folders(tmp_path):
    image_folder(tmp_path / "batch-1")
    image_folder(tmp_path / "batch-2", ("c/1.png",))
    for scheme in ("", "crate://"):
        described = describe_input(f"{scheme}{tmp_path}/batch-*", "efficientnet_lite0")
        assert (described.kind, described.labelled) == (image_folders.IMAGE_FOLDER, True)
        assert [image.label for image in image_folders.list_images(described.pattern)] == list("abbc")
        assert "this is a single image, or a glob of images" in str(
            refusal(f"{scheme}{tmp_path}/batch-*/a/*.png", "efficientnet_lite0")
        )


def test_a_footer_that_cannot_be_read_is_not_quoted(tmp_path):
    path = write(tmp_path / "x.parquet", embedding=vectors(1))
    data = (tmp_path / "x.parquet").read_bytes()
    for broken in (b"", data[:-4], data[:-60] + b"\xff" * 40 + data[-20:], b"secret" * 9):
        (tmp_path / "x.parquet").write_bytes(broken)
        sentence = str(refusal(path, "precomputed"))
        assert sentence.startswith(
            f"input={path} is refused: it must be readable Parquet only; {path} is not ("
        )
        assert sentence.partition(" is not (")[2] in ("ArrowInvalid).", "OSError).")


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
    assert refusal(folder, "efficientnet_lite0", 3).argument == "dimension"


@pytest.mark.parametrize("value_type", [pa.float16(), pa.float32(), pa.float64()])
def test_a_null_among_fixed_size_lists_is_read_as_a_null(tmp_path, value_type):
    values = pa.array([[1, 2], None, [3, 4]], pa.list_(value_type, 2))
    labels = pa.array(["a", "b", "a"]).dictionary_encode()
    path = str(tmp_path / "rows.parquet")
    pq.write_table(pa.table({"label": labels, "embedding": values}), path)
    with parquet.open_rows(path) as file:
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
    folder = many_files(tmp_path / "in", parquet.DRIVER_FOOTERS + 1)
    assert describe_input(str(folder), "precomputed").rows is None
    assert len(row_groups(folder)) == parquet.DRIVER_FOOTERS + 1
    other = {"embedding": vectors(1, 5), "label": pa.array(["x"])}
    write(folder / f"{parquet.DRIVER_FOOTERS:05d}.parquet", **other)
    assert describe_input(str(folder), "precomputed").dimension == 4
    with pytest.raises(ConfigError) as from_worker:
        row_groups(folder)
    (folder / "00007.parquet").unlink()
    from_driver = refusal(str(folder), "precomputed")
    assert str(from_worker.value) == str(from_driver)
    assert "have one schema in all files" in str(from_driver)
    assert from_driver.argument == "input"


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
    pins = [finding.pin_of(path)]
    assert pins == [file.pin for file in finding.list_parquet(path)]
    stat = os.stat(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    pins.append(finding.pin_of(path))
    # Replaced by its own bytes with its own times: still another file.
    shutil.copy2(path, tmp_path / "y")
    os.replace(tmp_path / "y", path)
    pins.append(finding.pin_of(path))
    os.unlink(path)
    pins.append(finding.pin_of(path))
    assert len(set(pins)) == 4
    assert pins[-1] == ""


def test_a_pin_of_a_far_file(tmp_path):
    write(tmp_path / "x.parquet", embedding=vectors(2))
    far = f"crate://{tmp_path}/x.parquet"
    (listed,) = finding.list_parquet(far)
    assert finding.pin_of(far) == listed.pin != ""
    with open(tmp_path / "x.parquet", "ab") as file:
        file.write(b"more")
    assert finding.pin_of(far) != listed.pin
    os.unlink(tmp_path / "x.parquet")
    assert finding.pin_of(far) == ""


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
    monkeypatch.setattr(opening, "open_file", lambda path: pytest.fail("Beam's reader was asked"))
    path = f"{scheme}://bucket/x.parquet"
    with parquet.open_rows(path) as file:
        assert len(file.read()) == 5
    with opening.open_ranges(path) as file:
        assert file.size() == os.path.getsize(tmp_path / "x.parquet")
        assert file.read_at(4, 0) == b"PAR1"
    assert opened == [path, path]


def test_ranges_of_other_far_files_come_from_beam(tmp_path):
    (tmp_path / "x").write_bytes(b"0123456789")
    with opening.open_ranges(f"crate://{tmp_path}/x") as file:
        assert (file.size(), file.read_at(3, 6), file.read_at(2, 0)) == (10, b"678", b"01")
    assert opening.read_bytes(f"crate://{tmp_path}/x") == b"0123456789"


NAMES = {
    "a.parquet": True,
    "b/c/d/e.PARQUET": True,
    "b/f.Parquet.GZIP": True,
    "b/g.parq": True,
    "b/h.snappy.parquet": True,
    "b/x.parquet/part-0.pq": True,
    "b/i.parquet.crc": False,
    "b/.j.parquet": False,
    "b/_k.parquet": False,
    "_rejected/l.parquet": False,
    "b/.cache/m.parquet": False,
    "b/n.parquet~": False,
    "README.md": False,
}


@pytest.mark.parametrize("scheme", ["", "crate://"])
def test_all_tables_below_a_folder_whatever_the_case_and_depth(tmp_path, scheme):
    for name in NAMES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "in" / name, embedding=vectors(1), label=pa.array(["x"]))
    shown = sorted(name for name, is_shown in NAMES.items() if is_shown)

    def listed(pattern):
        return [crate.plain(file.path) for file in finding.list_tables(f"{scheme}{tmp_path}/{pattern}")]

    everything = [f"{tmp_path}/in/{name}" for name in shown]
    for pattern in ("in", "in/", "i*", "i?/", "**"):
        assert listed(pattern) == everything, pattern
    # What a glob names itself is taken beside what is below, if it has such a name.
    assert listed("in/*") == everything
    assert listed("in/b/*.parq") == [f"{tmp_path}/in/b/g.parq"]
    # A name that is given is no question of suffixes.
    assert listed("in/b/n.parquet~") == [f"{tmp_path}/in/b/n.parquet~"]
    assert listed("in/b/*.crc") == [f"{tmp_path}/in/b/i.parquet.crc"]
    assert describe_input(f"{scheme}{tmp_path}/in", "precomputed").rows == len(shown)


def test_links_to_folders_of_tables_are_followed_once(tmp_path):
    write(tmp_path / "x.parquet", embedding=vectors(1))
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    (tmp_path / "x.parquet").rename(tmp_path / "there" / "x.parquet")
    for link, target in (("a", "../there"), ("c", "../there"), ("b/up", "..")):
        (tmp_path / "in" / link).symlink_to(target if "/" not in link else "..")
    assert [file.path for file in finding.list_tables(str(tmp_path / "in"))] == [f"{tmp_path}/in/a/x.parquet"]
    (tmp_path / "in" / "gone.parquet").symlink_to("nowhere")
    assert f"{tmp_path}/in/gone.parquet is none" in str(refusal(str(tmp_path / "in"), "precomputed"))
