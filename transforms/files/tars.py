"""Images in tar files, as WebDataset lays them out: members of one name up to its first dot are one row.

    0001.jpg  0001.cls        an image, and its label as text
    0002.jpg  0002.json       an image, and its label in a field
    cat/3.jpg                 an image whose label nothing else says is of its first folder

A tar is read twice, as a stream: for the labels, which may come before or after
their images, and for the images.  It is read by the standard library.  The package
webdataset reads with that, too, but holds members of any size, takes a damaged header
for the end of a file, and opens files by means of its own.  Here a tar without
an end mark is a broken file, for nobody can say what is missing.
"""

import bz2
import contextlib
import dataclasses
import gzip
import json
import lzma
import os
import posixpath
import tarfile
import unicodedata
from collections.abc import Iterator
from typing import IO, cast

from dpgmm_beam.data import images
from dpgmm_beam.data.rows import MAX_LABEL_BYTES
from dpgmm_beam.errors import ConfigError
from transforms.files import finding, image_names
from transforms.files.columns import Columns
from transforms.files.finding import InputFile, LeftOut
from transforms.files.image_folders import NO_FILE, FarFiles, check_readable, files_below
from transforms.files.image_lists import label_text
from transforms.files.opening import open_file, reading
from transforms.files.private import is_local

IMAGE_TARS = "image_tars"

SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tzst", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")

# What says the label: the first of these, where there are several.
_TEXTS = {"cls": 0, "label": 1, "txt": 3}
_JSON, _FIELDS = 2, ("label", "cls", "class", "class_name")

_SIDE_BYTES = 2**20
"""Of a member with a label, at most."""

_BUFFER = 2**20


@dataclasses.dataclass(frozen=True)
class Sample:
    """A row of a tar.

    Attributes:
      name: of the image's member.
      label: as it stands, in Unicode's form NFC; None without one.
      size: in bytes; NO_FILE of an image that is too large.
      data: the encoded image; None if it is too large.
      unit: the id of the privacy unit, as it stands; None without one.
    """

    name: str
    label: str | None
    size: int
    data: bytes | None
    unit: bytes | None = None


def is_tar(pattern: str) -> bool:
    """Whether a name, or the end of a glob, is that of a tar."""
    return pattern.lower().endswith(SUFFIXES)


def list_tars(pattern: str, far: FarFiles | None = None) -> list[InputFile]:
    """The tars of a file, a folder (at any depth) or a glob, sorted by path; each file once.

    Raises:
      ConfigError: they can't be listed or read.
    """
    if below := files_below(pattern, is_tar, far):
        return below
    return [file for file in finding.list_parquet(pattern) if is_tar(file.path)] if is_tar(pattern) else []


def check(pattern: str) -> None:
    """Raises ConfigError if a tar on the local disk is empty, may not be read, or was cut short."""
    for file in list_tars(pattern):
        if not is_local(file.path):
            continue
        with finding.listable(pattern):
            check_readable(file.path)
            with open(file.path, "rb") as opened:
                whole = file.size > 0 and (_compression(opened.read(8)) or _has_end(opened, file.size))
        if not whole:
            raise ConfigError(
                "input", pattern, f"be whole tar files; {file.path} has no end mark, so it was cut short"
            )


def samples(path: str, columns: Columns, labelled: bool) -> Iterator[Sample]:
    """The rows of a tar, in the order of their images.

    Args:
      path: of the tar, on any file system.
      columns: `image` is the ending of the images' names (`left.png`), or by
        default any that images have; `label` is the ending of a member with
        labels, or a field of the member `json`; so is `unit`.
      labelled: whether rows have labels.

    Raises:
      OSError: the file can't be read.
      RuntimeError: it is damaged or has no end.
    """
    rows = {row.number: (row, key) for key, row in _index(path, columns, labelled, []).items()}
    with reading(path):
        for number, (member, content) in enumerate(_members(path)):
            row, key = rows.get(number, (None, ""))
            if row is None:
                continue
            if _key(member.name)[0] != key:
                raise ValueError("changed between two readings")
            data = content.read() if member.size <= images.MAX_BYTES else None
            size = NO_FILE if data is None else len(data)
            yield Sample(member.name, row.label if labelled else None, size, data, row.unit)


def left_out(path: str, columns: Columns) -> list[LeftOut]:
    """Members of a tar that are in no row; reads the tar once."""
    passed: list[LeftOut] = []
    _index(path, columns, True, passed)
    return passed


@dataclasses.dataclass(slots=True)
class _Row:
    """Of one key: number, name and ending of the image's member, the label with its rank, and the unit."""

    number: int = -1
    name: str = ""
    ending: str = ""
    label: str | None = None
    rank: int = 9
    unit: bytes | None = None


def _index(path: str, columns: Columns, labelled: bool, passed: list[LeftOut]) -> dict[str, _Row]:
    """The rows of a tar by their keys."""
    rows: dict[str, _Row] = {}

    def leave_out(name: str, reason: str) -> None:
        passed.append(LeftOut(f"{path}#{name}", reason))

    with reading(path):
        for number, (member, content) in enumerate(_members(path, skip=True)):
            if member.isdir():
                continue
            name = member.name
            key, ending = _key(name)
            if not key:
                leave_out(name, "hidden, by its name")
            elif not member.isreg() or member.issparse():
                leave_out(name, "no regular file of its own")
            elif _says_unit(ending, columns) or (labelled and _rank(ending, columns) is not None):
                row, rank = rows.setdefault(key, _Row()), _rank(ending, columns) if labelled else None
                wanted = _says_unit(ending, columns) or (rank is not None and rank < row.rank)
                data = content.read() if wanted and member.size <= _SIDE_BYTES else b""
                if rank is not None and rank < row.rank:
                    label = _label(data, rank == _JSON, columns)
                    if label is not None:
                        row.label, row.rank = label, rank
                if _says_unit(ending, columns):
                    # A member of its own comes before a field.
                    found = _unit(data, ending, columns)
                    row.unit = found or row.unit if ending != "json" else row.unit or found
            elif reason := _why_no_image(name, ending, content, columns):
                leave_out(name, reason)
            else:
                row = rows.setdefault(key, _Row())
                if row.name and row.ending <= ending:
                    leave_out(name, f"another image of the row of {row.name}")
                    continue
                if row.name:
                    leave_out(row.name, f"another image of the row of {name}")
                row.number, row.name, row.ending = number, name, ending
    for key in [key for key, row in rows.items() if not row.name]:
        leave_out(key, "a label without an image")
        del rows[key]
    for key, row in rows.items():
        if row.label is None and "/" in key:
            row.label = unicodedata.normalize("NFC", key.partition("/")[0])
    return rows


def _key(name: str) -> tuple[str, str]:
    """What the members of a row share, and the ending of this one's name; nothing for a hidden name."""
    name = posixpath.normpath(name).lstrip("/")
    folder, _, last = name.rpartition("/")
    hidden = any(part.startswith(".") and part != ".." for part in name.split("/"))
    # As WebDataset marks what is no sample.
    special = name.startswith("__") and name.partition("/")[0].endswith("__")
    if hidden or special:
        return "", ""
    first, _, ending = last.partition(".")
    return posixpath.join(folder, first), ending.lower()


def _rank(ending: str, columns: Columns) -> int | None:
    """How much a member's word counts for the label, 0 most; None if it says none."""
    if columns.label not in (Columns.label, ""):
        return 0 if ending == columns.label.lower() else _JSON if ending == "json" else None
    return _JSON if ending == "json" else _TEXTS.get(ending)


def _label(data: bytes, is_json: bool, columns: Columns) -> str | None:
    if is_json:
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            return None
        names = _FIELDS if columns.label == Columns.label else (columns.label,)
        fields = content if isinstance(content, dict) else {}
        text = next((label_text(fields[name]) for name in names if name in fields), None)
    else:
        # Not UTF-8 is no label that can be declared.
        text = data.decode("utf-8-sig", errors="replace").rstrip("\r\n")
    if not text or len(text) > MAX_LABEL_BYTES:
        return None
    return unicodedata.normalize("NFC", text)


def _says_unit(ending: str, columns: Columns) -> bool:
    return bool(columns.unit) and ending in (columns.unit.lower(), "json")


def _unit(data: bytes, ending: str, columns: Columns) -> bytes | None:
    if ending == columns.unit.lower():
        return data.rstrip(b"\r\n") or None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    text = label_text(content.get(columns.unit)) if isinstance(content, dict) else None
    return text.encode(errors="surrogateescape") if text else None


def _why_no_image(name: str, ending: str, content: "_Content", columns: Columns) -> str:
    if columns.image != Columns.image:
        return "" if ending == columns.image.lower() else f"not the image column .{columns.image}"
    if image_names.is_image(name):
        return ""
    return image_names.why_none(name) or image_names.why_none_inside(content.read(image_names.SNIFFED_BYTES))


# Bytes -----------------------------------------------------------------------------------------


class _Member(tarfile.TarInfo):
    """As Python's, but what is no header is an error, and not the end of the tar."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Member":
        try:
            return cast(_Member, super().fromtarfile(archive))
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def _members(path: str, skip: bool = False) -> Iterator[tuple[tarfile.TarInfo, "_Content"]]:
    """Members and what reads them; holds none of them.

    Args:
      path: of the tar.
      skip: whether most of them are not read, so that it is worth to seek where that is possible.
    """
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(_open(path))
        compression = _compression(raw.peek(8)[:8]) if hasattr(raw, "peek") else ""
        file = stack.enter_context(_decompressed(raw, compression)) if compression else raw
        mode = "r:" if skip and is_local(path) and not compression else "r|"
        archive = stack.enter_context(
            tarfile.open(fileobj=file, mode=mode, bufsize=_BUFFER, tarinfo=_Member)  # type: ignore[call-overload]
        )
        while (member := archive.next()) is not None:
            yield member, _Content(archive, member)
            # It would keep all of them.
            archive.members = []
        if compression:
            # A checksum is at the very end.
            while file.read(_BUFFER):
                pass


class _Content:
    """A member's bytes, opened when they are first read."""

    def __init__(self, archive: tarfile.TarFile, member: tarfile.TarInfo):
        self._archive, self._member = archive, member

    def read(self, size: int = -1) -> bytes:
        with cast(IO[bytes], self._archive.extractfile(self._member)) as file:
            return file.read(size)


def _open(path: str):
    if is_local(path):
        return open(path, "rb", buffering=_BUFFER)
    return open_file(path)


def _compression(head: bytes) -> str:
    marks = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
    return next((name for mark, name in marks.items() if head.startswith(mark)), "")


def _decompressed(file: IO[bytes], compression: str) -> IO[bytes]:
    if compression == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if compression == "bzip2":
        return cast(IO[bytes], bz2.BZ2File(file))
    if compression == "xz":
        return cast(IO[bytes], lzma.LZMAFile(file))
    import zstandard

    return cast(IO[bytes], zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))


def _has_end(file: IO[bytes], size: int) -> bool:
    """Whether a tar that is not compressed ends with a block of zeros."""
    if size % tarfile.BLOCKSIZE:
        return False
    file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
    return not any(file.read(tarfile.BLOCKSIZE))
