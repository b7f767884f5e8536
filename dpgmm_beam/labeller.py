"""The private teacher that labels synthetic rows with probabilities; part of a release.

On disk (`save`, `load`): `teacher.parquet` with a row for each class, columns class
and weights (d + 1 floats, the bias last), and `features.parquet` with the d rows of
the view that the weights are of: row (d int32 in steps of 2**-20) and centre (in
lattice steps).
"""

import dataclasses
import io
import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam import lattice, stages
from dpgmm_beam.mixture import fixed_size_list, matrix_of, parquet_bytes
from dpgmm_beam.rows import Rows
from dpgmm_beam.state import State

TEACHER_FILE, FEATURES_FILE = "teacher.parquet", "features.parquet"
_METADATA = "dpgmm.teacher"
_ROWS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Labeller:
    """Multinomial logistic regression on whitened features, as the stages fitted it.

    Attributes:
      classes: C labels.
      weights: (C, d + 1) float32, the bias last.
      view: the state's entries `features_matrix` (d, d), `features_norm` and `centre` (d,).
      clip_norm: as in `lattice.quantise_rows`.
    """

    classes: tuple[str, ...]
    weights: np.ndarray
    view: State
    clip_norm: float | None

    @staticmethod
    def of(final: State, classes: tuple[str, ...], clip_norm: float | None) -> "Labeller":
        """The labeller of the state after the last stage."""
        # Without a single step there is no average, only where the teacher starts.
        weights = final["average"] if "average" in final else final["theta"]
        view = {name: final[name] for name in ("features_matrix", "features_norm", "centre")}
        return Labeller(classes, weights, view, clip_norm)

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """Class probabilities of embeddings, (n, d) -> (n, C) float32.

        Computed from exact products, so they do not depend on threads or batches.
        """
        if len(self.classes) == 1:
            return np.ones((len(embeddings), 1), np.float32)
        weights, view = stages.logit_weights(self.view, self.weights), stages.FEATURES.bind(self.view)
        result = np.empty((len(embeddings), len(self.classes)), np.float32)
        for start in range(0, len(embeddings), _ROWS_AT_ONCE):
            block = slice(start, start + _ROWS_AT_ONCE)
            # A drawn row can be zero, at least in low dimension; it keeps its place.
            values = np.zeros(embeddings[block].shape, np.int16)
            accepted, kept = lattice.quantise_rows(embeddings[block], self.clip_norm)
            values[kept] = accepted
            features = view(Rows(values, np.zeros(len(values), np.int32)))
            result[block] = stages.probabilities(features.values.astype(np.float64), weights)
        return result

    def save(self, write: Callable[[str, bytes, int], None]) -> None:
        """Writes the labeller's files; the same labeller gives the same bytes.

        Args:
          write: called with a file's name, bytes and number of rows.
        """
        teacher = pa.table(
            {"class": pa.array(self.classes, pa.string()), "weights": fixed_size_list(self.weights)}
        )
        matrix, centre = self.view["features_matrix"], np.rint(self.view["centre"]).astype(np.int32)
        features = pa.table({"row": fixed_size_list(matrix), "centre": pa.array(centre)})
        about = {"features_norm": float(self.view["features_norm"]).hex(), "clip_norm": self.clip_norm}
        features = features.replace_schema_metadata({_METADATA: json.dumps(about)})
        write(TEACHER_FILE, parquet_bytes(teacher), len(teacher))
        write(FEATURES_FILE, parquet_bytes(features), len(features))

    @staticmethod
    def load(read: Callable[[str], bytes]) -> "Labeller":
        """The labeller that `save` wrote.

        Args:
          read: the bytes of a file by its name.
        """
        teacher = pq.read_table(io.BytesIO(read(TEACHER_FILE)))
        features = pq.read_table(io.BytesIO(read(FEATURES_FILE)))
        about = json.loads(features.schema.metadata[_METADATA.encode()])
        view = {
            "features_matrix": matrix_of(features.column("row")),
            "features_norm": np.array(float.fromhex(about["features_norm"])),
            "centre": features.column("centre").to_numpy().astype(np.float64),
        }
        weights = matrix_of(teacher.column("weights"))
        return Labeller(tuple(teacher.column("class").to_pylist()), weights, view, about["clip_norm"])
