"""Synthetic rows as a PCollection."""

import apache_beam as beam
import numpy as np
import pytest
from apache_beam import coders
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from apache_beam.typehints.schemas import named_tuple_to_schema

from dpgmm_beam import ConfigError, Release, load_release
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release.in_memory import release_in_memory
from tests import small
from tests.transforms import crate  # noqa: F401  (the scheme crate://)
from tests.transforms.chaos import Chaos, Schedule
from transforms import sample
from transforms.sample import SampleMixture, SyntheticRow

ROWS, SEED = 40, 11


@pytest.fixture(scope="module", autouse=True)
def several_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpgmm_beam.release.synthesis.PART_ROWS", 9)
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a release."""
    folder = tmp_path_factory.mktemp("saved")
    config = small.small_config(samples_per_class=9)
    source = small.write_rows(folder / "in", small.table(100))
    blocks = small.read_blocks(source, config)
    files = release_in_memory(Plan(config, small.RELEASE_ID), lambda: blocks, NoiseKey(small.KEY))
    for path, data in files.items():
        (folder / "release" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "release" / path).write_bytes(data)
    return str(folder / "release")


def drawn(saved) -> list[SyntheticRow]:
    """The rows that `Release.sample` draws, which are those of `dpgmm sample`."""
    rows = load_release(saved).sample(ROWS, SEED)
    columns = rows.labels, rows.embeddings, rows.label_probabilities, rows.component_class, rows.component
    return sorted(map(SyntheticRow._make, zip(*(column.tolist() for column in columns), strict=True)))


def check(expected):
    def same(found):
        assert sorted(SyntheticRow(*row) for row in found) == expected

    return same


@pytest.mark.parametrize("form", ["folder", "far folder", "release"])
def test_the_rows_of_the_release(saved, form):
    release = {"folder": saved, "far folder": f"crate://{saved}", "release": load_release(saved)}[form]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        rows = pipeline | SampleMixture(release, ROWS, SEED)
        assert_that(rows, check(drawn(saved)))


@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_runner_does(saved, seed):
    pipeline = beam.Pipeline(runner=None)
    rows = pipeline | SampleMixture(saved, ROWS, SEED)
    chaos = Chaos(pipeline, Schedule(seed))
    chaos.run()
    assert sorted(chaos.output(rows)) == drawn(saved)


def test_rows_have_a_schema_that_sinks_read(saved):
    fields = {field.name: str(field.type) for field in named_tuple_to_schema(SyntheticRow).fields}
    assert list(fields) == list(SyntheticRow._fields)
    assert "STRING" in fields["label"]
    assert "array_type" in fields["embedding"]
    row = drawn(saved)[0]
    coder = coders.registry.get_coder(SyntheticRow)
    assert isinstance(coder, coders.RowCoder)
    assert tuple(coder.decode(coder.encode(row))) == tuple(row)
    # What JSON and other programs take: Python's own numbers and lists.
    assert type(row.embedding) is list
    assert type(row.embedding[0]) is float


def test_a_seed_is_drawn_once(saved):
    """Where the pipeline is built: whatever is repeated later gives the same rows."""
    one, two = SampleMixture(saved, ROWS), SampleMixture(saved, ROWS)
    assert one.drawn_seed != two.drawn_seed
    pipeline = beam.Pipeline(runner=None)
    rows = pipeline | one
    chaos = Chaos(pipeline, Schedule(0))
    chaos.run()
    embeddings = load_release(saved).sample(ROWS, one.drawn_seed).embeddings
    assert sorted(row.embedding for row in chaos.output(rows)) == sorted(embeddings.tolist())


def refusal(build) -> str:
    with pytest.raises(ConfigError) as caught:
        build()
    return caught.value.argument


def test_what_is_refused_when_the_pipeline_is_built(saved, tmp_path, monkeypatch):
    pipeline = beam.Pipeline(runner=None)
    assert refusal(lambda: SampleMixture(saved, ROWS, -1)) == "seed"
    assert refusal(lambda: pipeline | "1" >> SampleMixture(saved, 0)) == "rows"
    assert refusal(lambda: pipeline | "2" >> SampleMixture(str(tmp_path), ROWS)) == "release"
    assert refusal(lambda: pipeline | "3" >> SampleMixture(str(tmp_path / "none"), ROWS)) == "release"
    monkeypatch.setattr(sample, "MAX_CARRIED_BYTES", 100)
    assert refusal(lambda: pipeline | "4" >> SampleMixture(load_release(saved), ROWS)) == "release"


def test_a_release_that_travels_has_no_synthetic_rows_in_it(saved):
    release = load_release(saved)
    about, files = sample._carried(release)
    assert not any(path.startswith("synthetic/") for path in files)
    assert sample.opened((about, files)).release_id == small.RELEASE_ID


def test_fitted_rows_may_be_drawn_without_a_folder():
    generator = np.random.default_rng(0)
    config = {"epsilon": 1.0, "delta": 1e-5, "samples_per_class": 3}
    release = Release.fit(generator.normal(size=(50, 4)), **config)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        rows = pipeline | SampleMixture(release, 5, 1)
        embeddings = release.sample(5, 1).embeddings.tolist()
        assert_that(rows, check(sorted(SyntheticRow("all", each, [1.0], "all", 0) for each in embeddings)))
