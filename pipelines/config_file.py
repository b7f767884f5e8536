"""Options from a file: `--config FILE`, YAML with options by their names."""

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import yaml

from dpgmm_beam.errors import ConfigError
from pipelines import arguments as own
from transforms.files.small import read_small

if TYPE_CHECKING:
    from pipelines.arguments import Parser

MAX_BYTES = 2**20
"""Of a file; more classes than fit have a file of their own."""

_YES, _NO = ("true", "yes", "on"), ("false", "no", "off")
# Said once on the command line, and no part of a configuration.
_NEVER = ("--help", "--version", own.CONFIG)
# Options that take several values in one text.
_COMMAS = ("--classes", "--epsilons")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"


class _Scalar(NamedTuple):
    """A value as it stands in the file: "010" is not 8, and a class "no" is no false."""

    text: str
    tag: str
    line: int


class _Entry(NamedTuple):
    key: _Scalar
    value: "_Scalar | list[_Scalar]"


def expand(parser: "Parser", arguments: Sequence[str]) -> list[str]:
    """The arguments, and before them those of the file that --config names.

    What is given on the command line is left out of the file's, also where an
    option may be given several times.

    Raises:
      ConfigError: the file can't be read or has other things than options, or
        --config is given twice.  It names file, key and what is allowed.
    """
    path, rest = _take(arguments)
    if path is None:
        return list(arguments)
    file = _File(path, parser)
    given = {_plain(each.partition("=")[0]) for each in rest if each.startswith("--")}
    return [each for name, said in file.options() if _plain(name) not in given for each in said] + rest


def _take(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    paths, rest, pending = [], [], iter(arguments)
    for each in pending:
        name, equals, value = each.partition("=")
        if name != own.CONFIG:
            rest.append(each)
            continue
        if not equals:
            value = next(pending, "")
            if not value or value.startswith("--"):
                # The parser's own sentence.
                return None, rest
        paths.append(value)
    if len(paths) > 1:
        raise ConfigError(own.CONFIG, paths[1], f"be given once; {paths[0]} is one already")
    return (paths[0] if paths else None), rest


def _plain(name: str) -> str:
    return name.removeprefix("--").replace("_", "-")


class _File:
    """A file of options.

    Args:
      path: on any file system.
      parser: of the verb that it is for.
    """

    def __init__(self, path: str, parser: "Parser"):
        self._path = path
        self._parser = parser
        self._beam: dict[str, argparse.Action] | None = None

    def options(self) -> Iterator[tuple[str, list[str]]]:
        """Each option's name with the arguments that say the same."""
        seen: set[str] = set()
        for key, value in self._entries():
            name, action = self._action(key)
            if name in seen:
                self._refuse(f"name each option once, and {key.text} is there twice", key)
            seen.add(name)
            yield name, self._said(name, action, key, value)

    def _refuse(self, allowed: str, at: _Scalar | None = None) -> None:
        where = f" (line {at.line})" if at else ""
        raise ConfigError(own.CONFIG, self._path, allowed + where)

    def _entries(self) -> list[_Entry]:
        data = read_small(own.CONFIG, self._path, MAX_BYTES)
        try:
            return self._walk(yaml.parse(data.decode("utf-8-sig"), Loader=_LOADER))
        except UnicodeDecodeError:
            raise ConfigError(own.CONFIG, self._path, "be text in UTF-8") from None
        except (yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f" (line {mark.line + 1}: {getattr(error, 'problem', '')})" if mark else ""
            raise ConfigError(own.CONFIG, self._path, f"be YAML{where}") from None

    def _walk(self, events: Iterator[yaml.Event]) -> list[_Entry]:
        """One mapping of keys to values and to lists of values: nothing deeper, and no aliases."""
        shape = "be one mapping of options to values, or to lists of values"
        entries: list[_Entry] = []
        key: _Scalar | None = None
        items: list[_Scalar] | None = None
        opened = closed = False
        for event in events:
            at = _Scalar("", "", event.start_mark.line + 1)
            if isinstance(event, yaml.DocumentStartEvent) and closed:
                self._refuse(shape, at)
            elif isinstance(event, (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent)):
                continue
            elif isinstance(event, yaml.DocumentEndEvent):
                closed = True
            elif isinstance(event, yaml.MappingStartEvent) and not opened:
                opened = True
            elif isinstance(event, yaml.MappingEndEvent):
                continue
            elif isinstance(event, yaml.SequenceStartEvent) and key and items is None:
                items = []
            elif isinstance(event, yaml.SequenceEndEvent) and key and items is not None:
                entries.append(_Entry(key, items))
                key = items = None
            elif isinstance(event, yaml.ScalarEvent) and (opened or not event.value):
                scalar = _scalar(event)
                if not opened:
                    # An empty file has one empty value.
                    continue
                if items is not None:
                    items.append(scalar)
                elif key is None:
                    key = scalar
                else:
                    entries.append(_Entry(key, scalar))
                    key = None
            else:
                self._refuse(shape, at)
        return entries

    def _action(self, key: _Scalar) -> tuple[str, argparse.Action]:
        wanted = _plain(key.text)
        found = self._parser.options()
        if self._parser.beam and wanted not in map(_plain, found):
            found |= self._beam_options()
        names = {_plain(name): name for name in found if name not in _NEVER}
        if wanted not in names:
            what = f"options of {self._parser.prog}" + (" or of Apache Beam" if self._parser.beam else "")
            near = own.nearest(wanted, names)
            self._refuse(f"have {what} as keys{near}, and {key.text or 'nothing'} is none", key)
        name = names[wanted]
        return name, found[name]

    def _beam_options(self) -> dict[str, argparse.Action]:
        if self._beam is None:
            # A second, and only for who names such an option.
            from pipelines import options

            self._beam = options.known()
        return self._beam

    def _said(
        self, name: str, action: argparse.Action, key: _Scalar, value: _Scalar | list[_Scalar]
    ) -> list[str]:
        if action.nargs == 0:
            return [name] if self._is_on(key, value) else []
        repeated = isinstance(action, argparse._AppendAction)
        if isinstance(value, _Scalar):
            return [f"{name}={self._text(action, key, value)}"]
        if repeated:
            return [f"{name}={self._text(action, key, item)}" for item in value]
        if name not in _COMMAS:
            self._refuse(f"give {key.text} one value, not a list", key)
        for item in value:
            if "," in item.text:
                self._refuse(f"have no comma in a value of {key.text}, which {item.text} has", item)
        return [f"{name}={','.join(item.text for item in value)}"]

    def _is_on(self, key: _Scalar, value: _Scalar | list[_Scalar]) -> bool:
        text = value.text.lower() if isinstance(value, _Scalar) else ""
        if text not in _YES + _NO:
            self._refuse(f"give {key.text} true or false", key)
        return text in _YES

    def _text(self, action: argparse.Action, key: _Scalar, value: _Scalar) -> str:
        """A value as the command line has it, if the option takes it."""
        kind = "a whole number" if action.type is int else "a number" if action.type is float else "a value"
        wrong = value.tag in (f"{_TAG}null", f"{_TAG}bool")
        if callable(action.type):
            try:
                action.type(value.text)
            except (argparse.ArgumentTypeError, TypeError, ValueError):
                wrong = True
        if action.choices and value.text not in map(str, action.choices):
            kind, wrong = "one of " + ", ".join(map(str, action.choices)), True
        if wrong:
            shown = value.text or "nothing"
            quotes = ", in quotes if it is meant as text" if kind == "a value" and value.text else ""
            self._refuse(f"give {key.text} {kind}, not {shown}{quotes}", value)
        return value.text


def _scalar(event: yaml.ScalarEvent) -> _Scalar:
    tag = event.tag or f"{_TAG}str"
    if event.tag is None and event.implicit[0]:
        # Only what is not quoted means anything else than its text.
        tag = yaml.resolver.Resolver().resolve(yaml.ScalarNode, event.value, (True, False))
    return _Scalar(event.value, tag, event.start_mark.line + 1)
