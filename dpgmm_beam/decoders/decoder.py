"""What a decoder is."""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np

from dpgmm_beam.decoders.picture_map import PictureMap
from dpgmm_beam.mixture import Mixture


@dataclasses.dataclass(frozen=True)
class Origin:
    """What embeddings are of, as a release says it.

    Attributes:
      encoder: spec of the encoder that made the real ones.
      clip_norm: longest norm of an embedding; None: each has norm 1, and its own length is lost.
      mixture: that they are drawn from.
      pictures: what the release itself says of their pictures; None unless it is decodable.
    """

    encoder: str
    clip_norm: float | None
    mixture: Mixture
    pictures: PictureMap | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """Synthetic embeddings, and where in the mixture they were drawn.

    Attributes:
      embeddings: (n, d) float32.
      classes: (n,) index of the class in whose mixture a row was drawn.
      components: (n,) which component of that class.
    """

    embeddings: np.ndarray
    classes: np.ndarray
    components: np.ndarray

    def __len__(self) -> int:
        return len(self.embeddings)

    def take(self, rows: np.ndarray) -> "Drawn":
        """The rows of these numbers."""
        return Drawn(self.embeddings[rows], self.classes[rows], self.components[rows])


class Decoder(abc.ABC):
    """A frozen map from embeddings to pictures; made of public things, or of the release, only.

    Attributes:
      spec: the text that the decoder was made from.
      batch_size: rows of each call of `decode`: a short batch is filled up, for kernels are chosen by
        shape and a picture's bits would else depend on how many stand beside it.

    >>> class Plain(Decoder):
    ...     batch_size = 2
    ...     def decode(self, drawn, generators):
    ...         return np.broadcast_to(drawn.embeddings[:, :3].reshape(-1, 1, 1, 3), (len(drawn), 4, 4, 3))
    >>> rows = Drawn(np.eye(3, dtype=np.float32), np.zeros(3, int), np.zeros(3, int))
    >>> pictures(Plain(), rows, [np.random.default_rng(row) for row in range(3)])[:, 0, 0].tolist()
    [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    """

    spec: str = ""
    batch_size: int

    @abc.abstractmethod
    def decode(self, drawn: Drawn, generators: Sequence[np.random.Generator]) -> np.ndarray:
        """Makes one picture of each row.

        Called by several threads at once.

        Args:
          drawn: `batch_size` rows.
          generators: of each row: all that is random about its picture comes from its own.

        Returns:
          floats, (batch_size, height, width, 1 or 3), of the same shape in each call: 0 is black and
          1 white; what lies outside is cut off.
        """

    def session(self) -> contextlib.AbstractContextManager:
        """Entered while several threads call `decode`: room for settings of the process."""
        return contextlib.nullcontext()


def pictures(
    decoder: Decoder,
    drawn: Drawn,
    generators: Sequence[np.random.Generator],
    workers: Executor | None = None,
) -> np.ndarray:
    """The pictures of rows, (n, height, width, 1 or 3) uint8, n at least 1.

    Args:
      decoder: called with full batches.
      drawn: n rows.
      generators: of each row.
      workers: threads that share the batches.

    Raises:
      RuntimeError: the decoder made something else than finite pixels of one shape.
    """

    def batch(start: int) -> np.ndarray:
        rows = np.arange(start, min(start + decoder.batch_size, len(drawn)))
        # Filled up with its first row; what is drawn for that is thrown away.
        filler = np.full(decoder.batch_size - len(rows), start)
        spare = [np.random.default_rng(0) for _ in filler]
        made = decoder.decode(
            drawn.take(np.concatenate([rows, filler])), [*generators[start : start + len(rows)], *spare]
        )
        return _bytes(decoder, made)[: len(rows)]

    apply: Callable = workers.map if workers else map
    made = list(apply(batch, range(0, len(drawn), decoder.batch_size)))
    if len({each.shape[1:] for each in made}) != 1:
        raise RuntimeError(f"the decoder {decoder.spec} made pictures of several sizes")
    return np.concatenate(made)


def _bytes(decoder: Decoder, made: np.ndarray) -> np.ndarray:
    made = np.asarray(made)
    if made.ndim != 4 or made.shape[0] != decoder.batch_size or made.shape[3] not in (1, 3) or not made.size:
        raise RuntimeError(
            f"the decoder {decoder.spec} made an array of shape {made.shape}, not"
            f" ({decoder.batch_size}, height, width, 1 or 3)"
        )
    if not np.issubdtype(made.dtype, np.floating) or not np.isfinite(made).all():
        raise RuntimeError(f"the decoder {decoder.spec} made pixels that are no finite numbers")
    return np.rint(np.clip(made, 0.0, 1.0) * 255.0).astype(np.uint8)
