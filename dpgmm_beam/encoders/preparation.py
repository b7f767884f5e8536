"""What is made of one picture for an encoder."""

from typing import TYPE_CHECKING

import numpy as np

from dpgmm_beam.encoders.encoder import Encoder

if TYPE_CHECKING:
    from PIL import Image


class Preparation:
    """What is made of each picture: an array of the encoder's own shape.

    Raises:
      Exception: at construction, whatever the encoder raises for a plain picture.
    """

    def __init__(self, encoder: Encoder):
        from PIL import Image

        self.encoder = encoder
        plain = encoder.prepare([Image.new("RGB", (64, 64))])
        self._form = plain.shape, plain.dtype
        self.side = max(plain.shape[1:3], default=1)

    def __call__(self, picture: "Image.Image") -> np.ndarray:
        prepared = self.encoder.prepare([picture])
        if (prepared.shape, prepared.dtype) != self._form:
            raise ValueError("an image was prepared in another form than others are")
        return prepared
