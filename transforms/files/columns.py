"""Which columns of a table hold what: Parquet, CSV, JSON lines and arrays alike."""

import dataclasses
import re
from collections.abc import Collection, Iterable

from dpgmm_beam.data.schema import EMBEDDING, IMAGE, LABEL
from dpgmm_beam.errors import ConfigError


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

    Raises:
      ConfigError: at construction, for an empty name.
    """

    image: str = IMAGE
    label: str = LABEL
    embedding: str = EMBEDDING

    def __post_init__(self):
        for name in (IMAGE, EMBEDDING):
            if not getattr(self, name):
                raise ConfigError(f"{name}_column", "''", "be the name of a column")


DEFAULT_COLUMNS = Columns()

# Words in other names that columns often have.  They are never taken, but named in a refusal.
IMAGE_WORDS = frozenset(("image", "images", "img", "picture", "photo", "jpg", "png", "bytes"))
LABEL_WORDS = frozenset(
    ("label", "labels", "target", "targets", "class", "classes", "cls", "category", "categories", "y")
)
EMBEDDING_WORDS = frozenset(
    ("embedding", "embeddings", "emb", "vector", "vectors", "feature", "features", "x")
)

NO_LABEL = "be a column of the input, or '' for data without labels; {path} has '{name}', which may be meant"


def likely(names: Iterable[str], words: Collection[str]) -> list[str]:
    """Those of some columns that have one of the words in their names, in whatever case.

    >>> likely(["Image", "fine_label", "labelled"], LABEL_WORDS)
    ['fine_label']
    """
    return [name for name in dict.fromkeys(names) if not _words(name).isdisjoint(words)]


def _words(name: str) -> set[str]:
    return set(re.split(r"[\W_]+", name.casefold()))
