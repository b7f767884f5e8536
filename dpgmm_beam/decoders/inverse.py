"""Decoders of encoders that have an inverse: nothing is learnt, and nothing is made up."""

import contextlib
from collections.abc import Sequence

import numpy as np

from dpgmm_beam.decoders.decoder import Decoder, Drawn, Origin
from dpgmm_beam.decoders.rectified import Rectifier
from dpgmm_beam.encoders import dct
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.mixture import Mixture


class DctDecoder(Decoder):
    """Pixels of cosine coefficients, as `Rectifier` gives them.

    Args:
      argument: SIDE or SIDE:rgb.
      mixture: that the rows are drawn from.
    """

    batch_size = 256

    def __init__(self, argument: str, mixture: Mixture):
        self._rectifier = Rectifier(mixture, dct.PictureForm.of(argument))

    def decode(self, drawn: Drawn, generators: Sequence[np.random.Generator]) -> np.ndarray:
        return self._rectifier.pixels(drawn.embeddings, drawn.classes, drawn.components)

    def session(self) -> contextlib.AbstractContextManager:
        return one_thread()


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
    return DctDecoder(argument, origin.mixture)
