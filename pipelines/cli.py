"""The `dpgmm` command: one verb per module of this package."""

# What is imported here delays every `dpgmm --help`: neither Beam nor numpy.
import argparse
import contextlib
import difflib
import importlib
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from dpgmm_beam import __version__
from dpgmm_beam.errors import ConfigError, printable
from pipelines import signals
from transforms.core_dumps import forbid_core_dumps

VERBS = {
    "embed": "images -> a private cache of embeddings",
    "release": "images or embeddings -> a differentially private release",
    "train": "a release -> a two-layer network, tested on real embeddings",
    "sample": "more labelled rows of a release, at no cost in privacy",
    "verify": "re-check a release's accounting and digests, or re-derive it",
    "clean": "remove what interrupted or finished runs left in the private folder",
    "demo": "Fashion-MNIST end to end: embed, release, train, one table",
}


VERBOSE = "--verbose"

_OPTIONS = {"secret": "--noise-key-file", "shares": "--share"}
"""Options of fields that have another name."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence and exit status 2.

    Abbreviated options are off: an abbreviation would swallow Beam's options.
    """

    def __init__(self, prog: str, description: str | None = None):
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        self.add_argument(VERBOSE, action="store_true", help="say more, and show tracebacks")

    def error(self, message):
        say(f"{self.prog}: {printable(message, 500)}", sys.stderr)
        raise SystemExit(2)


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a line, on standard output unless told otherwise, and never fails.

    A stream that is closed, full or broken is no reason to call a job failed
    whose release stands; characters that a stream can't write are escaped, and
    so are those by which what came from a file could steer a terminal.
    """
    stream = sys.stdout if stream is None else stream
    try:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        line = printable(text, most=None)
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except (AttributeError, OSError, ValueError):
        _abandon(stream)


def _abandon(stream: TextIO | None) -> None:
    """Points a broken stream nowhere: Python ends with status 120 if it can't flush one."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if stream is not None:
            os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Handler(logging.StreamHandler):
    """Writes to standard error; a stream that is closed or full is not worth a traceback."""

    def handleError(self, record):
        pass


def configure_logging(verbose: bool = False) -> None:
    """This project's progress on standard error; of Beam only what is fatal, or errors if verbose."""
    handler = _Handler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    own = logging.getLogger("dpgmm")
    own.handlers = [handler]
    own.propagate = False
    own.setLevel(logging.INFO)
    # Beam logs a failed worker's traceback; `run` prints its cause.
    level = logging.ERROR if verbose else logging.CRITICAL
    logging.getLogger("apache_beam").setLevel(level)
    root = logging.getLogger()
    # Importing Beam may have made a handler already, which prints what job servers say.
    plain = [each for each in root.handlers if type(each) is logging.StreamHandler]
    for other in plain:
        root.removeHandler(other)
    if plain or not root.handlers:
        others = _Handler()
        others.setLevel(level)
        root.addHandler(others)


def run(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Calls a verb's `main` and turns what goes wrong into one sentence.

    Returns:
      What `main` returns; 2 for a refused configuration, refused here or in a
      worker; 1 for a failed job, whose traceback is shown with --verbose only:
      it is long, and it holds the paths of the user's files.  After a signal
      this does not return: the process ends with 128 plus its number.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    forbid_core_dumps()
    configure_logging(VERBOSE in arguments)
    try:
        with signals.handled(), _threads(VERBOSE in arguments):
            status = _run(main, arguments)
    except signals.Interrupted as error:
        say(f"dpgmm: {error}", sys.stderr)
        signals.end(error.status)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            _abandon(stream)
    return status


@contextlib.contextmanager
def _threads(verbose: bool) -> Iterator[None]:
    """While entered, threads that fail print tracebacks only if verbose.

    They are Beam's, which lose their connections when a job ends.  The job's own
    error comes another way.
    """
    before = threading.excepthook
    if not verbose:
        threading.excepthook = lambda _: None
    try:
        yield
    except signals.Interrupted:
        # The process ends, and threads may yet fail.
        raise
    except BaseException:
        threading.excepthook = before
        raise
    threading.excepthook = before


def _run(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    try:
        return main(arguments)
    except ConfigError as error:
        say(f"dpgmm: {with_option(str(error))}", sys.stderr)
        return 2
    except signals.Interrupted:
        raise
    except KeyboardInterrupt:
        say("dpgmm: interrupted; nothing half-done was published", sys.stderr)
        return 130
    except Exception as error:
        if refused := refusal(error):
            say(f"dpgmm: {refused}", sys.stderr)
            return 2
        if VERBOSE in arguments:
            raise
        say(f"dpgmm: the job failed and published nothing half-done: {summary(error)}", sys.stderr)
        return 1


def refusal(error: BaseException) -> str:
    """The sentence of a `ConfigError` that was raised in a worker, "" if there was none.

    Beam hands on the worker's traceback as text.
    """
    name = re.escape(f"{ConfigError.__module__}.{ConfigError.__name__}")
    found = re.findall(name + r": (.+ is refused: it must .+)", _said(error))
    return with_option(found[-1].split(" [while running")[0]) if found else ""


def with_option(sentence: str) -> str:
    """A `ConfigError`'s sentence for who typed a command: with the option in place of a field."""
    field, equals, rest = sentence.partition("=")
    if not (equals and field.isidentifier()):
        return sentence
    return f"{_OPTIONS.get(field, '--' + field.replace('_', '-'))}={rest}"


def _said(error: BaseException) -> str:
    # gRPC's errors have apart what the other side said.
    details = getattr(error, "details", None)
    return (details() if callable(details) else str(error)) or ""


def summary(error: BaseException) -> str:
    """What went wrong, in one line.

    Beam's errors hold the worker's whole traceback, whose last line is the cause,
    or begin with it where there is none.
    """
    lines = [line.strip() for line in _said(error).splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    text = causes[-1] if causes else lines[0] if lines else ""
    name = type(error).__name__
    text = text if text.startswith(name) else f"{name}: {text}"
    return text.split(" [while running")[0][:500] + f" ({VERBOSE} shows more)"


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and (verb := arguments[0]) in VERBS:
        # Imported where signals are handled: it takes a second.
        return run(lambda own: importlib.import_module(f"pipelines.{verb}").main(own), arguments[1:])
    if arguments == ["--version"]:
        say(f"dpgmm {__version__}")
        return 0
    usage = [
        "usage: dpgmm VERB [options]; dpgmm VERB --help tells more",
        "",
        *(f"  {verb:<9}{text}" for verb, text in VERBS.items()),
    ]
    wanted_help = arguments in (["--help"], ["-h"], [])
    if not wanted_help:
        near = difflib.get_close_matches(arguments[0], [*VERBS, "--help", "--version"], 1)
        say(
            f"dpgmm: there is no verb '{printable(arguments[0])}'"
            + (f"; did you mean {near[0]!r}?" if near else ""),
            sys.stderr,
        )
    for line in usage:
        say(line, sys.stdout if wanted_help else sys.stderr)
    return 0 if wanted_help and arguments else 2


if __name__ == "__main__":
    sys.exit(main())
