"""What `dpgmm release` does around its pipeline, for a pipeline of your own.

with private_run(config, "release", private_dir="~/private") as run, beam.Pipeline() as pipeline:
    rows = pipeline | ...
    rows | PrepareElements(run.plan, run.workspace) | FitMixture(...) | WriteRelease(...)
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit.plan import Plan
from pipelines import paths, private, runs
from pipelines.release_request import check_output, is_made
from transforms.files import finding
from transforms.files.publish import Publication
from transforms.files.run_files import Workspace


@dataclasses.dataclass(frozen=True)
class PrivateRun:
    """A release that a pipeline is about to make.

    Attributes:
      plan: for `PrepareElements` and `FitMixture`.
      workspace: private files of the run, for all of them.
      publication: for `WriteRelease`.
    """

    plan: Plan
    workspace: Workspace
    publication: Publication


@contextlib.contextmanager
def private_run(
    config: ReleaseConfig,
    output: str | os.PathLike,
    *,
    source: str = "",
    private_dir: str | os.PathLike | None = None,
    key_file: str | os.PathLike | None = None,
    release_id: str | None = None,
    overwrite: bool = False,
    restart: bool = False,
) -> Iterator[PrivateRun]:
    """Opens a run by the rules of `dpgmm release`; the pipeline runs to its end inside of the `with`.

    The private folder is yours alone, a release id names one draw, a drawn key goes at the end, and
    what a killed process has begun is continued by the next one with the same arguments.

    Args:
      config: of the release; its encoder may be any name of what made the embeddings.
      output: folder of the release.
      source: names the rows, in words of your own: with a drawn key, a killed run goes on where
        configuration, output and this are the same.  Rows of another day want another name.
      private_dir: default: as `dpgmm release` has it.  Workers must see it by the same path.
      key_file, release_id: as --noise-key-file and --release-id; both or none.
      overwrite: whether a release in `output` may be replaced.
      restart: drop what was begun.

    Raises:
      ConfigError: naming the argument; the private folder is not private, the id has named something else, or
        something is in the way of the output.
    """
    folder, place = (None if each is None else os.fspath(each) for each in (private_dir, key_file))
    output = os.fspath(output)
    if config.bound_found:
        raise ConfigError(
            "config", "bound_found", "have a max_rows_per_unit of its own: only dpgmm release finds one"
        )
    with _fields_named():
        private.check_key(place, release_id)
        paths.check_writable_place("--output", output)
        checked = private.check_folder(folder)
        paths.check_apart({"--output": output, "--private-dir": checked, "--noise-key-file": place})
        if not is_made(output, config, release_id):
            check_output(output, overwrite)
        Plan(config, release_id or "drawn")
        checked = private.open_folder(folder)
    output = finding.absolute(output)
    key = place and finding.absolute(place)
    with runs.open_run(checked, config, source, output, key, release_id, restart) as run:
        plan = Plan(config, run.release_id)
        yield PrivateRun(plan, run.workspace, Publication(output, overwrite))
        runs.report(checked, run, len(plan.stages), (), None)


@contextlib.contextmanager
def _fields_named() -> Iterator[None]:
    """While entered, refusals name arguments of Python, not options."""
    try:
        yield
    except ConfigError as error:
        names = {"--noise-key-file": "key_file", "--release-id": "release_id", "noise_key_file": "key_file"}
        argument = names.get(error.argument, error.argument.removeprefix("--").replace("-", "_"))
        raise ConfigError(argument, error.value, error.allowed) from None
