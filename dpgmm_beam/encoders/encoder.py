"""What an encoder is."""

import abc
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


class Encoder(abc.ABC):
    """A frozen network from images to vectors.

    The work is split so that threads can share it: `prepare` is pure Python and
    Pillow, `embed` is the network.  Both may be called from several threads.

    Attributes:
      spec: the text that the encoder was made from, kept beside its embeddings.
      dimension: length of an embedding.
      batch_size: images per run of the network.  `embed` takes any number, and
        must give an image the same bits whatever stands beside it.

    >>> class Brightness(Encoder):
    ...     dimension, batch_size = 1, 64
    ...     def prepare(self, images):
    ...         return np.stack([np.asarray(image.convert("RGB").resize((1, 1))) for image in images])
    ...     def embed(self, prepared):
    ...         return prepared.mean(axis=(1, 2, 3), dtype=np.float32)[:, None]
    >>> Brightness().embed(np.full((2, 1, 1, 3), 7, np.uint8)).tolist()
    [[7.0], [7.0]]
    """

    spec: str
    dimension: int
    batch_size: int

    @abc.abstractmethod
    def prepare(self, images: "Sequence[Image.Image]") -> np.ndarray:
        """Resizes and crops.

        A job hands over one image at a time, so that decoded ones do not pile
        up.  What is raised sets that image aside, and nothing else.

        Args:
          images: n loaded images of mode "L" or "RGB", of any size.

        Returns:
          uint8, (n, height, width, 3), of the same height and width for all images.
        """

    @abc.abstractmethod
    def embed(self, prepared: np.ndarray) -> np.ndarray:
        """Embeds what `prepare` returned.

        Returns:
          float32, (n, dimension): the network's raw output, not normalised.
        """

    def session(self) -> contextlib.AbstractContextManager:
        """Entered while several threads call `embed`: room for settings of the process."""
        return contextlib.nullcontext()
