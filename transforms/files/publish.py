"""Makes a release visible at once, and only once.

Every file is first written into a staging folder, which is private: a release that
was not published is a release all the same to whoever can read it.  On a local disk
the whole folder is then renamed into place in one step, by way of an owner-only copy
beside it where the private folder is on another disk.  Elsewhere (object stores have
no folders to rename) the files are copied and the manifest, without which there is no
release, comes last.  Doing any of it again, at once or much later, changes nothing.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.release import manifest as manifests
from dpgmm_beam.release.card import CARD_FILE
from transforms.files.finding import literal
from transforms.files.opening import read_bytes
from transforms.files.private import is_local
from transforms.files.write import swap, write_whole

MANIFEST = manifests.FILE_NAME

_MOVERS = 16
_TRIES, _PAUSE_SECONDS = 20, 0.02
_PARTIAL = ".partial-", ".publishing"


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """A file of the release.

    Attributes:
      path: relative to the release, e.g. "synthetic/part-00000-of-00008.parquet".
      size: in bytes.
      sha256: hexadecimal digest of its bytes.
      rows: how many rows it holds (for synthetic files, configuration).
      state: hexadecimal digest of the state that it was made from.
    """

    path: str
    size: int
    sha256: str
    rows: int
    state: str

    def entry(self) -> dict:
        """What the manifest says of it."""
        return {"path": self.path, "size": self.size, "sha256": self.sha256, "rows": self.rows}


def join(folder: str, *names: str) -> str:
    return FileSystems.join(folder, *names)


def exists(path: str) -> bool:
    return FileSystems.exists(path)


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


def stage(folder: str, path: str, data: bytes, rows: int, state: str, *, settled: bool = True) -> FileRecord:
    """Writes one file of the release into a staging folder.

    Args:
      settled: whether a local disk must have it before more is done.  Of many small files it need
        not: each is looked at again before it is published, and can be made again.
    """
    content = data if settled or not is_local(folder) else lambda file: file.write(data)
    for left in reversed(range(_TRIES)):
        try:
            write_whole(join(folder, *path.split("/")), content, scratch=_scratch(folder))
            break
        except (FileNotFoundError, FileExistsError):
            # Another attempt has just published the folder, or removes what it has published.
            if not left:
                raise
            time.sleep(_PAUSE_SECONDS)
    return FileRecord(path, len(data), hashlib.sha256(data).hexdigest(), rows, state)


def _scratch(folder: str) -> str | None:
    """Folder of unfinished files: outside of the staging folder, which becomes the release."""
    return f"{folder}-unfinished" if is_local(folder) else None


def discard(folder: str) -> None:
    """Removes a staging folder, if there is one."""
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(f"{folder}-unfinished", ignore_errors=True)
        return
    with contextlib.suppress(BeamIOError, OSError):
        FileSystems.delete([join(folder, *name.split("/")) for name in files_below(folder)])


def files_below(folder: str) -> set[str]:
    """Paths of all files below a folder, relative to it; of empty folders and links, too."""
    if not is_local(folder):
        (found,) = FileSystems.match([join(literal(folder), "**")])
        prefix = folder.rstrip("/") + "/"
        return {file.path.removeprefix(prefix) for file in found.metadata_list}
    names = set()
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        if not folders and not files and place != folder:
            links, place = [os.path.basename(place)], os.path.dirname(place)
        names |= {os.path.relpath(os.path.join(place, name), folder) for name in (*files, *links)}
    return names


def is_release(folder: str) -> bool:
    """Whether a folder holds a release of this program, of any version, and nothing else."""
    try:
        content = json.loads(read_bytes(join(folder, MANIFEST)))
        listed = {str(file["path"]) for file in content["files"]}
        stated = {"schema_version", "release_id", "config_digest", "privacy"} <= content.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return stated and files_below(folder) <= {*listed, MANIFEST}


RELEASED = (f"{manifests.MIXTURE}/", f"{manifests.SYNTHETIC}/part-")
"""How paths of a release's files begin, but for its card and its manifest."""


def occupied(output: str, overwrite: bool, own: tuple[str, ...] = RELEASED) -> str:
    """Why a release may not appear in a folder, as what the folder must do; "" where it may.

    Args:
      overwrite: whether it may take the place of another.
      own: how paths of its files begin.
    """
    if exists(join(output, MANIFEST)):
        if not overwrite:
            return "not hold a release already, unless --overwrite is given"
        return "" if is_release(output) else "hold a release of this program and nothing else, to be replaced"
    if is_local(output):
        free = not os.path.lexists(output) or (os.path.isdir(output) and not os.listdir(output))
    else:
        # Files of a publication that was killed are in nobody's way; its card comes after them.
        found = files_below(output)
        free = found != {CARD_FILE} and all(name.startswith(own) for name in found - {CARD_FILE})
    return "" if free else "be an empty or a new folder"


def left_overs(output: str) -> list[str]:
    """Unpublished releases that killed jobs, also of earlier versions, left beside a local output."""
    if not is_local(output):
        return []
    parent, name = os.path.split(os.path.abspath(output))
    starts = tuple(f".{name}{end}" for end in _PARTIAL)
    names = os.listdir(parent) if os.path.isdir(parent) else []
    return sorted(os.path.join(parent, found) for found in names if found.startswith(starts))


@dataclasses.dataclass(frozen=True)
class Publication:
    """Where a release appears.

    Attributes:
      output: the folder of the release.
      overwrite: whether a release that is there may be replaced.
      own: how paths of its files begin.
    """

    output: str
    overwrite: bool = False
    own: tuple[str, ...] = RELEASED

    def is_published(self, manifest: bytes) -> bool:
        """Whether exactly this release is visible already."""
        path = join(self.output, MANIFEST)
        return exists(path) and read_bytes(path) == manifest

    def publish(self, staged: str, records: list[FileRecord], manifest: bytes) -> None:
        """Makes the release visible and removes the staging folder.

        Args:
          staged: the staging folder.
          records: every file but the manifest.
          manifest: the manifest's bytes.

        Raises:
          RuntimeError: a staged file is gone or not as it was written, or something
            else is in the release's place.
          OSError: the release cannot be put in its place.
        """
        if is_local(self.output):
            self._publish_local(staged, records, manifest)
        else:
            self._publish_remote(staged, records, manifest)
        discard(staged)

    def _check_place(self) -> None:
        if wrong := occupied(self.output, self.overwrite, self.own):
            raise RuntimeError(f"{self.output} has changed while the job ran: it must {wrong}")

    def _publish_local(self, staged: str, records: list[FileRecord], manifest: bytes) -> None:
        output = os.path.abspath(self.output)
        parent, name = os.path.split(output)
        os.makedirs(parent, exist_ok=True)
        ready, replaced = (os.path.join(parent, f".{name}{end}") for end in (_PARTIAL[1], ".replaced"))
        # Two attempts at once must not take each other's release for the old one.
        with _locked(parent):
            if self.is_published(manifest):
                return
            self._check_place()
            near = is_local(staged) and _can_rename(staged, parent)
            source = staged if near else ready
            try:
                if near:
                    _keep_only(staged, records)
                else:
                    _copy(staged, records, ready)
                write_whole(
                    os.path.join(source, MANIFEST), manifest, scratch=_scratch(staged) if near else None
                )
                swap(source, output, replaced, old=os.path.exists(os.path.join(output, MANIFEST)))
            finally:
                # A release that nobody should find.
                shutil.rmtree(ready, ignore_errors=True)

    def _publish_remote(self, staged: str, records: list[FileRecord], manifest: bytes) -> None:
        if self.is_published(manifest):
            return
        self._check_place()
        # The old manifest goes first: there is no moment with a manifest of other files.
        if exists(join(self.output, MANIFEST)):
            FileSystems.delete([join(self.output, MANIFEST)])
        wanted = {record.path for record in records}
        if others := files_below(self.output) - wanted:
            FileSystems.delete([join(self.output, *name.split("/")) for name in others])

        def copy(record: FileRecord) -> None:
            write_whole(join(self.output, *record.path.split("/")), _read_staged(staged, record))

        # A store takes a file half a second and more, and many at once.
        with ThreadPoolExecutor(_MOVERS) as movers:
            list(movers.map(copy, [record for record in records if record.path != CARD_FILE]))
        # Last, but for the manifest: somebody else's README.md is not taken for a killed publication's.
        for record in records:
            if record.path == CARD_FILE:
                copy(record)
        write_whole(join(self.output, MANIFEST), manifest)


def _read_staged(folder: str, record: FileRecord) -> bytes:
    """A staged file's bytes.

    Raises:
      RuntimeError: it is gone, or not as it was written.
    """
    path = join(folder, *record.path.split("/"))
    data = read_bytes(path) if exists(path) else b""
    if len(data) != record.size or hashlib.sha256(data).hexdigest() != record.sha256:
        raise RuntimeError(f"{record.path} is not staged as it was written: run the same command again")
    return data


def _keep_only(folder: str, records: list[FileRecord]) -> None:
    """Checks every staged file and removes whatever else is there."""
    for record in records:
        _read_staged(folder, record)
    for name in files_below(folder) - {record.path for record in records}:
        os.unlink(os.path.join(folder, name))


def _copy(staged: str, records: list[FileRecord], folder: str) -> None:
    """Copies staged files into a local folder that nobody else can enter until all are there."""
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    mode = os.stat(folder).st_mode
    os.chmod(folder, 0o700)
    for record in records:
        write_whole(os.path.join(folder, *record.path.split("/")), _read_staged(staged, record))
    os.chmod(folder, mode)


def _can_rename(folder: str, parent: str) -> bool:
    """Whether a folder can be renamed into another: tried with an empty one, which tells nobody anything."""
    probe, there = f"{folder}-probe-{uuid.uuid4().hex}", os.path.join(parent, f".{uuid.uuid4().hex}")
    os.mkdir(probe)
    try:
        os.rename(probe, there)
    except OSError as error:
        os.rmdir(probe)
        if error.errno == errno.EXDEV:
            return False
        raise
    os.rmdir(there)
    return True
