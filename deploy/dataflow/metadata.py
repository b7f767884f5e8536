"""Writes the flex template's metadata from the options of `dpgmm release`.

    python deploy/dataflow/metadata.py > deploy/dataflow/metadata.json

A test fails when the two differ.
"""

import argparse
import json

from pipelines import arguments, private, release

# What the API refuses before anything is started; the command checks more, and says why.
_PATTERNS = {int: r"^[0-9]+$", float: r"^[0-9.]+([eE][-+]?[0-9]+)?$"}


def parameter(action: argparse.Action) -> dict:
    """One parameter; names with underscores, as Dataflow's own have."""
    name = action.option_strings[0].removeprefix("--")
    flag = isinstance(action, argparse._StoreTrueAction)
    # One machine's home folder is of no use in a template.
    text = (action.help or name.replace("-", " ")).replace(
        private.default_folder(), "a folder of the user's own"
    )
    if isinstance(action, argparse._AppendAction):
        text += f" ({action.metavar}; several: comma-separated)"
    elif action.default not in (None, False):
        text += f" (default: {action.default})"
    result = {
        "name": name.replace("-", "_"),
        "label": name.replace("-", " ").capitalize(),
        "helpText": text,
        "isOptional": not action.required,
        "paramType": "TEXT",
    }
    if action.choices:
        result["regexes"] = [f"^({'|'.join(map(str, action.choices))})$"]
    elif flag:
        result["regexes"] = ["^(true|false)$"]
    elif action.type in _PATTERNS:
        result["regexes"] = [_PATTERNS[action.type]]
    return result


def metadata() -> dict:
    # In a template parameters are given in one way, and nobody reads what is said.
    never = {*arguments.COMMON} - {arguments.VERBOSE}
    options = [action for action in release.parser()._actions if not never & {*action.option_strings}]
    return {
        "name": "dpgmm release",
        "description": "Labelled images or embeddings in, a differentially private release of synthetic"
        " embeddings out. Needs private_dir, noise_key_file and release_id ({month} and {date} are"
        " filled in) besides the required parameters; paths are gs:// or another file system that all"
        " workers see.",
        "parameters": [parameter(action) for action in options],
    }


if __name__ == "__main__":
    print(json.dumps(metadata(), indent=2))
