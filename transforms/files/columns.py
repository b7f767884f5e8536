"""Which columns of a table hold what: Parquet, CSV, JSON lines and arrays alike."""

import dataclasses
import re
from collections.abc import Collection, Iterable

from dpgmm_beam.data.schema import EMBEDDING, IMAGE, LABEL
from dpgmm_beam.errors import ConfigError

MAX_LEVEL = 64
"""Of a folder below another."""


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
      unit: ids of privacy units, text, bytes or integers; empty where a unit is a row.
      picture: lists of floats, cosine coefficients of the image of each embedding; empty where these are not
        read.
      unit_level: which folder below that of the label names the unit, in folders of images; 0 for none.

    Raises:
      ConfigError: at construction, for an empty name or a level below 0, or where a unit is named twice.
    """

    image: str = IMAGE
    label: str = LABEL
    embedding: str = EMBEDDING
    unit: str = ""
    unit_level: int = 0
    picture: str = ""

    def __post_init__(self):
        if not 0 <= self.unit_level <= MAX_LEVEL:
            raise ConfigError(
                "privacy_unit_level", self.unit_level, f"be a whole number from 1 to {MAX_LEVEL}"
            )
        if self.unit and self.unit_level:
            raise ConfigError(
                "privacy_unit_level", self.unit_level, "come without a privacy unit's column: one says who"
            )
        for name in (IMAGE, EMBEDDING):
            if not getattr(self, name):
                raise ConfigError(f"{name}_column", "''", "be the name of a column")

    @property
    def has_units(self) -> bool:
        """Whether a privacy unit is more than a row."""
        return bool(self.unit or self.unit_level)

    def to_tuple(self) -> tuple:
        """For digests: without a column of pictures it is what it was before there were any."""
        found = dataclasses.astuple(self)
        return found if self.picture else found[:-1]


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
