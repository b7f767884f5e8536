import io
import os
import tracemalloc
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.errors import ConfigError
from tests.strategies import quick
from tests.transforms import crate
from transforms.files import arrays, tables
from transforms.files.columns import Columns
from transforms.files.inputs import InputDescription, describe_input, labels_of

SCHEMES = ("", f"{crate.CrateFileSystem.scheme()}://")
VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3) + 0.5
LABELS = np.array(["a", "bé ", "", "a\u0301b"])


def save(folder, how, vectors=VECTORS, labels=LABELS):
    """Arrays in one of the layouts; the path of the input."""
    folder.mkdir(parents=True, exist_ok=True)
    if how == "folder":
        np.save(folder / "embeddings.npy", vectors, allow_pickle=True)
        np.save(folder / "labels.npy", labels, allow_pickle=True)
        return str(folder)
    write = np.savez if how == "npz" else np.savez_compressed
    write(folder / "x.npz", embeddings=vectors, labels=labels)
    return str(folder / "x.npz")


def rows_of(path, rows=3, **columns):
    """(label, embedding) of each row, as the prepare step reads them."""
    described = describe_input(str(path), "precomputed", columns=Columns(**columns))
    assert described.kind == arrays.EMBEDDING_ARRAYS
    found = []
    for file in tables.list_files(described.pattern, described.columns):
        groups = range(len(tables.row_counts(file.path, described.columns)))
        for batch in tables.embeddings(
            file.path, groups, rows, described.dimension, described.columns, described.labelled
        ):
            assert len(batch) <= rows
            labels = batch["label"].to_pylist() if described.labelled else [None] * len(batch)
            found += zip(labels, batch["embedding"].to_pylist(), strict=True)
    if described.labelled:
        assert [label for each in labels_of(described) for label in each.to_pylist()] == [
            label for label, _ in found
        ]
    return found


def refusal(path, encoder="precomputed", dimension=None, **columns):
    with pytest.raises(ConfigError) as caught:
        describe_input(str(path), encoder, dimension, Columns(**columns))
    return str(caught.value)


def expected(vectors=VECTORS, labels=LABELS):
    return list(zip(labels.reshape(-1).tolist(), vectors.tolist(), strict=True))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("how", ["folder", "npz", "compressed"])
def test_layouts(tmp_path, how, scheme, monkeypatch):
    monkeypatch.setattr(arrays, "GROUP_ROWS", 2)
    path = scheme + save(tmp_path / "in", how)
    assert describe_input(path, "precomputed") == InputDescription(
        "embedding_arrays", path, 3, labelled=True, rows=4
    )
    assert rows_of(path) == expected()
    # Below folders, too, and whatever the case.
    (tmp_path / "in").rename(tmp_path / "there")
    (tmp_path / "in").mkdir()
    (tmp_path / "there").rename(tmp_path / "in" / "deep")
    if how != "folder":
        (tmp_path / "in" / "deep" / "x.npz").rename(tmp_path / "in" / "deep" / "X.NPZ")
    assert rows_of(f"{scheme}{tmp_path}/in") == expected()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("columns_first", [False, True])
def test_types_and_orders(tmp_path, order, size, columns_first, monkeypatch):
    monkeypatch.setattr(arrays, "GROUP_ROWS", 3)
    vectors = VECTORS.astype(f"{order}f{size}", order="F" if columns_first else "C")
    labels = np.array([[1], [-2], [300], [0]], f"{order}i{size}")
    for how in ("folder", "npz"):
        path = save(tmp_path / how, how, vectors, labels)
        assert rows_of(path) == expected(vectors, labels)
    path = save(tmp_path / "c", "compressed", vectors, labels)
    if columns_first:
        assert "be saved in the order of rows, or uncompressed" in refusal(path)
    else:
        assert rows_of(path) == expected(vectors, labels)


def test_bytes_and_text_that_is_none(tmp_path):
    labels = np.array([b"a", b"b\xff", b"", b"\xc3\xa4"])
    assert [label for label, _ in rows_of(save(tmp_path, "npz", labels=labels))] == labels.tolist()
    points = np.array(["a", "b", "c", "d"]).view(np.uint32).copy()
    points[1:3] = 0xD800, 0x7FFFFFFF
    path = save(tmp_path, "npz", labels=points.view("<U1"))
    assert [label for label, _ in rows_of(path)] == ["a", None, None, "d"]
    assert rows_of(save(tmp_path, "npz", VECTORS[:0], LABELS[:0])) == []
    empty = np.array(["", ""])
    assert [label for label, _ in rows_of(save(tmp_path, "npz", VECTORS[:2], empty.astype("S")))] == [
        b"",
        b"",
    ]


@pytest.mark.parametrize(
    ("vectors", "labels", "words"),
    [
        (VECTORS.astype(int), LABELS, "float16, float32 or float64 of shape (rows, dimension)"),
        (VECTORS.astype(np.longdouble), LABELS, "holds float128 of 2 dimensions"),
        (VECTORS.astype(complex), LABELS, "holds complex128"),
        (VECTORS.astype(object), LABELS, "holds object of 2 dimensions"),
        (VECTORS[0], LABELS, "holds float32 of 1 dimension"),
        (np.zeros(4, [("a", "f4"), ("b", "f4")]), LABELS, "embeddings.npy holds [("),
        (VECTORS, LABELS.astype(object), "hold text or integers of shape (rows,) as its labels"),
        (VECTORS, np.ones(4), "holds float64 of 1 dimension"),
        (VECTORS, np.ones(4, bool), "holds bool of 1 dimension"),
        (VECTORS, np.eye(4, dtype=int), "holds int64 of 2 dimensions"),
        (VECTORS, LABELS[:3], "have as many labels as embeddings; "),
    ],
)
@pytest.mark.parametrize("how", ["folder", "npz", "compressed"])
def test_arrays_that_are_refused(tmp_path, how, vectors, labels, words):
    sentence = refusal(save(tmp_path, how, vectors, labels))
    assert sentence.startswith("input=")
    assert words in sentence


class Trap:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trap = np.array([Trap()] * 4, object)
    for how in ("folder", "npz", "compressed"):
        refusal(save(tmp_path / how, how, labels=trap))
        refusal(save(tmp_path / how, how, vectors=trap))
    assert not (tmp_path / "unpickled").exists()


def test_names_of_arrays(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, X=VECTORS, y=LABELS)
    assert refusal(path) == (
        f"embedding_column=embedding is refused: it must be an array of the input; {path} has 'X', which may"
        " be meant."
    )
    assert rows_of(path, embedding="X", label="y") == expected()
    assert "label_column=z is refused: it must be an array" in refusal(path, embedding="X", label="z")
    np.savez(path, embedding=VECTORS, label=LABELS)
    assert rows_of(path) == expected()
    np.savez(path, embeddings=VECTORS, target=LABELS)
    assert "'' for data without labels; " in refusal(path)
    assert rows_of(path, label="") == [(None, vector) for vector in VECTORS.tolist()]
    np.savez(path, embeddings=VECTORS)
    assert not describe_input(str(path), "precomputed").labelled
    np.savez(path, one=VECTORS)
    assert f"have an array 'embeddings'; {path} has one" in refusal(path)
    np.savez(path, embeddings=VECTORS, embedding=VECTORS)
    assert "have one array of" in refusal(path)


def test_names_of_files(tmp_path):
    np.save(tmp_path / "X.npy", VECTORS)
    np.save(tmp_path / "y.npy", LABELS)
    assert "be a folder that holds its arrays as embeddings.npy and labels.npy, or" in refusal(tmp_path)
    assert rows_of(tmp_path, embedding="X", label="y") == expected()
    assert "label_column=z is refused" in refusal(tmp_path, embedding="X", label="z")
    (tmp_path / "X.npy").rename(tmp_path / "embeddings.npy")
    assert f"{tmp_path} has 'y', which may be meant" in refusal(tmp_path)
    (tmp_path / "y.npy").rename(tmp_path / "label.npy")
    for pattern in ("", "/embeddings.npy", "/*.npy", "/emb*"):
        assert rows_of(f"{tmp_path}{pattern}") == expected()
    np.save(tmp_path / "labels.npy", LABELS)
    assert "have one file of labels beside it" in refusal(tmp_path)


def test_files_that_are_damaged(tmp_path):
    path = save(tmp_path, "folder")
    whole = (tmp_path / "embeddings.npy").read_bytes()
    for broken in (
        b"",
        b"hello",
        whole[:-1],
        whole[:50],
        whole.replace(b"float", b"flaat")[:-1],
        b"\x93NUMPY\x09\x09",
    ):
        (tmp_path / "embeddings.npy").write_bytes(broken)
        assert "be readable arrays only; " in refusal(path)
    header = b"\x93NUMPY\x01\x00" + (200).to_bytes(2, "little") + b"(" * 199 + b"\n"
    (tmp_path / "embeddings.npy").write_bytes(header)
    assert "be readable arrays only; " in refusal(path)
    (tmp_path / "embeddings.npy").unlink()
    for broken in (b"", b"PK", b"hello" * 99):
        (tmp_path / "x.npz").write_bytes(broken)
        assert "be readable arrays only; " in refusal(tmp_path / "x.npz")


def test_files_must_agree(tmp_path):
    save(tmp_path / "a", "npz")
    for vectors, labels in ((VECTORS[:, :2], LABELS), (VECTORS, np.arange(4))):
        save(tmp_path / "b", "npz", vectors, labels)
        assert "have one kind of labels and one length in all files; " in refusal(tmp_path)
    save(tmp_path / "b", "npz", VECTORS.astype(np.float64))
    assert rows_of(tmp_path) == expected() * 2


def test_arrays_beside_other_things(tmp_path):
    path = save(tmp_path, "npz")
    assert "encoder=efficientnet_lite0 is refused: it must be precomputed" in refusal(
        path, "efficientnet_lite0"
    )
    assert "dimension=4 is refused: it must be 3" in refusal(path, dimension=4)
    (tmp_path / "_x.npz").write_bytes(b"left out")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "y.npz").write_bytes(b"left out")
    assert rows_of(tmp_path) == expected()


def test_a_pin_covers_the_labels(tmp_path):
    path = save(tmp_path, "folder")
    files = tables.list_files(path, Columns())
    before = tables.pins_of(files, Columns())
    (name,) = before
    assert tables.pin_of(name, Columns()) == before[name]
    np.save(tmp_path / "labels.npy", LABELS[::-1])
    assert tables.pin_of(name, Columns()) != before[name]
    (tmp_path / "labels.npy").unlink()
    assert tables.pins_of(files, Columns()) != before


@quick
@given(
    st.integers(0, 9), st.integers(1, 4), st.integers(1, 5), st.sampled_from(["folder", "npz", "compressed"])
)
def test_any_groups_and_slices_give_every_row_once(tmp_path_factory, count, group, rows, how):
    folder = tmp_path_factory.mktemp("arrays")
    vectors = np.arange(2.0 * count).reshape(count, 2)
    labels = np.arange(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "GROUP_ROWS", group)
        assert rows_of(save(folder, how, vectors, labels), rows) == expected(vectors, labels)


def test_wide_labels_are_read_few_at_a_time(tmp_path, monkeypatch):
    """numpy gives each label as many bytes as the longest has."""
    monkeypatch.setattr(arrays, "_LABEL_BYTES", 1000)
    labels = np.array(["x" * 100, "a", "b", "c"])
    path = save(tmp_path, "npz", labels=labels)
    described = describe_input(path, "precomputed")
    assert [len(each) for each in labels_of(described)] == [2, 2]
    assert rows_of(path) == expected(labels=labels)
    monkeypatch.setattr(arrays, "MAX_LABEL_ITEM", 399)
    assert "hold labels of at most 399 bytes" in refusal(path)


def test_a_stored_member_behind_others_and_long_names(tmp_path):
    """Ranges are counted from the archive's beginning, whatever stands before the data."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("readme.txt", "not an array" * 99)
        for name, array in (("labels.npy", LABELS), ("embeddings.npy", VECTORS)):
            data = io.BytesIO()
            np.save(data, array)
            info = zipfile.ZipInfo(name)
            info.extra = b"\x99\x99\x04\x00abcd"
            archive.writestr(info, data.getvalue())
    assert rows_of(tmp_path / "x.npz") == expected()


@pytest.mark.parametrize("how", ["folder", "npz", "compressed"])
def test_little_of_a_large_array_is_in_memory(tmp_path, how):
    vectors = np.zeros((2**17, 64), np.float32, order="C" if how == "compressed" else "F")
    path = save(tmp_path, how, vectors, np.zeros(2**17, "<U64"))
    described = describe_input(path, "precomputed")
    (file,) = tables.list_files(path, Columns())
    groups = range(len(tables.row_counts(file.path, Columns())))
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        rows = sum(map(len, tables.embeddings(file.path, groups, 1024, 64, Columns(), labelled=True)))
        assert sum(map(len, labels_of(described))) == rows == 2**17
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    # The arrays have 32 MiB each.
    assert peak < 2**23
    assert pool.max_memory() < 2**22
