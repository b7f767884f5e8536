"""Pictures of embeddings by a map that the release itself holds, privately fitted (`fit.pictures`).

Within a class embeddings and pictures are taken for jointly Gaussian: a picture is its mean given
the embedding, and noise of what the embedding does not say.  Pixels end at black and white, and as with
`rectified` they are clamped Gaussians with the mean and the variance that follow.
"""

import contextlib
import functools
from collections.abc import Sequence

import numpy as np

from dpgmm_beam.decoders import rectified
from dpgmm_beam.decoders.decoder import Decoder, Drawn, Origin
from dpgmm_beam.decoders.picture_map import PictureMap
from dpgmm_beam.encoders import dct
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.mixture import Mixture
from dpgmm_beam.privacy import lattice

RESIDUAL = 0.5
"""Share that is drawn of the deviation that embeddings do not explain."""

_OFFSET_BITS, _DIRECTION_BITS, _VALUE_BITS, _PIXEL_BITS = 20, 12, 12, 20
_COMPONENTS_KEPT = 512


class LinearDecoder(Decoder):
    """Pictures by a `PictureMap`.

    Args:
      mixture: that the rows are drawn from.
      found: of the same release.
      residual: share of the deviation that embeddings do not explain, that is drawn.
    """

    batch_size = 256

    def __init__(self, mixture: Mixture, found: PictureMap, residual: float = RESIDUAL):
        self._mixture, self._found, self._residual = mixture, found, residual
        form, norm = found.form, mixture.clip_norm
        # Of integers, so that a picture is the same whatever stands beside it.
        self._centres = lattice.to_lattice(found.centres / norm, _OFFSET_BITS)
        self._directions = lattice.to_lattice(found.directions * norm, _DIRECTION_BITS)
        self._columns = dct.unclamped_pixels(found.slopes, form).reshape(-1, form.dimension) - dct.OFFSET
        self._pixels = lattice.to_lattice(self._columns, _PIXEL_BITS)
        longest = 2.0 ** (_OFFSET_BITS + 1) + np.sqrt(mixture.dimension)
        reach = float(np.sqrt(lattice.square_norms(self._directions)).max(initial=0.0))
        lattice.check_exact(longest, reach)
        values = np.sqrt(len(self._directions)) * (longest * reach * 2.0**-_SHIFT + 1)
        lattice.check_exact(values, float(np.sqrt((self._pixels**2).sum(axis=0)).max(initial=0.0)))
        with one_thread():
            whitened = found.directions @ mixture.basis
            r = mixture.covariances.shape[2]
            self._shaped = whitened[:, :r]
            rest = ((whitened[:, r:].T @ self._columns) ** 2).sum(axis=0)
        self._rest = rest
        self._left = residual**2 * dct.pixel_variances(found.residuals[None], form).ravel()
        self._solved = functools.lru_cache(maxsize=_COMPONENTS_KEPT)(self._solve)

    def decode(self, drawn: Drawn, generators: Sequence[np.random.Generator]) -> np.ndarray:
        form, of_class = self._found.form, self._mixture.weights.shape[1]
        values = self._values(drawn.embeddings, drawn.classes)
        made = np.empty((len(drawn), self._columns.shape[1]))
        noise = self._noise(generators) if self._residual else np.zeros_like(made)
        pairs = drawn.classes * of_class + drawn.components
        for pair in np.unique(pairs):
            own = pairs == pair
            mean, centre, slope, texture = self._solved(*divmod(int(pair), of_class))
            deviations = (values[own] - mean) @ self._pixels * 2.0 ** -(_VALUE_BITS + _PIXEL_BITS)
            made[own] = np.clip(centre + slope * (deviations + texture * noise[own]), 0.0, 1.0)
        return rectified.without_specks(made.reshape(-1, form.side, form.side, form.channels))

    def session(self) -> contextlib.AbstractContextManager:
        return one_thread()

    def _values(self, embeddings: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Numbers of variance 1 of embeddings, (n, r) in steps of 2**-12."""
        offsets = lattice.to_lattice(
            np.asarray(embeddings, np.float64) / self._mixture.clip_norm, _OFFSET_BITS
        )
        return np.rint((offsets - self._centres[classes]) @ self._directions.T * 2.0**-_SHIFT)

    def _noise(self, generators: Sequence[np.random.Generator]) -> np.ndarray:
        """What embeddings do not explain of pixels, (n, pixels)."""
        deviations = self._residual * np.sqrt(self._found.residuals)
        coefficients = np.stack([each.standard_normal(len(deviations)) for each in generators]) * deviations
        return (
            dct.unclamped_pixels(coefficients, self._found.form).reshape(len(coefficients), -1) - dct.OFFSET
        )

    def _solve(self, label: int, component: int) -> tuple[np.ndarray, ...]:
        """A component's mean value, and of its pixels centre, slope over a deviation, and share of the noise.

        What embeddings do not explain is where a picture is neither black nor white: a pixel of mean m
        has a variance of m (1 - m) at most.
        """
        mixture, found = self._mixture, self._found
        mean = self._values(mixture.means[label, component][None], np.array([label]))[0]
        with one_thread():
            factor = self._shaped @ np.linalg.cholesky(mixture.covariances[label, component])
            variances = ((factor.T @ self._columns) ** 2).sum(axis=0) + self._rest
        picture = dct.unclamped_pixels(found.means[label][None], found.form).ravel()
        means = picture + mean @ self._pixels * 2.0 ** -(_VALUE_BITS + _PIXEL_BITS)
        room = np.clip(means, 0.0, 1.0) * (1.0 - np.clip(means, 0.0, 1.0))
        texture = np.sqrt(room / max(room.mean(), 1e-6))
        variances = variances + texture**2 * self._left
        centre, deviation = rectified.of_pixels(means, variances)
        return mean, centre, deviation / np.sqrt(np.maximum(variances, 1e-12)), texture


_SHIFT = _OFFSET_BITS + _DIRECTION_BITS - _VALUE_BITS


def encoders(argument: str) -> tuple[str, ...]:
    """None by name: it decodes whatever the release that holds it is of.

    Raises:
      ConfigError: there is an argument.
    """
    if argument:
        raise ConfigError("decoder", f"private_linear:{argument}", "be private_linear, without an argument")
    return ()


def load(argument: str, origin: Origin) -> LinearDecoder:
    """The decoder of rows of that origin."""
    assert origin.pictures is not None
    return LinearDecoder(origin.mixture, origin.pictures)
