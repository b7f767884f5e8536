"""Fashion-MNIST as a user's data would look: Parquet of encoded images with labels."""

import gzip
import io
import os
import shutil
import subprocess
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dpgmm_beam.errors import ConfigError

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
_ROW_GROUP_ROWS = 2048


def find(folder: str | None, work: str) -> str:
    """The folder with the four IDX files.

    Looks in `folder` if named; else where Debian's package installs them; else
    downloads that package with apt (no root needed) and unpacks it in `work`.

    Raises:
      ConfigError: they are not to be had.
    """
    if folder is not None:
        if not _complete(folder):
            raise ConfigError("--data", folder, f"hold the files {', '.join(_files())}")
        return folder
    unpacked = os.path.join(work, PACKAGE)
    for candidate in (INSTALLED, unpacked + INSTALLED):
        if _complete(candidate):
            return candidate
    try:
        _download(unpacked)
    except (OSError, subprocess.CalledProcessError):
        raise ConfigError(
            "--data",
            "",
            f"name a folder with the files {', '.join(_files())}, for apt could not download {PACKAGE}"
            " here (on Debian, 'apt-get update' first may help)",
        ) from None
    return unpacked + INSTALLED


def _files() -> list[str]:
    return [f"{stem}-{kind}-ubyte.gz" for stem in SPLITS.values() for kind in ("images-idx3", "labels-idx1")]


def _complete(folder: str) -> bool:
    return all(os.path.isfile(os.path.join(folder, name)) for name in _files())


def _download(target: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            ["apt-get", "download", PACKAGE],
            cwd=scratch,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (package,) = os.listdir(scratch)
        partial = f"{target}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run(["dpkg-deb", "-x", os.path.join(scratch, package), partial], check=True)
        os.replace(partial, target)


def read(folder: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) uint8 and label indices (n,) uint8 of "train" or "test"."""
    stem = os.path.join(folder, SPLITS[split])
    with gzip.open(f"{stem}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(f"{stem}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return images, labels


def write_parquet(folder: str, split: str, path: str) -> None:
    """Writes a split as Parquet with columns label (string) and image (PNG); once."""
    if os.path.exists(path):
        return
    images, labels = read(folder, split)
    encoded = []
    for image in images:
        sink = io.BytesIO()
        # Fast to write; these are 28 x 28 pixels.
        Image.fromarray(image).save(sink, "PNG", compress_level=1)
        encoded.append(sink.getvalue())
    table = pa.table(
        {
            "label": pa.array(CLASSES, pa.string()).take(pa.array(labels)),
            "image": pa.array(encoded, pa.binary()),
        }
    )
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pq.write_table(table, f"{path}.partial", row_group_size=_ROW_GROUP_ROWS)
    os.replace(f"{path}.partial", path)
