"""dpgmm verify: re-check a release, or derive it again and compare."""

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.release import decoded, manifest
from pipelines import cli, paths, private, release_job, release_request, runner, runs
from pipelines.class_sizes import class_rows_of
from pipelines.columns import check_units, columns_of
from pipelines.parsers.verify import parser
from transforms.execution import Execution
from transforms.files import finding, inputs
from transforms.files.opening import read_bytes
from transforms.files.private import is_local
from transforms.files.publish import exists, files_below, join
from transforms.files.run_files import Workspace
from transforms.files.small import measure, read_small


def main(argv: Sequence[str]) -> int:
    arguments, beam_arguments = parser().parse_known_args(argv)
    options = runner.job_options(beam_arguments, arguments.verbose)
    runner.check_ports(options)
    if (arguments.input is None) != (arguments.noise_key_file is None):
        raise ConfigError("--input", arguments.input, "come together with --noise-key-file")
    paths.check_path("--release", arguments.release)
    path = join(arguments.release, manifest.FILE_NAME)
    if not exists(path):
        raise ConfigError("--release", arguments.release, f"be a folder with a {manifest.FILE_NAME}")
    data = read_small("--release", path, manifest.MAX_BYTES)
    present = files_below(arguments.release) - {manifest.FILE_NAME}

    def measured(name: str, most: int) -> tuple[int, str]:
        return measure(join(arguments.release, *name.split("/")), most)

    if (pictures := decoded.parse(data)) is not None:
        return check_pictures(pictures, decoded.check(pictures, present, measured), arguments)
    content = manifest.parse(data, arguments.release)
    problems = manifest.check(content, present, measured) or check_rows(content, arguments.release)
    if arguments.input is not None and not problems:
        problems = derive_again(content, arguments, options)
    for problem in problems:
        cli.report(f"NOT VERIFIED: {problem}", verified=False, problems=problems)
    if problems:
        return 1
    privacy = content["privacy"]
    cli.report(
        f"verified: what was done to the data composes to epsilon {privacy['epsilon']:g}"
        f" at delta {privacy['delta']:g} ({privacy['adjacency']}), and {len(content['files'])} files have"
        " their digests" + ("; derived again, everything is the same" if arguments.input is not None else ""),
        verified=True,
        problems=[],
        release_id=content["release_id"],
        epsilon=privacy["epsilon"],
        delta=privacy["delta"],
        files=len(content["files"]),
        derived_again=arguments.input is not None,
    )
    return 0


def check_rows(content: dict, folder: str) -> list[str]:
    """What is wrong with the noisy number of rows that a manifest states, whose files are as it says."""
    try:
        if int(class_rows_of(folder).rows.sum()) == content["privacy"]["noisy_rows"]:
            return []
    except (ArithmeticError, KeyError, OSError, TypeError, ValueError):
        pass
    return ["noisy_rows of the privacy statement is not the sum of those of the classes"]


def check_pictures(content: dict, problems: list[str], arguments: argparse.Namespace) -> int:
    """Tells what is wrong with decoded pictures."""
    if arguments.input is not None:
        raise ConfigError("--input", arguments.input, "be left out: these are pictures, which a decoder made")
    for problem in problems:
        cli.report(f"NOT VERIFIED: {problem}", verified=False, problems=problems)
    if problems:
        return 1
    privacy = content["release"]["privacy"]
    cli.report(
        f"verified: pictures of a release of epsilon {privacy['epsilon']:g} at delta {privacy['delta']:g}"
        f" ({privacy['adjacency']}), and {len(content['files'])} files have their digests",
        verified=True,
        problems=[],
        release_id=content["release"]["release_id"],
        epsilon=privacy["epsilon"],
        delta=privacy["delta"],
        files=len(content["files"]),
        decoder=content["decoding"]["decoder"],
    )
    return 0


def derive_again(content: dict, arguments: argparse.Namespace, options) -> list[str]:
    """Runs the release again into a scratch folder; what differs, in sentences."""
    private.check_key_file(arguments.noise_key_file)
    private_dir = private.check_folder(arguments.private_dir)
    paths.check_apart(
        {
            "--private-dir": private_dir,
            "--release": arguments.release,
            "--input": arguments.input,
            "--noise-key-file": arguments.noise_key_file,
        }
    )
    private_dir = private.open_folder(arguments.private_dir)
    config, columns = manifest.plan_of(content).config, columns_of(arguments)
    check_units(columns, config.max_rows_per_unit)
    # Plain lists may need to be told their length; a model's is its own.
    dimension = config.dimension if config.encoder == "precomputed" else None
    columns = release_request.read_columns(config, columns)
    source = inputs.describe_input(arguments.input, config.encoder, dimension, columns)
    release_request.check_pictures(config, source)
    execution = Execution(threads=runner.threads_for(options, 0))
    request = release_request.Request(config, source, execution, join(private_dir, "embeddings"))
    # States of the release itself would prove nothing: those of a folder of its own.
    parent = private_dir if is_local(private_dir) else None
    with tempfile.TemporaryDirectory(prefix="verify-", dir=parent) as scratch:
        output = os.path.join(scratch, "release")
        key_file, rows = finding.absolute(arguments.noise_key_file), join(private_dir, runs.ROWS)
        workspace = Workspace(os.path.join(scratch, "run"), rows, key_file)
        current = runs.Run("verify", workspace, content["release_id"], drawn=False)
        before = dataclasses.replace(request, config=config.unbounded)
        request = release_job.with_bound(before, current, options)
        release_job.run(request, output, False, current, options)
        again = manifest.parse(read_bytes(join(output, manifest.FILE_NAME)), output)
    stated, derived = ({file["path"]: file for file in each["files"]} for each in (content, again))
    differing = [
        f"{path} comes out different when derived again"
        for path in sorted(stated.keys() | derived.keys())
        if stated.get(path) != derived.get(path)
    ]
    differing += [
        f"{name} comes out different when derived again"
        for name in sorted({*content, *again} - {"files", "versions"})
        if content.get(name) != again.get(name)
    ]
    if differing and content["versions"] != again["versions"]:
        changed = [
            name for name, version in content["versions"].items() if again["versions"].get(name) != version
        ]
        differing.append(f"other versions are installed than it was made with: {', '.join(changed)}")
    return differing


if __name__ == "__main__":
    sys.exit(cli.run(main))
