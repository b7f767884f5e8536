"""How many rows of each class a release was made from, as far as it may be told.

They are what `means/count` has released: exact counts with the mechanism's noise,
not a bit changed, so that they have no bias and may be below 0.

On disk (`save`, `load`): `classes.parquet` with a row for each class, columns class,
rows (int64) and rows_stddev (double, the noise's standard deviation, of all rows the same).
"""

import dataclasses
import io
import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam.fit.checkpoint import Checkpoint
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.mixture import parquet_bytes

CLASSES_FILE = "classes.parquet"

NOISE_STDDEVS = 4.0
"""A class of fewer noisy rows than so many standard deviations is called no more than noise.

An empty class escapes that with a probability of 3.2e-5; a class of twice as many
rows is called so with the same.
"""

_LISTED = 20


@dataclasses.dataclass(frozen=True, eq=False)
class ClassRows:
    """The noisy number of rows of each class.

    Attributes:
      classes: C labels.
      rows: (C,) int64; good rows with that label and the noise of the mechanism.
      stddev: of the noise, before it was rounded to whole rows.
    """

    classes: tuple[str, ...]
    rows: np.ndarray
    stddev: float

    @staticmethod
    def of(final: Checkpoint) -> "ClassRows":
        """Those of the checkpoint after the first stage, or any later one."""
        found = final.state.class_counts
        assert found is not None
        return ClassRows(final.plan.config.classes, found.noisy, count_stddev(final.plan))

    @property
    def drowned(self) -> np.ndarray:
        """(C,) whether a class is no more than noise, see NOISE_STDDEVS."""
        return self.rows < NOISE_STDDEVS * self.stddev

    def save(self, write: Callable[[str, bytes, int], None]) -> None:
        """Writes the file; the same counts give the same bytes.

        Args:
          write: called with a file's name, bytes and number of rows.
        """
        table = pa.table(
            {
                "class": pa.array(self.classes, pa.string()),
                "rows": pa.array(self.rows, pa.int64()),
                "rows_stddev": pa.array(np.full(len(self.classes), self.stddev), pa.float64()),
            }
        )
        write(CLASSES_FILE, parquet_bytes(table), len(table))

    @staticmethod
    def load(read: Callable[[str], bytes]) -> "ClassRows":
        """What `save` wrote.

        Args:
          read: the bytes of a file by its name.
        """
        table = pq.read_table(io.BytesIO(read(CLASSES_FILE)))
        rows = table.column("rows").to_numpy().astype(np.int64)
        return ClassRows(
            tuple(table.column("class").to_pylist()), rows, float(table.column("rows_stddev")[0].as_py())
        )

    def lines(self) -> list[str]:
        """What a release says of its classes at its end: public, for it is in the release.

        >>> for line in ClassRows(("cat", "dog"), np.array([5979, -12]), 37.3).lines():
        ...     print(line)
        rows of each class that it was made from, with noise of standard deviation 37.3:
              5,979  cat
                -12  dog
        """
        title = f"with noise of standard deviation {self.stddev:.3g}"
        if len(self.classes) > _LISTED:
            fewest, most = int(self.rows.argmin()), int(self.rows.argmax())
            return [
                f"rows of each of the {len(self.classes)} classes that it was made from, {title}: from"
                f" {self.rows[fewest]:,} ({self.classes[fewest]}) to {self.rows[most]:,}"
                f" ({self.classes[most]}), {int(np.median(self.rows)):,} in the middle;"
                f" mixture/{CLASSES_FILE} has all"
            ]
        return [f"rows of each class that it was made from, {title}:"] + [
            f"  {count:>9,}  {label}" for label, count in zip(self.classes, self.rows.tolist(), strict=True)
        ]

    def warning(self) -> str:
        """A sentence on the classes that are no more than noise; "" where there is none.

        >>> ClassRows(("cat", "dog"), np.array([5979, 150]), 37.3).warning()
        ''
        >>> ClassRows(("cat", "dog"), np.array([5979, -12]), 37.3).warning()[:64]
        '1 of 2 classes is no more than noise (fewer than 150 noisy rows,'
        """
        names = [label for label, bad in zip(self.classes, self.drowned, strict=True) if bad]
        if not names:
            return ""
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        verb = "is" if len(names) == 1 else "are"
        return (
            f"{len(names)} of {len(self.classes)} classes {verb} no more than noise (fewer than"
            f" {math.ceil(NOISE_STDDEVS * self.stddev)} noisy rows, four standard deviations):"
            f" {', '.join(names[:_LISTED])}{more}. Are these labels spelt as in the data? dpgmm inspect"
            " shows both to its owner. What is said here is in the release and costs nothing; an empty class"
            " goes unnamed in 3 of 100,000 cases, and one of"
            f" {2 * NOISE_STDDEVS * self.stddev:.0f} rows is named in as many"
        )


def count_stddev(plan: Plan) -> float:
    """Standard deviation of the noise of a class's count."""
    (query,) = plan.stages[0].queries
    return float(plan.multipliers(plan.stages[0])["count"] * query.l2_sensitivity)
