"""Makes a release visible at once, and only once.

Every file is first written into a hidden staging folder whose name is a
function of the release.  On a local disk the whole folder is then renamed into
place in one step.  Elsewhere (object stores rename file by file) the files are
moved and the manifest, without which there is no release, comes last.  Doing
any of it again, at once or much later, changes nothing.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from transforms.inputs import read_bytes
from transforms.private_files import is_local

MANIFEST = "manifest.json"

_MOVERS = 16


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """A file of the release.

    Attributes:
      path: relative to the release, e.g. "synthetic/part-00000-of-00008.parquet".
      size: in bytes.
      sha256: hexadecimal digest of its bytes.
      rows: how many rows it holds (for synthetic files, configuration).
    """

    path: str
    size: int
    sha256: str
    rows: int


def join(folder: str, *names: str) -> str:
    return FileSystems.join(folder, *names)


def exists(path: str) -> bool:
    return FileSystems.exists(path)


def write_whole(path: str, data: bytes, scratch: str | None = None) -> None:
    """Writes a file so that it is seen whole or not at all; writing it again is harmless.

    Args:
      path: of the file.
      data: its bytes.
      scratch: local folder, on the same disk, for the unfinished file, which a
        killed process leaves behind; default: the folder of `path`.
    """
    if not is_local(path):
        # Object stores make an object visible when it is complete.
        with FileSystems.create(path, "application/octet-stream", compression_type="uncompressed") as file:
            file.write(data)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex}.partial"
    if scratch is not None:
        os.makedirs(scratch, exist_ok=True)
        temporary = os.path.join(scratch, os.path.basename(temporary))
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """One publication at a time in a folder, where its file system has locks.

    The system drops the lock of a process that dies.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@dataclasses.dataclass(frozen=True)
class Publication:
    """Where a release is staged and where it appears.

    Attributes:
      output: the folder of the release.
      run: a name that is a function of the release (config and id).
      overwrite: whether a release that is there may be replaced.
    """

    output: str
    run: str
    overwrite: bool = False

    @property
    def staging(self) -> str:
        if is_local(self.output):
            parent, name = os.path.split(os.path.abspath(self.output))
            return os.path.join(parent, f".{name}.partial-{self.run}")
        return join(self.output, f".partial-{self.run}")

    @property
    def scratch(self) -> str | None:
        """Folder of unfinished files: outside of the staging folder, which becomes the release."""
        return f"{self.staging}-unfinished" if is_local(self.output) else None

    def stage(self, path: str, data: bytes, rows: int) -> FileRecord:
        """Writes one file of the release into the staging folder."""
        write_whole(join(self.staging, *path.split("/")), data, self.scratch)
        return FileRecord(path, len(data), hashlib.sha256(data).hexdigest(), rows)

    def is_published(self, manifest: bytes) -> bool:
        """Whether exactly this release is visible already."""
        path = join(self.output, MANIFEST)
        return exists(path) and read_bytes(path) == manifest

    def publish(self, records: list[FileRecord], manifest: bytes) -> None:
        """Makes the release visible.

        Args:
          records: every file but the manifest.
          manifest: the manifest's bytes.

        Raises:
          RuntimeError: a staged file is gone, or not whole.
          OSError: the release cannot be put in its place.
        """
        if is_local(self.output):
            self._publish_local(records, manifest)
        else:
            self._publish_remote(records, manifest)

    def _publish_local(self, records: list[FileRecord], manifest: bytes) -> None:
        output = os.path.abspath(self.output)
        replaced = f"{self.staging}-replaced"
        # Two attempts at once must not take each other's release for the old one.
        with _locked(os.path.dirname(output)):
            if not self.is_published(manifest):
                self._keep_only(records)
                write_whole(os.path.join(self.staging, MANIFEST), manifest, self.scratch)
                if self.overwrite and os.path.exists(os.path.join(output, MANIFEST)):
                    shutil.rmtree(replaced, ignore_errors=True)
                    os.rename(output, replaced)
                try:
                    os.rename(self.staging, output)
                except OSError:
                    if os.path.exists(replaced) and not os.path.exists(output):
                        os.rename(replaced, output)
                    raise
            self.discard()
            shutil.rmtree(replaced, ignore_errors=True)

    def _keep_only(self, records: list[FileRecord]) -> None:
        """Checks that every file is staged whole and removes whatever else is there."""
        wanted = {os.path.join(self.staging, *record.path.split("/")): record for record in records}
        for path, record in wanted.items():
            if not os.path.exists(path) or os.path.getsize(path) != record.size:
                raise RuntimeError(f"{record.path} is not staged as it was written")
        for folder, _, names in os.walk(self.staging):
            for name in names:
                if os.path.join(folder, name) not in wanted:
                    os.unlink(os.path.join(folder, name))

    def _publish_remote(self, records: list[FileRecord], manifest: bytes) -> None:
        if self.is_published(manifest):
            self.discard()
            return
        targets = {join(self.output, *record.path.split("/")): record for record in records}
        if self.overwrite:
            # The old manifest goes first, and what an earlier attempt has moved stays.
            if exists(join(self.output, MANIFEST)):
                FileSystems.delete([join(self.output, MANIFEST)])
            folders = (join(self.output, folder, "**") for folder in ("synthetic", "mixture"))
            FileSystems.delete(
                [path for found in folders for path in self._files(found) if path not in targets]
            )
        # A store takes a file half a second and more, and many at once.
        with ThreadPoolExecutor(_MOVERS) as movers:
            list(movers.map(self._move, targets, targets.values()))
        write_whole(join(self.output, MANIFEST), manifest)
        self.discard()

    def _move(self, target: str, record: FileRecord) -> None:
        source = join(self.staging, *record.path.split("/"))
        # A source that is gone was moved by an earlier attempt.
        if exists(source):
            with contextlib.suppress(BeamIOError, OSError):
                FileSystems.mkdirs(posixpath.dirname(target))
            FileSystems.rename([source], [target])
        (found,) = FileSystems.match([target])
        if [file.size_in_bytes for file in found.metadata_list] != [record.size]:
            raise RuntimeError(f"{record.path} is not staged as it was written")

    def _files(self, pattern: str) -> list[str]:
        (found,) = FileSystems.match([pattern])
        return [file.path for file in found.metadata_list]

    def discard(self) -> None:
        """Removes the staging folder, if there is one."""
        if is_local(self.output):
            shutil.rmtree(self.staging, ignore_errors=True)
            shutil.rmtree(f"{self.staging}-unfinished", ignore_errors=True)
            return
        with contextlib.suppress(BeamIOError, OSError):
            FileSystems.delete(self._files(join(self.staging, "**")))
