"""dpgmm completion: a script by which a shell completes verbs and options."""

import argparse
from collections.abc import Sequence

import shtab

from pipelines import cli
from pipelines.arguments import parser_of
from pipelines.parsers.completion import parser

__all__ = ["main", "parser"]


def main(argv: Sequence[str]) -> int:
    shell = parser().parse_args(argv).shell
    cli.write(shtab.complete(whole(), shell) + "\n")
    return 0


def whole() -> argparse.ArgumentParser:
    """All verbs as one parser with sub-commands."""
    result = argparse.ArgumentParser(prog="dpgmm", description="Private releases of image embeddings")
    result.add_argument("--version", action="version", version="")
    verbs = result.add_subparsers()
    for verb, text in cli.VERBS.items():
        own = parser_of(verb)
        for action in own._actions:
            # A text may be a path; where it is not, file names do no harm.
            if action.nargs is None and action.type is None and not action.choices:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        verbs.add_parser(verb, help=text.replace("->", "to"), parents=[own], add_help=False, prog=own.prog)
    return result
