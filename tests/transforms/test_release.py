"""The whole transform, applied to a pipeline of somebody's own."""

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from dpgmm_beam.plan import Plan
from pipelines import runner
from tests import small
from transforms import inputs
from transforms.publish import Publication
from transforms.release import Release
from transforms.stage import Execution


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    source = small.write_rows(folder / "in", small.table(200))
    return source, small.write_key(folder / "key")


def release(made, output, groups, config=None, overwrite=False):
    _, key = made
    plan = Plan(config or small.small_config(), small.RELEASE_ID)
    publication = Publication(str(output), "run", overwrite)
    with beam.Pipeline(options=runner.local_defaults(PipelineOptions([]))) as pipeline:
        row_groups = pipeline | beam.Create(groups)
        row_groups | Release(plan, publication, key, Execution())
    return small.contents(output)


def test_row_groups_in_any_order_or_twice_are_one_release(made, tmp_path):
    source, _ = made
    groups = inputs.list_row_groups(str(source))
    expected = small.in_memory(source)
    assert release(made, tmp_path / "1", groups[::-1]) == expected
    # A runner may give an element twice; a row group counts once.
    assert release(made, tmp_path / "2", [*groups, groups[0]]) == expected
    # Published already: nothing changes.
    assert release(made, tmp_path / "1", groups) == expected


def test_without_a_row_every_class_is_there(made, tmp_path):
    (tmp_path / "none").mkdir()
    files = release(made, tmp_path / "out", [])
    assert files.keys() == small.in_memory(made[0]).keys()


def test_what_is_large_leaves_the_chain_of_stages():
    """It goes past the stages, to the last step; `test_stage` has what the stages are sent."""
    plan = Plan(small.small_config(), small.RELEASE_ID)
    pipeline = beam.Pipeline()
    pipeline | beam.Create([]) | Release(plan, Publication("/out", "run"), "/key", Execution())
    labels = [each.unique_name for each in pipeline.to_runner_api().components.transforms.values()]
    names = {label.split("/")[1] for label in labels if label.startswith("Release/")}
    assert {name for name in names if name.startswith("Stage")} == {
        f"Stage {position}: {stage.name}" for position, stage in enumerate(plan.stages)
    }
    assert "For the end" in names
