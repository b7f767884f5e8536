import itertools

import numpy as np

from dpgmm_beam.plan import Plan
from tests import small
from transforms import index
from transforms.inputs import RowGroups

FILES = [
    RowGroups("/in/b é.parquet", (3, 0, 7)),
    RowGroups("/in/a.parquet", ()),
    RowGroups("/in/c.parquet", (1,)),
]


def test_an_index_comes_back_ordered_by_path():
    assert index.unpack(index.pack(FILES)) == sorted(FILES, key=lambda file: file.path)
    assert index.unpack(index.pack([])) == []


def test_order_and_repeats_change_no_byte():
    packed = index.pack(FILES)
    assert packed.dtype == np.uint8
    for order in itertools.permutations([*FILES, FILES[0]]):
        assert np.array_equal(index.pack(order), packed)


def test_a_plan_comes_back_whole():
    plan = Plan(small.small_config(classes=("é", "b\n", "")[:2], clip_norm=2.5), "a release")
    again = index.unpack_plan(index.pack_plan(plan))
    assert again == plan
    assert again.config_digest == plan.config_digest
