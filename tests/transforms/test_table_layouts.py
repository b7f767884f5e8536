"""The same rows in every layout of tables: the same rows are accepted, and a release has the same bytes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpgmm_beam.data.rows import RecordForm, Rows, concatenate
from tests import small
from tests.strategies import quick
from tests.transforms import crate, steps
from transforms.files import arrays, prepared
from transforms.files.columns import Columns
from transforms.prepare import ListUnits, PrepareUnits, Source

FAR = f"{crate.CrateFileSystem.scheme()}://"
LABELS = ("a", "b", "c", "not declared")


def as_arrays(folder, vectors, labels):
    np.save(folder / "embeddings.npy", np.asfortranarray(vectors))
    np.save(folder / "labels.npy", np.array(labels))
    return folder


def as_npz(folder, vectors, labels):
    np.savez(folder / "x.npz", embeddings=vectors.astype(">f4"), labels=np.array(labels, "S"))
    return folder / "x.npz"


def as_compressed(folder, vectors, labels):
    half = len(labels) // 2
    for name, part in (("x", slice(None, half)), ("y", slice(half, None))):
        np.savez_compressed(folder / name, embedding=vectors[part], label=np.array(labels)[part])
    return folder


def lists(vectors, kind):
    return pa.array(list(vectors), kind)


def as_deep(folder, vectors, labels):
    """One file a row group, in folders, of several suffixes; plain lists and dictionaries."""
    table = pa.table({"embedding": lists(vectors, pa.list_(pa.float32())), "label": labels})
    for number in range(0, len(labels), 20):
        path = folder / str(number) / "deeper" / f"x.{('parquet', 'PARQUET', 'parq', 'pq')[number // 20 % 4]}"
        path.parent.mkdir(parents=True)
        pq.write_table(table.slice(number, 20), path)
    return folder


def as_hive(folder, vectors, labels):
    table = pa.table({"embedding": lists(vectors, pa.list_view(pa.float32())), "label": labels})
    for label in set(labels):
        path = folder / f"label={label}" / "x.parquet"
        path.parent.mkdir()
        where = np.flatnonzero(np.array(labels) == label)
        pq.write_table(table.take(where).drop_columns("label"), path, row_group_size=7)
    return folder


def as_class_labels(folder, vectors, labels):
    """As Hugging Face's datasets write it, with integers that the schema names."""
    feature = {"label": {"names": list(LABELS), "_type": "ClassLabel"}}
    table = pa.table(
        {
            "embedding": lists(vectors, pa.list_(pa.float32(), vectors.shape[1])),
            "label": [LABELS.index(label) for label in labels],
        }
    )
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    pq.write_table(table.replace_schema_metadata(metadata), folder / "train-00000-of-00001.parquet")
    return folder


LAYOUTS = [as_arrays, as_npz, as_compressed, as_deep, as_hive, as_class_labels]
OTHER_NAMES = Columns(label="m.l", embedding="m.v")


def as_nested(folder, vectors, labels):
    """Within a struct, beside columns whose names begin alike; read by `OTHER_NAMES`."""
    inner = pa.StructArray.from_arrays(
        [pa.array(labels), lists(vectors, pa.large_list(pa.float32()))], ["l", "v"]
    )
    pq.write_table(pa.table({"m.x": pa.array(labels), "m": inner}), folder / "x.parquet", row_group_size=9)
    return folder


def accepted(folder: Path, source: Source) -> Rows:
    plan, workspace = steps.setting(folder)
    units = list(ListUnits(plan, workspace, steps.EXECUTION).process(source))
    worker = PrepareUnits(workspace, steps.EXECUTION)
    worker.setup()
    pieces = [piece for unit in units for piece in worker.process(unit)]
    blocks = [block for at in pieces for block in prepared.read(workspace.piece(*at), RecordForm(16), 64)]
    return concatenate(blocks, 16)


def sorted_rows(rows: Rows) -> list[bytes]:
    return sorted(record.tobytes() for record in rows.records())


def some_rows(count, seed):
    generator = np.random.default_rng(seed)
    labels = generator.choice(LABELS, count).tolist()
    vectors = generator.normal(size=(count, 16)).astype(np.float32)
    # Rows that are set aside, wherever they come from.
    vectors[generator.random(count) < 0.1, 3] = np.nan
    vectors[generator.random(count) < 0.1] = 0
    return vectors, labels


@settings(quick, max_examples=20)
@given(st.integers(1, 90), st.integers(0, 2**32), st.sampled_from([*LAYOUTS, as_nested]), st.integers(1, 30))
def test_any_layout_of_the_same_rows_gives_the_same_accepted_rows(
    tmp_path_factory, count, seed, layout, least_piece
):
    folder = tmp_path_factory.mktemp("layouts")
    vectors, labels = some_rows(count, seed)
    (folder / "in").mkdir()
    source = layout(folder / "in", vectors, labels)
    columns = OTHER_NAMES if layout is as_nested else Columns()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transforms.files.listing.LEAST_PIECE_ROWS", least_piece)
        patch.setattr(arrays, "GROUP_ROWS", 11)
        found = accepted(folder / "work", Source(str(source), columns=columns))
    (folder / "plain").mkdir()
    pq.write_table(small.embeddings_table(labels, vectors), folder / "plain" / "x.parquet")
    expected = accepted(folder / "again", Source(str(folder / "plain")))
    assert sorted_rows(found) == sorted_rows(expected)
    good = np.isfinite(vectors).all(axis=1) & (vectors != 0).any(axis=1) & (np.array(labels) != LABELS[3])
    assert len(found) == good.sum()


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The bytes of a release of some rows in one plain Parquet file."""
    folder = tmp_path_factory.mktemp("plain")
    vectors, labels = some_rows(200, 1)
    (folder / "in").mkdir()
    pq.write_table(small.embeddings_table(labels, vectors), folder / "in" / "x.parquet")
    return small.run(folder / "in", folder / "out", small.write_key(folder / "key"))


@pytest.mark.parametrize(
    ("layout", "scheme"), [(as_arrays, FAR), (as_npz, ""), (as_compressed, FAR), (as_hive, FAR)]
)
def test_a_release_has_the_same_bytes(release, tmp_path, layout, scheme):
    (tmp_path / "in").mkdir()
    source = layout(tmp_path / "in", *some_rows(200, 1))
    assert small.run(f"{scheme}{source}", tmp_path / "out", small.write_key(tmp_path / "key")) == release
