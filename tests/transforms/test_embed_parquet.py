import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.transforms.embedding import ENCODER, embed_shard, encoded, expected, picture, rows, run
from transforms.files.columns import Columns
from transforms.files.inputs import describe_input
from transforms.files.shards import plan_shards


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (pa.array([3, None, 5] * 5), ["3", None, "5"]),
        (pa.array(["x", None, "z"] * 5).dictionary_encode(), ["x", None, "z"]),
        (pa.array(["x", None, "z"] * 5, pa.large_string()), ["x", None, "z"]),
        (None, [None] * 3),
    ],
)
def test_images_in_parquet(tmp_path, labels, shown):
    data = [encoded(picture(i), "JPEG") for i in range(15)]
    data[2], data[7] = None, b"bad"
    columns = {"image": pa.array(data, pa.binary()), "ignored": pa.array(range(15))}
    if labels is not None:
        columns["label"] = labels
    pq.write_table(pa.table(columns), tmp_path / "in.parquet", row_group_size=4)
    out = run(tmp_path / "in.parquet", tmp_path / "cache", shard_rows=8)
    assert [sum(groups.rows) for groups in sorted(out, key=lambda groups: -sum(groups.rows))] == [7, 6]
    found = rows(out)
    sources = [f"{tmp_path}/in.parquet#{i // 4}:{i % 4}" for i in range(15)]
    assert sorted(found) == sorted(s for i, s in enumerate(sources) if i not in (2, 7))
    for i in (0, 1, 5, 14):
        label, embedding = found[sources[i]]
        assert label == shown[i % 3]
        assert np.array_equal(embedding, expected(data[i]))
    assert describe_input(str(tmp_path / "cache"), ENCODER).labelled == (labels is not None)


def test_a_label_that_is_not_text_does_not_fail_the_job(tmp_path):
    offsets, bytes_ = pa.py_buffer(np.array([0, 2, 4], np.int32)), pa.py_buffer(b"\xff\xfeok")
    labels = pa.Array.from_buffers(pa.string(), 2, [None, offsets, bytes_])
    images = pa.array([encoded(picture(0))] * 2)
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "in.parquet")
    (groups,) = run(tmp_path / "in.parquet", tmp_path / "cache")
    assert groups.rows == (2,)
    assert pq.read_table(groups.path)["label"][1].as_py() == "ok"


def test_a_long_label_is_not_repeated(tmp_path):
    """No class can have it: such a row is set aside as one without a label, and costs no gigabytes."""
    labels = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, 0] * 10), pa.array(["x" * 2**20, "ok"]))
    images = pa.array([encoded(picture(0))] * 40)
    table = pa.table({"image": images, "label": labels})
    pq.write_table(table, tmp_path / "in.parquet", compression="zstd", dictionary_pagesize_limit=2**22)
    (groups,) = run(tmp_path / "in.parquet", tmp_path / "cache")
    assert pq.read_table(groups.path)["label"].to_pylist() == [None, "ok", None, None] * 10
    assert os.path.getsize(groups.path) < 2**19


@pytest.mark.parametrize("column", ["image", "label"])
def test_columns_of_nulls(tmp_path, column):
    table = {"image": pa.array([encoded(picture(0))] * 3), "label": pa.array(["a"] * 3)}
    pq.write_table(pa.table({**table, column: pa.nulls(3)}), tmp_path / "in.parquet")
    (groups,) = run(tmp_path / "in.parquet", tmp_path / "cache")
    assert groups.rows == ((0,) if column == "image" else (3,)) or sum(groups.rows) == 0
    assert pq.read_schema(groups.path).field("label").type == pa.string()


def test_a_page_that_cannot_be_decoded_fails_without_its_bytes(tmp_path):
    path = tmp_path / "in.parquet"
    table = pa.table({"image": pa.array([encoded(picture(i)) for i in range(9)])})
    pq.write_table(table, path)
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 400 + data[404:])
    (shard,) = plan_shards(describe_input(str(path), ENCODER), ENCODER, 16)
    with pytest.raises(RuntimeError) as caught:
        embed_shard(shard, tmp_path / "cache")
    assert str(caught.value).startswith(f"{path} could not be read (")
    assert len(str(caught.value)) < len(str(path)) + 50


def test_row_groups_of_a_shard_stay_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("transforms.files.cache.ROW_GROUP_ROWS", 16)
    images = pa.array([encoded(picture(i)) for i in range(50)])
    pq.write_table(pa.table({"image": images}), tmp_path / "in.parquet")
    (groups,) = run(tmp_path / "in.parquet", tmp_path / "cache")
    assert groups.rows == (16, 16, 16, 2)
    assert len(rows([groups])) == 50


def test_images_and_labels_of_other_columns(tmp_path):
    """As datasets of Hugging Face hold them: struct<bytes, path> and integers that the schema names."""
    data = [encoded(picture(i)) for i in range(6)]
    struct = pa.array([{"path": f"{i}.png", "bytes": each} for i, each in enumerate(data)])
    feature = {"kind": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    columns = {"img": struct, "kind": pa.array([0, 1, -1, None, 1, 0]), "other": ["x"] * 6}
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=4)

    def cached(label):
        described = describe_input(
            str(tmp_path / "in.parquet"), ENCODER, columns=Columns(image="img", label=label)
        )
        shards = list(plan_shards(described, ENCODER, 16))
        for shard in shards:
            embed_shard(shard, tmp_path / "cache")
        tables = [pq.read_table(tmp_path / "cache" / shard.name) for shard in shards]
        return pa.concat_tables(tables)

    found = cached("kind")
    assert found["label"].to_pylist() == ["cat", "dog", None, None, "dog", "cat"]
    assert all(map(np.array_equal, found["embedding"].to_numpy(), map(expected, data)))
    # Another column's labels are no part of the same cache file.
    assert cached("other")["label"].to_pylist() == ["x"] * 6
    assert cached("").column_names == ["embedding", "source"]
