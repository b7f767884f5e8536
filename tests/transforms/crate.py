"""A file system with a scheme, on the local disk: stands for every one whose paths are no local ones."""

import os

from apache_beam.io import localfilesystem
from apache_beam.io.filesystem import BeamIOError


class CrateFileSystem(localfilesystem.LocalFileSystem):
    """crate:///path is /path: an object store, which knows no folders and renames file by file."""

    @classmethod
    def scheme(cls):
        return "crate"

    def join(self, base, *paths):
        return "/".join([base.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def has_dirs(self):
        return False

    def _list(self, prefix):
        for folder, _, names in os.walk(os.path.dirname(plain(prefix))):
            for name in names:
                yield self.metadata(f"crate://{folder}/{name}")

    def metadata(self, path):
        found = super().metadata(plain(path))
        return type(found)(path, found.size_in_bytes, found.last_updated_in_seconds)

    def mkdirs(self, path):
        super().mkdirs(plain(path))

    def create(self, path, *args, **kwargs):
        os.makedirs(os.path.dirname(plain(path)), exist_ok=True)
        return super().create(plain(path), *args, **kwargs)

    def open(self, path, *args, **kwargs):
        if not self.exists(path):
            # As Beam's hdfs:// says it: no FileNotFoundError.
            raise BeamIOError(f"File not found: {path}")
        return super().open(plain(path), *args, **kwargs)

    def rename(self, sources, destinations):
        super().rename([plain(path) for path in sources], [plain(path) for path in destinations])

    def exists(self, path):
        return os.path.isfile(plain(path))

    def delete(self, paths):
        super().delete([plain(path) for path in paths])


def plain(path: str) -> str:
    return path.removeprefix("crate://")
