"""The one way in which files are written: seen whole or not at all, on any file system that Beam knows."""

import os
import shutil
import uuid
from collections.abc import Callable
from typing import BinaryIO

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from transforms.files.private import is_local, make_private_folder


def write_whole(
    path: str,
    content: bytes | Callable[[BinaryIO], object],
    *,
    private: bool = False,
    once: bool = False,
    scratch: str | None = None,
) -> None:
    """Writes a file under a hidden name and gives it its own when it is whole.

    Two attempts at once leave one whole file; writing it again is harmless.  A failed
    attempt leaves none.

    Args:
      path: of the file; folders on the way are made.
      content: its bytes, or what writes them.
      private: whether nobody else may read it, nor enter the folders that are made.
        (Modes are set on local disks; elsewhere the bucket's own rules hold.)
      once: whether a file that is there stays as it is.  On a local disk two attempts at
        once leave the first one's file.  Object stores are asked whether there is one
        before they are given another.
      scratch: local folder, on the same disk, for the unfinished file, which a
        killed process leaves behind; default: the folder of `path`.
    """
    if not is_local(path):
        if not (once and FileSystems.exists(path)):
            _write_remote(path, content)
        return
    folder, name = os.path.split(path)
    for each in filter(None, (folder, scratch)):
        if private:
            make_private_folder(each)
        else:
            os.makedirs(each, exist_ok=True)
    hidden = os.path.join(scratch or folder, f".{name}-{uuid.uuid4().hex}")
    try:
        mode = 0o600 if private else 0o666
        with os.fdopen(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            _fill(file, content)
            if not callable(content):
                # Large files have checksums of their own, and can be made again.
                file.flush()
                os.fsync(file.fileno())
        if once:
            _link(hidden, path)
        else:
            os.replace(hidden, path)
    finally:
        if os.path.lexists(hidden):
            os.unlink(hidden)


def _fill(file: BinaryIO, content: bytes | Callable[[BinaryIO], object]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content)


def _link(hidden: str, path: str) -> None:
    """Gives a file its name, unless another has it: unlike a rename, a link never replaces what is there."""
    try:
        os.link(hidden, path)
    except FileExistsError:
        return
    except OSError:
        # A file system without links.
        if not os.path.exists(path):
            os.rename(hidden, path)


def _write_remote(path: str, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Object stores make an object visible when it is closed, also by what failed half-way."""
    hidden = path
    if callable(content):
        folder, name = FileSystems.split(path)
        hidden = FileSystems.join(folder, f".{name}-{uuid.uuid4().hex}")
    try:
        with FileSystems.create(hidden, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            _fill(file, content)
        if hidden != path:
            FileSystems.rename([hidden], [path])
    except BaseException:
        if hidden != path and FileSystems.exists(hidden):
            FileSystems.delete([hidden])
        raise


def swap(source: str, target: str, aside: str, old: bool) -> None:
    """Renames a local folder into its place, from which an old one goes only if that has come off.

    Args:
      source, target: folders of one disk.
      aside: where the old one is meanwhile; what a killed attempt has left there is removed.
      old: whether there is an old one: an empty folder at `target` is no such thing, and anything
        else that has come there stays and fails it.

    Raises:
      OSError: the target is as it was.
    """
    try:
        if old:
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(target, aside)
        os.rename(source, target)
    except BaseException:
        if os.path.exists(aside) and not os.path.exists(target):
            os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
