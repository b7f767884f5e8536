"""Scattering coefficients: a fixed network of wavelets and moduli, made without any data.

Bruna and Mallat, *Invariant scattering convolution networks*, 2013, with Morlet wavelets of
J = 2 octaves and L = 8 directions: a picture's local mean, the local means of the moduli of
its 16 wavelet transforms, and those of the moduli of the transforms of the first octave
transformed again by the second, 81 planes in all.  Each is averaged over 4 x 4 cells, its root
is taken, which evens out bright and faint pictures and leaves all orders of about one size.

kymatio, the library of the field, does not import beside scipy 1.17; filters and subsampling
here are its own (`filter_bank.py` of kymatio 0.3), so features are the same but for the cells.
"""

import functools
import re
from collections.abc import Sequence

import numpy as np
import scipy.fft
from PIL import Image

from dpgmm_beam.encoders import dct
from dpgmm_beam.encoders.encoder import Encoder

OCTAVES, DIRECTIONS, CELLS = 2, 8, 4
PLANES = 1 + OCTAVES * DIRECTIONS + DIRECTIONS**2
MIN_SIDE, MAX_SIDE = 16, 64
"""In pixels; even."""

_PADDING = 2**OCTAVES
_ENVELOPE, _FREQUENCY, _SLANT = 0.8, 0.75 * np.pi, 4 / DIRECTIONS
_SMOOTHING = _ENVELOPE * 2 ** (OCTAVES - 1)


def validation_error(argument: str) -> str | None:
    """What must be so of SIDE or SIDE:rgb and is not, or None."""
    found = re.fullmatch(r"([0-9]{1,4})(:rgb)?", argument)
    if found and MIN_SIDE <= int(found[1]) <= MAX_SIDE and int(found[1]) % 2 == 0:
        return None
    return f"be scattering:SIDE (grey) or scattering:SIDE:rgb with an even SIDE from {MIN_SIDE} to {MAX_SIDE}"


class ScatteringEncoder(Encoder):
    """Scattering of letterboxed pictures: 81 planes of 4 x 4 cells for each channel.

    >>> encoder = ScatteringEncoder("28")
    >>> encoder.embed(encoder.prepare([Image.new("L", (28, 28), 99)])).shape
    (1, 1296)
    """

    batch_size = 256

    def __init__(self, argument: str):
        side, _, colour = argument.partition(":")
        self.spec = f"scattering:{argument}"
        self._side, self._channels = int(side), 3 if colour else 1
        self.dimension = self._channels * PLANES * CELLS**2

    def prepare(self, images: Sequence[Image.Image]) -> np.ndarray:
        return dct.letterboxed(images, self._side, self._channels)

    def embed(self, prepared: np.ndarray) -> np.ndarray:
        embeddings = np.empty((len(prepared), self._channels, self.dimension // self._channels), np.float32)
        # A picture at a time, all of whose transforms run at once: its bits are the same in any batch.
        for row, pixels in enumerate(prepared):
            for channel in range(self._channels):
                planes = scattering(pixels[:, :, channel].astype(np.float32) / np.float32(255))
                embeddings[row, channel] = np.sqrt(np.maximum(planes, 0)).ravel()
        return embeddings.reshape(len(prepared), self.dimension)


def scattering(picture: np.ndarray) -> np.ndarray:
    """The scattering planes of a picture, (side, side) float32 -> (81, 4, 4).

    Order 0, then octave by octave the directions of order 1, then order 2, by the first
    direction and then the second.
    """
    filters = _filters(len(picture))
    padded = np.pad(picture, _PADDING, mode="reflect")[None]
    spectrum = scipy.fft.fft2(padded)
    pool, pool_of_half = filters.pools
    fine = np.abs(scipy.fft.ifft2(spectrum * filters.first))
    spectra = np.concatenate([spectrum, scipy.fft.fft2(fine)])
    # Of the second octave every other pixel is enough: |spectra| is folded before it is inverted.
    coarse = np.abs(scipy.fft.ifft2(_halved(spectra[:, None] * filters.second)))
    coarse = coarse.reshape(-1, *coarse.shape[2:])
    full = np.concatenate([padded, fine])
    return np.concatenate([pool @ full @ pool.T, pool_of_half @ coarse @ pool_of_half.T])


def _halved(spectra: np.ndarray) -> np.ndarray:
    """Spectra of planes of which every other row and column is kept."""
    *rest, height, width = spectra.shape
    return spectra.reshape(*rest, 2, height // 2, 2, width // 2).mean(axis=(-4, -2))


class _Filters:
    """Wavelets of both octaves in the frequency domain, and what smooths and averages over cells."""

    def __init__(self, side: int):
        size = side + 2 * _PADDING
        angles = np.arange(DIRECTIONS) * np.pi / DIRECTIONS
        octaves = [
            [scipy.fft.fft2(morlet(size, octave, angle)).real for angle in angles] for octave in (0, 1)
        ]
        self.first, self.second = (np.stack(octave).astype(np.float32) for octave in octaves)
        self.pools = _pool(side, size, 1), _pool(side, size, 2)


@functools.lru_cache(maxsize=4)
def _filters(side: int) -> _Filters:
    return _Filters(side)


def morlet(size: int, octave: int, angle: float) -> np.ndarray:
    """A periodic Morlet wavelet of mean 0 round pixel (0, 0), complex (size, size).

    exp(-(x^2 + (s y)^2) / 2 e^2) (exp(i f x) - c) with x along the wave, f = 3 pi / 4 and
    e = .8 at the first octave, one octave lower and twice as long at the next, s = 1/2.
    """
    envelope, wave = np.zeros((size, size)), np.zeros((size, size), np.complex128)
    width = _ENVELOPE * 2.0**octave
    for shift_down in range(-2, 3):
        for shift_right in range(-2, 3):
            down, right = np.mgrid[:size, :size].astype(float)
            down, right = down + shift_down * size, right + shift_right * size
            along = down * np.cos(angle) + right * np.sin(angle)
            aside = _SLANT * (right * np.cos(angle) - down * np.sin(angle))
            bell = np.exp(-(along**2 + aside**2) / (2 * width**2))
            envelope += bell
            wave += bell * np.exp(1j * _FREQUENCY / 2**octave * along)
    wave -= wave.sum() / envelope.sum() * envelope
    return wave * _SLANT / (2 * np.pi * width**2)


def _pool(side: int, size: int, step: int) -> np.ndarray:
    """What smooths a padded line, of which every step-th pixel is given, and averages it over cells.

    Returns:
      float32, (4, size / step); each row sums to 1.
    """
    centres = np.arange(0, size, step)
    # A pixel stands for all that is nearer to it than to its neighbours.
    lows, highs = centres - step / 2, centres + step / 2
    edges = _PADDING - 0.5 + np.arange(CELLS + 1) * side / CELLS
    overlaps = np.minimum(highs, edges[1:, None]) - np.maximum(lows, edges[:-1, None])
    means = np.maximum(overlaps, 0.0) * CELLS / side
    distances = np.abs(centres[:, None] - centres)
    bells = np.exp(-(np.minimum(distances, size - distances) ** 2) / (2 * _SMOOTHING**2))
    return (means @ (bells / bells.sum(axis=1, keepdims=True))).astype(np.float32)
