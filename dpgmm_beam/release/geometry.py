"""How labelled embeddings lie: all that a forecast must suppose of data that nobody has looked at."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.privacy import lattice

_POINTS, _BLOCK = 48, 4096


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Second moments of embeddings of norm 1 along the principal axes of the spread within classes.

    Each tuple holds, for the first share `ranks[i]` of all directions, those of largest
    variance within classes first, the sum over them: the last entries are totals.

    Attributes:
      ranks: from 0 to 1, rising.
      within: variance of rows round their class's mean.
      between: variance of the class means round the centre, weighted by class sizes.
      centre: square of the centre.
    """

    ranks: tuple[float, ...]
    within: tuple[float, ...]
    between: tuple[float, ...]
    centre: tuple[float, ...]

    @property
    def class_distance(self) -> float:
        """Root mean squared distance of a class's mean from the centre."""
        return self.between[-1] ** 0.5

    def along(self, directions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Variances within and between classes, and squares of the centre, along so many directions."""
        edges = np.linspace(0.0, 1.0, directions + 1)
        within, between, centre = (
            np.maximum(np.diff(np.interp(edges, self.ranks, sums)), 0.0)
            for sums in (self.within, self.between, self.centre)
        )
        return within, between, centre


def measured(rows: Rows, classes: int) -> Geometry:
    """The geometry of rows that are public: it holds exact figures."""
    means, covariance = moments(rows, classes)
    counts = np.bincount(rows.classes, minlength=classes)
    shares = counts / counts.sum()
    centre = shares @ means
    with one_thread():
        variances, axes = np.linalg.eigh(covariance)
    variances, axes = np.maximum(variances[::-1], 0.0), axes[:, ::-1]
    between = (shares[:, None] * ((means - centre) @ axes) ** 2).sum(axis=0)
    d = len(variances)
    # Dense at the head, where most of the variance is.
    kept = np.unique(
        np.concatenate([np.arange(min(d, 8) + 1), np.geomspace(1, d, _POINTS).round().astype(int)])
    )
    return Geometry(
        tuple(_short(kept / d)),
        *(
            tuple(_short(np.concatenate([[0.0], np.cumsum(along)])[kept]))
            for along in (variances, between, (centre @ axes) ** 2)
        ),
    )


def moments(rows: Rows, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Class means (C, d) and the covariance within classes (d, d) of public rows, in real units: exact."""
    sums = np.zeros((classes, rows.values.shape[1]))
    square = np.zeros((sums.shape[1],) * 2)
    for block in rows.blocks(_BLOCK):
        np.add.at(sums, block.classes, block.values / lattice.UNIT)
    means = sums / np.maximum(np.bincount(rows.classes, minlength=classes), 1)[:, None]
    for block in rows.blocks(_BLOCK):
        residuals = block.values / lattice.UNIT - means[block.classes]
        with one_thread():
            square += residuals.T @ residuals
    return means, square / len(rows)


def _short(values: np.ndarray) -> Sequence[float]:
    return [float(f"{value:.4g}") for value in values]
