"""Folders that only their owner may enter, on any file system that Beam knows.

Modes are set on local disks; elsewhere the bucket's own rules hold.
"""

import os

from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.errors import ConfigError


def is_local(path: str) -> bool:
    """Whether a path lies on this machine's own file system."""
    return "://" not in path


def check_scheme(argument: str, path: str) -> None:
    """Raises ConfigError, naming the argument, where Beam has no file system for the path."""
    try:
        FileSystems.get_filesystem(path)
    except (ValueError, ImportError):
        raise ConfigError(
            argument, path, "lie on a file system that Beam can open (gs://, s3:// and others need an extra)"
        ) from None


def make_private_folder(path: str) -> None:
    """Creates a folder that only its owner may enter, and the folders above it that are missing likewise.

    A folder that exists is left as it is: it may be anybody's.

    Raises:
      OSError: it can't be created.
    """
    if not is_local(path):
        return
    missing = []
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            # Somebody else was faster, or it is a file.
            if not os.path.isdir(folder):
                raise
        else:
            # The umask may have taken something away.
            os.chmod(folder, 0o700)


def check_private_folder(argument: str, path: str) -> None:
    """Checks a folder that exists: it is not taken over, so it must be private already.

    Raises:
      ConfigError: others may enter it, or own it.
    """
    found, user = os.stat(path), os.geteuid()
    if found.st_uid != user:
        raise ConfigError(
            argument,
            path,
            f"be a folder of this user (number {user}), or a new one; number {found.st_uid} owns it",
        )
    if found.st_mode & 0o077:
        raise ConfigError(
            argument, path, "be a folder that only its owner can enter: do chmod 700, or name a new one"
        )
