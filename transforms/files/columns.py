"""Which columns of a table hold what: Parquet, CSV, JSON lines and arrays alike."""

import dataclasses

from dpgmm_beam.data.schema import EMBEDDING, IMAGE, LABEL


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of an input's columns.

    A name is a column's own; where no column has it and it has dots, it is a path
    through structs.  In arrays it is the name of one of them.

    Attributes:
      image: encoded bytes, or a struct with them in its field `bytes`; in a text
        file the path of an image.
      label: text or integers; empty for data without labels, which is one class.
      embedding: lists of floats.
    """

    image: str = IMAGE
    label: str = LABEL
    embedding: str = EMBEDDING
