"""`dpgmm embed`: images -> a private folder of embeddings."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.config import check_decodable
from dpgmm_beam.encoders import registry
from dpgmm_beam.errors import ConfigError, printable
from pipelines import cli, job, paths
from pipelines.columns import columns_of
from pipelines.parsers.embed import parser
from pipelines.progress import Progress, device
from pipelines.runner import check_ports, is_local, job_options, threads_for
from transforms.embed import EmbedImages
from transforms.execution import MAX_THREADS
from transforms.files import finding, private
from transforms.files.cache import NAMES_PREFIX, NOTES_FOLDER, REJECTED_FOLDER, finished_shards
from transforms.files.inputs import describe_input
from transforms.files.private import make_private_folder
from transforms.files.shards import SHARD_PREFIX, plan_shards
from transforms.files.small import read_small
from transforms.files.write import write_whole
from transforms.survey import left_out_of_images

# Says what a folder was made from.  Readers of Parquet folders skip its name.
MARKER = "_dpgmm_embed.json"
_MARKER_BYTES = 2**16

# What was embedded and left out: exact.
REPORTS_FOLDER = "_reports"

# What may be in such a folder, half-written files among it.
_NAMES = (MARKER, SHARD_PREFIX, NAMES_PREFIX, REJECTED_FOLDER, NOTES_FOLDER, REPORTS_FOLDER)
_OWN_NAMES = (*_NAMES, *(f".{name}" for name in _NAMES))


def main(argv: Sequence[str]) -> int:
    known, unknown = parser().parse_known_args(argv)
    options = job_options(unknown, known.verbose)
    check_ports(options)
    registry.check_encoder(known.encoder)
    check_decodable(known.decodable, known.encoder)
    if known.encoder == "precomputed":
        raise ConfigError("--encoder", known.encoder, "name a model")
    if not 0 <= known.threads <= MAX_THREADS:
        raise ConfigError("--threads", known.threads, f"be a whole number from 0 to {MAX_THREADS}")
    paths.check_path("--input", known.input)
    check_output(known.output)
    paths.check_apart({"--input": known.input, "--output": known.output})
    try:
        description = describe_input(known.input, known.encoder, columns=columns_of(known))
        embedded = description.holds_embeddings
    except ConfigError as error:
        # Of embeddings that are none of this encoder's.
        if not (embedded := error.argument == "encoder"):
            raise
    if embedded:
        raise ConfigError("--input", known.input, "hold images; these are embeddings already")
    step = EmbedImages(
        description,
        known.encoder,
        finding.absolute(known.output),
        known.shard_rows,
        known.batch_size,
        threads_for(options, known.threads) if is_local(options) else known.threads,
        prune=True,
        decodable=known.decodable,
    )
    with claimed(step):
        run(step, options, known.verbose)
    if not job.waits(options):
        cli.report(
            f"submitted; embeddings will be in {step.cache_dir}", submitted=True, output=step.cache_dir
        )
        return 0
    report = write_report(step)
    cli.report(
        f"Embeddings are in {step.cache_dir}", output=step.cache_dir, encoder=step.encoder, private=True
    )
    cli.report(f"What was left out of the input, and why, is in {report}", report=report)
    cli.say("That folder is PRIVATE: embeddings tell about the images they come from. Do not hand it out.")
    return 0


def run(step: EmbedImages, options, verbose: bool = False) -> None:
    """Runs one embedding job to its end, with progress on standard error."""
    pipeline = beam.Pipeline(options=options)
    pipeline | "Embed images" >> step
    name = job.job_name("embed", step.input.pattern, step.encoder, step.cache_dir)
    job.run(pipeline, name, [progress(step, verbose, is_local(options))])


def write_report(step: EmbedImages) -> str:
    """Writes exactly what a finished job embedded and left out into its private folder; returns the path."""
    found = left_out_of_images(
        step.input, step.encoder, step.cache_dir, step.shard_rows, labels=True, decodable=step.decodable
    )
    content = {"input": step.input.pattern, "encoder": step.encoder, **found}
    path = FileSystems.join(step.cache_dir, REPORTS_FOLDER, "embed.json")
    write_whole(path, json.dumps(content, indent=2).encode(), private=True)
    return path


def progress(step: EmbedImages, verbose: bool = False, local: bool = True) -> Progress:
    """Shows how many of the job's cache files are finished, and where a local job computes them."""
    names = {shard.name for shard in plan_shards(step.input, step.encoder, step.shard_rows, step.decodable)}
    # An input without images has its line, too: whether there is one is no public fact.
    total = max(len(names), 1)
    return Progress(
        "embedding",
        total,
        lambda: len(names & finished_shards(step.cache_dir)),
        verbose=verbose,
        unit="files",
        detail=lambda _: device() if local else "",
    )


def check_output(output: str) -> None:
    """Checks a folder for embeddings, which need not exist; nothing is made.

    Raises:
      ConfigError: it can't be written or isn't private, or holds something else than embeddings.
    """
    paths.check_writable_folder("--output", output)
    if not private.is_local(output) or not os.path.isdir(output):
        return
    for name in os.listdir(output):
        if not name.startswith(_OWN_NAMES):
            raise ConfigError(
                "--output",
                output,
                f"be new, empty or a folder of embeddings only; it holds {printable(name)}",
            )


@contextlib.contextmanager
def claimed(step: EmbedImages) -> Iterator[None]:
    """While entered, the output folder is this step's; a refusal takes a new folder away again."""
    new = private.is_local(step.cache_dir) and not os.path.exists(step.cache_dir)
    claim_output(step)
    try:
        yield
    except Exception as error:
        refused = isinstance(error, ConfigError) or cli.refusal(error)
        if new and refused and not finished_shards(step.cache_dir):
            shutil.rmtree(step.cache_dir, ignore_errors=True)
        raise


def claim_output(step: EmbedImages) -> None:
    """Marks the output folder as this input's and encoder's.

    Raises:
      ConfigError: it is another's, whose files this job would delete, or can't
        be written.
    """
    claim = {"input": step.input.pattern, "encoder": step.encoder}
    if step.decodable is not None:
        claim["decodable"] = step.decodable
    marker = FileSystems.join(step.cache_dir, MARKER)
    try:
        if FileSystems.exists(marker):
            if _claim(step.cache_dir, marker) != claim:
                raise ConfigError(
                    "--output",
                    step.cache_dir,
                    "be new, or hold embeddings of the same --input and --encoder, and --decodable",
                )
            return
        if finding.list_parquet(step.cache_dir):
            raise ConfigError("--output", step.cache_dir, "be new: it holds Parquet files of something else")
        make_private_folder(step.cache_dir)
        write_whole(marker, json.dumps(claim).encode(), private=True)
    except OSError as error:
        raise ConfigError(
            "--output", step.cache_dir, f"be a folder that can be written ({error.strerror})"
        ) from None


def _claim(folder: str, marker: str) -> object:
    try:
        return json.loads(read_small("--output", marker, _MARKER_BYTES))
    except (ValueError, RecursionError) as error:
        reason = error.allowed if isinstance(error, ConfigError) else "which it does not"
        raise ConfigError("--output", folder, f"have a {MARKER} that says what is in it ({reason})") from None


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
