"""What runners other than the local ones need, checked on the pipeline's proto and on its elements."""

import base64
import bz2
import collections
import contextlib
import json
import os
import pickle
import re
import zlib
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam import coders
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from PIL import Image

from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.data.digest import no_limbs
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy import queries
from dpgmm_beam.release.manifest import files_of
from pipelines import runner
from tests import small
from tests.transforms import steps
from transforms.embed import EmbedImages
from transforms.execution import Execution
from transforms.files import inputs
from transforms.files.publish import FileRecord, Publication
from transforms.files.run_files import Workspace
from transforms.files.shards import MAX_SHARD_ROWS, Shard
from transforms.fit import DrawNoise, StorePart, SumPieces
from transforms.passes import fingerprint
from transforms.prepare import Source
from transforms.release import Release

# Leaves of the graph that both runners take:
# - Flink: beam/runners/flink/src/main/java/org/apache/beam/runners/flink/
#   FlinkBatchPortablePipelineTranslator.java registers flatten, group_by_key, impulse,
#   executable stages (ParDo and the parts of combine that the job server fuses) and
#   reshuffle.
# - Dataflow (runner v2): the primitives of model/pipeline/.../beam_runner_api.proto,
#   StandardPTransforms.Primitives and .Composites.
LEAVES = {
    "beam:transform:pardo:v1",
    "beam:transform:impulse:v1",
    "beam:transform:flatten:v1",
    "beam:transform:group_by_key:v1",
}
# Composites that runners know by name, and those that they only expand.
COMPOSITES = {
    "beam:transform:combine_grouped_values:v1",
    "beam:transform:reshuffle:v1",
    "beam:transform:combine_per_key:v1",
    "beam:transform:generic_composite:v1",
    "beam:transform:pickled_python:v1",
    "",
}
MOST_BYTES = 5 * 2**20
ELEMENT_BYTES = 2 * 2**20


def labels(count):
    return tuple(f"label {number * 7919 % 100003}" for number in range(count))


def job_pipeline(
    classes=3,
    steps=2,
    rounds=1,
    images=None,
    source="/in/*.parquet",
    key_file="/private/key",
    dimension=16,
    options=None,
    config=None,
):
    config = config or small.small_config(
        classes=labels(classes) if isinstance(classes, int) else classes,
        encoder="efficientnet_lite0:32" if images else "precomputed",
        dimension=dimension,
        rounds=rounds,
        # Without ridges, so that the teacher's sums are one part also of 1,000 classes.
        method=Method(teacher_steps=steps, subspace_dim=8, teacher_ridges=1),
    )
    pipeline = beam.Pipeline(options=options or PipelineOptions([]))
    if images:
        start = pipeline | EmbedImages(images, config.encoder, "/private/embeddings")
    else:
        start = pipeline | beam.Create([Source(source)])
    workspace = Workspace("/private/runs/run", "/private/rows", str(key_file))
    publication = Publication("/out/release")
    start | "Release" >> Release(Plan(config, "id"), publication, workspace, Execution())
    return pipeline


def proto(**changes):
    return job_pipeline(**changes).to_runner_api()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images whose label, pixels and number must not be found in the job."""
    folder = tmp_path_factory.mktemp("in") / "images"
    for label in ("a", "zebra-crossing"):
        (folder / label).mkdir(parents=True)
        for i in range(17):
            Image.new("L", (8, 8), i).save(folder / label / f"unrepeatable-{i}.png")
    return folder


@pytest.fixture(scope="module")
def protos(folder):
    images = inputs.describe_input(str(folder), "efficientnet_lite0:32")
    return {"rows": proto(), "images": proto(images=images, dimension=1280)}


def default(steps: int) -> ReleaseConfig:
    """A release of 10 classes in 512 dimensions, as a command without options has it but for its steps."""
    method = Method(teacher_steps=steps)
    return ReleaseConfig("precomputed", labels(10), 512, 1.0, 1e-5, method=method)


@pytest.fixture(scope="module")
def chains():
    """Protos by the number of stages; of 35 has the default configuration."""
    assert default(19) == ReleaseConfig("precomputed", labels(10), 512, 1.0, 1e-5)
    # Checks of types are half of what Beam needs to build a long job, and change nothing in it.
    options = PipelineOptions(["--no_pipeline_type_check"])
    return {16 + steps: proto(config=default(steps), options=options) for steps in (19, 184)}


def leaves(job):
    """Transforms that do something: an empty composite hands on what it was given."""
    return [
        each
        for each in job.components.transforms.values()
        if not each.subtransforms and not set(each.outputs.values()) <= set(each.inputs.values())
    ]


@pytest.mark.parametrize("kind", ["rows", "images"])
def test_only_transforms_that_flink_and_dataflow_take(protos, kind):
    check_transforms(protos[kind])


def check_transforms(job):
    transforms = job.components.transforms.values()
    assert {each.spec.urn for each in leaves(job)} <= LEAVES
    assert {each.spec.urn for each in transforms if each.subtransforms} <= COMPOSITES
    for each in leaves(job):
        if each.spec.urn == "beam:transform:pardo:v1":
            payload = beam_runner_api_pb2.ParDoPayload.FromString(each.spec.payload)
            assert not payload.side_inputs
            assert not payload.state_specs
            assert not payload.timer_family_specs
            assert not payload.restriction_coder_id
            assert not payload.requires_stable_input
    # Bounded, in the one global window: batch runners.
    assert {each.is_bounded for each in job.components.pcollections.values()} == {
        beam_runner_api_pb2.IsBounded.BOUNDED
    }
    assert not job.requirements


def paths(job) -> int:
    """How many ways lead from sources to sinks, counted leaf by leaf.

    Flink's optimiser walks every one of them: where each stage doubles them, no
    job of many stages is ever submitted.
    """
    consumers = collections.Counter(each for leaf in leaves(job) for each in leaf.inputs.values())
    ways: dict[str, int] = {}
    waiting = leaves(job)
    ends = 0
    while waiting:
        ready = [leaf for leaf in waiting if all(each in ways for each in leaf.inputs.values())]
        assert ready
        for leaf in ready:
            count = sum(ways[each] for each in leaf.inputs.values()) if leaf.inputs else 1
            ways.update(dict.fromkeys(leaf.outputs.values(), count))
            if not any(consumers[each] for each in leaf.outputs.values()):
                ends += count
        waiting = [leaf for leaf in waiting if leaf not in ready]
    return ends


@pytest.mark.parametrize("kind", ["rows", "images"])
def test_the_job_is_one_chain(protos, kind):
    check_chain(protos[kind])


@pytest.mark.parametrize("stages", [35, 200])
def test_long_jobs_are_one_chain(chains, stages):
    check_chain(chains[stages])
    check_transforms(chains[stages])
    assert len(stage_leaves(chains[stages])) == stages


def check_chain(job):
    assert paths(job) == 1
    read = collections.Counter(each for leaf in leaves(job) for each in leaf.inputs.values())
    assert set(read.values()) == {1}


def test_paths_are_counted():
    """The count itself: three diamonds in a row, as side inputs or flattened collections make them."""
    pipeline = beam.Pipeline(options=PipelineOptions([]))
    current = pipeline | beam.Impulse()
    for number in range(3):
        one, other = (current | f"{number} {side}" >> beam.Map(lambda x: x) for side in "ab")
        current = (one, other) | f"{number}" >> beam.Flatten()
    assert paths(pipeline.to_runner_api()) == 8
    side = beam.pvalue.AsIter(current)
    _ = current | "Side" >> beam.Map(lambda x, y: x, side)
    assert paths(pipeline.to_runner_api()) == 16


def stage_leaves(job) -> dict[str, list]:
    """The leaves of each stage of the fit."""
    found = collections.defaultdict(list)
    for leaf in leaves(job):
        if match := re.match(r"Release/Fit/(Stage \d+: [^/]+)/", leaf.unique_name):
            found[match[1]].append(leaf)
    return found


@pytest.mark.parametrize("stages", [35, 200])
def test_two_barriers_a_stage(chains, stages):
    """The combination and the spreading; a third only where sums are more than one part."""
    plan = Plan(default(stages - 16), "id")
    found = stage_leaves(chains[stages])
    for position, stage in enumerate(plan.stages):
        urns = collections.Counter(each.spec.urn for each in found[f"Stage {position}: {stage.name}"])
        parts = queries.part_count(stage.queries)
        assert urns["beam:transform:group_by_key:v1"] == (2 if parts == 1 else 3)
        assert (parts == 1) == (stage.KIND in ("counts", "means", "start", "teacher"))


def test_the_graph_grows_with_the_stages_only():
    sizes = {steps: proto(classes=1000, steps=steps, rounds=1).ByteSize() for steps in (2, 7)}
    many = proto(classes=1000, steps=20, rounds=1)
    per_step = (sizes[7] - sizes[2]) / 5
    assert many.ByteSize() == pytest.approx(sizes[2] + 18 * per_step, rel=0.05)
    assert many.ByteSize() < MOST_BYTES
    # The list of classes is there once, whatever the number of stages.
    few = {steps: proto(classes=2, steps=steps, rounds=1).ByteSize() for steps in (2, 7)}
    once = sum(map(len, labels(1000)))
    assert 0 <= sizes[2] - few[2] < 1.5 * once
    assert sizes[7] - few[7] == pytest.approx(sizes[2] - few[2], abs=200)


def test_the_size_of_long_jobs(chains):
    assert chains[35].ByteSize() < MOST_BYTES / 5
    assert chains[200].ByteSize() < MOST_BYTES


def searched(job) -> list[bytes]:
    """The proto's bytes, also those that are compressed or in base64 inside of it."""
    found = [job.SerializeToString()]
    for each in leaves(job):
        found.append(each.spec.payload)
        for part in re.findall(rb"[A-Za-z0-9+/]{64,}={0,2}", each.spec.payload):
            with contextlib.suppress(ValueError):
                decoded = base64.b64decode(part)
                found.append(decoded)
                for decompress in (bz2.decompress, zlib.decompress):
                    with contextlib.suppress(OSError, zlib.error):
                        found.append(decompress(decoded))
    return found


def secret_forms(key: bytes) -> list[bytes]:
    forms = [key, key.hex().encode(), key.hex().upper().encode(), base64.b64encode(key).rstrip(b"=")]
    return [*forms, base64.urlsafe_b64encode(key).rstrip(b"="), repr(key).encode(), str(list(key)).encode()]


ROWS = 100_019
"""A number that nobody else would write."""


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory):
    """Embeddings whose number and undeclared labels must not be found in the job."""
    path = tmp_path_factory.mktemp("in") / "rows.parquet"
    values = small.embeddings_table(["zebra-crossing"] * ROWS, np.zeros((ROWS, 4)))
    pq.write_table(values, path, row_group_size=10**6)
    return path


def job_of(kind, folder, many_rows, key_file, **changes):
    """The job as the command builds it, from what the driver has seen of the input."""
    if kind == "images":
        described = inputs.describe_input(str(folder), "efficientnet_lite0:32")
        return job_pipeline(images=described, key_file=key_file, dimension=1280, **changes)
    described = inputs.describe_input(str(many_rows), "precomputed")
    assert described.rows == ROWS
    return job_pipeline(source=described.pattern, dimension=described.dimension, key_file=key_file, **changes)


@pytest.mark.parametrize("kind", ["rows", "images"])
def test_no_key_and_nothing_of_the_data_in_the_job(folder, many_rows, tmp_path, kind):
    key = os.urandom(32)
    key_file = small.write_key(tmp_path / "key", key)
    job = job_of(kind, folder, many_rows, key_file).to_runner_api()
    check_nothing_private(searched(job), key_file, key)


def check_nothing_private(haystacks, key_file, key):
    # The search finds what is there: the path of the key file.
    assert any(key_file.encode() in haystack for haystack in haystacks)
    forbidden = [*secret_forms(key), b"zebra-crossing", b"unrepeatable"]
    forbidden += [str(ROWS).encode(), ROWS.to_bytes(4, "little"), ROWS.to_bytes(4, "big")]
    for haystack in haystacks:
        for text in forbidden:
            assert text not in haystack


def test_the_key_is_not_in_the_dofns(tmp_path):
    """Whatever a worker is sent: DoFns as they are pickled, before and after they ran."""
    plan, workspace = steps.setting(tmp_path)
    key = os.urandom(32)
    small.write_key(tmp_path / "key", key)
    source = small.write_rows(tmp_path / "in", small.table(60))
    pieces = steps.prepare(plan, workspace, source)
    worker, draw = SumPieces(0, workspace, Execution()), DrawNoise(0, workspace, gathered=False)
    seen = [pickler.dumps(worker, enable_trace=False)]
    worker.start_bundle()
    for piece in pieces:
        worker.process(piece)
    outputs = [output.value for output in worker.finish_bundle()]
    (element,) = outputs
    seen += [pickler.dumps(worker, enable_trace=False), pickle.dumps(outputs)]
    after = list(draw.process(element))
    seen += [pickle.dumps((draw, after))]
    assert not any(form in blob for form in secret_forms(key) for blob in seen)


SIZES = {
    "default": ReleaseConfig("precomputed", labels(10), 512, 1.0, 1e-5),
    # The largest release that is promised.
    "largest": ReleaseConfig(
        "precomputed",
        labels(1000),
        2048,
        1.0,
        1e-5,
        components=4,
        rounds=4,
        method=Method(teacher_steps=1),
    ),
}


@pytest.fixture(scope="module", params=SIZES)
def sized(request, tmp_path_factory):
    """(plan, workspace, pieces, pipeline) of a few rows of a size."""
    folder = tmp_path_factory.mktemp("sized") / "names of buckets" / "and of folders are as long as this"
    folder.mkdir(parents=True)
    config = SIZES[request.param]
    plan = Plan(config, "id")
    chosen = [config.classes[number % len(config.classes)] for number in range(6)]
    vectors = np.random.default_rng(0).normal(size=(6, config.dimension))
    pq.write_table(small.embeddings_table(chosen, vectors), folder / "in.parquet")
    workspace = small.workspace(folder, small.write_key(folder / "key"))
    pieces = steps.prepare(plan, workspace, folder / "in.parquet")
    return plan, workspace, pieces, job_pipeline(config=config)


def coder_of(pipeline: beam.Pipeline, label: str) -> coders.Coder:
    """The coder with which a step's output travels."""
    found = []

    def visit(applied):
        if applied.full_label == label:
            found.append(applied.outputs[None].element_type)
        for part in applied.parts:
            visit(part)

    for root in pipeline.transforms_stack:
        visit(root)
    (element_type,) = found
    return coders.registry.get_coder(element_type)


def zero_sums(stage) -> Iterator[tuple[int, np.ndarray]]:
    """Parts of a stage's sums as they travel, without a row."""
    # In the first stage the data digest's limbs, too.
    check = np.concatenate([fingerprint(range(3)), no_limbs()])
    for number, part in queries.split(stage.queries, queries.zeros(stage.queries)):
        yield number, np.concatenate([check, part])


def elements_of_stage(stage, position, base) -> Iterator[tuple[str, Any]]:
    """By step: every element that a stage's steps hand on."""
    parts = list(zero_sums(stage))
    assert len(parts) == queries.part_count(stage.queries)
    assert sum(len(part) - 34 for _, part in parts) == sum(query.size for query in stage.queries)
    for number, part in parts:
        yield "Sum", ((base, number), part)
        yield "Combine", ((base, number), part)
    if len(parts) == 1:
        return
    paths = []
    for number, part in parts:
        ((_, path),) = StorePart(position).process(((base, number), part))
        yield "Store", (base, path)
        paths.append(path)
    yield "Gather", (base, paths)


def test_no_element_of_a_stage_is_large(sized):
    """As Beam's coders write them."""
    plan, _, pieces, pipeline = sized
    base, most = pieces[0][0], 0
    for position, stage in enumerate(plan.stages):
        prefix = f"Release/Fit/Stage {position}: {stage.name}"
        for step, element in elements_of_stage(stage, position, base):
            size = len(coder_of(pipeline, f"{prefix}/{step}").encode(element))
            assert size < ELEMENT_BYTES
            if step in ("Sum", "Combine"):
                # The runner gathers those of several workers into one.
                assert 7 * size < ELEMENT_BYTES
            most = max(most, size)
        for step in ("Noise", "Spread"):
            assert len(coder_of(pipeline, f"{prefix}/{step}").encode((base, 10**6))) < 1000
    assert most > 8 * queries.SHIPPED


def test_sums_of_rows_leave_a_bundle_as_small(sized):
    """The DoFn itself, on rows."""
    plan, workspace, pieces, pipeline = sized
    stage = plan.stages[0]
    found = steps.sum_pieces(0, workspace, pieces)
    assert [(part, len(vector)) for (_, part), vector in found.items()] == [
        (part, len(vector)) for part, vector in zero_sums(stage)
    ]
    assert any(vector[2:].any() for vector in found.values())
    coder = coder_of(pipeline, f"Release/Fit/Stage 0: {stage.name}/Sum")
    for element in found.items():
        assert len(coder.encode(element)) < ELEMENT_BYTES / 7
        ((_, decoded),) = [coder.decode(coder.encode(element))]
        assert np.array_equal(decoded, element[1])


def test_no_element_before_or_after_the_fit_is_large(sized):
    plan, _, pieces, pipeline = sized
    base = pieces[0][0]
    for step in ("Prepare/List", "Prepare/Spread", "Prepare/Prepare"):
        assert len(coder_of(pipeline, f"Release/{step}").encode((base, 10**6))) < 1000
    records = [FileRecord(name, 10**9, "0" * 64, 10**6, "0" * 64) for name in files_of(plan.config)]
    one = coder_of(pipeline, "Release/Write/Write files")
    assert max(len(one.encode((base, record))) for record in records) < 1000
    assert len(coder_of(pipeline, "Release/Write/All files").encode((base, records))) < ELEMENT_BYTES


def test_no_shard_of_images_is_large():
    """A shard of as many images as are allowed, with long names."""
    names = tuple(f"{number:0200d}" for number in range(MAX_SHARD_ROWS))
    shard = Shard("x", "/in", True, ("a label",) * len(names), names)
    assert len(coders.registry.get_coder(Any).encode(("names", shard))) < ELEMENT_BYTES


def test_every_kind_of_stage_is_among_the_large_ones():
    kinds = {stage.KIND for config in SIZES.values() for stage in Plan(config, "id").stages}
    assert kinds == {
        "counts",
        "means",
        "moment",
        "whitened",
        "start",
        "teacher",
        "sketch",
        "rounds",
        "centres",
        "scatter",
        "scales",
    }


@pytest.mark.parametrize("kind", ["rows", "images"])
def test_dataflow_takes_the_job(folder, many_rows, tmp_path, kind):
    """What Dataflow's runner would upload, made by it and its client with nothing sent."""
    reason = "needs apache-beam[gcp], which CI installs where it can be had"
    apiclient = pytest.importorskip("apache_beam.runners.dataflow.internal.apiclient", reason=reason)
    pytest.importorskip("google.cloud.storage", reason=reason)
    key = os.urandom(32)
    key_file = small.write_key(tmp_path / "key", key)
    options = runner.job_options(
        [
            *["--runner=DataflowRunner", "--dry_run=true", "--no_auth", "--project=project"],
            *["--region=europe-west1", "--sdk_container_image=europe-docker.pkg.dev/project/images/dpgmm"],
            *["--temp_location=gs://bucket/tmp", "--staging_location=gs://bucket/staging"],
        ],
        verbose=False,
    )
    # A dry run stops before the files of the job are written, which need no
    # network either where they go to a local folder.
    job = job_of(kind, folder, many_rows, key_file, options=options).run().job
    staged, template = tmp_path / "staged", tmp_path / "template.json"
    staged.mkdir()
    job.google_cloud_options.staging_location = str(staged)
    job.google_cloud_options.template_location = str(template)
    apiclient.DataflowApplicationClient(job.options).create_job(job)

    assert [path.name for path in staged.iterdir()] == ["pipeline.pb"]
    uploaded = beam_runner_api_pb2.Pipeline.FromString((staged / "pipeline.pb").read_bytes())
    check_transforms(uploaded)
    check_chain(uploaded)
    description = json.loads(template.read_text())
    assert description["type"] == "JOB_TYPE_BATCH"
    (harness,) = description["environment"]["workerPools"][0]["sdkHarnessContainerImages"]
    assert harness["containerImage"].endswith("/dpgmm")
    check_nothing_private([*searched(uploaded), template.read_bytes()], key_file, key)
    assert template.stat().st_size + uploaded.ByteSize() < MOST_BYTES
