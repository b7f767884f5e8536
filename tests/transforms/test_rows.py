"""Rows that a pipeline of somebody's own has, up to the release; the schedule is `chaos`'s."""

import dataclasses
import itertools
import json
import os
import pickle
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam import coders
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.window import FixedWindows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpgmm_beam.config import Method
from dpgmm_beam.data.digest import digest_limbs, digest_of_limbs
from dpgmm_beam.data.rows import RecordForm, SetAside, rows_of_batch
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release.in_memory import release_in_memory
from tests import small
from tests.transforms import crate, steps  # noqa: F401  (the scheme crate://)
from tests.transforms.chaos import Chaos, Schedule
from tests.transforms.test_chaos import CALM, SCHEDULES, check_no_threads, check_whole, schedules
from tests.transforms.test_portability import check_transforms
from transforms import elements
from transforms.execution import Execution
from transforms.files import prepared
from transforms.files.publish import Publication
from transforms.files.run_files import Workspace
from transforms.fit import FitMixture
from transforms.prepare import set_aside
from transforms.rows import PrepareElements, SpillRows, add_digests, path_of
from transforms.write import WriteRelease

# Three stages; the first of them takes the digest of the data.
CONFIG = small.small_config(
    dimension=6, samples_per_class=9, components=1, method=Method(teacher_steps=1, subspace_dim=8)
)
PLAN = Plan(CONFIG, small.RELEASE_ID)
TABLE = small.table(90, 6)
ROWS = TABLE.to_pylist()

SIZES: dict[str, dict[str, int]] = {
    "one spill a bundle": {},
    # Several spills a bundle, several pieces a group, and a group that most spills are in.
    "small": {
        "transforms.rows.SPILL_BYTES": 100,
        "transforms.rows.ROWS_AT_ONCE": 3,
        "transforms.rows.PIECES": 2,
        "transforms.rows.LEAST_PIECE_ROWS": 7,
    },
    "small parts": {"transforms.rows.SPILL_BYTES": 400, "dpgmm_beam.privacy.queries.SHIPPED": 16},
}


class Patient(NamedTuple):
    """Somebody's own row."""

    label: str
    embedding: Sequence[float]
    age: int = 0


@dataclasses.dataclass
class Thing:
    """Whatever has the fields."""

    label: object
    embedding: object


class Angry:
    """A row that must not fail a job."""

    @property
    def embedding(self):
        raise RuntimeError("a word about a row")


class AngryMapping(dict):
    def get(self, key, default=None):
        raise KeyError("a word about a row")


class AngryVector:
    @property
    def ndim(self):
        raise RuntimeError("a word about a row")


def of_all_kinds(rows: list[dict]) -> list:
    """The same rows as elements of every kind, single and in batches."""
    table = pa.Table.from_pylist(rows, TABLE.schema)
    values, labels = np.array([row["embedding"] for row in rows]), [row["label"] for row in rows]
    array = np.array(labels, object)
    return [
        *rows[:7],
        *(Patient(row["label"], tuple(row["embedding"])) for row in rows[7:12]),
        *(Thing(label, np.float32(value)) for label, value in zip(labels[12:20], values[12:20], strict=True)),
        *(beam.Row(**row) for row in rows[20:25]),
        *table.slice(25, 30).to_batches(max_chunksize=9),
        table.slice(55, 10),
        {"label": array[65:80], "embedding": values[65:80]},
        Thing(labels[80:], values[80:].astype(np.float32)),
    ]


def in_memory(tables: Sequence[pa.Table], plan: Plan = PLAN) -> dict[str, bytes]:
    blocks = [rows_of_batch(table, plan.row_format) for table in tables]
    return release_in_memory(plan, lambda: blocks, NoiseKey(small.KEY))


@pytest.fixture(scope="module")
def expected():
    return in_memory([TABLE])


@pytest.fixture(scope="module", autouse=True)
def several_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpgmm_beam.release.synthesis.PART_ROWS", 9)
        yield


@pytest.fixture
def workspace(tmp_path):
    return small.workspace(tmp_path / "private", small.write_key(tmp_path / "key"))


def pipeline_of(
    elements, output, workspace, plan=PLAN, runner=None, whole=True, **execution
) -> beam.Pipeline:
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions([]))
    created = pipeline | beam.Create(elements, reshuffle=False)
    prepared_rows = created | PrepareElements(plan, workspace, Execution(**execution))
    if whole:
        fitted = prepared_rows | FitMixture(plan, workspace, Execution(**execution))
        _ = fitted | WriteRelease(Publication(str(output)), workspace)
    return pipeline


def run(elements, output, workspace, **changes) -> dict[str, bytes]:
    pipeline_of(elements, output, workspace, runner=FnApiRunner(), **changes).run().wait_until_finish()
    return small.contents(output)


def bases(workspace) -> list[Path]:
    return [path.parent for path in Path(workspace.folder).glob("*/state-000.npz")]


def pieces(workspace) -> list[np.ndarray]:
    return [np.load(path) for path in sorted(Path(workspace.rows).glob("*/piece-*.npy"))]


def patched(sizes: dict[str, int]) -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    for name, value in sizes.items():
        patch.setattr(name, value)
    return patch


def in_chaos(folder: Path, sizes: dict[str, int], schedule: Schedule, whole: bool) -> Workspace:
    """Runs rows of all kinds, up to their pieces or the whole release, in a fresh folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    workspace = small.workspace(folder / "private", small.write_key(folder / "key"))
    patch = patched(sizes)
    try:
        pipeline = pipeline_of(
            of_all_kinds(ROWS), folder / "out" / "release", workspace, whole=whole, piece_bytes=1
        )
        Chaos(pipeline, schedule).run()
    finally:
        patch.undo()
    # One base: every repetition was of the same pieces.
    (base,) = bases(workspace)
    (prepared_rows,) = Path(workspace.rows).iterdir()
    assert prepared_rows.name == base.name
    return workspace


@pytest.mark.parametrize("sizes", SIZES)
@given(schedule=SCHEDULES)
@schedules(2)
def test_the_release_whatever_the_runner_does(expected, tmp_path, sizes, schedule):
    """Order, bundles, repetitions, deaths and restarts: file by file that of the mathematics."""
    in_chaos(tmp_path / "run", SIZES[sizes], schedule, whole=True)
    check_whole(tmp_path / "run" / "out" / "release", expected)
    check_no_threads()


@pytest.mark.parametrize("sizes", SIZES)
@given(schedule=SCHEDULES)
@schedules(8)
def test_no_row_is_lost_and_none_is_there_twice(tmp_path, sizes, schedule):
    workspace = in_chaos(tmp_path / "run", SIZES[sizes], schedule, whole=False)
    found = np.concatenate(pieces(workspace))
    due = rows_of_batch(TABLE, PLAN.row_format).records()
    assert sorted(map(bytes, found)) == sorted(map(bytes, due))


def test_bundles_that_are_alike_all_count(tmp_path, workspace):
    """Rows that are there several times: spills of one content and one name."""
    repeated = [row for row in ROWS[:8] for _ in range(5)]
    expected = in_memory([pa.Table.from_pylist(repeated, TABLE.schema)])
    pipeline = pipeline_of(repeated, tmp_path / "out", workspace)
    # A bundle for each row, or nearly.
    Chaos(pipeline, Schedule(0, cut=0.9)).run()
    assert small.contents(tmp_path / "out") == expected
    assert sum(map(len, pieces(workspace))) == 40
    names = [path.name for path in (Path(workspace.folder) / "spilled" / "rows").glob("*.npy")]
    assert 8 <= len(names) < 30


def test_upstream_that_says_something_else_each_time(tmp_path, workspace, monkeypatch):
    """Only what a runner has committed counts: the pieces hold one outcome of each bundle."""
    fields_of = elements.fields_of

    def restless(element, names):
        """As where a step before the spill is fused with it, and is asked again with it."""
        embedding, label, unit = fields_of(element, names)
        return np.array(embedding) + random.random(), label, unit

    monkeypatch.setattr(elements, "fields_of", restless)
    pipeline = pipeline_of(ROWS, tmp_path / "out", workspace, whole=False)
    Chaos(pipeline, Schedule(5, attempts=4)).run()
    (_,) = Path(workspace.rows).iterdir()
    assert sum(map(len, pieces(workspace))) == len(ROWS)
    spills = [len(np.load(path)) for path in (Path(workspace.folder) / "spilled" / "rows").glob("*.npy")]
    assert sum(spills) > len(ROWS)


def test_bad_rows_are_set_aside_and_told_to_the_owner(tmp_path, workspace, expected):
    good = ROWS[0]["embedding"]
    bad = [
        *({}, None, 7, "text", object(), (1, 2)),
        *({"label": "a"}, {"label": "a", "embedding": None}, {"label": "a", "embedding": good[:5]}),
        *({"label": "a", "embedding": ["1"] * 6}, {"label": "a", "embedding": [[1.0]] * 6}),
        *({"label": "a", "embedding": "123456"}, {"label": "a", "embedding": [True] * 6}),
        *({"label": each, "embedding": good} for each in ("z", None, 1.5, b"a", True, ["a"])),
        *({"label": "a", "embedding": each} for each in ([0.0] * 6, [1, 2, 3, 4, 5, float("nan")])),
        *({"label": "a", "embedding": each} for each in ([1, 2, 3, 4, 5, None], [1e30] * 6)),
        pa.record_batch({"label": ["a"] * 3}),
        pa.record_batch({"label": ["a"] * 2, "embedding": ["x", "y"]}),
        {"label": [{}, {}], "embedding": np.array([good, good])},
        {"label": ["a"], "embedding": np.array([good, good])},
        {"label": ["a", "b"], "embedding": np.ones((2, 5))},
        pa.RecordBatch.from_arrays([pa.array([good]), pa.array([good])], ["embedding", "embedding"]),
        {"label": 10**5000, "embedding": good},
        {"label": ["a"], "embedding": good},
    ]
    elements = [*ROWS, *bad, Angry(), AngryMapping(), {"label": "a", "embedding": AngryVector()}]
    assert run(elements, tmp_path / "out", workspace) == expected
    (folder,) = Path(workspace.rows).iterdir()
    found = set_aside(str(folder))
    assert found["rows"] == sum(found["set_aside"].values()) + len(ROWS)
    assert SetAside(**found["set_aside"]) == (
        SetAside(length=13 + 3 + 2 + 2 + 1 + 3, label=6 + 4 + 2, value=4)
    )


ODD_LABELS = ["a", "b", 7, 10**30, 10**5000, 2.5, True, None, b"a", "\udcff", float("nan"), {}]
ODD_VECTORS = [[1.0] * 6, [1] * 6, ["1"] * 6, [None] * 6, [1.0] * 5, [10**400] * 6, None, "a", [[1.0]] * 6]


def accepted(workspace, element) -> list[bytes]:
    """The rows of one element, as a spill holds them."""
    (spill,) = spilled(workspace, [element]) or [None]
    if spill is None:
        return []
    data = np.load(path_of(workspace, spill[1][0]))
    return sorted(bytes(row) for row in data)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(ODD_LABELS), st.sampled_from(ODD_VECTORS)), min_size=1, max_size=4),
    st.booleans(),
)
def test_no_row_of_a_batch_decides_over_another(workspace, pairs, as_arrays):
    """One row changes what is set aside by one, in whatever batch it is: sensitivities count on it."""
    labels, vectors = map(list, zip(*pairs, strict=True))
    alone = [accepted(workspace, {"label": label, "embedding": vector}) for label, vector in pairs]
    if as_arrays:
        objects = np.empty(len(labels), object)
        objects[:] = labels
        matrix = np.empty((len(labels), 6), object)
        for row, vector in enumerate(vectors):
            matrix[row] = vector if isinstance(vector, list) and np.shape(vector) == (6,) else [{}] * 6
        labels, vectors = objects, matrix
    together = accepted(workspace, {"label": labels, "embedding": vectors})
    assert together == sorted(itertools.chain.from_iterable(alone))


def test_tensors_views_and_masks(workspace):
    torch = pytest.importorskip("torch")
    wanted = accepted(workspace, {"label": ["a", "a"], "embedding": np.full((2, 6), 0.5)})
    assert len(wanted) == 2
    for kind in (torch.float32, torch.bfloat16, torch.float64):
        tensor = torch.full((2, 6), 0.5, dtype=kind, requires_grad=True)
        assert accepted(workspace, {"label": ["a", "a"], "embedding": tensor}) == wanted
        assert accepted(workspace, {"label": "a", "embedding": tensor[0]}) == wanted[:1]
    views = pa.array([[0.5] * 6, [0.5] * 6], pa.list_view(pa.float32()))
    texts = pa.array(["a", "a"], pa.string_view())
    batch = pa.RecordBatch.from_arrays([views, texts], ["embedding", "label"])
    assert accepted(workspace, batch) == wanted
    masked = np.ma.masked_array(np.full((2, 6), 0.5), mask=[[False] * 6, [True] * 6])
    assert accepted(workspace, {"label": ["a", "a"], "embedding": masked}) == wanted[:1]


def test_a_table_of_bad_rows_is_counted_as_it_is_in_files(tmp_path, workspace):
    """The same table by way of a file and of elements: the same is set aside, for the same reasons."""
    values = [row["embedding"] for row in ROWS]
    values[3], values[5], values[7] = None, [1.0], [float("inf")] * 6
    labels = ["a", None, "undeclared", *(row["label"] for row in ROWS[3:])]
    table = pa.table({"label": labels, "embedding": pa.array(values, pa.list_(pa.float32()))})
    source = small.write_rows(tmp_path / "in", table)
    other = dataclasses.replace(workspace, folder=f"{tmp_path}/other/run", rows=f"{tmp_path}/other/rows")
    steps.prepare(PLAN, other, source)
    run([table.slice(0, 10), *table.slice(10).to_pylist()], tmp_path / "out", workspace)
    (one,), (two,) = Path(workspace.rows).iterdir(), Path(other.rows).iterdir()
    assert set_aside(str(one)) == set_aside(str(two))
    assert set_aside(str(one))["set_aside"] == {"length": 2, "label": 2, "value": 1}


def test_without_a_row_every_class_is_there(tmp_path, workspace):
    expected = in_memory([TABLE.slice(0, 0)])
    assert run([], tmp_path / "out", workspace) == expected
    pipeline = pipeline_of([], tmp_path / "chaos", workspace)
    Chaos(pipeline, Schedule(3)).run()
    assert small.contents(tmp_path / "chaos") == expected


def test_rows_without_labels_and_integers(tmp_path, workspace):
    plan = Plan(dataclasses.replace(CONFIG, classes=("all",), labelled=False), small.RELEASE_ID)
    expected = in_memory([TABLE.select(["embedding"])], plan)
    elements = [{"embedding": row["embedding"]} for row in ROWS[:50]]
    elements.append({"embedding": np.array([row["embedding"] for row in ROWS[50:]])})
    assert run(elements, tmp_path / "out", workspace, plan=plan) == expected

    plan = Plan(dataclasses.replace(CONFIG, classes=("0", "1", "2")), small.RELEASE_ID)
    numbers = [small.CLASSES.index(row["label"]) for row in ROWS]
    table = TABLE.set_column(0, "label", pa.array(numbers))
    elements = [{**row, "label": np.int16(row["label"])} for row in table.slice(0, 50).to_pylist()]
    elements.append(table.slice(50))
    where = dataclasses.replace(workspace, folder=f"{tmp_path}/numbers")
    assert run(elements, tmp_path / "numbered", where, plan=plan) == in_memory([table], plan)


def test_it_goes_on_at_the_last_state_whatever_the_bundles(tmp_path, workspace, expected, monkeypatch):
    def drawn_by(schedule, number):
        drawn = []
        advance = chain.advance
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                chain,
                "advance",
                lambda before, *rest: drawn.append(before.stages_done) or advance(before, *rest),
            )
            elements = ROWS if number else of_all_kinds(ROWS)
            Chaos(pipeline_of(elements, tmp_path / f"out{number}", workspace), schedule).run()
        assert small.contents(tmp_path / f"out{number}") == expected
        return sorted(set(drawn))

    assert drawn_by(CALM, 0) == list(range(len(PLAN.stages)))
    (base,) = bases(workspace)
    for stages in (2, 3):
        os.unlink(base / f"state-{stages:03d}.npz")
    assert drawn_by(Schedule(1), 1) == [1, 2]
    assert bases(workspace) == [base]
    # Where its rows are gone, too, it begins again: with the same noise.
    shutil.rmtree(workspace.rows)
    shutil.rmtree(f"{workspace.folder}/spilled")
    assert drawn_by(Schedule(2), 2) == list(range(len(PLAN.stages)))
    assert len(bases(workspace)) == 2


def test_a_damaged_piece_ends_the_job_and_the_next_one_heals_it(tmp_path, workspace, expected):
    assert run(ROWS, tmp_path / "one", workspace) == expected
    (piece,) = Path(workspace.rows).glob("*/piece-*.npy")
    data = bytearray(piece.read_bytes())
    data[-20] ^= 1
    # One file of two names.
    piece.write_bytes(data)
    (base,) = bases(workspace)
    for state in base.glob("state-*.npz"):
        if state.name != "state-000.npz":
            state.unlink()
    assert run(ROWS, tmp_path / "two", workspace) == expected


def test_a_folder_with_another_plan_in_it(tmp_path, workspace, expected):
    """Another budget, or more rows, is not taken for the run that is there."""
    assert run(ROWS, tmp_path / "one", workspace) == expected
    for number, change in enumerate(({"epsilon": 3.0}, {"samples_per_class": 12})):
        plan = Plan(dataclasses.replace(CONFIG, **change), small.RELEASE_ID)
        assert run(ROWS, tmp_path / f"two{number}", workspace, plan=plan) == in_memory([TABLE], plan)


def test_other_rows_under_a_known_id_are_refused(tmp_path, workspace, expected):
    kept = dataclasses.replace(workspace, register=str(tmp_path / "register" / "entry.json"))
    assert run(ROWS, tmp_path / "one", kept) == expected
    with pytest.raises(Exception, match="names a release of other data"):
        run(ROWS[1:], tmp_path / "two", kept)
    assert not (tmp_path / "two").exists()


def test_everything_far(tmp_path, expected):
    key = small.write_key(tmp_path / "key")
    far = Workspace(f"crate://{tmp_path}/run", f"crate://{tmp_path}/rows", f"crate://{key}")
    run(of_all_kinds(ROWS), f"crate://{tmp_path}/out", far)
    assert small.contents(tmp_path / "out") == expected


def test_files_are_their_owners_alone(tmp_path, workspace):
    run(ROWS, tmp_path / "out", workspace)
    found = list((tmp_path / "private").rglob("*"))
    assert any(path.parent.name == "rows" for path in found)
    assert all(path.stat().st_mode & 0o077 == 0 for path in found)


def spilled(workspace, elements) -> list:
    worker = SpillRows(PLAN, workspace, "embedding", "label")
    worker.setup()
    worker.start_bundle()
    found = [each for element in elements for each in worker.process(element) or ()]
    found += [output.value for output in worker.finish_bundle()]
    return found


def test_bounded_memory_and_elements(workspace, monkeypatch):
    """A bundle's rows leave memory in files of bounded size; what travels is names."""
    monkeypatch.setattr("transforms.rows.SPILL_BYTES", 2**16)
    values = np.random.default_rng(0).normal(size=(40_000, 6))
    batch = pa.record_batch({"label": pa.array(["a"] * 40_000), "embedding": list(values)})
    found = spilled(workspace, [batch, *ROWS])
    names = [name for _, (name, _, _) in found]
    assert sum(rows for _, (_, rows, _) in found) == 40_000 + len(ROWS)
    sizes = [os.path.getsize(path_of(workspace, name)) for name in names]
    # A slice beyond the bound at most.
    assert max(sizes) < 2**16 + 8192 * 20 + 200
    assert len(names) > 4
    coder = coders.registry.get_coder(tuple[int, tuple[str, int, bytes]])
    assert max(len(coder.encode(element)) for element in found) < 150
    secret = NoiseKey(small.KEY)
    assert not any(
        chain.row_hash_key(secret) in pickle.dumps(each) or small.KEY in pickle.dumps(each) for each in found
    )


def test_names_of_spills_are_keyed(tmp_path, workspace):
    """Who sees a name can't check a guess at the rows by it."""
    other = small.workspace(tmp_path / "other", small.write_key(tmp_path / "other key", small.OTHER_KEY))
    ((_, (one, _, _)),), ((_, (two, _, _)),) = spilled(workspace, ROWS[:3]), spilled(other, ROWS[:3])
    assert one != two
    assert prepared.read(path_of(workspace, one), RecordForm(6), 9) is not None
    assert spilled(workspace, ROWS[:3])[0][1][0] == one


@given(st.lists(st.binary(min_size=64, max_size=64), max_size=5), st.randoms())
def test_digests_add_in_any_order(digests, random):
    total = add_digests(digests)
    random.shuffle(digests)
    assert add_digests([add_digests(digests[:2]), add_digests(digests[2:])]) == total
    assert add_digests([]) == bytes(64)


def test_the_name_of_a_base_does_not_depend_on_the_order(tmp_path, workspace):
    run(ROWS, tmp_path / "one", workspace)
    about = json.loads((bases(workspace)[0] / "input.json").read_text())
    accepted = rows_of_batch(TABLE, PLAN.row_format)
    key = chain.row_hash_key(NoiseKey(small.KEY))
    assert about["rows"] == digest_of_limbs(digest_limbs(accepted, key)).hex()


def refused(build) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        build(beam.Pipeline(runner=None))
    return caught.value


def test_what_is_refused_before_anything_runs(workspace):
    prepare = PrepareElements(PLAN, workspace)
    patients = beam.Map(lambda row: Patient(**row)).with_output_types(Patient)
    found = refused(
        lambda pipeline: pipeline | beam.Create(ROWS) | beam.WindowInto(FixedWindows(60)) | prepare
    )
    assert (found.argument, "GlobalWindows" in found.allowed) == ("rows", True)
    unbounded = beam.pvalue.PCollection(beam.Pipeline(runner=None), is_bounded=False)
    with pytest.raises(ConfigError, match="bounded"):
        prepare.expand(unbounded)
    for name in ("embedding_field", "label_field"):
        other = dataclasses.replace(prepare, **{name: "diagnosis"})
        assert refused(lambda p, other=other: p | beam.Create(ROWS) | patients | other).argument == name
    # Such rows have no pictures beside them.
    decodable = dataclasses.replace(PLAN, config=dataclasses.replace(PLAN.config, decodable="8"))
    other = dataclasses.replace(prepare, plan=decodable)
    assert refused(lambda p: p | beam.Create(ROWS) | patients | other).argument == "decodable"
    # A type with the fields is taken, and so is one that tells nothing.
    pipeline = beam.Pipeline(runner=None)
    _ = pipeline | beam.Create(ROWS) | patients | "Typed" >> prepare
    _ = pipeline | "Rows" >> beam.Create([beam.Row(label="a", embedding=[1.0])]) | "Row" >> prepare


def test_only_transforms_that_flink_and_dataflow_take(workspace):
    check_transforms(pipeline_of(ROWS[:3], "/out/release", workspace).to_runner_api())
