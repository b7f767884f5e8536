import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.errors import ConfigError
from tests.strategies import quick
from tests.transforms import crate
from transforms.files import parquet, parquet_schema, tables
from transforms.files.columns import Columns
from transforms.files.inputs import describe_input, labels_of

DATA = Path(__file__).parent / "data"
VECTORS = pa.array([[1.0, 2.0], [3.0, 4.0], None], pa.list_(pa.float32(), 2))
LABELS = pa.array(["x", "y", None])


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def refusal(path, encoder="precomputed", **columns):
    with pytest.raises(ConfigError) as caught:
        describe_input(str(path), encoder, 2, Columns(**columns))
    return str(caught.value)


def rows_of(path, dimension=2, **columns):
    """(label, embedding) of each row of an input, as the prepare step reads it."""
    described = describe_input(str(path), "precomputed", dimension, Columns(**columns))
    found = []
    for file in tables.list_files(described.pattern, described.columns):
        groups = range(len(tables.row_counts(file.path, described.columns)))
        for batch in tables.embeddings(file.path, groups, 2, dimension, described.columns, True):
            assert batch.schema.names == ["embedding", "label"]
            found += zip(batch["label"].to_pylist(), batch["embedding"].to_pylist(), strict=True)
    assert [label for batch in labels_of(described) for label in batch.to_pylist()] == [
        label for label, _ in found
    ]
    return found


ROWS = [("x", [1.0, 2.0]), ("y", [3.0, 4.0]), (None, None)]


def kinds(depth=2):
    """Types that Parquet can hold, with their number of leaves."""
    plain = st.sampled_from(
        [
            *(pa.int32(), pa.string(), pa.float64(), pa.string_view(), pa.binary_view(), pa.null()),
            *(pa.dictionary(pa.int8(), pa.string()), pa.fixed_shape_tensor(pa.float32(), (3,))),
            *(pa.uuid(), pa.json_(), pa.bool8(), pa.timestamp("us"), pa.decimal128(5, 2)),
        ]
    )
    if not depth:
        return plain
    inner = kinds(depth - 1)
    structs = st.lists(inner, min_size=1, max_size=3).map(
        lambda types: pa.struct([(f"f.{i}", kind) for i, kind in enumerate(types)])
    )
    lists = inner.flatmap(
        lambda kind: st.sampled_from([pa.list_(kind), pa.large_list(kind), pa.list_view(kind)])
    )
    return plain | structs | lists | inner.map(lambda kind: pa.map_(pa.string(), kind))


@quick
@given(st.lists(kinds(), min_size=1, max_size=5))
def test_a_column_is_found_by_its_place_whatever_stands_before_it(types):
    """The leaves of a schema are those that Parquet makes of it."""
    schema = pa.schema([(f"c.{i}", kind) for i, kind in enumerate([*types, pa.int64()])])
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema).close()
    footer = pq.read_metadata(pa.BufferReader(sink.getvalue()))
    assert sum(parquet_schema.leaves(kind) for kind in schema.types) == footer.num_columns
    for read in (footer.schema.to_arrow_schema(), schema):
        (last,) = parquet_schema.find(read, f"c.{len(types)}")
        assert footer.schema.column(last.leaf).path == f"c.{len(types)}"
        assert last.leaf == footer.num_columns - 1


def test_a_column_within_structs(tmp_path):
    inner = pa.struct([("note", pa.string()), ("vec", pa.list_(pa.float32(), 2)), ("label", pa.string())])
    values = [{"vec": [1.0, 2.0], "label": "x"}, {"vec": [3.0, 4.0], "label": "y"}, None]
    nested = pa.array([value and {"b": value} for value in values], pa.struct([("b", inner)]))
    names = {"embedding": "a.b.vec", "label": "a.b.label"}
    path = write(tmp_path / "x.parquet", a=nested)
    assert rows_of(path, **names) == ROWS
    # A column of just that name is meant before a path is.
    other = {"a.b.vec": pa.array([[9.0, 9.0]] * 3), "a.b.label": pa.array(["z"] * 3)}
    path = write(tmp_path / "x.parquet", a=nested, **other)
    assert rows_of(path, **names) == [("z", [9.0, 9.0])] * 3
    assert "embedding_column=a.c is refused: it must be a column" in refusal(path, embedding="a.c")
    twice = pa.StructArray.from_arrays([LABELS, LABELS], ["l", "l"])
    path = write(tmp_path / "x.parquet", embedding=VECTORS, a=twice)
    assert "have one column 'a.l'; " in refusal(path, label="a.l")


def extension(storage):
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (2,)), storage)


@pytest.mark.parametrize(
    "vectors",
    [
        VECTORS,
        VECTORS.cast(pa.large_list(pa.float64())),
        VECTORS.cast(pa.list_(pa.float16())),
        pa.array(VECTORS.to_pylist(), pa.list_view(pa.float32())),
        pa.array(VECTORS.to_pylist(), pa.large_list_view(pa.float32())),
        extension(VECTORS),
    ],
    ids=lambda array: str(array.type),
)
@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        LABELS.cast(pa.string_view()),
        LABELS.cast(pa.large_string()),
        LABELS.cast(pa.large_string()).dictionary_encode(),
        LABELS.cast(pa.json_()),
    ],
    ids=lambda array: str(array.type),
)
def test_types_count_by_what_they_store(tmp_path, vectors, labels):
    path = write(tmp_path / "x.parquet", embedding=vectors, label=labels)
    assert rows_of(path) == ROWS


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
@pytest.mark.parametrize("within", [False, True], ids=["plain", "struct"])
def test_images_by_what_they_store(tmp_path, kind, within):
    images = pa.array([b"a", None, b"c"]).cast(kind)
    if within:
        paths = pa.array(["1.png", "2.png", None])
        images = pa.StructArray.from_arrays([paths, images], ["path", "bytes"], mask=pa.array([False] * 3))
    path = write(tmp_path / "x.parquet", img=images, label=LABELS)
    columns = Columns(image="img")
    assert describe_input(path, "efficientnet_lite0", None, columns).kind == parquet.IMAGE_PARQUET
    with parquet.open_rows(path) as file:
        found = [row for b in parquet.images(file, 0, 2, path, columns, True) for row in b.to_pylist()]
    assert found == [
        {"image": b"a", "label": "x"},
        {"image": None, "label": "y"},
        {"image": b"c", "label": None},
    ]
    no_bytes = pa.array([{"path": "1.png"}])
    path = write(tmp_path / "y.parquet", image=no_bytes)
    assert "struct<bytes: binary, path>, in column 'image'" in refusal(path, "efficientnet_lite0")


def test_files_that_datasets_wrote():
    """Image, ClassLabel and List of Hugging Face's datasets 5.2, by its own `to_parquet`."""
    path = str(DATA / "datasets-image-class-label.parquet")
    described = describe_input(path, "efficientnet_lite0")
    assert (described.kind, described.labelled) == (parquet.IMAGE_PARQUET, True)
    assert [label for batch in labels_of(described) for label in batch.to_pylist()] == ["cat", "dog", "cat"]
    with parquet.open_rows(path) as file:
        (batch,) = parquet.images(file, 0, 10, path, Columns(), True)
    assert all(image.as_py().startswith(b"\x89PNG") for image in batch["image"])
    # -1 is what datasets writes for a label that is not known.
    path = str(DATA / "datasets-list-class-label.parquet")
    assert [label for label, _ in rows_of(path, 4)] == ["cat", "dog", None]


def class_labels(path, names, codes, column="label", kind=None):
    feature = {"names": names, "_type": "ClassLabel"}
    for part in reversed(column.split(".")):
        feature = {part: feature}
    labels = pa.array(codes, kind or pa.int64())
    table = pa.table({"embedding": [[1.0, 2.0]] * len(codes), column.split(".")[0]: labels})
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return str(path)


def test_class_labels_are_their_names(tmp_path):
    names, codes = ["cat", "dög ", "7"], [2, 0, 1, None, 3, 255]
    path = class_labels(tmp_path / "x.parquet", names, codes, kind=pa.uint8())
    expected = ["7", "cat", "dög ", None, None, None]
    assert [label for label, _ in rows_of(path)] == expected
    path = class_labels(tmp_path / "y.parquet", names, [2**64 - 1, 2], kind=pa.uint64())
    assert [label for label, _ in rows_of(path)] == [None, "7"]
    inner = pa.struct([("kind", pa.int64())])
    path = class_labels(
        tmp_path / "z.parquet", names, [{"kind": 1}, None, {"kind": None}], column="meta.kind", kind=inner
    )
    assert [label for label, _ in rows_of(path, label="meta.kind")] == ["dög ", None, None]
    # Names agree with text, and not with integers that nobody named.
    write(tmp_path / "all" / "a.parquet", embedding=[[1.0, 2.0]], label=["cat"])
    shutil.copy(tmp_path / "x.parquet", tmp_path / "all" / "b.parquet")
    assert [label for label, _ in rows_of(tmp_path / "all")] == ["cat", *expected]
    write(tmp_path / "all" / "c.parquet", embedding=[[1.0, 2.0]], label=[1])
    assert "have one schema in all files" in refusal(tmp_path / "all")


@pytest.mark.parametrize(
    "metadata",
    [
        "no JSON",
        "[" * 10**5,
        "[]",
        '{"info": null}',
        '{"info": {"features": {"label": {"names": null, "_type": "ClassLabel"}}}}',
        '{"info": {"features": {"label": {"names": ["a", 1], "_type": "ClassLabel"}}}}',
        '{"info": {"features": {"label": {"dtype": "int64", "_type": "Value"}}}}',
        '{"info": {"features": {"other": {"names": ["a"], "_type": "ClassLabel"}}}}',
    ],
    ids=lambda text: text[:70],
)
def test_metadata_that_names_nothing_leaves_integers(tmp_path, metadata):
    table = pa.table({"embedding": [[1.0, 2.0]], "label": [0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "x.parquet")
    assert rows_of(tmp_path / "x.parquet") == [(0, [1.0, 2.0])]


def test_half_a_surrogate_in_metadata_is_no_broken_job(tmp_path):
    path = class_labels(tmp_path / "x.parquet", ["\ud800", "b"], [0, 1])
    assert [label for label, _ in rows_of(path)] == ["?", "b"]


@pytest.mark.parametrize("scheme", ["", f"{crate.CrateFileSystem.scheme()}://"])
def test_folders_that_are_named_by_labels(tmp_path, scheme):
    for folder in (
        "label=a%20b",
        "label=c%2Fd",
        "label=__HIVE_DEFAULT_PARTITION__/day=1",
        "label=e+f",
        "label=",
    ):
        write(tmp_path / "in" / folder / "x.parquet", embedding=VECTORS[:1])
    found = sorted((label for label, _ in rows_of(f"{scheme}{tmp_path}/in")), key=str)
    assert found == sorted(["a b", "c/d", None, "e+f", ""], key=str)
    # So it is with one of the folders, or a glob of them.
    assert rows_of(f"{scheme}{tmp_path}/in/label=a%20b") == [("a b", [1.0, 2.0])]
    assert {label for label, _ in rows_of(f"{scheme}{tmp_path}/in/label=[ae]*")} == {"a b", "e+f"}


def test_folders_by_the_writer_of_arrow(tmp_path):
    labels = ["a/b", "ü=%", "a.b c"]
    table = pa.table({"embedding": [[1.0, float(i)] for i in range(3)], "target": labels})
    pq.write_to_dataset(table, tmp_path / "in", partition_cols=["target"])
    assert sorted(rows_of(tmp_path / "in", label="target")) == sorted(
        (label, [1.0, float(i)]) for i, label in enumerate(labels)
    )


def test_labels_in_two_places(tmp_path):
    path = write(tmp_path / "label=a" / "x.parquet", embedding=VECTORS, label=LABELS)
    assert (
        f"have labels in column 'label' or in folders 'label=...', not in both; {path} has both"
        in refusal(path)
    )
    path = write(tmp_path / "label=a" / "label=b" / "x.parquet", embedding=VECTORS)
    assert "have one folder 'label=...' in a path" in refusal(path)
    # One that may be meant is named.
    path = write(tmp_path / "class=a" / "x.parquet", embedding=VECTORS)
    assert f"{path} has 'class', which may be meant" in refusal(path)
    assert rows_of(path, label="class") == [("a", vector) for vector in VECTORS.to_pylist()]
    # Other columns' folders say nothing.
    path = write(tmp_path / "split=a" / "x.parquet", embedding=VECTORS, label=LABELS)
    assert rows_of(path) == ROWS


def test_a_folder_whose_name_is_no_text(tmp_path):
    write(tmp_path / "in" / "label=%ff" / "x.parquet", embedding=VECTORS[:1])
    assert rows_of(tmp_path / "in") == [("\ufffd", [1.0, 2.0])]
    (tmp_path / "in" / "label=%ff").rename(tmp_path / "in" / "label=\udcff")
    assert "be readable Parquet only; " in refusal(tmp_path / "in")


def test_columns_of_other_names_are_asked_for(tmp_path):
    path = write(tmp_path / "x.parquet", Vector=VECTORS, target=LABELS)
    assert refusal(path) == (
        f"embedding_column=embedding is refused: it must be a column of the input; {path} has 'Vector',"
        " which may be meant."
    )
    assert rows_of(path, embedding="Vector", label="target") == ROWS
    path = write(tmp_path / "x.parquet", embedding=VECTORS, target=LABELS)
    assert refusal(path) == (
        "label_column=label is refused: it must be a column of the input, or '' for data without labels;"
        f" {path} has 'target', which may be meant."
    )
    assert not describe_input(path, "precomputed", columns=Columns(label="")).labelled
    assert "label_column=kind is refused: it must be a column of the input; " in refusal(path, label="kind")
    path = write(tmp_path / "x.parquet", img=pa.array([b"a"]), label=pa.array([0]))
    assert f"image_column=image is refused: it must be a column of the input; {path} has 'img'" in refusal(
        path, "efficientnet_lite0"
    )
    for name in ("Label", "fine_label", "class.name"):
        path = write(tmp_path / "x.parquet", **{"embedding": VECTORS, name: LABELS})
        assert f"has '{name}', which may be meant" in refusal(path)
    # What only sounds like a label is none.
    path = write(tmp_path / "x.parquet", embedding=VECTORS, target=pa.array([0.5] * 3), y=VECTORS)
    assert not describe_input(path, "precomputed").labelled
    for field in ("image", "embedding"):
        with pytest.raises(ConfigError, match=f"{field}_column='' is refused"):
            Columns(**{field: ""})


def test_what_is_no_label(tmp_path):
    for labels in (pa.array([True]), pa.array([0.5]), pa.array([0], pa.date32()), pa.array([[1]])):
        path = write(tmp_path / "x.parquet", embedding=VECTORS[:1], label=labels)
        assert f"hold strings or integers in column 'label'; {path} holds" in refusal(path)
    path = write(tmp_path / "x.parquet", embedding=pa.array([[1]], pa.list_(pa.decimal128(5, 2))))
    assert "float16, float32 or float64 in column 'embedding'" in refusal(path)


def test_only_the_columns_that_are_meant_are_read(tmp_path):
    """Nothing of a flat column whose name begins alike, however large it is."""
    large = pa.array([np.random.default_rng(i).bytes(2**20) for i in range(8)])
    path = write(
        tmp_path / "x.parquet",
        **{"embedding.raw": large, "label.raw": large},
        embedding=pa.array([[1.0, 2.0]] * 8, pa.list_(pa.float32())),
        label=pa.array(["a"] * 8),
    )
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        assert rows_of(path) == [("a", [1.0, 2.0])] * 8
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 2**22


def test_a_long_label_within_a_struct_is_not_repeated_for_many_rows(tmp_path, monkeypatch):
    """Of a flat column dictionaries have it once; see `parquet.open_rows`."""
    monkeypatch.setattr(parquet, "_NESTED_LABEL_BYTES", 2**24)
    long = "x" * 2**20
    struct = pa.array([{"l": long if row % 2 else "a"} for row in range(400)])
    path = write(tmp_path / "x.parquet", embedding=pa.array([[1.0, 2.0]] * 400), m=struct)
    described = describe_input(path, "precomputed", 2, Columns(label="m.l"))
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        found = [pc.sum(pc.equal(labels, "a")).as_py() for labels in labels_of(described)]
    finally:
        pa.set_memory_pool(before)
    assert sum(found) == 200
    assert pool.max_memory() < 2**26
