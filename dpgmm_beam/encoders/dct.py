"""Pictures as their own embeddings: a cosine transform, which has an exact inverse.

A picture is brought to SIDE x SIDE pixels, letterboxed on black, and its pixels in [0, 1],
less .25, are transformed by the orthonormal DCT-II over columns, rows and, where it is in
colour, the three channels (Ahmed, Natarajan and Rao 1974).  The transform is orthonormal, so
lengths and angles are those of pixels; unlike pixels its coordinates are little correlated in
pictures, and their variance falls with frequency.

What is drawn in this space is a picture: `pixels_of` is the inverse.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dpgmm_beam.encoders.encoder import Encoder

if TYPE_CHECKING:
    from PIL import Image

MIN_SIDE, MAX_SIDE, MAX_COLOUR_SIDE = 8, 64, 52
"""In pixels.  Embeddings have 8,192 numbers at most, which colour at 52 px nearly has."""

OFFSET = 0.25
"""What pixels are taken to be where nothing is known: in the middle between dark and half bright."""

COLOUR = "rgb"
_IMAGES_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class PictureForm:
    """Form of the pictures of a spec.

    >>> PictureForm.of("28"), PictureForm.of("32:rgb").dimension
    (PictureForm(side=28, channels=1), 3072)

    Attributes:
      side: width and height in pixels.
      channels: 1 or 3.
    """

    side: int
    channels: int

    @staticmethod
    def of(argument: str) -> "PictureForm":
        """The form that SIDE or SIDE:rgb says; `validation_error` has passed it."""
        side, _, colour = argument.partition(":")
        return PictureForm(int(side), 3 if colour else 1)

    @property
    def dimension(self) -> int:
        """Numbers of a picture."""
        return self.channels * self.side**2

    @property
    def usual_norm(self) -> float:
        """Norm that few pictures exceed: half a pixel's range, root mean square."""
        return 0.5 * float(np.sqrt(self.dimension))

    @property
    def frequencies(self) -> np.ndarray:
        """Radial frequency of each coordinate, (d,): |(u, v)| in half periods a side."""
        of_side = np.arange(self.side)
        return np.tile(np.hypot(of_side[:, None], of_side).ravel(), self.channels)

    @property
    def rings(self) -> np.ndarray:
        """Which coordinates are alike, (d,): numbers of rings of frequency, of each channel its own."""
        channels = np.repeat(np.arange(self.channels), self.side**2)
        return np.rint(self.frequencies).astype(np.int64) * self.channels + channels


def validation_error(argument: str) -> str | None:
    """What must be so of SIDE or SIDE:rgb and is not, or None."""
    found = re.fullmatch(r"([0-9]{1,4})(:rgb)?", argument)
    if found and MIN_SIDE <= int(found[1]) <= (MAX_COLOUR_SIDE if found[2] else MAX_SIDE):
        return None
    return (
        f"be dct:SIDE with SIDE from {MIN_SIDE} to {MAX_SIDE} pixels (grey), or dct:SIDE:{COLOUR}"
        f" with SIDE up to {MAX_COLOUR_SIDE}"
    )


class DctEncoder(Encoder):
    """Orthonormal cosine transform of letterboxed pictures.

    >>> from PIL import Image
    >>> encoder = DctEncoder("28")
    >>> picture = Image.fromarray(np.arange(28 * 28).reshape(28, 28).astype(np.uint8))
    >>> coefficients = encoder.embed(encoder.prepare([picture]))
    >>> coefficients.shape
    (1, 784)
    >>> np.array_equal(np.rint(255 * pixels_of(coefficients, encoder.form))[0, :, :, 0], np.asarray(picture))
    True
    """

    batch_size = _IMAGES_AT_ONCE

    def __init__(self, argument: str):
        self.spec = f"dct:{argument}"
        self.form = PictureForm.of(argument)
        self.dimension = self.form.dimension

    def prepare(self, images: "Sequence[Image.Image]") -> np.ndarray:
        return letterboxed(images, self.form.side, self.form.channels)

    def embed(self, prepared: np.ndarray) -> np.ndarray:
        embeddings = np.empty((len(prepared), self.dimension), np.float32)
        for start in range(0, len(prepared), _IMAGES_AT_ONCE):
            block = slice(start, start + _IMAGES_AT_ONCE)
            embeddings[block] = coefficients_of_letterboxed(prepared[block], self.form)
        return embeddings


def letterboxed(images: "Sequence[Image.Image]", side: int, channels: int) -> np.ndarray:
    """Pictures of any size in squares, on black where they are no squares.

    Returns:
      uint8, (n, side, side, 3); of one channel all three are the same.
    """
    from PIL import Image, ImageOps

    result = np.zeros((len(images), side, side, 3), np.uint8)
    for row, image in enumerate(images):
        mode = "RGB" if channels == 3 else "L"
        fitted = ImageOps.pad(image.convert(mode), (side, side), Image.Resampling.BICUBIC)
        pixels = np.asarray(fitted)
        result[row] = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return result


def coefficients_of(pixels: np.ndarray, form: PictureForm) -> np.ndarray:
    """Coefficients of pictures, (n, side, side, channels) in [0, 1] -> (n, d) float64.

    By products of each picture with the same small matrices, so that a picture's bits are
    the same whatever stands beside it.
    """
    across = _basis(form.side)
    planes = np.moveaxis(np.asarray(pixels, np.float64) - OFFSET, 3, 1)
    planes = across @ planes @ across.T
    if form.channels > 1:
        planes = _over_channels(planes, _basis(form.channels))
    return planes.reshape(len(planes), form.dimension)


def coefficients_of_letterboxed(pictures: np.ndarray, form: PictureForm) -> np.ndarray:
    """Coefficients of what `letterboxed` gives, (n, side, side, 3) uint8 -> (n, d) float32."""
    return coefficients_of(pictures[..., : form.channels] / 255.0, form).astype(np.float32)


def pixels_of(coefficients: np.ndarray, form: PictureForm) -> np.ndarray:
    """The inverse of `coefficients_of`, clamped: (n, d) -> (n, side, side, channels) in [0, 1]."""
    return np.clip(unclamped_pixels(coefficients, form), 0.0, 1.0)


def unclamped_pixels(coefficients: np.ndarray, form: PictureForm) -> np.ndarray:
    """The inverse of `coefficients_of`, an affine map: (n, d) -> (n, side, side, channels)."""
    across = _basis(form.side)
    shape = (len(coefficients), form.channels, form.side, form.side)
    planes = np.asarray(coefficients, np.float64).reshape(shape)
    if form.channels > 1:
        planes = _over_channels(planes, _basis(form.channels).T)
    return np.moveaxis(across.T @ planes @ across, 1, 3) + OFFSET


def pixel_variances(variances: np.ndarray, form: PictureForm) -> np.ndarray:
    """Variances of pixels whose coefficients are independent, (n, d) -> (n, side, side, channels).

    >>> form = PictureForm(8, 3)
    >>> np.allclose(pixel_variances(np.ones((1, form.dimension)), form), 1)
    True
    """
    across = _basis(form.side) ** 2
    planes = np.asarray(variances, np.float64).reshape(-1, form.channels, form.side, form.side)
    if form.channels > 1:
        planes = _over_channels(planes, (_basis(form.channels) ** 2).T)
    return np.moveaxis(across.T @ planes @ across, 1, 3)


def _over_channels(planes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A matrix (c, c) times the channels of planes (n, c, h, w)."""
    return sum(matrix[:, i, None, None] * planes[:, i, None] for i in range(planes.shape[1]))  # type: ignore[return-value]


def _basis(size: int) -> np.ndarray:
    """The orthonormal DCT-II as a matrix, (size, size): frequencies by positions."""
    matrix = np.cos(np.pi / size * np.outer(np.arange(size), np.arange(size) + 0.5)) * np.sqrt(2 / size)
    matrix[0] = np.sqrt(1 / size)
    return matrix
