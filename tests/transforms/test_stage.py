import numpy as np
import pytest
from dpgmm_beam.cache import PROCESS_CACHE
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam import state, statistics
from dpgmm_beam.plan import Plan
from dpgmm_beam.stages import AT_END
from tests import small
from tests.strategies import quick
from transforms import index, inputs
from transforms.inputs import RowGroups
from transforms.stage import Advance, Execution, SumParts, SumRows, index_elements


@pytest.fixture
def first(tmp_path):
    """(rows, key file, state before the first stage)."""
    source = small.write_rows(tmp_path / "in", small.table(200))
    found = index.pack(inputs.list_row_groups(str(source)))
    before = {"index": found, "plan": index.pack_plan(Plan(small.small_config(), "id"))}
    return source, small.write_key(tmp_path / "key"), list(state.to_chunks(before))


def sums(dofn, elements, chunks):
    """The parts of one bundle, by number."""
    dofn.start_bundle()
    for element in elements:
        assert not list(dofn.process(element, chunks) or ())
    return dict(output.value for output in dofn.finish_bundle())


def fresh(key, **execution):
    dofn = SumRows(0, Execution(**execution), key)
    dofn.setup()
    return dofn


def test_plan_and_index_survive_packing():
    plan = Plan(small.small_config(clip_norm=1.5, epsilon=0.1), "id")
    again = index.unpack_plan(index.pack_plan(plan))
    assert (again, again.config_digest) == (plan, plan.config_digest)
    groups = [RowGroups("/b", (3, 4)), RowGroups("/a", ()), RowGroups("/b", (3, 4))]
    assert index.unpack(index.pack(groups)) == [RowGroups("/a", ()), RowGroups("/b", (3, 4))]


def test_elements_are_row_groups_and_an_empty_one(first):
    source, _, chunks = first
    elements = list(index_elements(b"", chunks))
    groups = inputs.list_row_groups(str(source))
    assert len(elements) == sum(len(each.rows) for each in groups) + 1
    assert elements[-1] == ("", 0, 0)
    assert sum(rows for _, _, rows in elements) == 200


def test_no_rows_yield_zeros(first):
    _, key, chunks = first
    parts = sums(fresh(key), [("", 0, 0)], chunks)
    channels = Plan(small.small_config(), "id").stages[0].channels
    assert parts.keys() == {number for number, *_ in statistics.parts_of(channels)}
    assert not any(values.any() for values in parts.values())
    assert sums(fresh(key), [], chunks) == {}


def test_bundles_add_up_and_caches_do_not_matter(first):
    _, key, chunks = first
    elements = list(index_elements(b"", chunks))
    whole = sums(fresh(key, cache_token="whole"), elements, chunks)
    dofn = fresh(key, block_rows=7, cache_bytes=0)
    halves = [sums(dofn, elements[start::2], chunks) for start in (0, 1)]
    for number, values in whole.items():
        assert np.array_equal(values, halves[0][number] + halves[1][number])
    # From the cache, once the files are gone.
    source = first[0]
    for path in source.iterdir():
        path.unlink()
    again = sums(fresh(key, cache_token="whole"), elements, chunks)
    assert all(np.array_equal(again[number], values) for number, values in whole.items())
    # Another run has another token: it does not see what this one cached.
    with pytest.raises(FileNotFoundError):
        sums(fresh(key, cache_token="other"), elements, chunks)
    PROCESS_CACHE.clear()


def test_a_broken_file_fails_without_a_value_in_the_message(first):
    source, key, chunks = first
    path = source / "rows-0.parquet"
    path.write_bytes(path.read_bytes()[:-8] + b"garbage!")
    with pytest.raises(RuntimeError, match=r"row group 0 of .*rows-0.parquet could not be read \(\w+\)"):
        sums(fresh(key, cache_bytes=0), [(str(path), 0, 70)], chunks)


@quick
@given(st.lists(st.lists(st.integers(-(2**40), 2**40), min_size=3, max_size=3), max_size=8), st.data())
def test_parts_add_in_any_grouping(values, data):
    combine = SumParts()
    accumulators = [combine.create_accumulator()]
    for value in values:
        if data.draw(st.booleans()):
            accumulators.append(combine.create_accumulator())
        accumulators[-1] = combine.add_input(accumulators[-1], np.array(value))
    order = data.draw(st.permutations(accumulators))
    total = combine.extract_output(combine.merge_accumulators(order))
    assert total.tolist() == (np.array(values).sum(axis=0).tolist() if values else [])


def test_noise_is_drawn_once(first):
    """Run again, in whatever order its inputs come, the step gives the same state."""
    _, key, chunks = first
    parts = list(sums(fresh(key), index_elements(b"", chunks), chunks).items())
    once = list(Advance(0, key).process(b"", parts, chunks))
    again = list(Advance(0, key).process(b"", parts[::-1], chunks[::-1]))
    assert once == again
    after = state.from_chunks(once)
    assert {"index", "plan", "means", "data_digest"} <= after.keys()


def test_what_no_stage_reads_is_carried_for_one_step_only(first):
    _, key, chunks = first
    names = []
    for position in range(4):
        dofn = SumRows(position, Execution(), key)
        dofn.setup()
        parts = sums(dofn, list(index_elements(b"", chunks)), chunks)
        chunks = list(Advance(position, key).process(b"", parts.items(), chunks))
        names.append({chunk.name for chunk in chunks})
    assert [set(AT_END) <= each for each in names] == [False, True, False, False]
    assert all(each.isdisjoint(AT_END) for each in (names[0], *names[2:]))
    assert all({"index", "plan", "data_digest", "means"} <= each for each in names)
