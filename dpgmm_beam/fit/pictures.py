"""Pictures beside embeddings: what they have to do with each other, so that a release is decodable.

A row is an embedding and the picture that it is of, as cosine coefficients (`encoders.dct`).  Within a
class both are taken for jointly Gaussian, and the mean of a picture c given its embedding x is

    E[c | x] = m + E[(c - m) v^T] E[v v^T]^-1 v,   v = V (x - mean of x),

with V the view `within`: the leading principal directions of what is released already, as many as rows
allow, in which E[v v^T] is known and diagonal.  Released are the means m of each class, then
the cross moment of v and c - m, and how far c is from m in each ring of frequencies.

The cross moment is shrunk by Wiener's factor: its noise is known, and what it would be without is taken
for a product of a ring's energy and a direction's, both of which are seen well.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.data.rows import Rows
from dpgmm_beam.decoders.picture_map import PictureMap
from dpgmm_beam.encoders.dct import PictureForm
from dpgmm_beam.fit import shrinkage, sketch
from dpgmm_beam.fit.projection import PROJECTION_BITS
from dpgmm_beam.fit.stage import Advanced, ClippedStage, Multipliers, Stage, sums_by_group
from dpgmm_beam.fit.state import FitState, Pictures
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.queries import SumQuery, Sums

RADIUS = 0.27
"""Clipping radius of a picture less its class's mean, root mean square of a pixel.  Of 28 x 28 pixels it is
7.6, and 1.2 times what digits and pieces of photographs have (scikit-learn's, and MNIST)."""

SEEN = 3.0
"""How far the energy of a cross moment must lie beyond its noise's, in the fluctuations of that."""

_REACH = sketch.SKETCH_BOUND


@dataclasses.dataclass(frozen=True)
class _PictureStage(Stage):
    """A stage that sums pictures."""

    @property
    def mechanism(self) -> str:
        return "pictures"

    @property
    def form(self) -> PictureForm:
        assert self.shape.pictures is not None
        return self.shape.pictures


@dataclasses.dataclass(frozen=True)
class PictureMeans(_PictureStage):
    """Sum of the pictures of each class -> `FitState.pictures`, their means, shrunk in each ring."""

    KIND = "pictures"

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        return (SumQuery("sum", self.shape.classes * self.form.dimension, lattice.UNIT),)

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        classes = self.shape.classes

        def add(rows: Rows, sums: Sums) -> None:
            sums["sum"] += sums_by_group(_pictures(rows), rows.classes, classes).ravel()

        return add

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        assert before.class_means is not None
        counts = before.class_means.counts
        totals = noisy["sum"].reshape(self.shape.classes, -1).astype(np.float64)
        stddev = multipliers["sum"] * lattice.UNIT
        centre, means = totals.sum(axis=0) / counts.sum(), totals / counts[:, None]
        rings = self.form.rings
        for ring in np.unique(rings):
            own = np.flatnonzero(rings == ring)
            noise = len(counts) * (stddev / counts.sum()) ** 2
            centre[own] = shrinkage.shrink_rows(centre[None, own], np.zeros(len(own)), noise)[0]
            means[:, own] = shrinkage.shrink_rows(means[:, own], centre[own], (stddev / counts) ** 2)
        means = lattice.clip_rows(np.rint(means), lattice.UNIT)
        return Advanced(dataclasses.replace(before, pictures=Pictures(means.astype(np.int32))))


@dataclasses.dataclass(frozen=True)
class PictureSlopes(_PictureStage, ClippedStage):
    """Cross moment of embeddings and pictures within classes -> `FitState.pictures`, complete.

    A row adds v q^T, v its embedding in the view `within`, clipped at 1.2 of its root mean square, and q
    its picture less its class's mean, clipped at `RADIUS`; and the energies of q in each ring.
    """

    KIND = "slopes"

    @property
    def queries(self) -> tuple[SumQuery, ...]:
        size, rings = self.form.dimension * self.shape.subspace_dim, int(self.form.rings.max()) + 1
        # |v q^T| = |v| |q|.  Energies are 0 or more, so their vector is no longer than their sum, |q|^2.
        return (
            SumQuery("cross", size, float(self.bound * _REACH)),
            SumQuery("square", rings, float(self.bound) ** 2, one_sided=True),
        )

    def adder(self, before: FitState) -> Callable[[Rows, Sums], None]:
        assert before.pictures is not None
        means, project = before.pictures.means.astype(np.float64), sketch.WITHIN.of(before).bind()
        scale, shape = self._scale, (self.form.dimension, self.shape.subspace_dim)
        rings = self.form.rings

        def add(rows: Rows, sums: Sums) -> None:
            residuals = _pictures(rows) - means[rows.classes]
            residuals *= scale
            residuals = lattice.clip_rows(np.rint(residuals, out=residuals), self.bound)
            values = lattice.clip_rows(project(rows).values.astype(np.float64), _REACH)
            # Exact: a block's entries are under its rows x 2**26, far under 2**53.
            sums["cross"].reshape(shape)[...] += (residuals.T @ values).astype(np.int64)
            energies = np.einsum("ij,ij->j", residuals, residuals).astype(np.int64)
            np.add.at(sums["square"], rings, energies)

        return add

    def advance(self, before: FitState, noisy: Sums, multipliers: Multipliers) -> Advanced:
        assert before.class_means is not None
        assert before.subspace is not None
        assert before.pictures is not None
        total, rings = before.class_means.counts.sum(), self.form.rings
        used = before.subspace.variances > 0
        # In steps of pictures and of the view.
        per_row = 1 / (self._scale * total)
        cross = noisy["cross"].reshape(self.form.dimension, -1) * per_row * used
        noise = multipliers["cross"] * self.bound * _REACH * per_row
        cross *= _kept(cross[:, used], noise**2, rings, used)
        variances = np.where(used, before.subspace.variances, 1.0)
        slopes = (cross / variances).astype(np.float32)
        sizes = np.bincount(rings)
        found = noisy["square"] * per_row / self._scale
        explained = np.bincount(rings, (slopes.astype(np.float64) ** 2 * variances).sum(axis=1))
        left = np.maximum(found - explained, 0.0) / np.maximum(sizes, 1)
        after = dataclasses.replace(before.pictures, slopes=slopes, residuals=left[rings].astype(np.float32))
        return Advanced(dataclasses.replace(before, pictures=after))

    @property
    def _scale(self) -> float:
        """Own steps in a step of pictures."""
        radius = RADIUS * float(np.sqrt(self.form.dimension)) / self.form.usual_norm
        return self.bound / (radius * lattice.UNIT)


def _pictures(rows: Rows) -> np.ndarray:
    assert rows.pictures is not None
    return rows.pictures


def _kept(cross: np.ndarray, noise: float, rings: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Wiener's factors of a noisy cross moment, (p, r).

    Args:
      cross: (p, u), in the directions that are used.
      noise: variance of an entry.
      rings: (p,) in which each coefficient is.
      used: (r,) which directions are.
    """
    kept = np.zeros((len(cross), len(used)))
    if not used.any():
        return kept
    energies = cross**2 - noise
    whole = energies.mean()
    # What noise alone would show; under that, a product of two of its shares over it says nothing.
    if whole <= SEEN * noise * np.sqrt(2.0 / energies.size):
        return kept
    of_rings = np.bincount(rings, energies.mean(axis=1)) / np.maximum(np.bincount(rings), 1)
    # Of sums in single precision, for their last bits are the processor's.
    along, across = (
        np.maximum(each, 0.0).astype(np.float32).astype(np.float64)
        for each in (of_rings[rings], energies.mean(axis=0))
    )
    signal = along[:, None] * across / float(np.float32(whole))
    kept[:, used] = signal / (signal + noise)
    return kept


def picture_map_of(config: ReleaseConfig, state: FitState) -> PictureMap:
    """What is released of it.

    Args:
      state: after the last stage.
    """
    form, found = config.picture_form, state.pictures
    assert form is not None
    assert found is not None
    assert found.slopes is not None
    assert found.residuals is not None
    assert state.class_means is not None
    assert state.subspace is not None
    used = state.subspace.variances > 0
    deviations = np.sqrt(state.subspace.variances[used])
    step, clip_norm = form.usual_norm / lattice.UNIT, config.clip_norm or 1.0
    # A step of the view is the matrix's unit over VIEW_UNIT.
    matrix = state.subspace.matrix[used] * (sketch.VIEW_UNIT * 2.0**-PROJECTION_BITS)
    return PictureMap(
        form=form,
        classes=config.classes,
        means=found.means * step,
        centres=state.class_means.means * (clip_norm / lattice.UNIT),
        directions=matrix / (deviations[:, None] * clip_norm),
        slopes=(found.slopes[:, used] * deviations).T * step,
        residuals=found.residuals.astype(np.float64) * step**2,
    )
