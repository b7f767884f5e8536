"""The parser that all verbs share: what is refused is one sentence, and help has examples."""

# What is imported here delays every `dpgmm VERB --help`: neither Beam nor numpy.
import argparse
import dataclasses
import difflib
import importlib.util
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence

from dpgmm_beam import __version__
from dpgmm_beam.errors import ConfigError, printable
from pipelines import output

VERBOSE, QUIET, JSON, CONFIG = "--verbose", "--quiet", "--json", "--config"
COMMON = ("--help", "--version", CONFIG, JSON, QUIET, VERBOSE)
"""Options of every verb."""

_WIDTH = 27


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Names defaults that say something; examples stay as they were written."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=_WIDTH)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        unsaid = action.default is None or action.default is False or action.default in ("", [])
        if unsaid or "default" in text:
            return text
        return super()._get_help_string(action) or ""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # Sentences are filled, and examples, which are indented, are not.
        parts = text.split("\n\n")
        filled = [
            part
            if part.startswith((" ", "examples:"))
            else argparse.HelpFormatter._fill_text(self, part, width, indent)
            for part in parts
        ]
        return "\n\n".join(filled)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence and exit status 2.

    It has the options of every verb: --config, --json, --quiet, --verbose,
    --version.  Abbreviated options are off: an abbreviation would swallow Beam's
    options.

    Args:
      prog: e.g. "dpgmm release".
      description: a sentence or two.
      examples: command lines, as somebody would type them.
      beam: whether what the parser does not know goes to Apache Beam; such a verb calls
        `parse_known_args`, others `parse_args`.
    """

    def __init__(
        self, prog: str, description: str | None = None, examples: Sequence[str] = (), beam: bool = False
    ):
        ends = ["examples:\n" + "\n".join(f"  {each}" for each in examples)] if examples else []
        if beam:
            ends.append(
                "All other options go to Apache Beam, such as --runner FlinkRunner; docs/running.md has them."
            )
        super().__init__(
            prog=prog,
            description=description,
            epilog="\n\n".join(ends) or None,
            allow_abbrev=False,
            formatter_class=_Help,
            add_help=False,
        )
        self.beam = beam
        common = self._common = self.add_argument_group("options of every verb")
        common.add_argument("-h", "--help", action="help", help="show this and exit")
        common.add_argument("--version", action="version", version=f"dpgmm {__version__}", help="and exit")
        common.add_argument(
            CONFIG, metavar="FILE", help="YAML with options by their names; the command line wins over it"
        )
        common.add_argument(JSON, action="store_true", help="print one JSON object in the place of sentences")
        common.add_argument(QUIET, action="store_true", help="no progress: warnings and errors only")
        common.add_argument(VERBOSE, action="store_true", help="say more, and show tracebacks")

    def format_help(self):
        self._put_own_first()
        return super().format_help()

    def format_usage(self):
        self._put_own_first()
        return super().format_usage()

    def _put_own_first(self) -> None:
        shared = self._common._group_actions
        self._actions.sort(key=lambda action: action in shared)
        self._action_groups.sort(key=lambda group: group is self._common)

    def options(self) -> dict[str, argparse.Action]:
        """By the name that a user types, e.g. --epsilon."""
        return {name: action for name, action in self._option_string_actions.items() if name[:2] == "--"}

    def expanded(self, arguments: Iterable[str]) -> list[str]:
        """The arguments with what the file of --config says before them.

        Raises:
          ConfigError: the file can't be read, or holds something else than options of this verb.
        """
        arguments = list(arguments)
        if not any(each == CONFIG or each.startswith(f"{CONFIG}=") for each in arguments):
            return arguments
        # YAML, and Beam for its file systems.
        from pipelines import config_file

        return config_file.expand(self, arguments)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's; an option that is nobody's is refused with the nearest that exists.

        Raises:
          ConfigError: as `expanded`, or there is such an option.
        """
        known, rest = self.parse_own_args(args, namespace)
        if rest and self.beam:
            # Takes a second, but such a verb imports Beam anyway.
            from pipelines import options

            options.check(rest, self.options())
        return known, rest

    def parse_own_args(self, args=None, namespace=None):
        """As argparse's `parse_known_args`: what is not this parser's own is given back unseen."""
        args = self.expanded(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args=None, namespace=None):
        known, rest = self.parse_own_args(args, namespace)
        if rest:
            name, value = unknown(rest)
            raise ConfigError(name, value, "be an option of this verb" + nearest(name, self.options()))
        return known

    def error(self, message):
        sentence = f"{self.prog}: {printable(message, 500)}"
        output.say(sentence, sys.stderr)
        raise Complaint(sentence)

    def _print_message(self, message, file=None):
        if message:
            output.write(message, file)


def add_recipe(parser: Parser, recipe: type, meanings: Mapping[str, str]) -> None:
    """Adds an option for each field of a dataclass of hyper-parameters, by its type and default.

    Args:
      meanings: what the help says of each field.
    """
    group = parser.add_argument_group("recipe")
    for field in dataclasses.fields(recipe):
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=field.type,
            default=field.default,
            help=meanings[field.name],
        )


class Complaint(SystemExit):
    """What a parser does not take: the end of a program, with status 2.

    Args:
      sentence: that was said on standard error.
    """

    def __init__(self, sentence: str):
        super().__init__(2)
        self.sentence = sentence


def unknown(rest: Sequence[str]) -> tuple[str, str]:
    """Name and value of the first argument that a parser gave back."""
    name, equals, value = rest[0].partition("=")
    if not name.startswith("-"):
        return "command line", rest[0]
    if not equals and len(rest) > 1 and not rest[1].startswith("--"):
        value = rest[1]
    return name, value


def nearest(name: str, names: Collection[str], words: str = ", such as {}") -> str:
    """A clause that names what is likest to a mistyped name; "" where nothing is."""
    plain = {each.replace("_", "-").lower(): each for each in names}
    near = difflib.get_close_matches(name.replace("_", "-").lower(), plain, 1, 0.7)
    return words.format(plain[near[0]]) if near else ""


def parser_of(verb: str) -> Parser:
    """A verb's parser, which is in `pipelines.parsers`, or else in the verb's own module."""
    own = verb.replace("-", "_")
    name = f"pipelines.parsers.{own}"
    module = importlib.import_module(name if importlib.util.find_spec(name) else f"pipelines.{own}")
    return module.parser()
