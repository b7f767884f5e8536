"""What the flex template's launcher runs: its parameters -> the options of `dpgmm release`.

The launcher calls `launch.py --name=value ...` for the parameters of metadata.json and for
Dataflow's own options, with `--template_location`: the job's graph is written there, the service
starts it, and nobody waits for it here.
"""

import argparse
import datetime
import os
import sys
from collections.abc import Sequence

from dpgmm_beam.errors import ConfigError
from pipelines import cli, release

# Options that name files which launcher, workers and reader must all see.
SHARED = ("--input", "--output", "--private-dir", "--noise-key-file")


def arguments_for_release(argv: Sequence[str], environ=os.environ, today: str | None = None) -> list[str]:
    """The command line of `dpgmm release`.

    - `--noise_key_file=F` becomes `--noise-key-file=F`, as the command has it;
    - `--overwrite=true` becomes `--overwrite`, `=false` and empty values vanish;
    - `{date}` in the release id is today's date in UTC, and `{release_id}` in the output is the id:
      a scheduler sends the same words every time;
    - workers run the image that this runs in, unless --sdk_container_image names another.

    Raises:
      ConfigError: no noise key and release id, or a path that workers can't see.
    """
    today = today or datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    actions = {option: action for action in release.parser()._actions for option in action.option_strings}
    ours: dict[str, str | None] = {}
    others = []
    for argument in argv:
        name, separator, value = argument.partition("=")
        option = name.replace("_", "-")
        if option not in actions:
            others.append(argument)
        elif isinstance(actions[option], argparse._StoreTrueAction):
            if value.lower() not in ("", "true", "false"):
                raise ConfigError(option, value, "be true or false")
            if value.lower() != "false" and (value or not separator):
                ours[option] = None
        elif value:
            ours[option] = value
    for option in ("--noise-key-file", "--release-id", "--private-dir"):
        if option not in ours:
            # The launcher ends before the job starts: a key that it drew would be dropped too soon.
            raise ConfigError(option, None, "be given: a template's job outlives its launcher")
    release_id = (ours["--release-id"] or "").replace("{date}", today)
    ours["--release-id"] = release_id
    if ours.get("--output"):
        ours["--output"] = (ours["--output"] or "").replace("{release_id}", release_id)
    for option in SHARED:
        if option in ours and "://" not in (ours[option] or ""):
            raise ConfigError(option, ours[option], "be on a file system that every worker sees, e.g. gs://")
    image = environ.get("DPGMM_IMAGE")
    if image and not any(argument.startswith("--sdk_container_image") for argument in others):
        others.append(f"--sdk_container_image={image}")
    return [option if value is None else f"{option}={value}" for option, value in ours.items()] + others


def main(argv: Sequence[str]) -> int:
    return release.main(arguments_for_release(argv))


if __name__ == "__main__":
    sys.exit(cli.run(main))
