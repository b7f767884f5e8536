"""Synthetic rows of a release, cut into parts that any worker can draw.

Part p holds, for every class, the rows p m to (p + 1) m - 1 of that class, m
fixed by the configuration; within a part the classes take turns, so that any
prefix of the files is balanced.  A part's generator is seeded from the key, or a
number, and the part's number: it is the same rows wherever and however often drawn.
"""

import dataclasses
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam.data.schema import COMPONENT, COMPONENT_CLASS, EMBEDDING, LABEL, PROBABILITIES
from dpgmm_beam.mixture import Sampler, fixed_size_list
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release.labels import Labeller
from dpgmm_beam.release.row_statement import RowStatement

PART_ROWS = 8192
"""About how many rows a file holds: at least one of each class."""

ROW_GROUP_ROWS = 2048


@dataclasses.dataclass(frozen=True)
class Parts:
    """How the synthetic rows are cut into files.

    Attributes:
      classes: number of classes.
      rows: in all; the first classes have one more where it does not divide.
    """

    classes: int
    rows: int

    @property
    def part_rows(self) -> int:
        """Rows of a full part: as many of each class."""
        of_class = max(1, min(-(-self.rows // self.classes), PART_ROWS // self.classes))
        return of_class * self.classes

    def __len__(self) -> int:
        return -(-self.rows // self.part_rows)

    def name(self, part: int) -> str:
        return f"part-{part:05d}-of-{len(self):05d}.parquet"

    def class_indices(self, part: int) -> np.ndarray:
        """Class index of every row of a part."""
        return np.arange(self.rows_of(part)) % self.classes

    def rows_of(self, part: int) -> int:
        """Rows of a part."""
        return min(self.part_rows, self.rows - part * self.part_rows)


def generator_of_key(key: NoiseKey, part: int) -> np.random.Generator:
    """A part's generator in the release of this key."""
    return _generator(int.from_bytes(key.within("synthesis", part).stream(32), "little"))


def generator_of_seed(seed: int, part: int) -> np.random.Generator:
    """A part's generator for a number that anyone may know, 0 to 2**128 - 1."""
    return _generator([seed, part])


def _generator(entropy: int | list[int]) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(entropy)))


def draw_part(
    parts: Parts,
    part: int,
    sampler: Sampler,
    labeller: Labeller,
    generator: np.random.Generator,
    statement: RowStatement,
) -> bytes:
    """The Parquet file of one part: label, embedding, label_probabilities, component_class and component.

    Args:
      generator: the part's own.
      statement: of the draw.
    """
    labels = pa.array(labeller.classes, pa.string())
    classes = parts.class_indices(part)
    embeddings, components = sampler.draw_with_components(classes, generator)
    probabilities = labeller.probabilities(embeddings)
    table = pa.table(
        {
            # Of several that are likeliest the one that was declared first.
            LABEL: labels.take(pa.array(probabilities.argmax(axis=1))),
            EMBEDDING: fixed_size_list(embeddings),
            PROBABILITIES: fixed_size_list(probabilities),
            COMPONENT_CLASS: labels.take(pa.array(classes)),
            COMPONENT: pa.array(components, pa.int32()),
        }
    )
    sink = io.BytesIO()
    # Random floats do not compress; statistics of vectors serve nobody.
    pq.write_table(
        table.replace_schema_metadata(statement.metadata(part, len(parts))),
        sink,
        row_group_size=ROW_GROUP_ROWS,
        compression="none",
        use_dictionary=[LABEL, COMPONENT_CLASS, COMPONENT],
        write_statistics=False,
    )
    return sink.getvalue()
