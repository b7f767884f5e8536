"""dpgmm release: images or embeddings in, a differentially private release out."""

import contextlib
import sys
from collections.abc import Sequence

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.data.schema import UNIT
from dpgmm_beam.defaults import AUTO
from dpgmm_beam.errors import ConfigError
from pipelines import cli, job, key_store, private, runner, runs, signals
from pipelines.class_sizes import say_class_rows
from pipelines.classes import say_of_blanks
from pipelines.parsers.release import parser
from pipelines.release_job import run, with_bound
from pipelines.release_request import check
from transforms import survey
from transforms.files import finding
from transforms.files.publish import left_overs


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
            _say_released(output, current.release_id, plan.config, left_out)
            if charge:
                charge.say()
    return 0


def _say_released(output: str, release_id: str, config: ReleaseConfig, left_out: str) -> None:
    cli.report(
        f"released to {output}: epsilon {config.epsilon:g}, delta {config.delta:g}, "
        f"{config.samples_per_class} rows for each of {len(config.classes)}"
        f" class{'es' if len(config.classes) > 1 else ''}",
        output=output,
        release_id=release_id,
        epsilon=config.epsilon,
        delta=config.delta,
        samples_per_class=config.samples_per_class,
        classes=list(config.classes),
        **({"max_rows_per_unit": config.max_rows_per_unit} if config.max_rows_per_unit else {}),
    )
    cli.report(f"What was left out of the input, and why, is in {left_out}", report=left_out)
    if config.bound_found:
        cli.say(f"at most {config.max_rows_per_unit} rows of a person count, by noisy numbers of people")
    say_class_rows(output)


if __name__ == "__main__":
    sys.exit(cli.run(main))
