"""dpgmm sample: more labelled rows of a release, at no cost in privacy."""

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import sys
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import pyarrow as pa

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.mixture import BASIS_FILE, COMPONENTS_FILE, Mixture, Sampler
from dpgmm_beam.release import manifest
from dpgmm_beam.release.class_rows import CLASSES_FILE
from dpgmm_beam.release.labels import FEATURES_FILE, RIDGES_FILE, TEACHER_FILE, Labeller
from dpgmm_beam.release.loading import read_mixture
from dpgmm_beam.release.row_statement import RowStatement
from dpgmm_beam.release.synthesis import Parts, draw_part, generator_of_seed
from pipelines import cli, cores, paths
from pipelines.parsers.sample import parser
from pipelines.progress import Steps
from transforms.files import finding
from transforms.files.private import is_local
from transforms.files.publish import exists, files_below, join
from transforms.files.small import read_bounded, read_small
from transforms.files.write import write_whole

ABOUT_FILE = "_sample.json"
"""Says what the rows were drawn from; readers of Parquet folders skip the name.  It comes last."""

MAX_ROWS, MAX_SEED = 2**31, 2**64
MAX_FILE_BYTES = 2**30
"""Of a file of a mixture."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A release, as far as it takes to draw more of its rows.

    Attributes:
      config: of the release.
      release_id: of the release.
      mixture: with the teacher that labels rows.
    """

    config: ReleaseConfig
    release_id: str
    mixture: Mixture


def load(release: str) -> Loaded:
    """Reads what draws and labels rows as a release does.

    Raises:
      ConfigError: it is not a release, or its mixture is not as its manifest says.
    """
    path = join(release, manifest.FILE_NAME)
    if not exists(path):
        raise ConfigError("--release", release, f"be a folder with a {manifest.FILE_NAME}")
    content = manifest.parse(read_small("--release", path, manifest.MAX_BYTES), release)
    try:
        release_id = str(content["release_id"])
        digests = {file["path"]: file["sha256"] for file in content["files"]}
        config = ReleaseConfig.from_dict(content["config"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ConfigError(
            "--release",
            release,
            f"hold a {manifest.FILE_NAME} that states its id and its files, and a configuration",
        ) from None

    def read(name: str) -> bytes:
        name = f"{manifest.MIXTURE}/{name}"
        try:
            data = read_bounded(join(release, *name.split("/")), MAX_FILE_BYTES)
        except OSError:
            data = b""
        if hashlib.sha256(data).hexdigest() != digests.get(name):
            raise ConfigError(
                "--release", release, f"hold {name} as its manifest says; dpgmm verify tells more"
            )
        return data

    # Each once, and before any is decoded.
    names = [COMPONENTS_FILE, BASIS_FILE, CLASSES_FILE, TEACHER_FILE, FEATURES_FILE]
    names += [RIDGES_FILE] if config.ridges else []
    files = {name: read(name) for name in names}
    try:
        mixture = read_mixture(files.__getitem__)
        Sampler(mixture)
        if (mixture.classes, mixture.dimension) != (config.classes, config.dimension):
            raise ValueError("the mixture is of another configuration")
    except (pa.ArrowException, AttributeError, IndexError, KeyError, OSError, TypeError, ValueError):
        raise ConfigError("--release", release, "hold a mixture that rows can be drawn from") from None
    return Loaded(config, release_id, mixture)


def check_output(output: str) -> None:
    """Raises ConfigError unless the folder is new or empty, and can be made."""
    paths.check_writable_place("--output", output)
    if not is_local(output):
        if files_below(output):
            raise ConfigError("--output", output, "be an empty or a new folder")
    elif os.path.lexists(output) and (not os.path.isdir(output) or os.listdir(output)):
        raise ConfigError("--output", output, "be an empty or a new folder")


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    for name, least, bound in (("rows", 1, MAX_ROWS + 1), ("seed", 0, MAX_SEED), ("threads", 0, 257)):
        value = getattr(arguments, name)
        if value is not None and not least <= value < bound:
            raise ConfigError(f"--{name}", value, f"be a whole number from {least} to {bound - 1}")
    output = finding.absolute(arguments.output)
    paths.check_path("--release", arguments.release)
    check_output(arguments.output)
    paths.check_apart({"--release": arguments.release, "--output": arguments.output})
    loaded = load(finding.absolute(arguments.release))
    seed = secrets.randbelow(MAX_SEED) if arguments.seed is None else arguments.seed
    rows = arguments.rows
    write(output, loaded, rows, seed, arguments.threads or cores.usable_cores())
    cli.report(f"{rows} rows are in {output} (seed {seed})", output=output, rows=rows, seed=seed)
    return 0


def write(output: str, loaded: Loaded, rows: int, seed: int, threads: int) -> None:
    """Writes all parts and then what they are; a local folder appears whole."""
    place, mixture = output, loaded.mixture
    parts, sampler, labeller = Parts(len(mixture.classes), rows), Sampler(mixture), mixture.labeller
    assert isinstance(labeller, Labeller)
    statement = RowStatement.of(loaded.config, loaded.release_id, mixture, seed)
    about = {"release_id": loaded.release_id, "seed": seed, "rows": rows}
    if is_local(output):
        parent, name = os.path.split(output)
        place = os.path.join(parent, f".{name}.sampling-{uuid.uuid4().hex[:8]}")

    def draw(part: int) -> None:
        data = draw_part(parts, part, sampler, labeller, generator_of_seed(seed, part), statement)
        write_whole(join(place, parts.name(part)), data)

    try:
        with (
            Steps("rows", rows, "rows") as progress,
            one_thread(),
            ThreadPoolExecutor(threads) as workers,
        ):
            try:
                drawn = {workers.submit(draw, part): part for part in range(len(parts))}
                for future in as_completed(drawn):
                    future.result()
                    progress.add(parts.rows_of(drawn[future]))
            finally:
                workers.shutdown(cancel_futures=True)
        write_whole(join(place, ABOUT_FILE), (json.dumps(about, indent=2) + "\n").encode())
        if place != output:
            os.rename(place, output)
    finally:
        if place != output:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(cli.run(main))
