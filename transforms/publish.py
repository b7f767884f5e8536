"""Makes a release visible at once, and only once.

Every file is first written into a hidden staging folder whose name is a
function of the release.  On a local disk the whole folder is then renamed into
place in one step.  Elsewhere (object stores rename file by file) the files are
moved and the manifest, without which there is no release, comes last.  Doing
any of it again, at once or much later, changes nothing.
"""

import contextlib
import dataclasses
import hashlib
import os
import posixpath
import shutil
import uuid

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from transforms.private_files import is_local

MANIFEST = "manifest.json"


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


def read_bytes(path: str) -> bytes:
    with FileSystems.open(path, "application/octet-stream", compression_type="uncompressed") as file:
        return file.read()


def exists(path: str) -> bool:
    return FileSystems.exists(path)


def write_whole(path: str, data: bytes) -> None:
    """Writes a file so that it is seen whole or not at all; writing it again is harmless."""
    if not is_local(path):
        # Object stores make an object visible when it is complete.
        with FileSystems.create(path, "application/octet-stream", compression_type="uncompressed") as file:
            file.write(data)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex}.partial"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


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

    def stage(self, path: str, data: bytes, rows: int) -> FileRecord:
        """Writes one file of the release into the staging folder."""
        write_whole(join(self.staging, *path.split("/")), data)
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
        """
        if self.is_published(manifest):
            self.discard()
        elif is_local(self.output):
            self._publish_local(manifest)
        else:
            self._publish_remote(records, manifest)

    def _publish_local(self, manifest: bytes) -> None:
        output = os.path.abspath(self.output)
        write_whole(os.path.join(self.staging, MANIFEST), manifest)
        replaced = f"{self.staging}-replaced"
        if self.overwrite and os.path.exists(os.path.join(output, MANIFEST)):
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(output, replaced)
        os.rename(self.staging, output)
        shutil.rmtree(replaced, ignore_errors=True)

    def _publish_remote(self, records: list[FileRecord], manifest: bytes) -> None:
        if self.overwrite:
            old = [join(self.output, MANIFEST), join(self.output, "synthetic"), join(self.output, "mixture")]
            FileSystems.delete([path for path in old if exists(path)])
        for record in records:
            source, target = (join(base, *record.path.split("/")) for base in (self.staging, self.output))
            # A source that is gone was moved by an earlier attempt.
            if exists(source):
                FileSystems.mkdirs(posixpath.dirname(target)) if not exists(
                    posixpath.dirname(target)
                ) else None
                FileSystems.rename([source], [target])
        write_whole(join(self.output, MANIFEST), manifest)
        self.discard()

    def discard(self) -> None:
        """Removes the staging folder, if there is one."""
        if is_local(self.output):
            shutil.rmtree(self.staging, ignore_errors=True)
            return
        # Object stores have no folders: an empty one is already gone.
        with contextlib.suppress(BeamIOError, OSError):
            FileSystems.delete([self.staging])
