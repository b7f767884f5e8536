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

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from PIL import Image

from dpgmm_beam import lattice, state, statistics
from dpgmm_beam.clustering import cells_of
from dpgmm_beam.config import Method
from dpgmm_beam.plan import Plan
from pipelines import runner
from tests import small
from transforms import embed, index, inputs
from transforms.embed import EmbedImages
from transforms.publish import Publication
from transforms.release import Release
from transforms.stage import Advance, Execution, SumRows, index_elements

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
# Of ParDo: side inputs that both take; nothing stateful, splittable or timed.
SIDE_INPUTS = {"beam:side_input:iterable:v1", "beam:side_input:multimap:v1"}

MOST_CONSUMERS = 4
MOST_BYTES = 5 * 2**20
ELEMENT_BYTES = 2 * 2**20


def labels(count):
    return tuple(f"label {number * 7919 % 100003}" for number in range(count))


def job_pipeline(
    classes=3, steps=2, rounds=1, images=None, key_file="/private/key", dimension=16, options=None
):
    config = small.small_config(
        classes=labels(classes) if isinstance(classes, int) else classes,
        encoder="efficientnet_lite0:32" if images else "precomputed",
        dimension=dimension,
        rounds=rounds,
        method=Method(teacher_steps=steps, reduced=8),
    )
    pipeline = beam.Pipeline(options=options or PipelineOptions([]))
    if images:
        start = pipeline | EmbedImages(images, config.encoder, "/private/embeddings")
    else:
        start = pipeline | beam.Create(["/in/*.parquet"]) | beam.FlatMap(inputs.list_row_groups)
    publication = Publication("/out/release", "run")
    start | "Release" >> Release(Plan(config, "id"), publication, str(key_file), Execution())
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
            assert {side.access_pattern.urn for side in payload.side_inputs.values()} <= SIDE_INPUTS
            assert not payload.state_specs
            assert not payload.timer_family_specs
            assert not payload.restriction_coder_id
            assert not payload.requires_stable_input
    # Bounded, in the one global window: batch runners.
    assert {each.is_bounded for each in job.components.pcollections.values()} == {
        beam_runner_api_pb2.IsBounded.BOUNDED
    }
    assert not job.requirements


def consumers(job):
    found = collections.Counter()
    for each in leaves(job):
        found.update(set(each.inputs.values()))
    return found


@pytest.mark.parametrize("kind", ["rows", "images"])
def test_no_collection_has_many_consumers(protos, kind):
    assert max(consumers(protos[kind]).values()) <= MOST_CONSUMERS


def test_the_graph_grows_with_the_stages_only():
    sizes = {steps: proto(classes=1000, steps=steps, rounds=1).ByteSize() for steps in (2, 7)}
    many = proto(classes=1000, steps=50, rounds=1)
    per_step = (sizes[7] - sizes[2]) / 5
    assert many.ByteSize() == pytest.approx(sizes[2] + 48 * per_step, rel=0.05)
    assert many.ByteSize() < MOST_BYTES
    assert max(consumers(many).values()) <= MOST_CONSUMERS
    # The list of classes is there once, whatever the number of stages.
    few = {steps: proto(classes=2, steps=steps, rounds=1).ByteSize() for steps in (2, 7)}
    once = sum(map(len, labels(1000)))
    assert 0 <= sizes[2] - few[2] < 1.5 * once
    assert sizes[7] - few[7] == pytest.approx(sizes[2] - few[2], abs=200)


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


@pytest.mark.parametrize("kind", ["rows", "images"])
def test_no_key_and_nothing_of_the_data_in_the_job(folder, tmp_path, kind):
    key = os.urandom(32)
    key_file = small.write_key(tmp_path / "key", key)
    images = inputs.describe_input(str(folder), "efficientnet_lite0:32") if kind == "images" else None
    job = proto(images=images, key_file=key_file, dimension=1280)
    check_nothing_private(searched(job), key_file, key)


def check_nothing_private(haystacks, key_file, key):
    # The search finds what is there: the path of the key file.
    assert any(key_file.encode() in haystack for haystack in haystacks)
    forbidden = [*secret_forms(key), b"zebra-crossing", b"unrepeatable"]
    for haystack in haystacks:
        for text in forbidden:
            assert text not in haystack


def test_the_key_is_not_in_options_or_the_dofns(tmp_path):
    """Whatever a worker is sent: DoFns as they are pickled, before and after they ran."""
    key = os.urandom(32)
    key_file = small.write_key(tmp_path / "key", key)
    source = small.write_rows(tmp_path / "in", small.table(60))
    config = small.small_config()
    plan = index.pack_plan(Plan(config, "id"))
    chunks = list(state.to_chunks({"index": index.pack(inputs.list_row_groups(str(source))), "plan": plan}))
    fresh = SumRows(0, Execution(), key_file)
    assert not any(form in pickler.dumps(fresh, enable_trace=False) for form in secret_forms(key))
    advance = Advance(0, key_file)
    parts = statistics.split(Plan(config, "id").stages[0].channels, Plan(config, "id").stages[0].begin())
    after = list(advance.process(None, list(parts), chunks))
    blob = pickle.dumps((advance, after))
    assert not any(form in blob for form in secret_forms(key))


BIG_CLASSES, BIG_DIMENSION = 1000, 2048
BIG_CELLS = cells_of(BIG_CLASSES, 4, 64)


@pytest.fixture(scope="module")
def big():
    """The plan of the largest release that is promised."""
    config = small.small_config(
        classes=labels(BIG_CLASSES),
        dimension=BIG_DIMENSION,
        components=4,
        rounds=4,
        method=Method(teacher_steps=1),
    )
    return Plan(config, "id")


def test_no_statistic_is_a_large_element(big):
    """At 2,048 dimensions and 1,000 classes: the parts of every stage's sums, as a coder writes them."""
    assert {stage.KIND for stage in big.stages} == {"means", "moment", "teacher", "sketch", "rounds"}
    for stage in big.stages:
        count = 0
        for part in statistics.split(stage.channels, statistics.zeros(stage.channels)):
            assert len(pickle.dumps(part)) < ELEMENT_BYTES
            count += part[1].size
        assert count == sum(channel.size for channel in stage.channels)


def test_no_piece_of_a_state_is_large(big):
    paths = [inputs.RowGroups(f"/in/{number:06d}.parquet", (1024,) * 50) for number in range(2000)]
    whole = {
        "theta": np.ones((BIG_CLASSES, BIG_DIMENSION + 1)),
        "basis": np.ones((BIG_DIMENSION, BIG_DIMENSION), np.int32),
        "index": index.pack(paths),
        "plan": index.pack_plan(big),
    }
    chunks = list(state.to_chunks(whole))
    assert {chunk.name for chunk in chunks} == set(whole)
    assert 2**19 < max(len(pickle.dumps(chunk)) for chunk in chunks) < ELEMENT_BYTES
    # A shard of as many images as are allowed, with long names.
    names = tuple(f"{number:0200d}" for number in range(embed.MAX_SHARD_ROWS))
    shard = embed.Shard("x", "/in", True, ("a label",) * len(names), names)
    assert len(pickle.dumps(shard)) < ELEMENT_BYTES


def test_sums_leave_a_bundle_in_small_parts(big, tmp_path):
    """The DoFn itself, on a few rows of the largest size."""
    chosen = big.config.classes
    vectors = np.random.default_rng(0).normal(size=(6, BIG_DIMENSION))
    pq.write_table(small.embeddings_table(list(chosen[:6]), vectors), tmp_path / "in.parquet")
    found = index.pack(inputs.list_row_groups(str(tmp_path / "in.parquet")))
    chunks = list(state.to_chunks({"index": found, "plan": index.pack_plan(big)}))
    dofn = SumRows(0, Execution(), small.write_key(tmp_path / "key"))
    dofn.setup()
    dofn.start_bundle()
    for element in index_elements(b"", chunks):
        assert not list(dofn.process(element, chunks) or ())
    sizes = [len(pickle.dumps(output.value)) for output in dofn.finish_bundle()]
    assert len(sizes) == len(list(statistics.parts_of(big.stages[0].channels)))
    assert max(sizes) < ELEMENT_BYTES


def test_the_bound_of_parts_and_chunks():
    assert 8 * statistics.PART < ELEMENT_BYTES
    assert state.CHUNK_BYTES < ELEMENT_BYTES
    lattice.check_dimension(BIG_DIMENSION)


@pytest.mark.parametrize("kind", ["rows", "images"])
def test_dataflow_takes_the_job(folder, tmp_path, kind):
    """What Dataflow's runner would upload, made by it and its client with nothing sent."""
    reason = "needs apache-beam[gcp], which CI installs where it can be had"
    apiclient = pytest.importorskip("apache_beam.runners.dataflow.internal.apiclient", reason=reason)
    pytest.importorskip("google.cloud.storage", reason=reason)
    key = os.urandom(32)
    key_file = small.write_key(tmp_path / "key", key)
    images = inputs.describe_input(str(folder), "efficientnet_lite0:32") if kind == "images" else None
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
    job = job_pipeline(images=images, key_file=key_file, dimension=1280, options=options).run().job
    staged, template = tmp_path / "staged", tmp_path / "template.json"
    staged.mkdir()
    job.google_cloud_options.staging_location = str(staged)
    job.google_cloud_options.template_location = str(template)
    apiclient.DataflowApplicationClient(job.options).create_job(job)

    assert [path.name for path in staged.iterdir()] == ["pipeline.pb"]
    uploaded = beam_runner_api_pb2.Pipeline.FromString((staged / "pipeline.pb").read_bytes())
    check_transforms(uploaded)
    assert max(consumers(uploaded).values()) <= MOST_CONSUMERS
    description = json.loads(template.read_text())
    assert description["type"] == "JOB_TYPE_BATCH"
    (harness,) = description["environment"]["workerPools"][0]["sdkHarnessContainerImages"]
    assert harness["containerImage"].endswith("/dpgmm")
    check_nothing_private([*searched(uploaded), template.read_bytes()], key_file, key)
    assert template.stat().st_size + uploaded.ByteSize() < MOST_BYTES
