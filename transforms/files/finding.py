"""Finding files, on the local disk or through Beam's file systems (any other scheme).

Local folders are listed here and not by Beam, whose local file system walks
everything below them and leaves out in silence what it may not read.
"""

import contextlib
import dataclasses
import errno
import fnmatch
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.errors import ConfigError
from transforms.files.private import is_local

# Some writers add how the pages inside are compressed.
_TABLE_NAME = re.compile(
    r"\.(npy|npz|(parquet|parq|pq)(\.(gz|gzip|snappy|zst|zstd|br|brotli|lz4|lzo))?)$", re.IGNORECASE
)

# Such names among others, few of millions of images: Beam keeps what matches in memory.
_FAR_TABLES = "/**.[pPnN][aApPqQ]*"


@dataclasses.dataclass(frozen=True, slots=True)
class InputFile:
    """A listed file: path, size in bytes, modification time (0 where there is none)."""

    path: str
    size: int
    modified: float

    @property
    def pin(self) -> str:
        """What tells the file as it is now from the file after a change, as far as its system says."""
        if not is_local(self.path):
            return f"{self.size} {self.modified}"
        found = os.stat(self.path)
        return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


@dataclasses.dataclass(frozen=True, slots=True)
class LeftOut:
    """What lies in an input and is none of its rows.  For the owner's eyes only.

    Attributes:
      path: of a file or folder; in a list of images its line (`list.csv:7`).
      reason: why; for people.
    """

    path: str
    reason: str


LeaveOut = Callable[[str, str], None]
"""Is told the path and the reason of what is left out."""


def pin_of(path: str) -> str:
    """The pin of a file as it is now; empty where it is gone."""
    if is_local(path):
        return InputFile(path, 0, 0.0).pin if os.path.exists(path) else ""
    (result,) = FileSystems.match([path])
    pins = [
        InputFile(found.path, found.size_in_bytes, found.last_updated_in_seconds or 0.0).pin
        for found in result.metadata_list
    ]
    return pins[0] if pins else ""


def list_parquet(pattern: str) -> list[InputFile]:
    """The Parquet files among `list_tables`."""
    return [file for file in list_tables(pattern) if not is_array(file.path)]


def list_tables(pattern: str) -> list[InputFile]:
    """Files of rows, Parquet or arrays, of a file, folder or glob, sorted by path; none if nothing matches.

    A folder means all files below it whose names end as such files' do, in any
    case.  Names that start with "." or "_" are left out, and so are folders of
    such names, as other readers of Parquet folders do.  Links to folders are
    followed, each folder once.  What is named by itself may have any name, and so
    may what a glob matches, unless it matches folders that hold such files, too.

    Raises:
      ConfigError: no file system for the pattern's scheme, or it can't be
        listed, or what matches is no regular file.
    """
    if is_local(pattern):
        with listable(pattern):
            found = list(_local_tables(pattern))
    else:
        found = _far_tables(pattern)
    return sorted(found, key=lambda file: file.path)


def is_array(path: str) -> bool:
    return path.lower().endswith((".npy", ".npz"))


def is_table(path: str) -> bool:
    return bool(_TABLE_NAME.search(os.path.basename(path)))


def absolute(pattern: str) -> str:
    return os.path.abspath(pattern) if pattern and is_local(pattern) else pattern


def literal(path: str) -> str:
    """A pattern for a path that exists, which may itself hold [, * or ?; patterns stay as they are."""
    if not is_glob(path) or not FileSystems.exists(path):
        return path
    return "".join(f"[{character}]" if character in "[*?" else character for character in path)


def local_folders(pattern: str) -> list[str]:
    """A local folder, or those that match a glob, sorted; none for anything else."""
    if os.path.isdir(pattern):
        return [pattern.rstrip("/") or "/"]
    if os.path.lexists(pattern) or not is_glob(pattern) or "**" in pattern:
        return []
    return sorted(
        path for path in _glob("/", absolute(pattern).rstrip("/").split("/")) if os.path.isdir(path)
    )


def is_folder(path: str) -> bool:
    """Whether anything lies below a path; some file systems call folders files."""
    if is_local(path):
        return os.path.isdir(path)
    folder = literal(path.rstrip("/"))
    return (folder != path.rstrip("/") or not is_glob(path)) and bool(match(path, folder + "/**", limit=1))


@contextlib.contextmanager
def listable(shown: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError("input", shown, f"be listable ({error.filename}: {error.strerror})") from None


def stat_of(path: str) -> os.stat_result | None:
    """What is at a path, links followed; None for nothing."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def leads_to_folder(entry: os.DirEntry) -> bool:
    if not entry.is_symlink():
        return entry.is_dir()
    found = stat_of(entry.path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _local_tables(pattern: str) -> Iterator[InputFile]:
    """See `list_tables`.

    Raises:
      ConfigError: something else is there by such a name.
      OSError: a folder can't be listed.
    """
    if os.path.isdir(pattern):
        paths = list(_tables_below(pattern))
    elif os.path.lexists(pattern):
        paths = [pattern]
    elif is_glob(pattern):
        matched = list(filter(_is_shown, _matching(pattern)))
        named = [path for path in matched if not os.path.isdir(path)]
        below = [found for path in matched if os.path.isdir(path) for found in _tables_below(path)]
        # A folder and what is in it may both match.
        paths = _tables_or_all({*below, *named}) if below or "**" in pattern else named
    else:
        paths = []
    for path in filter(_is_shown, paths):
        found = stat_of(path)
        if found is None or not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise ConfigError("input", pattern, f"be regular files; {path} is none")
        if stat.S_ISREG(found.st_mode):
            yield InputFile(path, found.st_size, found.st_mtime)


def _tables_below(folder: str) -> Iterator[str]:
    """Paths of files of rows below a local folder, each folder being entered once, by its first name."""
    seen = set()
    waiting = [folder.rstrip("/") or "/"]
    while waiting:
        current = waiting.pop()
        found = os.stat(current)
        if (found.st_dev, found.st_ino) in seen:
            continue
        seen.add((found.st_dev, found.st_ino))
        with os.scandir(current) as scanned:
            entries = [entry for entry in scanned if _is_shown(entry.name)]
        folders = {entry.path for entry in entries if leads_to_folder(entry)}
        yield from (entry.path for entry in entries if is_table(entry.name) and entry.path not in folders)
        waiting.extend(sorted(folders, reverse=True))


def _far_tables(pattern: str) -> list[InputFile]:
    folder = literal(pattern.rstrip("/"))
    globbed = folder == pattern.rstrip("/") and is_glob(pattern)
    # What a glob matches must be shown, too; of a folder that is named by itself nothing is asked.
    depth = _fixed_parts(pattern) if "**" in folder else folder.count("/") + (not globbed)
    tables = {
        file.path: file
        for file in match(pattern, folder + _FAR_TABLES)
        if is_table(file.path) and _all_shown(file.path.split("/")[depth:])
    }
    if not globbed and (tables or is_folder(pattern)):
        return list(tables.values())
    named = {file.path: file for file in match(pattern, literal(pattern)) if _is_shown(file.path)}
    if "**" in pattern:
        named = {path: file for path, file in named.items() if _all_shown(path.split("/")[depth:])}
    elif not tables:
        return list(named.values())
    both = {**tables, **named}
    return [both[path] for path in _tables_or_all(both)]


def _tables_or_all(paths: Iterable[str]) -> list[str]:
    """What a glob means that reaches into folders: what is named as files of rows are, if anything is."""
    paths = list(paths)
    return [path for path in paths if is_table(path)] or paths


def _fixed_parts(pattern: str) -> int:
    """Parts of a path, up to the first that is a glob."""
    return len(list(itertools.takewhile(lambda part: not is_glob(part), pattern.split("/"))))


def _all_shown(names: Sequence[str]) -> bool:
    return all(map(_is_shown, names))


def _matching(pattern: str) -> list[str]:
    """Local paths that match a glob."""
    if "**" in pattern:
        fixed = _fixed_parts(pattern)
        return [file.path for file in match(pattern, pattern) if _all_shown(file.path.split("/")[fixed:])]
    return list(_glob("/", absolute(pattern).split("/")))


def _is_shown(path: str) -> bool:
    return os.path.basename(path)[:1] not in (".", "_", "")


def _glob(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """Paths below a folder that match, one part of a glob for each level.

    Unlike Python's own it raises what it meets: a folder that can't be listed
    is data that would be left out.
    """
    part, *rest = parts
    if is_glob(part):
        with os.scandir(folder) as entries:
            paths = [entry.path for entry in entries if fnmatch.fnmatchcase(entry.name, part)]
    else:
        paths = [os.path.join(folder, part)]
    for path in paths:
        if not rest:
            if os.path.lexists(path):
                yield path
        elif os.path.isdir(path):
            yield from _glob(path, rest)


def is_glob(pattern: str) -> bool:
    return any(character in pattern for character in "[*?")


def match(shown: str, pattern: str, limit: int | None = None) -> list[InputFile]:
    try:
        (result,) = FileSystems.match([pattern], limits=[limit])
    except (ValueError, ImportError):
        raise ConfigError(
            "input",
            shown,
            "lie on a file system that Beam can open (gs://, s3:// and others need an extra)",
        ) from None
    except BeamIOError as error:
        reasons = "; ".join(sorted({str(reason) for reason in (error.exception_details or {}).values()}))
        raise ConfigError("input", shown, f"be listable ({reasons})") from None
    return [
        InputFile(found.path, found.size_in_bytes, found.last_updated_in_seconds or 0.0)
        for found in result.metadata_list
    ]
