"""The `dpgmm` command: one verb per module of this package."""

# What is imported here delays every `dpgmm --help`: neither Beam nor numpy.
import contextlib
import importlib
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from dpgmm_beam import __version__
from dpgmm_beam.errors import BudgetError, ConfigError, PassingError, printable
from pipelines import output, signals
from pipelines.arguments import JSON, QUIET, VERBOSE, Complaint, Parser, nearest, parser_of
from pipelines.output import Facts, note, report, say, warn, write
from transforms.core_dumps import forbid_core_dumps

__all__ = ["VERBS", "Parser", "main", "note", "report", "run", "say", "warn", "write"]

VERBS = {
    "inspect": "what an input holds and leaves out, for its owner's eyes",
    "embed": "images -> a private cache of embeddings",
    "plan": "what a release would be like, before any data is read",
    "release": "images or embeddings -> a differentially private release",
    "train": "a release -> a two-layer network, tested on real embeddings",
    "predict": "a network and real embeddings -> their labels, for their owner",
    "sample": "more labelled rows of a release, at no cost in privacy",
    "decode": "a release -> pictures, by a decoder, at no cost in privacy",
    "train-decoder": "public images -> a decoder of an encoder's embeddings",
    "ledger": "one budget for all releases of a data set: what is spent, left, and by what",
    "budget": "what releases cost together, from their manifests alone",
    "verify": "re-check a release's accounting and digests, or re-derive it",
    "report": "a release -> a page for people: its privacy, budget, classes and fidelity",
    "clean": "remove what interrupted or finished runs left in the private folder",
    "demo": "Fashion-MNIST end to end: embed, release, train, one table",
    "completion": "a script by which a shell completes verbs and options",
}
"""A verb is a module of this name with `main(arguments)`, and one of `pipelines.parsers` with `parser()`."""

_MODULES = {
    "inspect": "inspection",
    "ledger": "ledger.command",
    "budget": "composed",
    "train-decoder": "train_decoder",
}
"""Verbs whose module has another name: one of Python's own, or another of this package, has theirs."""

_DETAILS = ("dpgmm.fit", "dpgmm.release")
"""Loggers with a line for each stage and each file."""


_OPTIONS = {"secret": "--noise-key-file", "shares": "--share"}
"""Options of fields that have another name."""


class _Handler(logging.StreamHandler):
    """Writes to standard error; a stream that is closed or full is not worth a traceback."""

    def handleError(self, record):
        pass


def configure_logging(verbose: bool = False, quiet: bool = False) -> None:
    """This project's messages on standard error; of Beam only what is fatal, or errors if verbose.

    What is said of each stage and file is for who asks for it, and for workers
    elsewhere: here one line of progress says the same.
    """
    handler = _Handler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    if not verbose:
        handler.addFilter(lambda record: record.levelno > logging.INFO or record.name not in _DETAILS)
    own = logging.getLogger("dpgmm")
    own.handlers = [handler]
    own.propagate = False
    own.setLevel(logging.WARNING if quiet else logging.INFO)
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


def run(
    main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None, verb: str | None = None
) -> int:
    """Calls a verb's `main` and turns what goes wrong into one sentence.

    With --json what is said on standard output is one JSON object there, also
    where something goes wrong; the sentence on standard error is the same.

    Args:
      main: of the verb.
      arguments: of the command line, without program and verb.
      verb: its name, whose parser then sees the arguments first: it is loaded at once, and
        `main` may import what takes long.

    Returns:
      What `main` returns; 2 for a refused configuration, refused here or in a
      worker; 3 for a release that a ledger has no budget for; 1 for a failed job,
      whose traceback is shown with --verbose only: it is long, and it holds the paths
      of the user's files.  After a signal this does not return: the process ends with
      128 plus its number.

    Raises:
      SystemExit: what a parser raises, for --help or for what it does not take.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    forbid_core_dumps()
    own, level = logging.getLogger("dpgmm"), logging.getLogger("dpgmm").level
    configure_logging(VERBOSE in arguments, QUIET in arguments)
    status, error, facts = 1, "", None
    try:
        with signals.handled(), contextlib.ExitStack() as stack:
            parser = parser_of(verb) if verb else None
            arguments, refused = _expanded(parser, arguments)
            stack.enter_context(_threads(VERBOSE in arguments))
            if JSON in arguments and not {"-h", "--help", "--version"} & {*arguments}:
                facts = stack.enter_context(contextlib.redirect_stdout(Facts()))

            def call(own: Sequence[str]) -> int:
                if refused:
                    raise refused
                if parser:
                    parser.parse_own_args(own)
                return main(own)

            status, error = _run(call, arguments)
    except signals.Interrupted as interrupted:
        say(f"dpgmm: {interrupted}", sys.stderr)
        signals.end(interrupted.status)
    except Complaint as complaint:
        status, error = 2, complaint.sentence
        raise
    finally:
        if facts is not None:
            write(facts.as_json(verb, status, error) + "\n")
        output.flush()
        # The quiet of one command is not the next one's.
        own.setLevel(level)
    return status


def _expanded(parser: Parser | None, arguments: list[str]) -> tuple[list[str], ConfigError | None]:
    """The arguments with those of --config among them, or why there are none."""
    if parser is None:
        return arguments, None
    try:
        arguments = parser.expanded(arguments)
    except ConfigError as error:
        return arguments, error
    configure_logging(VERBOSE in arguments, QUIET in arguments)
    return arguments, None


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


def _run(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> tuple[int, str]:
    """The exit status, and what was said of why it is not 0."""
    try:
        return main(arguments), ""
    except ConfigError as error:
        status, sentence = 3 if isinstance(error, BudgetError) else 2, with_option(str(error))
    except PassingError as error:
        status, sentence = 1, str(error)
    except signals.Interrupted:
        raise
    except KeyboardInterrupt:
        status, sentence = 130, "interrupted; nothing half-done was published"
    except Exception as error:
        if refused := refusal(error):
            status, sentence = 2, refused
        elif VERBOSE in arguments:
            raise
        else:
            status = 1
            sentence = f"the job failed and published nothing half-done: {summary(error)}"
    say(f"dpgmm: {sentence}", sys.stderr)
    return status, sentence


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
        module = f"pipelines.{_MODULES.get(verb, verb)}"
        return run(lambda own: importlib.import_module(module).main(own), arguments[1:], verb)
    if arguments == ["--version"]:
        say(f"dpgmm {__version__}")
        return 0
    wanted_help = arguments in (["--help"], ["-h"], [])
    if not wanted_help:
        names = [*VERBS, "--help", "--version"]
        say(
            f"dpgmm: there is no verb '{printable(arguments[0])}'"
            + nearest(arguments[0], names, "; did you mean '{}'?"),
            sys.stderr,
        )
    for line in usage():
        say(line, sys.stdout if wanted_help else sys.stderr)
    return 0 if wanted_help and arguments else 2


def usage() -> list[str]:
    """What `dpgmm --help` says, by lines."""
    return [
        "usage: dpgmm VERB [options]; dpgmm VERB --help tells more",
        "",
        *(f"  {verb:<15}{text}" for verb, text in VERBS.items()),
        "",
        "Every verb takes --config FILE, --json, --quiet, --verbose and --version.",
        "Exit status: 0 done, 1 failed or not verified, 2 refused, 3 no budget left, 128 + N after signal N.",
        "The way from a folder of images to a release: README.md; on clusters: docs/running.md.",
    ]


if __name__ == "__main__":
    sys.exit(main())
