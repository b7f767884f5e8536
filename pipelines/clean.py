"""dpgmm clean: remove what runs left in the private folder."""

import os
import sys
from collections.abc import Sequence

from dpgmm_beam.errors import ConfigError
from pipelines import cli, private, runs
from pipelines.parsers.clean import parser
from transforms.files.private import is_local


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    path = arguments.private_dir
    if path is not None and not is_local(path):
        raise ConfigError("--private-dir", path, "be a local folder; elsewhere delete its runs/ and rows/")
    if path is not None and not os.path.isdir(path):
        # A mistyped one is not clean: what was meant would stay.
        raise ConfigError("--private-dir", path, "be a folder that exists")
    cleaned = runs.clean(private.check_folder(path))
    rows = ", and prepared rows" if cleaned.rows else ""
    cli.report(f"removed {len(cleaned.runs)} runs{rows}", removed=len(cleaned.runs), busy=len(cleaned.busy))
    if cleaned.busy:
        cli.say(f"left {len(cleaned.busy)} that are running: {', '.join(cleaned.busy)}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
