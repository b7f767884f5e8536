"""dpgmm release: images or embeddings in, a differentially private release out."""

import argparse
import contextlib
import dataclasses
import os
import secrets
import sys
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from dpgmm_beam import manifest
from dpgmm_beam.budget import check_privacy_parameters
from dpgmm_beam.cache import PROCESS_CACHE
from dpgmm_beam.config import ROUNDS, ReleaseConfig, check_classes, with_shares
from dpgmm_beam.encoders import check_encoder, encoder_for_process
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.plan import Plan
from pipelines import cli, embed, private, runner
from transforms import inputs
from transforms.embed import EmbedImages
from transforms.inputs import read_bytes
from transforms.private_files import check_scheme, is_local
from transforms.publish import Publication, exists, join
from transforms.release import Release
from transforms.stage import Execution


def parser() -> argparse.ArgumentParser:
    result = cli.Parser(prog="dpgmm release", description=__doc__)
    what = result.add_argument_group("what is released")
    what.add_argument(
        "--input", required=True, help="folder of LABEL/*.png|jpg, or Parquet file, folder or glob"
    )
    what.add_argument(
        "--encoder", required=True, help="open_clip:MODEL/PRETRAINED, efficientnet_lite0 or precomputed"
    )
    what.add_argument("--classes", required=True, help="the declared labels: a,b,c or a file with one a line")
    what.add_argument("--output", required=True, help="folder of the release; appears whole or not at all")
    what.add_argument(
        "--samples-per-class",
        type=int,
        default=ReleaseConfig.samples_per_class,
        help="synthetic rows of each class",
    )
    budget = result.add_argument_group("privacy")
    budget.add_argument("--epsilon", type=float, required=True, help="budget of this release")
    budget.add_argument("--delta", type=float, required=True, help="well under one over the number of rows")
    budget.add_argument("--noise-key-file", help="32 secret bytes, with --release-id; else drawn and dropped")
    budget.add_argument("--release-id", help="public name of this one publication, never used twice")
    budget.add_argument("--private-dir", help=f"keys and embed cache (default: {private.default_folder()})")
    budget.add_argument(
        "--share", action="append", default=[], metavar="NAME=NUMBER", help="of the budget, for one mechanism"
    )
    method = result.add_argument_group("method")
    method.add_argument("--components", type=int, default=ReleaseConfig.components, help="Gaussians a class")
    method.add_argument("--rounds", type=int, help=f"clustering rounds (default: {ROUNDS})")
    method.add_argument(
        "--clip-norm", type=float, help="clip embeddings to it instead of normalising them to 1"
    )
    method.add_argument("--dimension", type=int, help="length of an embedding in a list column")
    running = result.add_argument_group("running (these never change the release)")
    running.add_argument("--overwrite", action="store_true", help="replace a release that is in --output")
    running.add_argument("--block-rows", type=int, default=Execution.block_rows, help="rows in a numpy block")
    running.add_argument(
        "--cache-mib", type=int, default=Execution.cache_bytes >> 20, help="blocks kept by a process"
    )
    return result


def read_classes(text: str) -> tuple[str, ...]:
    """The declared labels: a comma-separated list, or a file with one a line.

    Raises:
      ConfigError: none, an empty or a repeated one.
    """
    if not text:
        check_classes(())
    if os.path.isfile(text) or (not is_local(text) and exists(text)):
        try:
            lines = read_bytes(text).decode().splitlines()
        except (OSError, UnicodeDecodeError):
            raise ConfigError("--classes", text, "be a readable file of text, one label a line") from None
        labels = tuple(line.strip() for line in lines if line.strip())
    else:
        labels = tuple(label.strip() for label in text.split(","))
    check_classes(labels)
    return labels


def check_output(output: str, overwrite: bool) -> None:
    """Raises ConfigError when the folder holds a release, or anything that is not one."""
    check_scheme("--output", output)
    if is_local(output) and os.path.ismount(output):
        # A release appears by renaming a folder, and a mount point cannot be renamed.
        raise ConfigError("--output", output, "be a folder below a mount point, not one itself")
    if exists(join(output, manifest.FILE_NAME)):
        if not overwrite:
            raise ConfigError("--output", output, "not hold a release already, unless --overwrite is given")
    elif is_local(output) and os.path.exists(output) and (not os.path.isdir(output) or os.listdir(output)):
        raise ConfigError("--output", output, "be an empty or a new folder")


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked release: everything but the key.

    Attributes:
      config: public, part of the release.
      source: the input.
      execution: speed only.
      embed_cache: private folder for the embeddings of images.
    """

    config: ReleaseConfig
    source: inputs.InputDescription
    execution: Execution
    embed_cache: str


def check(arguments: argparse.Namespace, private_dir: str) -> Request:
    """Checks everything that can be before a row is read; cheap checks first."""
    check_privacy_parameters(arguments.epsilon, arguments.delta)
    classes = read_classes(arguments.classes)
    check_encoder(arguments.encoder)
    for name in ("block_rows", "cache_mib"):
        if getattr(arguments, name) < (1 if name == "block_rows" else 0):
            raise ConfigError(f"--{name.replace('_', '-')}", getattr(arguments, name), "be above 0")
    source = inputs.describe_input(arguments.input, arguments.encoder, arguments.dimension)
    config = ReleaseConfig(
        encoder=arguments.encoder,
        classes=classes,
        dimension=source.dimension or encoder_for_process(arguments.encoder).dimension,
        epsilon=arguments.epsilon,
        delta=arguments.delta,
        clip_norm=arguments.clip_norm,
        labelled=source.labelled,
        samples_per_class=arguments.samples_per_class,
        components=arguments.components,
        rounds=arguments.rounds,
        shares=with_shares(arguments.share),
    )
    execution = Execution(arguments.block_rows, arguments.cache_mib << 20, secrets.token_hex(8))
    return Request(config, source, execution, join(private_dir, "embeddings"))


def run(
    request: Request, output: str, overwrite: bool, key_file: str, release_id: str, options: PipelineOptions
) -> Plan:
    """Runs the release's pipeline to its end."""
    config = request.config
    plan = Plan(config, release_id)
    # Workers may have another working folder than this process.
    output, key_file = inputs.absolute(output), inputs.absolute(key_file)
    publication = Publication(
        output, f"{plan.config_digest[:16]}-{manifest.digest_of_text(release_id)[:16]}", overwrite
    )
    embedding = None
    if request.source.kind != inputs.EMBEDDING_PARQUET:
        threads = runner.threads_per_worker(options)
        embedding = EmbedImages(request.source, config.encoder, request.embed_cache, threads=threads)
    try:
        with (
            embed.progress(embedding) if embedding else contextlib.nullcontext(),
            beam.Pipeline(options=options) as pipeline,
        ):
            if embedding:
                row_groups = pipeline | "Embed" >> embedding
            else:
                row_groups = (
                    pipeline
                    | "Input" >> beam.Create([request.source.pattern])
                    | "Row groups" >> beam.FlatMap(inputs.list_row_groups)
                )
            row_groups | "Release" >> Release(plan, publication, key_file, request.execution)
    finally:
        # No rows stay in memory when the release is done.
        PROCESS_CACHE.clear()
    return plan


def main(argv: Sequence[str] | None = None) -> int:
    arguments, beam_arguments = parser().parse_known_args(argv)
    options = runner.job_options(beam_arguments, arguments.verbose)
    if runner.outlives_driver(options) and arguments.noise_key_file is None:
        # The driver would drop the key before the job starts.
        raise ConfigError("--template_location", "given", "come with --noise-key-file and --release-id")
    # Workers run in folders of their own.
    output = inputs.absolute(arguments.output)
    key_file = arguments.noise_key_file and inputs.absolute(arguments.noise_key_file)
    check_output(output, arguments.overwrite)
    private_dir = private.open_folder(arguments.private_dir)
    request = check(arguments, private_dir)
    with private.noise_key(private_dir, key_file, arguments.release_id) as (key_file, release_id):
        plan = run(request, output, arguments.overwrite, key_file, release_id, options)
    if runner.outlives_driver(options):
        print("template written; a job that is started from it releases to", output)
        return 0
    print(
        f"released to {output}: epsilon {plan.config.epsilon:g}, delta {plan.config.delta:g}, "
        f"{plan.config.samples_per_class} rows for each of {len(plan.config.classes)} classes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
