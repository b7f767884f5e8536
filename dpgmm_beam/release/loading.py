"""A release's mixture, with all that the release says of it, from its folder."""

import dataclasses
from collections.abc import Callable

from dpgmm_beam.mixture import Mixture, reader_of
from dpgmm_beam.release.class_rows import ClassRows
from dpgmm_beam.release.labels import Labeller


def load_mixture(folder: str) -> Mixture:
    """Loads the mixture of a release, with its teacher and the noisy number of rows of each class.

    Args:
      folder: a release, or its `mixture` folder, on a local file system.

    >>> import tempfile
    >>> import numpy as np
    >>> from dpgmm_beam import Release
    >>> release = Release.fit(np.eye(4), epsilon=1.0, delta=1e-5, samples_per_class=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     release.save(folder)
    ...     load_mixture(folder).classes
    ('all',)
    """
    return read_mixture(reader_of(folder))


def read_mixture(read: Callable[[str], bytes]) -> Mixture:
    """The mixture of a release from its files.

    Args:
      read: the bytes of a file of the folder `mixture` by its name.
    """
    return with_labels(Mixture.load(read), ClassRows.load(read), Labeller.load(read))


def with_labels(mixture: Mixture, class_rows: ClassRows, labeller: Labeller) -> Mixture:
    """The mixture with what a release says of it.

    Raises:
      ValueError: they are of other classes.
    """
    if not mixture.classes == class_rows.classes == labeller.classes:
        raise ValueError("the files are of different classes")
    return dataclasses.replace(
        mixture,
        class_rows=class_rows.rows.astype(float),
        class_rows_stddev=class_rows.stddev,
        labeller=labeller,
    )
