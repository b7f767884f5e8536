"""The `dpgmm` command: one verb per module of this package."""

import argparse
import importlib
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence

import apache_beam.options.pipeline_options as beam_options
import grpc

from dpgmm_beam import __version__
from dpgmm_beam.errors import ConfigError

VERBS = {
    "embed": "images -> a private cache of embeddings",
    "release": "images or embeddings -> a differentially private release",
    "train": "a release -> a two-layer network, tested on real embeddings",
    "verify": "re-check a release's accounting and digests, or re-derive it",
    "demo": "Fashion-MNIST end to end: embed, release, train, one table",
}


VERBOSE = "--verbose"


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one sentence and exit status 2.

    Abbreviated options are off: an abbreviation would swallow Beam's options.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(
            *args,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            **kwargs,
        )
        self.add_argument(VERBOSE, action="store_true", help="say more, and show tracebacks")

    def error(self, message):
        sys.stderr.write(f"{self.prog}: {message}\n")
        raise SystemExit(2)


def beam_pipeline_options(arguments: Sequence[str]) -> beam_options.PipelineOptions:
    """Beam's options from what a verb's own parser did not know.

    Raises:
      ConfigError: an argument is not an option of Beam either (Beam itself
        only warns, and a misspelt --epsilon would then be ignored), or not with
        this value.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    pending = [beam_options.PipelineOptions]
    seen = set()
    while pending:
        options = pending.pop()
        pending.extend(options.__subclasses__())
        # Third-party subclasses may re-declare an option; the first one wins.
        if "_add_argparse_args" in vars(options) and options not in seen:
            seen.add(options)
            scratch = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
            options._add_argparse_args(scratch)
            for action in scratch._actions:
                if not set(action.option_strings) & set(parser._option_string_actions):
                    parser._add_action(action)
    try:
        _, unknown = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        # Beam has hundreds of options: its complaint alone, without the list of them.
        names = (error.argument_name or "").split("/")
        raise ConfigError(
            names[0], _given(arguments, names), f"be as Apache Beam takes it ({error.message})"
        ) from None
    if unknown:
        raise ConfigError(
            unknown[0], unknown[1] if len(unknown) > 1 else "", "be an option of this verb or of Apache Beam"
        )
    return beam_options.PipelineOptions(list(arguments))


def _given(arguments: Sequence[str], names: Sequence[str]) -> str:
    """The value that follows an option of any of the names; '' where there is none."""
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, value = argument.partition("=")
        if name in names:
            return value if equals or following.startswith("--") else following
    return ""


def configure_logging(verbose: bool = False) -> None:
    """This project's progress on standard error; of Beam only what is fatal, or errors if verbose."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    own = logging.getLogger("dpgmm")
    own.handlers = [handler]
    own.propagate = False
    own.setLevel(logging.INFO)
    # Beam logs a failed worker's traceback; `run` prints its cause.
    logging.getLogger("apache_beam").setLevel(logging.ERROR if verbose else logging.CRITICAL)


def run(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Calls a verb's `main` and turns what goes wrong into one sentence.

    Returns:
      What `main` returns; 2 for a refused configuration; 1 for a failed job,
      whose traceback is shown with --verbose only: it is long, and it holds
      the paths of the user's files.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    configure_logging(VERBOSE in arguments)
    try:
        return main(arguments)
    except ConfigError as error:
        print(f"dpgmm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dpgmm: interrupted; nothing half-done was published", file=sys.stderr)
        return 130
    except Exception as error:
        if VERBOSE in arguments:
            raise
        print(f"dpgmm: the job failed and published nothing half-done: {summary(error)}", file=sys.stderr)
        return 1


def summary(error: BaseException) -> str:
    """What went wrong, in one line.

    Beam's errors hold the worker's whole traceback, whose last line is the cause,
    or begin with it where there is none; gRPC's have it apart.
    """
    said = error.details() if isinstance(error, grpc.Call) else str(error)
    lines = [line.strip() for line in (said or "").splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    text = causes[-1] if causes else lines[0] if lines else ""
    name = type(error).__name__
    text = text if text.startswith(name) else f"{name}: {text}"
    return text.split(" [while running")[0][:500] + f" ({VERBOSE} shows more)"


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in VERBS:
        verb = importlib.import_module(f"pipelines.{arguments[0]}")
        return run(verb.main, arguments[1:])
    if arguments == ["--version"]:
        print(f"dpgmm {__version__}")
        return 0
    usage = "usage: dpgmm VERB [options]; dpgmm VERB --help tells more\n" + "".join(
        f"{os.linesep}  {verb:<9}{text}" for verb, text in VERBS.items()
    )
    wanted_help = arguments in (["--help"], ["-h"], [])
    print(usage, file=sys.stdout if wanted_help else sys.stderr)
    return 0 if wanted_help and arguments else 2
