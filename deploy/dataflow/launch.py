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

# The names under which Dataflow's launch may say it, and its API's values beside Beam's
# (AUTOSCALING_ALGORITHM_NONE, NONE).
AUTOSCALING = ("--autoscaling-algorithm", "--autoscalingalgorithm")


def arguments_for_release(argv: Sequence[str], environ=os.environ, today: str | None = None) -> list[str]:
    """The command line of `dpgmm release`.

    - `--noise_key_file=F` becomes `--noise-key-file=F`, as the command has it;
    - `--overwrite=true` becomes `--overwrite`, `=false` and empty values vanish;
    - `--share=A=.1,B=.2` becomes `--share=A=.1 --share=B=.2`: a template's parameter comes once;
    - `{month}` and `{date}` in the release id are today's in UTC, and `{release_id}` in the output is
      the id: a scheduler sends the same words every time;
    - the number of workers stays as it is (autoscaling NONE), unless the launch says otherwise;
    - workers run the image that this runs in, unless --sdk_container_image names another.

    Raises:
      ConfigError: no noise key and release id, braces in the id that stand for nothing, or a path
        that workers can't see.
    """
    today = today or datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    actions = {option: action for action in release.parser()._actions for option in action.option_strings}
    ours: dict[str, str | None] = {}
    lists: list[str] = []
    others = []
    autoscaling = "NONE"
    for argument in argv:
        name, separator, value = argument.partition("=")
        option = name.replace("_", "-")
        if option.lower() in AUTOSCALING:
            autoscaling = value.removeprefix("AUTOSCALING_ALGORITHM_").replace("BASIC", "THROUGHPUT_BASED")
        elif option not in actions:
            others.append(argument)
        elif isinstance(actions[option], argparse._AppendAction):
            lists += [f"{option}={item.strip()}" for item in value.split(",") if item.strip()]
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
    given = ours["--release-id"] or ""
    release_id = given.replace("{date}", today).replace("{month}", today[:7])
    if "{" in release_id or "}" in release_id:
        raise ConfigError("--release-id", given, "have no braces but {month} and {date}")
    ours["--release-id"] = release_id
    if ours.get("--output"):
        ours["--output"] = (ours["--output"] or "").replace("{release_id}", release_id)
    for option in SHARED:
        if option in ours and "://" not in (ours[option] or ""):
            raise ConfigError(option, ours[option], "be on a file system that every worker sees, e.g. gs://")
    image = environ.get("DPGMM_IMAGE")
    if image and not any(argument.startswith("--sdk_container_image") for argument in others):
        others.append(f"--sdk_container_image={image}")
    others.append(f"--autoscaling_algorithm={autoscaling}")
    return (
        [option if value is None else f"{option}={value}" for option, value in ours.items()] + lists + others
    )


def main(argv: Sequence[str]) -> int:
    return release.main(arguments_for_release(argv))


if __name__ == "__main__":
    sys.exit(cli.run(main))
