"""Paths that a user names, tried before any data is read: can they be written, do they lie apart."""

import dataclasses
import errno
import fnmatch
import os
import tempfile
from collections.abc import Mapping, Sequence

from dpgmm_beam.errors import ConfigError
from transforms.files.private import check_private_folder, check_scheme, is_local
from transforms.files.publish import exists

OWN_FOLDERS = ("runs", "rows", "reports", "embeddings", "register", "charges")
"""What the program keeps in the private folder, where a user's own files have no place."""

# What is made beside an output on the way to it is called so, at most.
_BESIDE = ".{}.partial-" + "0" * 33 + "-unfinished"
# Of a file in it, also while it is being written.
_LONGEST_BELOW = 100

# Of the machine, not of the path: another try may do.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


def check_path(argument: str, path: str) -> None:
    """Raises ConfigError unless the text can be a path, on a file system that Beam knows."""
    if not path or "\0" in path:
        raise ConfigError(argument, path or "''", "be a path")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ConfigError(argument, path, "be a path in UTF-8") from None
    check_scheme(argument, path)


def check_writable_place(argument: str, path: str) -> None:
    """Checks that a folder can appear at a path by renaming one that is made beside it.

    It is tried, with names as long as they will be; nothing is left behind.

    Args:
      argument: the option.
      path: of the folder, which may exist; on other file systems only the scheme is looked at.

    Raises:
      ConfigError: it is no folder, or a link or a mount point, or nothing can be made there.
    """
    check_path(argument, path)
    if not is_local(path):
        return
    path = os.path.abspath(path)
    if os.path.islink(path):
        raise ConfigError(
            argument, path, "be a folder, which is put in its place by renaming it, and no link"
        )
    if os.path.ismount(path):
        raise ConfigError(argument, path, "be a folder below a mount point, not one itself")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise ConfigError(argument, path, "be an empty or a new folder")
    parent, name = os.path.split(path)
    folder, missing = _existing(argument, path, parent)
    _try(argument, path, folder, [*missing, _BESIDE.format(name)])
    _check_length(argument, path, os.path.join(parent, _BESIDE.format(name)))


def check_writable_folder(argument: str, path: str) -> None:
    """Checks that a private folder can be used or made at a path; nothing is left behind.

    A folder that exists must be private already: it is not taken over.

    Raises:
      ConfigError: it is no folder, not private, or nothing can be made there.
    """
    check_path(argument, path)
    if not is_local(path):
        return
    path = os.path.abspath(path)
    if os.path.isdir(path):
        check_private_folder(argument, path)
    folder, missing = _existing(argument, path, path)
    _try(argument, path, folder, missing)
    _check_length(argument, path, path)


def _existing(argument: str, path: str, folder: str) -> tuple[str, list[str]]:
    """The nearest folder that exists of one and those around it, and the names of the missing ones."""
    missing = []
    while not os.path.lexists(folder):
        folder, name = os.path.split(folder)
        missing.append(name)
    if not os.path.isdir(folder):
        raise ConfigError(argument, path, f"be a folder that can be written ({folder} is no folder)")
    return folder, missing


def _try(argument: str, path: str, folder: str, names: Sequence[str]) -> None:
    try:
        with tempfile.TemporaryDirectory(prefix=".dpgmm-", dir=folder) as made:
            for name in names:
                os.mkdir(os.path.join(made, name))
    except OSError as error:
        if error.errno in _PASSING:
            raise
        raise ConfigError(argument, path, f"be a folder that can be written ({error.strerror})") from None


def _check_length(argument: str, path: str, folder: str) -> None:
    try:
        os.lstat(os.path.join(folder, "x" * _LONGEST_BELOW))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigError(argument, path, f"be a folder that can be written ({error.strerror})") from None


def check_apart(paths: Mapping[str, str | None]) -> None:
    """Checks that what is written is not in, around or at what is read, or private.

    An output lies apart from everything.  The private folder may hold the input, the
    key and others, but not in the folders that the program keeps there.

    Args:
      paths: by option; those that are not given are None.  An input may be a
        glob: it is where it could match.

    Raises:
      ConfigError: naming the output or the private folder, and the other path.
    """
    places = {argument: _place(path) for argument, path in paths.items() if path is not None}
    output, private = places.pop("--output", None), places.get("--private-dir")
    for other, place in places.items():
        if output is not None and _overlap(output, place):
            raise ConfigError(
                "--output",
                paths["--output"],
                f"lie apart from {other}={paths[other]}, neither in nor around it",
            )
        if private is not None and place is not private and _overlap(private, place):
            below = place.parts[len(private.parts) :]
            if below and not any(
                _matches(name, below[0], place.pattern_at(len(private.parts))) for name in OWN_FOLDERS
            ):
                continue
            raise ConfigError(
                "--private-dir",
                paths["--private-dir"],
                f"lie apart from {other}={paths[other]}, which may be in it, but not in its own"
                f" folders {', '.join(OWN_FOLDERS)}",
            )


@dataclasses.dataclass(frozen=True)
class _Place:
    """A path's parts, without links; from the number `literal` on they are patterns."""

    parts: tuple[str, ...]
    literal: int

    def pattern_at(self, number: int) -> bool:
        return number >= self.literal


def _place(path: str) -> _Place:
    if is_local(path):
        path = os.path.abspath(path)
        exists = os.path.lexists(path)
        scheme = "/"
    else:
        scheme, _, path = path.partition("://")
        exists = False
    parts = [part for part in path.split("/") if part not in ("", ".")]
    literal = next(
        (number for number, part in enumerate(parts) if set(part) & set("[*?") and not exists), len(parts)
    )
    plain = parts[:literal]
    if scheme == "/":
        plain = [part for part in os.path.realpath("/" + "/".join(plain)).split("/") if part]
    return _Place((scheme, *plain, *parts[literal:]), 1 + len(plain))


def _overlap(place: _Place, other: _Place) -> bool:
    """Whether one path is, holds or could match what is at, in or around the other."""
    for number, (name, pattern) in enumerate(zip(place.parts, other.parts, strict=False)):
        if other.pattern_at(number) and "**" in pattern:
            return True
        if not _matches(name, pattern, other.pattern_at(number)):
            return False
    return True


def _matches(name: str, pattern: str, is_pattern: bool) -> bool:
    return fnmatch.fnmatchcase(name, pattern) if is_pattern else name == pattern


def check_output_file(output: str, overwrite: bool) -> None:
    """Raises ConfigError unless the file of --output can appear: it is a file, or nobody has the name."""
    if is_local(output):
        if os.path.lexists(output) and (os.path.islink(output) or not os.path.isfile(output)):
            raise ConfigError("--output", output, "be a file, or a name that is not taken")
        parent = os.path.dirname(os.path.abspath(output))
        while not os.path.lexists(parent):
            parent = os.path.dirname(parent)
        try:
            with tempfile.TemporaryFile(dir=parent):
                pass
        except OSError as error:
            reason = error.strerror
            raise ConfigError("--output", output, f"be a file that can be written ({reason})") from None
    if exists(output) and not overwrite:
        raise ConfigError("--output", output, "not be there already, unless --overwrite is given")
