"""Step 2: mean of each class, and the rows' variance in each coordinate."""

import dataclasses
from collections.abc import Callable

import numpy as np

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.encoders import dct
from dpgmm_beam.fit import shrinkage
from dpgmm_beam.fit.stage import Advanced, Multipliers, Stage, sums_by_group
from dpgmm_beam.fit.state import ClassMeans, FitState
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.queries import SumQuery, Sums

VARIANCE_FLOOR, PICTURE_VARIANCE_FLOOR = 0.05, 0.01
"""Least variance of a coordinate, as a share of the mean one."""

PICTURE_SQUARE_CLIP = 0.5
"""Norm bound of the squares of a picture's coefficients, a few of which hold nearly all.  Three quarters of
random pieces of scikit-learn's sample photographs, and 95% of its digits (.42), are within it."""


@dataclasses.dataclass(frozen=True)
class Means(Stage):
    """Sum of each class, and the sum of all squares -> `FitState.class_means`.

    The squares of a row's coordinates are one vector; of a row whose coordinates are
    alike Gaussian its norm is about sqrt(3 / d), and it is clipped at 1.8 times that.

    Of pictures (`Method.picture_side`) frequencies are alike that are as far from 0: means are
    shrunk and variances averaged in bands of them.
    """

    KIND = "means"
    SQUARE_CLIP = 1.8
    SQUARE_BITS = 20

    @property
    def square_bound(self) -> int:
        """Norm bound of a row's squares, in steps of 2**-20."""
        largest = min(1.0, self.SQUARE_CLIP * np.sqrt(3 / self.shape.dimension))
        if self.method.picture_side:
            largest = PICTURE_SQUARE_CLIP
        return int(np.ceil(largest * 2**self.SQUARE_BITS))

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        classes = self.shape.classes
        return (
            SumQuery("sum", classes * self.shape.dimension, lattice.UNIT),
            SumQuery("square", self.shape.dimension, self.square_bound, one_sided=True),
        )

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        classes = self.shape.classes

        def add(rows: Rows, sums: Sums) -> None:
            sums["sum"] += sums_by_group(rows.values, rows.classes, classes).ravel()
            squares = rows.values.astype(np.float64)
            squares *= squares
            squares *= 2.0 ** (self.SQUARE_BITS - 2 * lattice.UNIT_BITS)
            squares = lattice.clip_rows(np.rint(squares, out=squares), self.square_bound)
            sums["square"] += squares.sum(axis=0).astype(np.int64)

        return add

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        classes, dimension = self.shape.classes, self.shape.dimension
        assert before.class_counts is not None
        total = max(float(before.class_counts.noisy.sum()), float(classes))
        counts = before.class_counts.counts
        totals = noisy["sum"].reshape(classes, dimension).astype(np.float64)
        stddev = multipliers["sum"] * lattice.UNIT
        # Both the centre (towards zero) and each mean (towards the centre) keep
        # only what their noise does not explain.
        centre = totals.sum(axis=0) / total
        means = totals / counts[:, None]
        for band in self._bands():
            centre[band] = shrinkage.shrink_rows(
                centre[None, band], np.zeros(len(centre[band])), classes * (stddev / total) ** 2
            )[0]
            means[:, band] = shrinkage.shrink_rows(means[:, band], centre[band], (stddev / counts) ** 2)
        means = lattice.clip_rows(np.rint(means), lattice.UNIT)
        shares = counts / counts.sum()
        explained = float((shares * lattice.square_norms(means)).sum()) / lattice.UNIT**2
        squares = noisy["square"] / (2.0**self.SQUARE_BITS * total)
        whole = 1.0 if self.shape.unit_norm else float(np.clip(squares.sum(), 0.0, 1.0))
        residual_square = float(np.clip(whole - explained, 0.01 * max(whole, 0.01), 1.0))
        stddev = multipliers["square"] * self.square_bound / (2.0**self.SQUARE_BITS * total)
        variances = self._variances(squares, whole, shares @ (means / lattice.UNIT) ** 2, stddev)
        found = ClassMeans(
            counts=counts,
            means=means.astype(np.int32),
            centre=lattice.clip_rows(np.rint(centre)[None], lattice.UNIT)[0],
            residual_square=float(np.float32(residual_square)),
            variances=(variances * (residual_square / variances.sum())).astype(np.float32),
        )
        return Advanced(dataclasses.replace(before, class_means=found))

    def _bands(self) -> list[slice] | list[np.ndarray]:
        """Coordinates that are alike: all of them, or those of each of a picture's frequencies."""
        side = self.method.picture_side
        if not side:
            return [slice(None)]
        form = dct.PictureForm(side, self.shape.dimension // side**2)
        channels = np.repeat(np.arange(form.channels), side**2)
        bands = np.rint(form.frequencies).astype(np.int64) * form.channels + channels
        return [np.flatnonzero(bands == band) for band in np.unique(bands)]

    def _variances(
        self, squares: np.ndarray, whole: float, explained: np.ndarray, stddev: float
    ) -> np.ndarray:
        """Variances of the coordinates within classes, (d,), up to a factor.

        What the noisy squares say beyond the class means', moved towards its mean by
        Wiener's factor.

        Args:
          squares: (d,) noisy mean squares.
          whole: what they sum to without noise.
          explained: (d,) mean squares of the class means.
          stddev: noise of a square.
        """
        if squares.sum() <= self.shape.dimension * stddev * VARIANCE_FLOOR:
            return np.ones(self.shape.dimension)
        scale = whole / squares.sum()
        found = squares * scale - explained
        if self.method.picture_side:
            for band in self._bands():
                found[band] = found[band].mean()
            return np.maximum(found, PICTURE_VARIANCE_FLOOR * max(found.mean(), np.finfo(float).tiny))
        mean, noise = max(found.mean(), 0.0), (stddev * scale) ** 2
        kept = 1.0 - noise / found.var() if noise < found.var() else 0.0
        found = mean + kept * (found - mean)
        return np.maximum(found, VARIANCE_FLOOR * max(mean, np.finfo(float).tiny))
