"""The nearest pictures of a public gallery: what an embedding is like, and nothing made up.

A gallery is what `dpgmm embed` has written of public images, with these still in their places.
Embeddings are compared by their cosine, in products of whole numbers that are exact: the same
picture is found on any processor, and of equal ones the first.
"""

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam.data import images
from dpgmm_beam.data.schema import EMBEDDING, SOURCE
from dpgmm_beam.decoders import registry
from dpgmm_beam.decoders.decoder import Decoder, Drawn, Origin
from dpgmm_beam.encoders import dct
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.mixture import matrix_of
from dpgmm_beam.privacy import lattice

MARKER = "_dpgmm_embed.json"
"""By which `dpgmm embed` says what a folder was made from; a release's own cache has none."""

_MARKER_BYTES = 2**16
_BLOCK_ROWS = 2048
_SIDE, _MOST_SIDE = 64, 1024


@dataclasses.dataclass(frozen=True)
class Gallery:
    """A folder of embeddings of public images.

    Attributes:
      folder: of Parquet files with columns `embedding` and `source`.
      encoder: spec of the encoder.
      images: where the images are.
      side: pixels of a side of the pictures that are made.
    """

    folder: str
    encoder: str
    images: str
    side: int

    @staticmethod
    def of(argument: str) -> "Gallery":
        """The gallery of FOLDER[,side=PIXELS].

        Raises:
          ConfigError: it is none.
        """
        folder, options = registry.split(argument)
        side = options.pop("side", str(_SIDE))
        if options or not (side.isascii() and side.isdecimal() and 8 <= int(side) <= _MOST_SIDE):
            raise _wrong(argument, f"be retrieval:FOLDER or retrieval:FOLDER,side=PIXELS (8 to {_MOST_SIDE})")
        marker = os.path.join(folder, MARKER)
        try:
            found = os.stat(marker)
            if not stat.S_ISREG(found.st_mode) or found.st_size > _MARKER_BYTES:
                raise OSError
            with open(marker, "rb") as file:
                made = json.load(file)
            encoder, source = made["encoder"], made["input"]
            if not (isinstance(encoder, str) and isinstance(source, str)):
                raise TypeError
        except (KeyError, OSError, TypeError, ValueError):
            raise _wrong(
                argument, "name a folder that dpgmm embed has written, of public images alone"
            ) from None
        gallery = Gallery(folder, encoder, source, int(side))
        if not gallery.shards():
            raise _wrong(argument, "name a folder with embeddings of at least one image")
        return gallery

    def shards(self) -> list[str]:
        """Paths of the Parquet files, in a fixed order."""
        names = sorted(name for name in os.listdir(self.folder) if name.endswith(".parquet"))
        return [os.path.join(self.folder, name) for name in names if not name.startswith((".", "_"))]

    def blocks(self) -> Iterator[tuple[np.ndarray, list[str]]]:
        """(n, d) embeddings and where their images are, few at a time."""
        for path in self.shards():
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_BLOCK_ROWS, columns=[EMBEDDING, SOURCE]):
                    column = batch.column(EMBEDDING)
                    rows = matrix_of(pa.chunked_array([column]))
                    yield rows, batch.column(SOURCE).to_pylist()


def nearest(embeddings: np.ndarray, gallery: Gallery) -> list[str]:
    """Of each embedding, (n, d), the image of the gallery with the largest cosine; of equal ones the first.

    Raises:
      RuntimeError: the gallery has embeddings of another length, or no good one.
    """
    queries, kept = lattice.quantise_rows(embeddings, None)
    dimension = embeddings.shape[1]
    wanted = np.zeros((len(embeddings), dimension))
    # A row of zeros is as near to one as to another.
    wanted[kept] = queries
    best, found = np.full(len(embeddings), -np.inf), [""] * len(embeddings)
    for rows, sources in gallery.blocks():
        if rows.shape[1] != dimension:
            raise RuntimeError(
                f"the gallery's embeddings have {rows.shape[1]} numbers, the release's {dimension}"
            )
        values, good = lattice.quantise_rows(rows, None)
        if not len(values):
            continue
        (places,) = np.nonzero(good)
        # Whole numbers whose sums stay below 2**53: the norms are at most 2**15 each.
        products = wanted @ values.astype(np.float64).T
        first = products.argmax(axis=1)
        score = products[np.arange(len(wanted)), first]
        for row in np.nonzero(score > best)[0]:
            best[row], found[row] = score[row], sources[places[first[row]]]
    if not all(found):
        raise RuntimeError("the gallery has no embedding that can be compared")
    return found


class Retrieval(Decoder):
    """Letterboxed images of a gallery.

    Args:
      gallery: that is searched.
    """

    # Each call goes through the whole gallery once.
    batch_size = 512

    def __init__(self, gallery: Gallery):
        self.gallery = gallery

    def decode(self, drawn: Drawn, generators: Sequence[np.random.Generator]) -> np.ndarray:
        paths = nearest(drawn.embeddings, self.gallery)
        made = {path: self._picture(path) for path in set(paths)}
        return np.stack([made[path] for path in paths]) / np.float32(255)

    def _picture(self, source: str) -> np.ndarray:
        side = self.gallery.side

        def fitted(picture: Any) -> np.ndarray:
            return dct.letterboxed([picture], side, 3)[0]

        made = images.use_image(_image(source), fitted, side)
        if isinstance(made, images.Reason):
            raise RuntimeError(f"an image of the gallery is not as it was when it was embedded ({made})")
        return made


def _image(source: str) -> bytes:
    """The image that a row of an embed cache names: a file, or PATH#ROWGROUP:ROW of a Parquet file."""
    path, mark, place = source.rpartition("#")
    group, colon, row = place.partition(":")
    try:
        if not (mark and colon and group.isdecimal() and row.isdecimal()) or os.path.exists(source):
            with open(source, "rb") as file:
                return file.read(images.MAX_BYTES + 1)
        with pq.ParquetFile(path) as file:
            column = file.read_row_group(int(group), columns=["image"]).column("image")
            value = column[int(row)].as_py()
            return value["bytes"] if isinstance(value, dict) else value
    except (IndexError, KeyError, OSError, TypeError, ValueError, pa.ArrowException):
        raise RuntimeError("an image of the gallery is not where it was when it was embedded") from None


def _wrong(argument: str, allowed: str) -> ConfigError:
    return ConfigError("decoder", f"retrieval:{argument}", allowed)


def encoders(argument: str) -> tuple[str, ...]:
    """The encoder of the gallery."""
    return (Gallery.of(argument).encoder,)


def also_reads(argument: str) -> tuple[str, ...]:
    """Where the gallery's images are."""
    return (Gallery.of(argument).images,)


def fingerprint(argument: str) -> str:
    """A digest of the names and sizes of the embeddings' files: they are named for what they hold."""
    sizes = [[os.path.basename(path), os.path.getsize(path)] for path in Gallery.of(argument).shards()]
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()


def load(argument: str, origin: Origin) -> Retrieval:
    """The decoder of a gallery."""
    return Retrieval(Gallery.of(argument))
