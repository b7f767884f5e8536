"""The pipelines of a release: its own and, before it, that of a bound which is to be found."""

import contextlib
import dataclasses
import uuid
from collections.abc import Callable

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from dpgmm_beam.fit.plan import Plan
from pipelines import embed, job, runner, runs
from pipelines.progress import StageWatch
from pipelines.release_request import Request
from transforms.embed import EmbedImages
from transforms.files import finding, opening, run_files, unit_files
from transforms.files.publish import Publication, join
from transforms.prepare import FindBound, Source
from transforms.release import Release


def start(pipeline: beam.Pipeline, request: Request, options: PipelineOptions):
    """The source of rows, and what embeds them first, if anything does."""
    if request.source.holds_embeddings:
        source = Source(request.source.pattern, columns=request.source.columns)
        return pipeline | "Input" >> beam.Create([source]), None
    threads = request.execution.threads if runner.is_local(options) else 0
    embedding = EmbedImages(
        request.source,
        request.config.encoder,
        request.embed_cache,
        threads=threads,
        decodable=request.config.decodable,
    )
    return pipeline | "Embed" >> embedding, embedding


def with_bound(request: Request, current: runs.Run, options: PipelineOptions) -> Request:
    """The request, with a bound on a unit's rows that data says, where it is to be found.

    It is a pipeline of its own, for all noise of the others follows from what it releases.  The same
    data, configuration, key and id give the same bound, so that whoever runs it again spends nothing.
    """
    config = request.config
    if not config.bound_found:
        return request
    # Of this attempt alone: what another one has left is of who knows which data.
    folder = join(current.workspace.folder, "bound", uuid.uuid4().hex)
    workspace = dataclasses.replace(current.workspace, folder=folder, rows=join(folder, "rows"), register="")
    pipeline = beam.Pipeline(options=options)
    source = start(pipeline, request, options)[0]
    plan = Plan(config, current.release_id)
    source | "Bound" >> FindBound(plan, workspace, request.execution)
    job.run(pipeline, job.job_name(f"bound {current.release_id}", config.digest, folder), [])
    (base,) = run_files.bases(folder)
    most = int(opening.read_bytes(unit_files.bound_file(base)))
    with contextlib.suppress(OSError):
        FileSystems.delete([folder])
    return dataclasses.replace(request, config=dataclasses.replace(config, max_rows_per_unit=most))


def run(
    request: Request,
    output: str,
    overwrite: bool,
    current: runs.Run,
    options: PipelineOptions,
    before_submission: Callable[[], None] = lambda: None,
) -> Plan:
    """Runs the release's pipeline to its end.

    Args:
      before_submission: called when nothing but the job itself can fail any more.
    """
    config = request.config
    plan = Plan(config, current.release_id)
    publication = Publication(finding.absolute(output), overwrite)
    embedded = None
    pipeline = beam.Pipeline(options=options)
    watch: list[contextlib.AbstractContextManager] = []
    source, embedding = start(pipeline, request, options)
    if embedding:
        embedded = embed.progress(embedding, local=runner.is_local(options))
        watch.append(embedded)
    source | "Release" >> Release(plan, publication, current.workspace, request.execution)
    folder, names = current.workspace.folder, [stage.name for stage in plan.stages]
    # One line at a time; entered first, it ends last.
    watch.insert(
        0,
        StageWatch(
            lambda: range(run_files.finished_stages(folder)),
            names,
            ready=lambda: embedded is None or embedded.ended,
        ),
    )
    before_submission()
    title = f"release {current.release_id}"
    job.run(pipeline, job.job_name(title, plan.config.digest, publication.output), watch)
    return plan
