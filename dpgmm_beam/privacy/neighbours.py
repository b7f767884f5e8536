"""How far two neighbouring data sets may lie apart, in what one row may add: the only place that knows.

A row adds a vector of norm at most s to a query (`SumQuery.l2_sensitivity`).  With at most L rows
of a privacy unit over all classes, chosen by what the unit itself holds:

- *add or remove one unit*: its L vectors have a sum of norm at most L s, whether they fall into
  one class or into several disjoint ones, where it is less: sqrt(sum l_c^2) <= L for l_c rows of
  class c.
- *replace one unit by another*: L vectors go and L come, 2 L s.  Of counts, squares and second moments any
  two sums a, b have an inner product of 0 or more (`SumQuery.one_sided`), so that
  |a - b|^2 <= |a|^2 + |b|^2 <= 2 (L s)^2: sqrt 2 L s, which two rows in two classes reach.

All of these are reached, by rows that are alike: no smaller factor would do.
"""

import dataclasses
import math

from dpgmm_beam.defaults import ADJACENCIES
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.queries import SumQuery

ADD_REMOVE, REPLACE_ONE = ADJACENCIES

MAX_ROWS_PER_UNIT = 1024
"""Beyond it noise is a thousand times that of single rows, and nothing is left of any data."""

MAX_FOUND = 64
"""The largest bound that is found from data: noise of more could not be drawn at a usual epsilon."""

_RELATIONS = {ADD_REMOVE: "ADD_OR_REMOVE_ONE", REPLACE_ONE: "REPLACE_ONE"}
_VERBS = {ADD_REMOVE: "add or remove one", REPLACE_ONE: "replace one"}


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """What neighbouring data sets differ by.

    Attributes:
      adjacency: ADD_REMOVE or REPLACE_ONE.
      max_rows_per_unit: rows of a unit that count; None: a unit is a row.

    Raises:
      ConfigError: naming the field.

    >>> patients, counts = Neighbours(REPLACE_ONE, 4), SumQuery("count", 2, 1, one_sided=True)
    >>> patients.rows(SumQuery("sum", 8, 3.0)), round(patients.rows(counts), 4)
    (8.0, 5.6569)
    >>> patients.relation, patients.unit
    ('REPLACE_ONE', 'all rows of one id')
    """

    adjacency: str = ADD_REMOVE
    max_rows_per_unit: int | None = None

    def __post_init__(self):
        if self.adjacency not in ADJACENCIES:
            raise ConfigError("adjacency", self.adjacency, f"be {' or '.join(ADJACENCIES)}")
        most = self.max_rows_per_unit
        if most is not None and not (
            isinstance(most, int) and not isinstance(most, bool) and 1 <= most <= MAX_ROWS_PER_UNIT
        ):
            raise ConfigError("max_rows_per_unit", most, f"be a whole number from 1 to {MAX_ROWS_PER_UNIT}")

    def rows(self, query: SumQuery) -> float:
        """By how many times what one row may add the query's vector may differ."""
        if self.adjacency == ADD_REMOVE or not query.one_sided:
            return self.of_vectors
        # Double precision has a number just above the root of 2.
        return (self.max_rows_per_unit or 1) * math.sqrt(2.0)

    @property
    def of_vectors(self) -> float:
        """`rows` of vectors that may point anywhere."""
        return (self.max_rows_per_unit or 1) * (1.0 if self.adjacency == ADD_REMOVE else 2.0)

    @property
    def of_units(self) -> float:
        """By how much a count of units may differ: one that comes or goes, or one in another's place."""
        return 1.0 if self.adjacency == ADD_REMOVE else math.sqrt(2.0)

    @property
    def relation(self) -> str:
        """The name that dp-accounting has for it."""
        return _RELATIONS[self.adjacency]

    @property
    def stated(self) -> str:
        """The relation in words, for the manifest."""
        return f"{_VERBS[self.adjacency]} privacy unit"

    @property
    def unit(self) -> str:
        """The privacy unit in words, for the manifest: the same for every bound, so that releases compose."""
        return "one row (one labelled image)" if self.max_rows_per_unit is None else "all rows of one id"

    @property
    def noun(self) -> str:
        """What a unit is called in plain words."""
        return "image" if self.max_rows_per_unit is None else "person"

    @property
    def nouns(self) -> str:
        """Several of them."""
        return "images" if self.max_rows_per_unit is None else "people"

    @property
    def a_noun(self) -> str:
        """With its article, and what of it is private."""
        return "an image" if self.max_rows_per_unit is None else "what a person gave"

    @property
    def whom(self) -> str:
        """What is to be said of people, in a sentence or two."""
        if self.max_rows_per_unit is None:
            return "For a person with m images, mu is m times as large."
        return (
            "A person is all images of one id, whatever their number and classes;"
            f" at most {self.max_rows_per_unit} of them were used."
        )


IMAGES = Neighbours()
"""One row more or less."""
