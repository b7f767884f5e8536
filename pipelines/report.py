"""dpgmm report: a release as a page that people read, and real rows beside it as a private one.

The public page is a function of the release: real rows are read after it is written, and
nothing of them can come into it.
"""

import os
import sys
import tempfile
from collections.abc import Sequence

from dpgmm_beam.errors import ConfigError
from pipelines import cli, paths
from pipelines.columns import columns_of
from pipelines.parsers.report import parser
from pipelines.reporting import charts, comparison, facts, page
from pipelines.reporting.facts import ReleaseFacts
from transforms.files import finding
from transforms.files.columns import DEFAULT_COLUMNS, Columns
from transforms.files.private import is_local
from transforms.files.publish import exists
from transforms.files.write import write_whole

SUFFIX, PRIVATE_SUFFIX = ".html", ".private.html"


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    charts.check_library(arguments.output)
    private = arguments.network is not None or arguments.private_embeddings is not None
    output = arguments.output
    private_output = output.removesuffix(SUFFIX) + PRIVATE_SUFFIX
    columns = columns_of(arguments)
    read = {
        f"--{name.replace('_', '-')}": getattr(arguments, name)
        for name in ("release", "network", "private_embeddings")
    }
    for option, path in read.items():
        if path is not None:
            paths.check_path(option, path)
    check_output(output, [output, private_output] if private else [output], arguments.overwrite)
    paths.check_apart({**read, "--output": output})
    if arguments.private_embeddings is not None:
        paths.check_apart({"--private-embeddings": arguments.private_embeddings, "--output": private_output})
    cli.note(f"checking and reading {arguments.release}")
    release = facts.read_release(finding.absolute(arguments.release))
    pages = {output: page.public_page(release)}
    # Only now is anything read that is private.
    if private:
        cli.note("reading what is private")
        pages[private_output] = private_page(
            release, arguments.network, arguments.private_embeddings, columns
        )
    for path, text in pages.items():
        write_whole(path, text.encode(), private=path == private_output)
    cli.report(f"report of the release: {output}", report=output)
    if private:
        cli.report(
            f"PRIVATE, exact figures of real rows: {private_output}; do not hand it out",
            private_report=private_output,
        )
    return 0


def check_output(output: str, files: Sequence[str], overwrite: bool) -> None:
    """Raises ConfigError unless the pages can be written where they are wanted."""
    paths.check_path("--output", output)
    name = output.rpartition("/")[2]
    if not name.endswith(SUFFIX) or name == SUFFIX or name.endswith(PRIVATE_SUFFIX):
        raise ConfigError(
            "--output", output, f"be a file NAME{SUFFIX}, where NAME does not end in .private itself"
        )
    if is_local(output):
        _check_folder(output)
    for file in files:
        if is_local(file) and os.path.lexists(file) and not os.path.isfile(file):
            raise ConfigError("--output", output, f"leave {file} to a file, and something else is there")
        if exists(file) and not overwrite:
            raise ConfigError("--output", output, f"be new, for {file} is there, unless --overwrite is given")


def _check_folder(output: str) -> None:
    """Tries to make a file where a local page is to be, or its folders; nothing is left behind."""
    folder = os.path.dirname(os.path.abspath(output))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".dpgmm-"):
            pass
    except OSError as error:
        raise ConfigError("--output", output, f"be a file that can be written ({error.strerror})") from None


def private_page(
    release: ReleaseFacts, network: str | None, embeddings: str | None, columns: Columns = DEFAULT_COLUMNS
) -> str:
    """The page of what was measured on real rows.

    Args:
      network: folder of a network, or None.
      embeddings: pattern of real embeddings, or None.
      columns: their names.
    """
    classes = release.mixture.classes
    tested = None if network is None else comparison.read_network(finding.absolute(network), classes)
    compared = None
    if embeddings is not None:
        compared = comparison.compare(comparison.read_real(embeddings, release, columns), release)
    return page.private_page(release, tested, compared)


if __name__ == "__main__":
    sys.exit(cli.run(main))
