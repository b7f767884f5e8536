"""Small files that a user names, read without trust: no fifo is waited for, no huge file is read."""

import errno
import hashlib
import os
import stat
import sys
from typing import BinaryIO

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.errors import ConfigError
from transforms.files.private import check_scheme, is_local

_CHUNK = 2**22


def read_small(argument: str, path: str, most: int) -> bytes:
    """The bytes of a small file that a user names, on any file system.

    Args:
      argument: the option that names it.
      path: of the file.
      most: how many bytes it may have.

    Raises:
      ConfigError: it is no regular file, can't be read or is larger.
    """
    check_scheme(argument, path)
    try:
        return read_bounded(path, most)
    except Exception as error:
        # Clients of stores raise what is theirs.
        if is_local(path) and not isinstance(error, OSError | ValueError):
            raise
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(
            argument, path or "''", f"be a readable file of at most {most:,} bytes ({reason})"
        ) from None


def read_bounded(path: str, most: int) -> bytes:
    """The bytes of a regular file, on any file system.

    Raises:
      OSError: it is no regular file, can't be read or has more bytes.
      ValueError: the path can't be one.
    """
    with _open(path, most) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
    return data


def measure(path: str, most: int) -> tuple[int, str]:
    """Size and SHA-256 (hexadecimal) of a regular file, on any file system; holds little of it.

    Of a file of more than `most` bytes no more than that is read, and the size is larger than `most`.

    Raises:
      OSError: it is no regular file or can't be read.
    """
    sha, size = hashlib.sha256(), 0
    with _open(path, sys.maxsize) as file:
        while size <= most and (data := file.read(_CHUNK)):
            sha.update(data)
            size += len(data)
    return size, sha.hexdigest()


def _open(path: str, most: int) -> BinaryIO:
    """Opens a file, which on a local disk must be a regular one of at most so many bytes."""
    if not is_local(path):
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    # Looked at before it is opened: to open a device may do something.
    _check_regular(os.stat(path), most)
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb")  # noqa: SIM115
    try:
        _check_regular(os.fstat(file.fileno()), most)
    except OSError:
        file.close()
        raise
    return file


def _check_regular(found: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if found.st_size > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
