"""Lists of images: CSV or JSON lines, with the path of an image and its label in each row.

Paths are absolute, or relative to the list's own folder.  A row whose file is not
there is set aside like a link to nothing.  Rows of one file are one row, for the
privacy unit is an image; where it is a person, rows of one file and one person: what
others' rows say must not change what becomes of this one's.
"""

import codecs
import csv
import dataclasses
import errno
import io
import itertools
import json
import os
import posixpath
import stat
import sys
import unicodedata
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.data.rows import MAX_LABEL_BYTES
from dpgmm_beam.errors import ConfigError
from transforms.files import finding
from transforms.files.columns import LABEL_WORDS, NO_LABEL, Columns, likely
from transforms.files.finding import InputFile, LeaveOut, LeftOut
from transforms.files.image_folders import NO_FILE, Found, ImageFile, check_readable, identity_of
from transforms.files.opening import open_file, reading
from transforms.files.private import is_local

IMAGE_LIST = "image_list"

TABLE_SUFFIXES, LINES_SUFFIXES = (".csv", ".tsv"), (".jsonl", ".ndjson")

IMAGE_NAMES = ("path", "file", "filename", "file_name", "filepath", "file_path", "image_path", "img")
"""Columns that may hold the paths if none is `image`: the first that is there, in any case."""

# What is longer is no path and no label.
_LINE_BYTES = 2**20

# Rows of JSON that are looked at for the names of their fields.
_FIRST_LINES = 64

_FAR_READERS = 16

# File systems that Beam comes with or has extras for.
_BEAM_SCHEMES = ("gs", "s3", "azfs", "hdfs")

# From so many of a folder's files on the folder is listed, instead of each file.
_WORTH_LISTING = 32


@dataclasses.dataclass(frozen=True, slots=True)
class _Mention:
    """Where a list names an image, and with what label; ordered by the label first."""

    label: str | None
    list_path: str
    line: int

    @property
    def place(self) -> str:
        return f"{self.list_path}:{self.line}"

    def __lt__(self, other: "_Mention") -> bool:
        return self._key() < other._key()

    def __gt__(self, other: "_Mention") -> bool:
        return other < self

    def _key(self) -> tuple:
        return self.label is None, self.label or "", self.list_path, self.line


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    line: int
    path: str | None
    label: str | None
    unit: str | None = None


_Image = tuple[str, str | None]
"""Path and privacy unit of a row; no unit where units are images."""


def is_list(pattern: str) -> bool:
    """Whether a name, or the end of a glob, is that of a list."""
    return pattern.lower().endswith(TABLE_SUFFIXES + LINES_SUFFIXES)


def list_files(pattern: str) -> list[InputFile]:
    """The lists of a file or glob; none if nothing matches."""
    return [file for file in finding.list_parquet(pattern) if is_list(file.path)]


def labelled(pattern: str, columns: Columns) -> bool:
    """Whether lists have labels, by their header lines (or the fields of the first lines of JSON).

    Raises:
      ConfigError: nothing matches, a list can't be read or has no such columns, or
        some have labels and others none.
    """
    files = list_files(pattern)
    if not files:
        raise ConfigError("input", pattern, "match a list of images")
    answers = {file.path: _fields(pattern, file.path, columns)[1] is not None for file in files}
    if len(set(answers.values())) > 1:
        with_labels, without = (
            min(path for path, answer in answers.items() if answer is has) for has in (True, False)
        )
        raise ConfigError(
            "input",
            pattern,
            f"have labels in all lists or in none; {with_labels} has a column of them, and {without} none",
        )
    return all(answers.values())


def find(pattern: str, columns: Columns, has_labels: bool) -> Found:
    """The images of lists, each file once, sorted by path; and the lines that are passed over.

    Raises:
      ConfigError: as in `labelled`, or an image can't be read.
      RuntimeError: a list can't be read to its end.
    """
    left_out: list[LeftOut] = []
    images = list_images(pattern, columns, has_labels, lambda *item: left_out.append(LeftOut(*item)))
    return Found(images, sorted(left_out, key=lambda item: item.path))


def list_images(
    pattern: str,
    columns: Columns,
    has_labels: bool,
    leave_out: LeaveOut = lambda path, reason: None,
) -> list[ImageFile]:
    """The images of lists, sorted by path: see `find`."""
    named: dict[_Image, _Mention] = {}
    again: list[tuple[_Image, _Mention]] = []
    for file in list_files(pattern):
        for row in _rows(pattern, file.path, columns, has_labels, leave_out):
            mention = _Mention(_normal(row.label), file.path, row.line)
            if not row.path:
                leave_out(mention.place, "no path of an image in this line")
                continue
            image = resolve(file.path, row.path), row.unit
            before = named.setdefault(image, mention)
            if before is not mention:
                # The smallest is kept, whatever the order of lines and lists.
                named[image] = min(before, mention)
                again.append((image, max(before, mention)))
    far = _far_files(list({path: None for path, _ in named if not is_local(path)}))
    images: list[ImageFile] = []
    seen: dict[object, _Mention] = {}
    with finding.listable(pattern):
        for path, unit in sorted(named, key=lambda image: (image[0], image[1] is not None, image[1] or "")):
            mention = named[path, unit]
            file, identity = _near_file(path) if is_local(path) else (far[path], path)
            first = mention if identity is None else seen.setdefault((identity, unit), mention)
            if first is mention:
                images.append(ImageFile(file.path, file.size, file.modified, mention.label, unit))
            else:
                leave_out(mention.place, f"the same file as in {first.place}")
    for image, mention in again:
        leave_out(mention.place, f"the same file as in {named[image].place}")
    return images


def _normal(label: str | None) -> str | None:
    # One object for each label, however many rows have it.
    return None if label is None else sys.intern(unicodedata.normalize("NFC", label))


def resolve(list_path: str, text: str) -> str:
    """The path that a row of a list means."""
    if text.startswith("file://"):
        text = urllib.parse.unquote(text.removeprefix("file://").removeprefix("localhost"))
    if not is_local(text):
        return text
    if is_local(list_path) or text.startswith("/"):
        return os.path.normpath(os.path.join(os.path.dirname(list_path), text))
    scheme, _, folder = list_path.rpartition("/")[0].partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(folder, text))}"


# Rows ------------------------------------------------------------------------------------------


def _lines(file: io.BufferedReader) -> Iterator[str]:
    """Lines of text, with their ends; what is not UTF-8 stays as file names have it.

    A line that is too long comes in several pieces.
    """
    wide = file.peek(2).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding, errors = ("utf-16", "replace") if wide else ("utf-8-sig", "surrogateescape")
    text = io.TextIOWrapper(file, encoding, errors, newline="")
    while line := text.readline(_LINE_BYTES):
        yield line


def _open(path: str) -> io.BufferedReader:
    raw = open(path, "rb") if is_local(path) else open_file(path)  # noqa: SIM115
    return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)


def _is_table(path: str) -> bool:
    return path.lower().endswith(TABLE_SUFFIXES)


def _dialect(path: str, header: str) -> str:
    """What separates columns: spreadsheets of many countries write semicolons."""
    if path.lower().endswith(".tsv"):
        return "\t"
    return max(",;\t", key=header.count)


def _fields(pattern: str, path: str, columns: Columns) -> tuple[str, str | None, str | None]:
    """The fields that hold path, label and unit in a list; None where there are no labels, or no units."""
    try:
        with reading(path), _open(path) as file:
            lines = _lines(file)
            if _is_table(path):
                names = _header(path, lines)
            else:
                parsed = (_parse(line) for line in itertools.islice(lines, _FIRST_LINES))
                rows = [row for row in parsed if row is not None]
                if not rows:
                    # As good as empty: a data set without rows.
                    return columns.image, columns.label or None, columns.unit or None
                names = sorted({name for row in rows for name in row})
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise ConfigError("input", pattern, f"be readable; {path} is not ({reason})") from None
    image = _choose(pattern, path, names, columns.image, Columns.image, IMAGE_NAMES, "image_column")
    if image is None:
        known = f"{', '.join((Columns.image, *IMAGE_NAMES))} (or state the image column); {path} has none"
        where = "a first line with the columns' names" if _is_table(path) else "fields in each line"
        # Without such a line the first is a row, and not to be repeated.
        raise ConfigError("input", pattern, f"have {where}, one for paths of images, called {known}")
    unit = None
    if columns.unit:
        unit = _choose(pattern, path, names, columns.unit, "", (), "privacy_unit_column")
    if not columns.label:
        return image, None, unit
    label = _choose(pattern, path, names, columns.label, Columns.label, (), "label_column")
    if label is None and (meant := likely(names, LABEL_WORDS)):
        raise ConfigError("label_column", columns.label, NO_LABEL.format(path=path, name=meant[0]))
    return image, label, unit


def _choose(
    pattern: str,
    path: str,
    names: Sequence[str],
    wanted: str,
    default: str,
    known: Sequence[str],
    argument: str,
) -> str | None:
    """The column that is asked for; by default one that is called so, or like a known name, in any case."""
    if wanted != default and wanted not in names:
        raise ConfigError(argument, wanted, f"be a column of every list; {path} has none of this name")
    if wanted not in names:
        order = {name: number for number, name in enumerate((default, *known))}
        like = [name for name in names if name.strip().lower() in order]
        if not like:
            return None
        wanted = min(like, key=lambda name: (order[name.strip().lower()], name))
    if list(names).count(wanted) > 1:
        raise ConfigError("input", pattern, f"have one column {wanted!r}; {path} has several")
    return wanted


def _header(path: str, lines: Iterable[str]) -> list[str]:
    """The names in the first line of a table."""
    rest = iter(lines)
    first = next(rest, "")
    try:
        return next(csv.reader(itertools.chain([first], rest), delimiter=_dialect(path, first)), [])
    except csv.Error:
        return []


def _parse(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _rows(pattern: str, path: str, columns: Columns, has_labels: bool, leave_out: LeaveOut) -> Iterator[_Row]:
    image, label, unit = _fields(pattern, path, columns)
    label = label if has_labels else None
    with reading(path), _open(path) as file:
        lines = _lines(file)
        rows = _table_rows if _is_table(path) else _json_rows
        yield from rows(path, lines, image, label, unit, leave_out)


def _table_rows(
    path: str, lines: Iterator[str], image: str, label: str | None, unit: str | None, leave_out: LeaveOut
) -> Iterator[_Row]:
    first = next(lines, "")
    reader = csv.reader(itertools.chain([first], lines), delimiter=_dialect(path, first))
    header = next(reader, [])
    image_at, label_at, unit_at = (
        None if name is None else header.index(name) for name in (image, label, unit)
    )
    assert image_at is not None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            leave_out(f"{path}:{line}", "no row of a table: a value without an end, perhaps")
            continue
        if not row:
            continue
        values = dict(enumerate(row))
        yield _Row(
            line,
            values.get(image_at),
            None if label_at is None else _bounded(values.get(label_at)),
            None if unit_at is None else values.get(unit_at),
        )


def _json_rows(
    path: str, lines: Iterator[str], image: str, label: str | None, unit: str | None, leave_out: LeaveOut
) -> Iterator[_Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _parse(line)
        if row is None:
            leave_out(f"{path}:{number}", "no object of JSON")
            continue
        value = row.get(image)
        yield _Row(
            number,
            _valid(value) if isinstance(value, str) else None,
            None if label is None else _bounded(label_text(row.get(label))),
            None if unit is None else label_text(row.get(unit)),
        )


def label_text(value: object) -> str | None:
    """A label of JSON as text: integers by their digits; None for what can be no label."""
    if isinstance(value, int) and not isinstance(value, bool):
        # Python refuses to print the longest of them.
        return str(value) if value.bit_length() < 4096 else None
    return _valid(value) if isinstance(value, str) else None


def _valid(text: str) -> str | None:
    """Text that has a form as bytes; half a surrogate pair, which JSON can write, has none."""
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return None
    return text


def _bounded(label: str | None) -> str | None:
    return None if label is None or len(label) > MAX_LABEL_BYTES else label


# Files -----------------------------------------------------------------------------------------


def _near_file(path: str) -> tuple[InputFile, object]:
    """A path's file and what tells it from others; NO_FILE and None where there is none."""
    real, status = path, _stat(path)
    if status is None and "\\" in path:
        real = path.replace("\\", "/")
        status = _stat(real)
    if status is None or not stat.S_ISREG(status.st_mode):
        return InputFile(path, NO_FILE, 0.0), None
    check_readable(real)
    return InputFile(real, status.st_size, status.st_mtime), identity_of(real, status)


def _stat(path: str) -> os.stat_result | None:
    """As `finding.stat_of`; what can't be a path has nothing at it."""
    try:
        return finding.stat_of(path)
    except ValueError:
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise


def _far_files(paths: Sequence[str]) -> dict[str, InputFile]:
    """The files of paths on other file systems; what is on none that Beam knows is not there."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        folders.setdefault(path.rpartition("/")[0], []).append(path)
    asked = [
        (folder, True) if len(files) >= _WORTH_LISTING else (path, False)
        for folder, files in folders.items()
        for path in files[: 1 if len(files) >= _WORTH_LISTING else None]
    ]
    with ThreadPoolExecutor(_FAR_READERS) as readers:
        listed = {file.path: file for files in readers.map(_match, asked) for file in files}
    return {path: listed.get(path) or InputFile(path, NO_FILE, 0.0) for path in paths}


def _match(asked: tuple[str, bool]) -> list[InputFile]:
    path, folder = asked
    try:
        path.encode()
        FileSystems.get_filesystem(path)
    except (ValueError, ImportError):
        # Of one row's path; others may be sound.  But where a package of Beam's is missing, all of them are.
        if path.partition("://")[0].lower() not in _BEAM_SCHEMES:
            return []
    return finding.match(path, finding.literal(path) + ("/*" if folder else ""))
