"""What an owner should know of their labels: how many rows each has, and which were meant to be others.

Everything here is exact, and so for the owner's eyes and private folder only.
"""

import collections
import dataclasses
import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpgmm_beam.data.rows import MAX_LABEL_BYTES, label_indices
from dpgmm_beam.data.units import id_bytes

MAX_LABELS = 1000
"""Different labels that are counted one by one, at most."""

MAX_UNITS = 2**22
"""Different ids of privacy units whose rows are counted, at most."""

HARDLY_ANY = 0.01

MAX_POWER = 10
"""Of 2, of the bounds on a unit's rows that are looked at."""

SHOWN_CHARACTERS = 200
"""Of a label that is longer, the first so many are shown."""


@dataclasses.dataclass
class LabelCounts:
    """Rows of each label, of a bounded number of different ones.

    Attributes:
      rows: by label.
      null: rows whose label is null.
      others: rows of labels that came when there were `MAX_LABELS` already.
      known: labels that are counted in any case.
    """

    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    null: int = 0
    others: int = 0
    known: frozenset[str] = frozenset()

    @property
    def total(self) -> int:
        return sum(self.rows.values()) + self.null + self.others

    def add(self, label: str | None, rows: int = 1) -> None:
        if label is None:
            self.null += rows
        else:
            shown = label if label in self.known else label[:SHOWN_CHARACTERS]
            if shown in self.rows or shown in self.known or len(self.rows) < MAX_LABELS + len(self.known):
                self.rows[shown] = self.rows.get(shown, 0) + rows
            else:
                self.others += rows

    def add_all(self, labels: pa.Array | pa.ChunkedArray) -> None:
        """Adds the labels of many rows: text or integers, plain or as a dictionary; of any bytes."""
        if isinstance(labels, pa.ChunkedArray):
            labels = labels.combine_chunks()
        if pa.types.is_null(labels.type):
            self.null += len(labels)
            return
        if pa.types.is_dictionary(labels.type):
            counts = pc.value_counts(labels.indices)
            values = _texts(labels.dictionary)
            for index, rows in zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True):
                self.add(None if index is None else values[index], rows)
            return
        counts = pc.value_counts(labels)
        for label, rows in zip(_texts(counts.field(0)), counts.field(1).to_pylist(), strict=True):
            self.add(label, rows)

    def merge(self, other: "LabelCounts") -> None:
        self.null += other.null
        self.others += other.others
        for label, rows in other.rows.items():
            self.add(label, rows)

    def to_json(self) -> dict:
        return {"rows": dict(sorted(self.rows.items())), "null": self.null, "other_labels": self.others}

    @staticmethod
    def from_json(content: Mapping) -> "LabelCounts":
        return LabelCounts(dict(content["rows"]), content["null"], content["other_labels"])


@dataclasses.dataclass
class UnitCounts:
    """Rows of each privacy unit; ids themselves are not kept.

    Attributes:
      rows: by a hash of the id.
      null: rows without an id.
      others: rows of ids that came when there were `MAX_UNITS` already.

    >>> counts = UnitCounts()
    >>> counts.add_all(pa.array(["x", "y", "x", None, "x"]))
    >>> counts.quantiles(), counts.null
    ({'median': 1, '90%': 3, '99%': 3, 'most': 3}, 1)
    >>> counts.bounds()[1]
    (0.5, 0.5)
    """

    rows: dict[bytes, int] = dataclasses.field(default_factory=dict)
    null: int = 0
    others: int = 0

    def add_all(self, ids: pa.Array | pa.ChunkedArray) -> None:
        """Adds the ids of many rows, of any type that ids have."""
        found = pc.value_counts(id_bytes(ids))
        for value, rows in zip(found.field(0), found.field(1).to_pylist(), strict=True):
            if not value.is_valid:
                self.null += rows
                continue
            key = hashlib.blake2b(value.as_buffer(), digest_size=16).digest()
            if key in self.rows or len(self.rows) < MAX_UNITS:
                self.rows[key] = self.rows.get(key, 0) + rows
            else:
                self.others += rows

    def quantiles(self) -> dict[str, int]:
        """Rows of a unit: of which half of all units have no more, and so on."""
        ordered = np.sort(list(self.rows.values()))
        named = {"median": 0.5, "90%": 0.9, "99%": 0.99, "most": 1.0}
        if not len(ordered):
            return {}
        return {
            name: int(ordered[max(0, math.ceil(part * len(ordered)) - 1)]) for name, part in named.items()
        }

    def bounds(self) -> dict[int, tuple[float, float]]:
        """For powers of 2: the share of rows that such a bound leaves, and of units that have more.

        It ends with the first that hardly any unit is beyond.
        """
        counts, found = np.array(list(self.rows.values())), {}
        for bound in (2**power for power in range(MAX_POWER + 1)):
            kept, beyond = np.minimum(counts, bound).sum() / counts.sum(), (counts > bound).mean()
            found[bound] = float(kept), float(beyond)
            if beyond <= HARDLY_ANY:
                break
        return found

    def to_json(self) -> dict:
        bounds = self.bounds() if self.rows else {}
        return {
            "units": len(self.rows),
            "null": self.null,
            "other_ids": self.others,
            "rows_of_a_unit": self.quantiles(),
            "bounds": {
                str(bound): {"rows": rows, "beyond": beyond} for bound, (rows, beyond) in bounds.items()
            },
        }


def _texts(labels: pa.Array) -> list[str | None]:
    if not (pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type)):
        labels = labels.cast(pa.string(), safe=False)
    # Bytes that are no text, or very many, are shown as well as can be.
    long = pc.greater(pc.binary_length(labels), MAX_LABEL_BYTES)
    found = []
    for value, is_long in zip(labels, long.to_pylist(), strict=True):
        raw = value.as_buffer().to_pybytes() if value.is_valid and not is_long else None
        shown = "(a label too long to be declared)" if is_long else None
        found.append(shown if raw is None else raw.decode(errors="backslashreplace"))
    return found


def undeclared(labels: pa.Array | pa.ChunkedArray, classes: tuple[str, ...]) -> LabelCounts:
    """Those of some rows' labels that are none of the classes, nulls among them."""
    found = LabelCounts()
    found.add_all(labels.filter(pa.array(label_indices(labels, classes) < 0)))
    return found


@dataclasses.dataclass(frozen=True)
class NearMatch:
    """A label of the data that may be meant to be a declared one.

    Attributes:
      label: as the data has it.
      declared: as the classes have it.
      difference: in words.
    """

    label: str
    declared: str
    difference: str


@dataclasses.dataclass(frozen=True)
class LabelSurvey:
    """Labels of the data against the declared ones, which are compared letter for letter.

    Attributes:
      classes: rows of each declared label, in their order.
      undeclared: labels of the data that are none of them.
      near: those that may be meant to be a declared one.
    """

    classes: dict[str, int]
    undeclared: LabelCounts
    near: tuple[NearMatch, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Declared labels that no row has."""
        return tuple(label for label, rows in self.classes.items() if not rows)

    def to_json(self) -> dict:
        return {
            "classes": self.classes,
            "classes_without_rows": list(self.missing),
            "labels_not_declared": self.undeclared.to_json(),
            "near_matches": [dataclasses.asdict(match) for match in self.near],
        }


def compare(counts: LabelCounts, classes: Sequence[str]) -> LabelSurvey:
    """Compares the labels of some rows with the declared ones.

    >>> found = compare(LabelCounts({"cat": 3, "Dog": 2}), ["cat", "dog"])
    >>> found.classes, found.undeclared.rows
    ({'cat': 3, 'dog': 0}, {'Dog': 2})
    >>> found.near
    (NearMatch(label='Dog', declared='dog', difference='case'),)
    """
    declared = dict.fromkeys(classes)
    rows = {label: counts.rows.get(label, 0) for label in classes}
    undeclared = {label: rows for label, rows in counts.rows.items() if label not in declared}
    return LabelSurvey(
        rows,
        LabelCounts(undeclared, counts.null, counts.others),
        tuple(near_matches(sorted(undeclared), classes)),
    )


def _without_accents(text: str) -> str:
    letters = (each for each in unicodedata.normalize("NFD", text) if not unicodedata.combining(each))
    return unicodedata.normalize("NFC", "".join(letters))


# What two texts may differ in, and how to take it away.  Their order matters.
_DIFFERENCES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("the form of Unicode", lambda text: unicodedata.normalize("NFKC", text)),
    ("blanks at the ends", str.strip),
    ("blanks, hyphens or underscores", lambda text: re.sub(r"[\s_-]+", " ", text)),
    ("case", str.casefold),
    ("accents", _without_accents),
)


def _folded(text: str, but: int | None = None) -> str:
    for number, (_, fold) in enumerate(_DIFFERENCES):
        if number != but:
            text = fold(text)
    return text


def difference(one: str, other: str) -> str | None:
    """In what two labels that may be meant to be the same differ; None where they are the same or not alike.

    >>> difference(" Café", "cafe")
    'blanks at the ends, case and accents'
    >>> difference("devises", "devices")
    'one letter'
    """
    if one == other:
        return None
    if _folded(one) == _folded(other):
        words = [
            name
            for number, (name, _) in enumerate(_DIFFERENCES)
            if _folded(one, number) != _folded(other, number)
        ] or [_DIFFERENCES[0][0]]
        return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
    return "one letter" if one_letter_apart(_folded(one), _folded(other)) else None


def one_letter_apart(one: str, other: str) -> bool:
    """Whether one letter makes one of the other: put in, left out, changed, or in the place of the next.

    Texts of one letter are not alike for that.
    """
    if one == other or abs(len(one) - len(other)) > 1 or min(len(one), len(other)) < 2:
        return False
    start = 0
    while one[start : start + 1] == other[start : start + 1] != "":
        start += 1
    rest, other_rest = one[start:], other[start:]
    return (
        rest[1:] == other_rest[1:]
        or rest[1:] == other_rest
        or rest == other_rest[1:]
        or (rest[:2] == other_rest[1::-1] and rest[2:] == other_rest[2:])
    )


def near_matches(labels: Iterable[str], declared: Sequence[str]) -> Iterator[NearMatch]:
    """For each label the declared ones that it may be meant to be."""
    alike = collections.defaultdict(list)
    shortened = collections.defaultdict(list)
    for each in declared:
        folded = _folded(each)
        alike[folded].append(each)
        for key in _shortened(folded):
            shortened[key].append(each)
    for label in labels:
        folded = _folded(label)
        found = alike.get(folded) or dict.fromkeys(
            each for key in sorted(_shortened(folded)) for each in shortened.get(key, ())
        )
        for each in found:
            if each != label and (what := difference(label, each)):
                yield NearMatch(label, each, what)


def _shortened(text: str) -> set[str]:
    """A text, and it without each of its letters: texts one letter apart have one of these in common."""
    return {text, *(text[:i] + text[i + 1 :] for i in range(len(text)))}
