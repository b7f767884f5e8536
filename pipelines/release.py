"""dpgmm release: images or embeddings in, a differentially private release out."""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from dpgmm_beam.config import ReleaseConfig, check_classes
from dpgmm_beam.data.schema import PICTURE, UNIT
from dpgmm_beam.defaults import AUTO
from dpgmm_beam.encoders.registry import check_encoder, encoder_for_process, known_dimension
from dpgmm_beam.errors import ConfigError, printable
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.allocation import with_shares
from dpgmm_beam.privacy.neighbours import MAX_FOUND
from dpgmm_beam.release import manifest
from dpgmm_beam.release.class_rows import CLASSES_FILE, ClassRows
from pipelines import budget as budgets
from pipelines import cli, embed, job, key_store, paths, private, runner, runs, signals
from pipelines.columns import check_units, columns_of
from pipelines.parsers.release import parser
from pipelines.progress import StageWatch
from transforms import survey
from transforms.embed import EmbedImages
from transforms.execution import MAX_THREADS, Execution
from transforms.files import finding, inputs, opening, run_files, unit_files
from transforms.files.columns import Columns
from transforms.files.private import is_local
from transforms.files.publish import Publication, exists, is_release, join, left_overs, occupied
from transforms.files.small import read_bounded, read_small
from transforms.prepare import FindBound, Source
from transforms.release import Release

if TYPE_CHECKING:
    from pipelines.ledger import charging

CLASSES_BYTES = 2**24
"""Of a file of classes, at most."""

CLASSES_SUFFIXES = (
    *(".txt", ".text", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml"),
    *(".list", ".lst", ".names", ".labels", ".classes"),
)


def read_classes(text: str) -> tuple[str, ...]:
    """The declared labels: a comma-separated list, or a file with one a line (`.json`: a list of texts).

    Labels are taken as they stand, blanks included: those of the data are compared
    so, too.  Only line feeds end a line, with a carriage return before them or
    without; empty lines are no labels.

    What looks like the name of one file is no label: it has a slash, begins as
    a home folder does, or ends like a file of text.

    Raises:
      ConfigError: none, an empty or a repeated one, or a file that can't be read.
    """
    if not text:
        check_classes(())
    named = "," not in text and (
        any(mark in text for mark in "/\\")
        or text.startswith("~")
        or text.strip().lower().endswith(CLASSES_SUFFIXES)
    )
    if named and is_local(text) and not os.path.lexists(text):
        raise ConfigError("--classes", text, "be labels with commas between, or a file that exists")
    # A folder by the name of a label is no file of labels.
    if named or (os.path.lexists(text) and not os.path.isdir(text)):
        try:
            # What some editors put before a text in UTF-8 belongs to no label.
            content = read_small("--classes", text, CLASSES_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ConfigError("--classes", text, "be a readable file of text, one label a line") from None
        if text.lower().endswith(".json"):
            labels = _listed(text, content)
        else:
            lines = (line.removesuffix("\r") for line in content.split("\n"))
            labels = tuple(line for line in lines if line)
    else:
        labels = tuple(text.split(","))
    check_classes(labels)
    return labels


def _listed(path: str, content: str) -> tuple[str, ...]:
    try:
        labels = json.loads(content)
    except (ValueError, RecursionError):
        labels = None
    if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise ConfigError("--classes", path, 'be a list of texts, ["a", "b"], where its name ends in .json')
    return tuple(labels)


def say_of_blanks(classes: Sequence[str]) -> None:
    """Names, on standard error, the first declared label that begins or ends with what nobody sees."""
    for label in classes:
        if any(end.isspace() or not end.isprintable() for end in (label[0], label[-1])):
            cli.say(
                f"warning: the class '{printable(label)}' begins or ends with a blank; labels are compared as"
                " they stand",
                sys.stderr,
            )
            return


def check_output(output: str, overwrite: bool) -> None:
    """Raises ConfigError when the folder holds a release, or anything that is not one.

    With `overwrite` a release of this program may be there, with nothing beside it.
    """
    if wrong := occupied(output, overwrite):
        raise ConfigError("--output", output, wrong)


def is_made(output: str, config: ReleaseConfig, release_id: str | None) -> bool:
    """Whether the output holds the release of this id and configuration: to make it again changes nothing."""
    path = join(output, manifest.FILE_NAME)
    if not exists(path):
        return False
    data = read_small("--output", path, manifest.MAX_BYTES)
    if release_id is None or not is_release(output):
        return False
    try:
        content = manifest.parse(data, output)
    except ConfigError:
        # Of another version.
        return False
    try:
        made = manifest.plan_of(content).config.unbounded
    except ConfigError:
        return False
    return content["release_id"] == release_id and made.digest == config.unbounded.digest


def say_what_is_left(output: str, private_dir: str) -> None:
    """Names, on standard error, what killed jobs left: unpublished releases, and runs with keys."""
    for path in left_overs(output):
        cli.say(
            f"warning: {path} may hold a release that was not published; it counts as one for all who can"
            " read it. Delete it",
            sys.stderr,
        )
    if names := runs.interrupted(private_dir):
        cli.say(
            f"warning: {len(names)} interrupted runs keep their keys and states ({', '.join(names)}); the"
            " command that began one goes on with it, dpgmm clean removes them",
            sys.stderr,
        )


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked release: everything but the key.

    Attributes:
      config: public, part of the release.
      source: the input.
      execution: speed only.
      embed_cache: private folder for the embeddings of images.
      charged: where it is charged; None: nowhere.
    """

    config: ReleaseConfig
    source: inputs.InputDescription
    execution: Execution
    embed_cache: str
    charged: "charging.Request | None" = None


def check(arguments: argparse.Namespace, options: PipelineOptions) -> Request:
    """Checks everything that can be before a row is read: texts, then files and folders, then listings.

    Nothing is made.
    """
    private.check_names(arguments.noise_key_file, arguments.release_id, arguments.release_key_store)
    charged = charged_to(arguments)
    paths.check_path("--input", arguments.input)
    check_encoder(arguments.encoder)
    if not 0 <= arguments.threads <= MAX_THREADS:
        raise ConfigError("--threads", arguments.threads, f"be a whole number from 0 to {MAX_THREADS}")
    execution = Execution(
        arguments.block_rows,
        runner.threads_for(options, arguments.threads),
        spread=not runner.is_local(options),
    )
    epsilon, delta = budgets.of(arguments)
    found = arguments.max_rows_per_unit == AUTO
    config = ReleaseConfig(
        encoder=arguments.encoder,
        classes=read_classes(arguments.classes),
        # Until the input has been looked at; an encoder's own is no question of the options.
        dimension=arguments.dimension
        if arguments.dimension is not None
        else known_dimension(arguments.encoder) or 1,
        epsilon=epsilon,
        delta=delta,
        clip_norm=arguments.clip_norm,
        samples_per_class=arguments.samples_per_class,
        components=arguments.components,
        rounds=arguments.rounds,
        shares=with_shares(arguments.share, arguments.favor, arguments.decodable is not None),
        # What is to be found is at most this.
        max_rows_per_unit=MAX_FOUND if found else arguments.max_rows_per_unit,
        bound_found=found,
        adjacency=arguments.adjacency,
        slice=arguments.slice,
        decodable=arguments.decodable,
    )
    columns = read_columns(config, columns_of(arguments))
    check_units(columns, arguments.max_rows_per_unit)
    if arguments.noise_key_file is not None:
        private.check_key_file(arguments.noise_key_file)
    paths.check_writable_place("--output", arguments.output)
    private_dir = private.check_folder(arguments.private_dir)
    paths.check_apart(
        {
            "--input": arguments.input,
            "--output": arguments.output,
            "--private-dir": private_dir,
            "--noise-key-file": arguments.noise_key_file,
            "--release-key-store": local(arguments.release_key_store),
            "--ledger": local(arguments.ledger),
        }
    )
    if arguments.release_key_store is not None:
        key_store.store_of(arguments.release_key_store).check()
    if charged is not None:
        charged.check(config, arguments.release_id, private_dir)
    source = inputs.describe_input(arguments.input, arguments.encoder, arguments.dimension, columns)
    config = dataclasses.replace(
        config,
        dimension=source.dimension or encoder_for_process(arguments.encoder).dimension,
        labelled=source.labelled,
    )
    check_pictures(config, source)
    if not is_made(arguments.output, config, arguments.release_id):
        check_output(arguments.output, arguments.overwrite)
    # So that noise that would be too large to draw is refused here.
    Plan(config, arguments.release_id or "drawn")
    return Request(config, source, execution, join(private_dir, "embeddings"), charged)


def read_columns(config: ReleaseConfig, columns: Columns) -> Columns:
    """The columns of an input, with that of pictures where they are wanted."""
    return columns if config.decodable is None else dataclasses.replace(columns, picture=PICTURE)


def check_pictures(config: ReleaseConfig, source: inputs.InputDescription) -> None:
    """Raises ConfigError where a release is to be decodable, and the input has no pictures."""
    if config.decodable is None or not source.holds_embeddings:
        return
    if source.pictures in (config.decodable, ""):
        return
    raise ConfigError(
        "decodable",
        config.decodable,
        "be left out of embeddings that have no pictures of that form beside them: give the images, or a"
        f" folder of dpgmm embed --decodable {config.decodable}",
    )


def charged_to(arguments: argparse.Namespace) -> "charging.Request | None":
    """The ledger of a command; None where it names none.

    Raises:
      ConfigError: it names a part of one.
    """
    if arguments.ledger is None:
        for option in ("dataset", "ledger_key_file"):
            if (value := getattr(arguments, option)) is not None:
                raise ConfigError(f"--{option.replace('_', '-')}", value, "come together with --ledger")
        return None
    if arguments.max_rows_per_unit == AUTO:
        raise ConfigError(
            "max_rows_per_unit",
            AUTO,
            "be a number with --ledger: finding it draws noise before the charge is made",
        )
    if arguments.dataset is None:
        # Not its value: there may be a password in it.
        raise ConfigError("--ledger", "(given)", "come together with --dataset")
    from pipelines.ledger import charging

    return charging.Request(arguments.ledger, arguments.dataset, arguments.ledger_key_file)


def local(text: str | None) -> str | None:
    """The local path that an option names; None where it names something else."""
    if text is not None and text.startswith("sqlite:///"):
        return text.removeprefix("sqlite:///")
    return text if text is not None and is_local(text) and not text.startswith("vault:") else None


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


def main(argv: Sequence[str] | None = None) -> int:
    arguments, beam_arguments = parser().parse_known_args(argv)
    options = runner.job_options(beam_arguments, arguments.verbose)
    runner.check_ports(options)
    if arguments.noise_key_file is None and arguments.release_key_store is None:
        job.check_drawn_key(options)
    elif arguments.release_key_store is not None:
        job.check_drawn_key(options, "--noise-key-file in the place of --release-key-store")
    request = check(arguments, options)
    if request.config.bound_found and not job.waits(options):
        raise ConfigError(
            "max_rows_per_unit", AUTO, "be a number where the job is not waited for: it takes two jobs"
        )
    private_dir = private.open_folder(arguments.private_dir)
    # Workers run in folders of their own.
    output = finding.absolute(arguments.output)
    key_file = arguments.noise_key_file and finding.absolute(arguments.noise_key_file)
    say_of_blanks(request.config.classes)
    if request.source.unused_units:
        cli.warn(
            f"the input says whose each row is, and that is not used: each row is a privacy unit of its own;"
            f" --privacy-unit-column {UNIT} makes people the unit"
        )
    say_what_is_left(output, private_dir)
    secret = None
    if arguments.release_key_store is not None:
        secret = key_store.store_of(arguments.release_key_store).key(arguments.release_id)
    with contextlib.ExitStack() as stack:
        # Left last: whether a charge is given back depends on what became of the run.
        charge = request.charged and stack.enter_context(request.charged.charging(private_dir))
        current = stack.enter_context(
            runs.open_run(
                private_dir,
                request.config,
                request.source.pattern,
                output,
                key_file,
                arguments.release_id,
                arguments.restart,
                secret,
            )
        )
        if charge:
            current = charge.reserve(current, request.config)
        request = with_bound(request, current, options)
        plan = run(
            request,
            output,
            arguments.overwrite,
            current,
            options,
            charge.begin_drawing if charge else lambda: None,
        )
        if not job.waits(options):
            what = "template written" if runner.outlives_driver(options) else "submitted"
            cli.report(
                f"{what}; the job releases to {output} when it has run",
                submitted=True,
                output=output,
                release_id=current.release_id,
            )
            return 0
        with signals.published(f"released to {output}"):
            if charge:
                charge.commit()
            images = None
            if not request.source.holds_embeddings:
                images = survey.left_out_of_images(
                    request.source,
                    plan.config.encoder,
                    request.embed_cache,
                    decodable=plan.config.decodable,
                )
            left_out = runs.report(private_dir, current, len(plan.stages), plan.config.classes, images)
            config = plan.config
            cli.report(
                f"released to {output}: epsilon {config.epsilon:g}, delta {config.delta:g}, "
                f"{config.samples_per_class} rows for each of {len(config.classes)}"
                f" class{'es' if len(config.classes) > 1 else ''}",
                output=output,
                release_id=current.release_id,
                epsilon=config.epsilon,
                delta=config.delta,
                samples_per_class=config.samples_per_class,
                classes=list(config.classes),
                **({"max_rows_per_unit": config.max_rows_per_unit} if config.max_rows_per_unit else {}),
            )
            cli.report(f"What was left out of the input, and why, is in {left_out}", report=left_out)
            if config.bound_found:
                cli.say(
                    f"at most {config.max_rows_per_unit} rows of a person count, by noisy numbers of people"
                )
            say_class_rows(output)
            if charge:
                charge.say()
    return 0


def class_rows_of(release: str) -> ClassRows:
    """The noisy sizes of a release's classes.

    Raises:
      KeyError, OSError, ValueError: they can't be read.
    """
    return ClassRows.load(
        lambda name: read_bounded(join(release, manifest.MIXTURE, name), manifest.MAX_BYTES)
    )


def say_class_rows(output: str) -> None:
    """What a finished release tells of the size of its classes: noisy and in it, so anyone may read it."""
    try:
        found = class_rows_of(output)
    except (KeyError, OSError, ValueError):
        # The release stands; what is said of it does not decide over that.
        cli.warn(f"mixture/{CLASSES_FILE} of the release could not be read back")
        return
    first, *lines = found.lines()
    sizes = dict(zip(found.classes, found.rows.tolist(), strict=True))
    cli.report(first, class_rows=sizes, class_rows_stddev=found.stddev)
    for line in lines:
        cli.say(line)
    if warning := found.warning():
        cli.warn(warning)


if __name__ == "__main__":
    sys.exit(cli.run(main))
