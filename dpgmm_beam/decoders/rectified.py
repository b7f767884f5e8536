"""Pictures of a mixture of cosine coefficients: Gaussians that know that pixels end at black and white.

A Gaussian's pixels go below black and above white, and clamped they are brighter and flatter
than what the mixture was fitted to: backgrounds come out gray.  Here a pixel is
clamp(a + s z), with z its standardised draw, and a and s such that the *clamped* Gaussian has
the mean and the variance that the mixture says (a rectified Gaussian: Socci, Lee and Seung
1998).  What a pixel shares with others is in z and stays.

Three things more are public knowledge of pictures, and no statistic of any: where the mean is
nearly black the picture is; the basis's directions beyond the mixture's own shapes, whose
variance is mostly the noise's, are left out; and a pixel that is brighter or darker than all
that surround it is put back between them.
"""

import functools

import numpy as np
from scipy.interpolate import RegularGridInterpolator
from scipy.special import ndtr

from dpgmm_beam.encoders import dct
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.mixture import Mixture
from dpgmm_beam.privacy import lattice

BLACK = 0.03
"""Means below are black."""

RESIDUAL = 0.0
"""Share of the deviation in the directions in which classes have no shapes of their own."""

MOST_SPREAD = 0.9
"""Variance of a pixel at most, over that of a coin with its mean, which is the most that there can be."""

LEAST_MEAN, LEAST_SPREAD = 0.002, 0.01
"""Of the table: darker means are taken for this one, and smaller deviations over the largest that can be."""

_GRID, _STEPS = 64, 32
_COMPONENTS_KEPT = 512
_OFFSET_BITS, _MAP_BITS = 16, 20


class Rectifier:
    """Decodes rows that were drawn from a mixture in the space of `dct`.

    >>> form = dct.PictureForm(8, 1)
    >>> means = dct.coefficients_of(np.full((1, 8, 8, 1), 0.5), form)[None]
    >>> mixture = Mixture(
    ...     ("a",), np.ones(1), np.ones((1, 1)), means, np.ones((1, 1, 1, 1)), np.eye(64), False, 8.0
    ... )
    >>> rows = mixture.sample(2, seed=0)
    >>> Rectifier(mixture, form).pixels(rows.embeddings, np.zeros(2, int), rows.component).shape
    (2, 8, 8, 1)

    Args:
      mixture: of a release whose rows were clipped, not brought to norm 1.
      form: of its encoder.
    """

    def __init__(
        self, mixture: Mixture, form: dct.PictureForm, black: float = BLACK, residual: float = RESIDUAL
    ):
        self._mixture, self._form, self._black = mixture, form, black
        r = mixture.covariances.shape[2]
        # Pixels of the basis's columns: (d, pixels).
        self._columns = self._linear(mixture.basis.T)
        with one_thread():
            shares = np.where(np.arange(mixture.dimension) < r, 1.0, residual)
            kept = (np.linalg.inv(mixture.basis).T * shares) @ self._columns
        # Of integers, so that a picture is the same whatever stands beside it.
        self._map = lattice.to_lattice(kept, _MAP_BITS)
        longest = 2 * mixture.clip_norm * 2.0**_OFFSET_BITS + np.sqrt(mixture.dimension)
        lattice.check_exact(longest, float(np.sqrt((self._map**2).sum(axis=0)).max()))
        self._rest = ((residual * self._columns[r:]) ** 2).sum(axis=0)
        self._solved = functools.lru_cache(maxsize=_COMPONENTS_KEPT)(self._solve)

    def pixels(self, embeddings: np.ndarray, classes: np.ndarray, components: np.ndarray) -> np.ndarray:
        """Pictures of rows.

        Args:
          embeddings: (n, d).
          classes: (n,) index of the class that each was drawn in.
          components: (n,) and of its component.

        Returns:
          (n, side, side, channels) in [0, 1].
        """
        result = np.empty((len(embeddings), self._columns.shape[1]))
        pairs = np.asarray(classes) * self._mixture.weights.shape[1] + components
        for pair in np.unique(pairs):
            own = pairs == pair
            label, component = divmod(int(pair), self._mixture.weights.shape[1])
            offsets = np.asarray(embeddings[own], np.float64) - self._mixture.means[label, component]
            offsets = lattice.to_lattice(offsets, _OFFSET_BITS)
            deviations = (offsets @ self._map) * 2.0 ** -(_OFFSET_BITS + _MAP_BITS)
            centre, slope = self._solved(label, component)
            result[own] = np.clip(centre + slope * deviations, 0.0, 1.0)
        planes = result.reshape(-1, self._form.side, self._form.side, self._form.channels)
        return without_specks(planes)

    def _linear(self, coefficients: np.ndarray) -> np.ndarray:
        """Pixels of coefficients without their offset, (n, d) -> (n, pixels)."""
        return dct.unclamped_pixels(coefficients, self._form).reshape(len(coefficients), -1) - dct.OFFSET

    def _solve(self, label: int, component: int) -> tuple[np.ndarray, np.ndarray]:
        """Centre, and slope over a deviation, of a component's pixels."""
        mixture = self._mixture
        r = mixture.covariances.shape[2]
        factor = np.linalg.cholesky(mixture.covariances[label, component])
        variances = ((factor.T @ self._columns[:r]) ** 2).sum(axis=0) + self._rest
        means = self._linear(mixture.means[label, component][None])[0] + dct.OFFSET
        centres, deviations = of_pixels(means, variances, self._black)
        return centres, deviations / np.sqrt(np.maximum(variances, 1e-12))


def of_pixels(
    means: np.ndarray, variances: np.ndarray, black: float = BLACK
) -> tuple[np.ndarray, np.ndarray]:
    """`rectified` of pixels, of which those are black whose mean is under `black`."""
    dark = means < black
    centres, deviations = rectified(np.clip(means, black, 1.0), variances)
    centres[dark], deviations[dark] = 0.0, 0.0
    return centres, deviations


def rectified(means: np.ndarray, variances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre a and deviation s such that clamp(a + s z, 0, 1) has a mean and variance, z standard normal.

    Interpolated in a table; variances are held under what any distribution on [0, 1] with
    the mean can have.

    Args:
      means: in [0, 1].
      variances: of the same shape.

    >>> centre, deviation = rectified(np.array([0.5, 0.1]), np.array([0.01, 0.04]))
    >>> np.round(clamped_moments(centre, deviation), 3).tolist()
    [[0.5, 0.1], [0.01, 0.04]]
    """
    angles, spreads, _ = _table()
    means = np.clip(np.asarray(means, np.float64), LEAST_MEAN, 1 - LEAST_MEAN)
    roots = np.sqrt(np.maximum(variances, 0.0) / (means * (1 - means)))
    turned = np.clip(np.arcsin(np.sqrt(means)), angles[0], angles[-1])
    at = np.stack([turned, np.clip(roots, spreads[0], spreads[-1])], axis=-1)
    found = _interpolator()(at)
    return found[..., 0], np.exp(found[..., 1])


@functools.cache
def _interpolator() -> RegularGridInterpolator:
    angles, spreads, table = _table()
    return RegularGridInterpolator((angles, spreads), table, method="cubic")


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres and logarithms of deviations by means, as angles, and by deviations over the most.

    By bisection: at a deviation the mean grows with the centre, and with the mean held the
    variance grows with the deviation.
    """
    darkest = float(np.arcsin(np.sqrt(LEAST_MEAN)))
    angles = np.linspace(darkest, np.pi / 2 - darkest, _GRID)
    spreads = np.linspace(LEAST_SPREAD, np.sqrt(MOST_SPREAD), _GRID)
    means = np.broadcast_to(np.sin(angles)[:, None] ** 2, (_GRID, _GRID))
    variances = spreads**2 * means * (1 - means)
    low, high = np.full(means.shape, -8.0), np.full(means.shape, 6.0)
    for _ in range(_STEPS):
        deviation = np.exp((low + high) / 2)
        centre = _centre(means, deviation)
        short = clamped_moments(centre, deviation)[1] < variances
        low, high = np.where(short, (low + high) / 2, low), np.where(short, high, (low + high) / 2)
    logs = (low + high) / 2
    return angles, spreads, np.stack([_centre(means, np.exp(logs)), logs], axis=-1)


def _centre(means: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """The centre with which a clamped Gaussian of a deviation has these means."""
    low, high = -8.0 * deviation, 1 + 8.0 * deviation
    for _ in range(_STEPS):
        middle = (low + high) / 2
        short = clamped_moments(middle, deviation)[0] < means
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return (low + high) / 2


def clamped_moments(centre: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of clamp(a + s z, 0, 1), z standard normal."""
    low, high = -centre / deviation, (1 - centre) / deviation
    density_low, density_high = (np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) for x in (low, high))
    inside, above = ndtr(high) - ndtr(low), ndtr(-high)
    mean = centre * inside + deviation * (density_low - density_high) + above
    square = (centre**2 + deviation**2) * inside + above
    square += 2 * centre * deviation * (density_low - density_high)
    square += deviation**2 * (low * density_low - high * density_high)
    return mean, np.maximum(square - mean**2, 0.0)


def without_specks(pixels: np.ndarray) -> np.ndarray:
    """Pixels put between the second darkest and the second brightest of their eight neighbours.

    Args:
      pixels: (n, height, width, channels).
    """
    height, width = pixels.shape[1:3]
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifts = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    around = np.stack([padded[:, i : i + height, j : j + width] for i, j in shifts])
    around.partition((1, len(shifts) - 2), axis=0)
    return np.clip(pixels, around[1], around[-2])
