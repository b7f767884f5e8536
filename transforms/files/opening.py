"""Opening files of any file system, for their bytes or for ranges of them."""

import contextlib
import os
from collections.abc import Iterator

import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from transforms.files.private import is_local


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """While a file's rows are read: what a library says of them may quote them, so its words go no further.

    Raises:
      OSError: the system's own word, about the file.
      RuntimeError: anything else.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, os.strerror(error.errno), path) from None
        raise RuntimeError(f"{path} could not be read ({type(error).__name__})") from None


def open_ranges(path: str) -> pa.NativeFile:
    """Opens any file for `read_at` and `size`.

    Google's and Amazon's stores are read by Arrow's own file systems: Beam's
    readers fetch 16 MiB for whatever is asked.
    """
    if is_local(path):
        return pa.OSFile(path)
    if path.startswith(("gs://", "s3://")):
        import pyarrow.fs

        system, name = pyarrow.fs.FileSystem.from_uri(path)
        return system.open_input_file(name)
    return pa.PythonFile(open_file(path), mode="r")


def open_file(path: str):
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def read_bytes(path: str) -> bytes:
    """The bytes of a file on any file system."""
    if is_local(path):
        with open(path, "rb") as file:
            return file.read()
    with open_file(path) as file:
        return file.read()
