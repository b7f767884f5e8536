"""The declared classes of a command: how they are read, and what looks wrong in them."""

import json
import os
import sys
from collections.abc import Sequence

from dpgmm_beam.config import check_classes
from dpgmm_beam.errors import ConfigError, printable
from pipelines import cli
from transforms.files.private import is_local
from transforms.files.small import read_small

CLASSES_BYTES = 2**24
"""Of a file of classes, at most."""

CLASSES_SUFFIXES = (
    *(".txt", ".text", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml"),
    *(".list", ".lst", ".names", ".labels", ".classes"),
)


def read_classes(text: str) -> tuple[str, ...]:
    """The declared labels: a comma-separated list, or a file with one a line (`.json`: a list of texts).

    Labels are taken as they stand, blanks included: those of the data are compared
    so, too.  Only line feeds end a line, with a carriage return before them or
    without; empty lines are no labels.

    What looks like the name of one file is no label: it has a slash, begins as
    a home folder does, or ends like a file of text.

    Raises:
      ConfigError: none, an empty or a repeated one, or a file that can't be read.
    """
    if not text:
        check_classes(())
    named = "," not in text and (
        any(mark in text for mark in "/\\")
        or text.startswith("~")
        or text.strip().lower().endswith(CLASSES_SUFFIXES)
    )
    if named and is_local(text) and not os.path.lexists(text):
        raise ConfigError("--classes", text, "be labels with commas between, or a file that exists")
    # A folder by the name of a label is no file of labels.
    if named or (os.path.lexists(text) and not os.path.isdir(text)):
        try:
            # What some editors put before a text in UTF-8 belongs to no label.
            content = read_small("--classes", text, CLASSES_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ConfigError("--classes", text, "be a readable file of text, one label a line") from None
        if text.lower().endswith(".json"):
            labels = _listed(text, content)
        else:
            lines = (line.removesuffix("\r") for line in content.split("\n"))
            labels = tuple(line for line in lines if line)
    else:
        labels = tuple(text.split(","))
    check_classes(labels)
    return labels


def _listed(path: str, content: str) -> tuple[str, ...]:
    try:
        labels = json.loads(content)
    except (ValueError, RecursionError):
        labels = None
    if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise ConfigError("--classes", path, 'be a list of texts, ["a", "b"], where its name ends in .json')
    return tuple(labels)


def say_of_blanks(classes: Sequence[str]) -> None:
    """Names, on standard error, the first declared label that begins or ends with what nobody sees."""
    for label in classes:
        if any(end.isspace() or not end.isprintable() for end in (label[0], label[-1])):
            cli.say(
                f"warning: the class '{printable(label)}' begins or ends with a blank; labels are compared as"
                " they stand",
                sys.stderr,
            )
            return
