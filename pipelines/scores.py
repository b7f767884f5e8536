"""How a network does on real rows, and which of them it could not be tested on.

All of it is exact and about private rows: for their owner's terminal and folder only.
"""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpgmm_beam.data.rows import label_indices
from dpgmm_beam.errors import printable

MAX_CONFUSION = 256
"""Classes up to which `metrics.json` has the whole confusion matrix."""

PRIVATE = "exact figures about private test rows: not part of a release, and not for others"

_NAMED, _SHOWN = 1000, 10


class Account:
    """What became of the rows that a test reads.

    Attributes:
      found: rows that were read.
      tested: rows with a declared label and a good embedding.
      no_label: rows whose label is null.
      undeclared: rows by labels that no class has; of 1000 different ones at most.
      others: rows of further labels that no class has.

    Args:
      classes: the declared labels.
    """

    def __init__(self, classes: tuple[str, ...]):
        self.classes = classes
        self.found = self.tested = self.no_label = self.others = 0
        self.undeclared: Counter[str] = Counter()

    def add(self, labels: pa.Array, tested: int) -> None:
        """Counts the rows of a batch, by their labels, of which so many were good."""
        self.found += len(labels)
        self.tested += tested
        if tested == len(labels):
            return
        null = labels.is_null()
        unknown = (label_indices(labels, self.classes) < 0) & ~null.to_numpy(zero_copy_only=False)
        self.no_label += pc.sum(null).as_py() or 0
        strange = labels.filter(pa.array(unknown))
        if pa.types.is_dictionary(strange.type):
            strange = strange.dictionary_decode()
        # As bytes: a label that is no UTF-8 is a label, too.
        counts = pc.value_counts(strange.cast(pa.string(), safe=False).cast(pa.binary()))
        for value, count in zip(counts.field("values"), counts.field("counts"), strict=True):
            name = printable(value.as_py().decode(errors="replace"))
            if name in self.undeclared or len(self.undeclared) < _NAMED:
                self.undeclared[name] += count.as_py()
            else:
                self.others += count.as_py()

    @property
    def undeclared_rows(self) -> int:
        return self.undeclared.total() + self.others

    def warning(self) -> str:
        """A sentence on the rows that were not tested; "" where all were."""
        if self.tested == self.found:
            return ""
        reasons = []
        if self.undeclared_rows:
            most = [f"{label}: {count:,}" for label, count in self.undeclared.most_common(_SHOWN)]
            more = ", ..." if len(self.undeclared) > _SHOWN else ""
            names = ", ".join(most) + more
            reasons.append(f"{self.undeclared_rows:,} with a label that is no class ({names})")
        if self.no_label:
            reasons.append(f"{self.no_label:,} without a label")
        if bad := self.found - self.tested - self.undeclared_rows - self.no_label:
            reasons.append(f"{bad:,} without a good embedding")
        return (
            f"{self.found - self.tested:,} of {self.found:,} test rows could not be tested:"
            f" {'; '.join(reasons)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For `metrics.json`."""
        bad = self.found - self.tested - self.undeclared_rows - self.no_label
        return {
            "test_rows": self.tested,
            "test_rows_found": self.found,
            "test_rows_left_out": {
                "undeclared_label": self.undeclared_rows,
                "no_label": self.no_label,
                "embedding": bad,
            },
            "undeclared_labels": dict(self.undeclared.most_common()),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Confusion:
    """Test rows by their class and the one that was predicted.

    Attributes:
      classes: C labels.
      pairs: (m, 2) class indices, the real and the predicted, that occur.
      counts: (m,) how often.
    """

    classes: tuple[str, ...]
    pairs: np.ndarray
    counts: np.ndarray

    @staticmethod
    def of(classes: tuple[str, ...], real: np.ndarray, predicted: np.ndarray) -> "Confusion":
        together = real.astype(np.int64) * len(classes) + predicted
        found, counts = np.unique(together, return_counts=True)
        return Confusion(classes, np.stack(np.divmod(found, len(classes)), axis=1), counts)

    @property
    def right(self) -> int:
        """Rows that were predicted right."""
        return int(self.counts[self.pairs[:, 0] == self.pairs[:, 1]].sum())

    def matrix(self) -> list[list[int]] | None:
        """Counts, (C, C), rows by the real class, columns by the predicted; None for many classes."""
        size = len(self.classes)
        if size > MAX_CONFUSION:
            return None
        result = np.zeros((size, size), np.int64)
        result[self.pairs[:, 0], self.pairs[:, 1]] = self.counts
        return result.tolist()

    def accuracy_by_class(self) -> dict[str, float | None]:
        """The share of a class's rows that was predicted right; None where it has none."""
        size = len(self.classes)
        rows = np.bincount(self.pairs[:, 0], self.counts, size)
        same = self.pairs[:, 0] == self.pairs[:, 1]
        right = np.bincount(self.pairs[same, 0], self.counts[same], size)
        return {
            label: float(right[index] / rows[index]) if rows[index] else None
            for index, label in enumerate(self.classes)
        }

    def most_frequent_errors(self) -> list[list[Any]]:
        """Real class, predicted class and rows of the wrong predictions, the most frequent first."""
        wrong = np.flatnonzero(self.pairs[:, 0] != self.pairs[:, 1])
        order = wrong[np.argsort(-self.counts[wrong], kind="stable")][:_NAMED]
        return [
            [*(self.classes[index] for index in self.pairs[number]), int(self.counts[number])]
            for number in order
        ]
