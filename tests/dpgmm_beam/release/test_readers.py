"""A release as other libraries read it; each is skipped where it is not installed.

With all of them: `pip install datasets pandas polars duckdb`.
"""

import os

import numpy as np
import pytest

from tests import small

ROWS = 3 * 40
COLUMNS = ["label", "embedding", "label_probabilities", "component_class", "component"]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readers")
    source = small.write_rows(folder / "in", small.table(300))
    for path, data in small.in_memory(source).items():
        (folder / "release" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "release" / path).write_bytes(data)
    return folder / "release"


def check(labels, embeddings, probabilities):
    embeddings, probabilities = np.array(embeddings), np.array(probabilities)
    assert embeddings.shape == (ROWS, 16)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    assert list(labels) == [small.CLASSES[index] for index in probabilities.argmax(axis=1)]


def test_datasets_loads_the_folder(release, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    found = datasets.load_dataset(str(release), split="train", cache_dir=str(tmp_path))
    assert found.column_names == COLUMNS
    assert found.num_rows == ROWS
    assert found.features["label"].dtype == "string"
    assert found.features["embedding"].length == 16
    check(found["label"], found["embedding"], found["label_probabilities"])
    torch = pytest.importorskip("torch")
    batch = next(iter(torch.utils.data.DataLoader(found.with_format("torch"), batch_size=8)))
    assert batch["embedding"].shape == (8, 16)
    assert batch["label_probabilities"].dtype == torch.float32


def test_pandas(release):
    pandas = pytest.importorskip("pandas")
    found = pandas.read_parquet(release / "synthetic")
    assert list(found.columns) == COLUMNS
    check(found["label"], np.stack(found["embedding"]), np.stack(found["label_probabilities"]))


def test_polars(release):
    polars = pytest.importorskip("polars")
    found = polars.read_parquet(release / "synthetic" / "*.parquet")
    assert found.columns == COLUMNS
    check(found["label"], found["embedding"].to_numpy(), found["label_probabilities"].to_numpy())


def test_duckdb(release):
    duckdb = pytest.importorskip("duckdb")
    pattern = os.path.join(release, "synthetic", "*.parquet")
    columns = ", ".join(COLUMNS)
    found = duckdb.sql(f"SELECT {columns} FROM '{pattern}'").fetchall()
    check(*list(zip(*found, strict=True))[:3])
    # Without a word of this program: how often the two classes agree.
    ((agree,),) = duckdb.sql(f"SELECT avg((label = component_class)::int) FROM '{pattern}'").fetchall()
    assert 0.3 < agree <= 1
