"""Fashion-MNIST as a user's data would look: Parquet of encoded images with labels."""

import gzip
import io
import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dpgmm_beam.errors import ConfigError
from transforms.files.small import read_small

PACKAGE = "dataset-fashion-mnist"
INSTALLED = "/usr/share/datasets/fashion-mnist"
CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
"""In the data set's own order."""

SPLITS = {"train": "train", "test": "t10k"}
FILES = tuple(
    f"{stem}-{kind}-ubyte.gz" for stem in SPLITS.values() for kind in ("images-idx3", "labels-idx1")
)
# A file of embeddings is made of one: so many seconds lie between two signs of progress.
_ROW_GROUP_ROWS = 512
_DOWNLOAD_SECONDS = 120
# 60,000 images of 28 x 28 take 47 MB.
_MOST_BYTES = 2**26


def find(folder: str | None, work: str) -> str:
    """The folder with the four IDX files.

    Looks in `folder` if named; else where Debian's package installs them; else
    downloads that package with apt (no root needed) and unpacks it in `work`.

    Raises:
      ConfigError: they are not to be had.
    """
    if folder is not None:
        if not _complete(folder):
            raise ConfigError("--data", folder, f"hold the files {', '.join(FILES)}")
        return folder
    unpacked = os.path.join(work, PACKAGE)
    for candidate in (INSTALLED, unpacked + INSTALLED):
        if _complete(candidate):
            return candidate
    try:
        _download(unpacked)
    except (OSError, ValueError, subprocess.SubprocessError):
        raise ConfigError(
            "--data",
            "",
            f"name a folder with the files {', '.join(FILES)}, for apt could not download {PACKAGE}"
            " here (on Debian, 'apt-get update' first may help)",
        ) from None
    return unpacked + INSTALLED


def _complete(folder: str) -> bool:
    return all(os.path.isfile(os.path.join(folder, name)) for name in FILES)


def _download(target: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            # Without a network there is nothing to wait for.
            ["apt-get", "download", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20", PACKAGE],
            cwd=scratch,
            check=True,
            timeout=_DOWNLOAD_SECONDS,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (package,) = os.listdir(scratch)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        partial = f"{target}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run(["dpkg-deb", "-x", os.path.join(scratch, package), partial], check=True)
        os.replace(partial, target)


def read(folder: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) uint8 and label indices (n,) uint8 of "train" or "test".

    Raises:
      ConfigError: a file is not what the data set has.
    """
    stem = SPLITS[split]
    images = _idx(folder, f"{stem}-images-idx3-ubyte.gz", 28, 28)
    labels = _idx(folder, f"{stem}-labels-idx1-ubyte.gz")
    if len(images) != len(labels) or (labels >= len(CLASSES)).any():
        raise ConfigError("--data", folder, f"hold labels that fit the images of {stem}")
    return images, labels


def _idx(folder: str, name: str, *shape: int) -> np.ndarray:
    """An array (n, *shape) uint8 from a file in the format IDX."""
    data = read_small("--data", os.path.join(folder, name), _MOST_BYTES)
    try:
        with gzip.open(io.BytesIO(data)) as file:
            data = file.read(_MOST_BYTES + 1)
        count = int.from_bytes(data[4:8], "big")
        header = b"".join(number.to_bytes(4, "big") for number in (0x800 + 1 + len(shape), count, *shape))
        if len(data) > _MOST_BYTES or not data.startswith(header):
            raise ValueError
        return np.frombuffer(data, np.uint8, offset=len(header)).reshape(count, *shape)
    except (EOFError, OSError, ValueError, zlib.error):
        raise ConfigError(
            "--data", folder, f"hold Fashion-MNIST's own files, and {name} is another"
        ) from None


def write_parquet(
    images: np.ndarray, labels: np.ndarray, path: str, classes: Sequence[str] = CLASSES
) -> None:
    """Writes a split as Parquet with columns label (string) and image (PNG)."""
    encoded = []
    for image in images:
        sink = io.BytesIO()
        # Fast to write; these are 28 x 28 pixels.
        Image.fromarray(image).save(sink, "PNG", compress_level=1)
        encoded.append(sink.getvalue())
    table = pa.table(
        {
            "label": pa.array(classes, pa.string()).take(pa.array(labels)),
            "image": pa.array(encoded, pa.binary()),
        }
    )
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pq.write_table(table, f"{path}.partial", row_group_size=_ROW_GROUP_ROWS)
    os.replace(f"{path}.partial", path)
