import io

import pyarrow.parquet as pq
import pytest

from dpgmm_beam import fit, state
from dpgmm_beam.noise import NoiseKey
from dpgmm_beam.plan import Plan
from tests import small
from transforms import index
from transforms.publish import Publication
from transforms.synthesis import Publish, WriteMixture, WritePart


@pytest.fixture
def final(tmp_path):
    """(final state in chunks, key file, the release's files)."""
    source = small.write_rows(tmp_path / "in", small.table(200))
    config = small.small_config()
    plan = Plan(config, small.RELEASE_ID)
    blocks = small.read_blocks(source, config)
    found = fit.fit(plan, lambda: blocks, NoiseKey(small.KEY))
    chunks = list(state.to_chunks({**found, "plan": index.pack_plan(plan)}))
    return chunks, small.write_key(tmp_path / "key"), small.in_memory(source, config)


def test_parts_mixture_and_manifest(final, tmp_path):
    chunks, key, expected = final
    publication = Publication(str(tmp_path / "out"), "run")
    writer = WritePart(publication, key)
    writer.setup()
    records = list(writer.process(0, chunks))
    # Written again, by another worker, with the state in another order.
    again = WritePart(publication, key)
    again.setup()
    assert list(again.process(0, chunks[::-1])) == records
    mixture = list(WriteMixture(publication).process(b"", chunks))
    assert [record.rows for record in (*records, *mixture)] == [120, 6, 16]
    assert not (tmp_path / "out").exists()
    # Records come twice from a bundle that ran twice.
    Publish(publication).process(b"", [*mixture, *records, *records], chunks)
    assert small.contents(tmp_path / "out") == expected


def test_what_a_reader_gets(final):
    (name,) = (name for name in final[2] if name.startswith("synthetic/"))
    schema = pq.read_schema(io.BytesIO(final[2][name]))
    assert str(schema.field("label").type) == "string"
    assert str(schema.field("embedding").type) == "fixed_size_list<element: float>[16]"
    table = pq.read_table(io.BytesIO(final[2][name]))
    # Classes take turns, so that every beginning of a file is balanced.
    assert table["label"].to_pylist()[:6] == ["a", "b", "c", "a", "b", "c"]
