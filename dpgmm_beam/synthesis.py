"""Synthetic rows of a release, cut into parts that any worker can draw.

Part p holds, for every class, the rows p m to (p + 1) m - 1 of that class, m
fixed by the configuration; within a part the classes take turns, so that any
prefix of the files is balanced.  A part's generator is seeded from the key
and the part's number: it is the same rows wherever and however often drawn.
"""

import dataclasses
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam.labeller import Labeller
from dpgmm_beam.mixture import Sampler
from dpgmm_beam.noise import NoiseKey

PART_ROWS = 8192
"""About how many rows a file holds: at least one of each class."""

ROW_GROUP_ROWS = 2048


@dataclasses.dataclass(frozen=True)
class Parts:
    """How the synthetic rows are cut into files.

    Attributes:
      classes: number of classes.
      samples_per_class: rows of each class in all.
    """

    classes: int
    samples_per_class: int

    @property
    def rows_of_class(self) -> int:
        """Rows of one class in a full part."""
        return max(1, min(self.samples_per_class, PART_ROWS // self.classes))

    def __len__(self) -> int:
        return -(-self.samples_per_class // self.rows_of_class)

    def name(self, part: int) -> str:
        return f"part-{part:05d}-of-{len(self):05d}.parquet"

    def class_indices(self, part: int) -> np.ndarray:
        """Class index of every row of a part."""
        done = part * self.rows_of_class
        rows = min(self.rows_of_class, self.samples_per_class - done)
        return np.tile(np.arange(self.classes), rows)


def draw_part(
    parts: Parts, part: int, labels: tuple[str, ...], sampler: Sampler, labeller: Labeller, key: NoiseKey
) -> bytes:
    """The Parquet file of one part: label, embedding and label_probabilities.

    Args:
      labels: the declared classes.
      key: the release's key; the part's generator is seeded from it.
    """
    seed = int.from_bytes(key.within("synthesis", part).stream(32), "little")
    generator = np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(seed)))
    classes = parts.class_indices(part)
    embeddings = sampler.draw(classes, generator)
    probabilities = labeller.probabilities(embeddings)
    table = pa.table(
        {
            "label": pa.array(labels, pa.string()).take(pa.array(classes)),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1]),
            "label_probabilities": pa.FixedSizeListArray.from_arrays(
                pa.array(probabilities.ravel()), probabilities.shape[1]
            ),
        }
    )
    sink = io.BytesIO()
    # Random floats do not compress; statistics of vectors serve nobody.
    pq.write_table(
        table,
        sink,
        row_group_size=ROW_GROUP_ROWS,
        compression="none",
        use_dictionary=["label"],
        write_statistics=False,
    )
    return sink.getvalue()
