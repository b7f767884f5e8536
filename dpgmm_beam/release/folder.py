"""A release in a local folder: read file by file, each as its manifest says, and written whole."""

import dataclasses
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.release import manifest


@dataclasses.dataclass(frozen=True)
class CheckedFiles:
    """Reads files of a release, each as the manifest says that it is."""

    read: Callable[[str], bytes]
    digests: Mapping[str, str]
    where: str

    def __call__(self, path: str) -> bytes:
        try:
            found = self.read(path)
        except OSError:
            found = b""
        if path != manifest.FILE_NAME and hashlib.sha256(found).hexdigest() != self.digests.get(path):
            raise ConfigError(
                "release", self.where, f"hold {path} as its manifest says; dpgmm verify tells more"
            )
        return found


def read_file(folder: str, path: str) -> bytes:
    """A regular file's bytes, of a size that a release can have."""
    place = os.path.join(folder, *path.split("/"))
    found = os.stat(place)
    if not stat.S_ISREG(found.st_mode) or found.st_size > manifest.MAX_FILE_BYTES:
        raise OSError(f"{path} is no file of a release")
    return Path(place).read_bytes()


def save_files(folder: str | os.PathLike, paths: Iterable[str], read: Callable[[str], bytes]) -> None:
    """Writes files into a new or empty folder, which appears whole or not at all.

    Raises:
      ConfigError: something is in the folder already.
      OSError: it cannot be written.
    """
    output = Path(os.path.abspath(folder))
    if os.path.lexists(output) and (not output.is_dir() or output.is_symlink() or any(output.iterdir())):
        raise ConfigError("folder", output, "be an empty or a new folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    hidden = output.parent / f".{output.name}.saving-{uuid.uuid4().hex[:8]}"
    hidden.mkdir()
    mode = stat.S_IMODE(hidden.stat().st_mode)
    try:
        # Nobody else takes an unfinished release for one.
        hidden.chmod(0o700)
        for path in paths:
            _write(hidden.joinpath(*path.split("/")), read(path))
        hidden.chmod(mode)
        os.rename(hidden, output)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
