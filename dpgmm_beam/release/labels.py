"""The private teacher that labels synthetic rows with probabilities; part of a release.

On disk (`save`, `load`): `teacher.parquet` with a row for each class, columns class
and weights (D + 1 floats, the bias last), and `features.parquet` with the d rows of
the view that the weights are of: row (d int32 in steps of 2**-20) and centre (in
lattice steps).  In a release of several components there is `ridges.parquet` with the H
ridge functions that follow in the view, D = d + H (`fit.state.Ridges`); else D = d.
"""

import dataclasses
import io
import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import teacher
from dpgmm_beam.fit.checkpoint import Checkpoint
from dpgmm_beam.fit.projection import Projection
from dpgmm_beam.fit.state import Ridges
from dpgmm_beam.mixture import fixed_size_list, matrix_of, parquet_bytes, reader_of
from dpgmm_beam.privacy import lattice

TEACHER_FILE, FEATURES_FILE, RIDGES_FILE = "teacher.parquet", "features.parquet", "ridges.parquet"
_METADATA = "dpgmm.teacher"
_ROWS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Labeller:
    """Multinomial logistic regression on whitened features, as the fit left it.

    >>> view = Projection(np.zeros(2), np.eye(2, dtype=np.int32) << 20)
    >>> weights = np.array([[9, 0, 0], [0, 9, 0]], np.float32)
    >>> labeller = Labeller(("cat", "dog"), weights, view, norm=1.0, clip_norm=None)
    >>> labeller.probabilities(np.eye(2)).argmax(axis=1)
    array([0, 1])

    Attributes:
      classes: C labels.
      weights: (C, D + 1) float32, the bias last.
      view: lattice rows -> whitened features, (n, D).
      norm: root mean square norm of a whitened row.
      clip_norm: as in `lattice.quantise_rows`.
    """

    classes: tuple[str, ...]
    weights: np.ndarray
    view: Projection
    norm: float
    clip_norm: float | None

    @staticmethod
    def of(final: Checkpoint) -> "Labeller":
        """The labeller of the checkpoint after the last stage."""
        found, config = final.state.teacher, final.plan.config
        assert found is not None
        # Without a single step there is no average, only where the teacher starts.
        weights = found.weights if found.average is None else found.average
        view = teacher.FEATURES.of(final.state)
        return Labeller(config.classes, weights, view, found.norm, config.clip_norm)

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """Class probabilities of embeddings, (n, d) -> (n, C) float32.

        Computed from exact products, so they do not depend on threads or batches.
        """
        if len(self.classes) == 1:
            return np.ones((len(embeddings), 1), np.float32)
        weights, view = teacher.logit_weights(self.weights, self.norm), self.view.bind()
        result = np.empty((len(embeddings), len(self.classes)), np.float32)
        for start in range(0, len(embeddings), _ROWS_AT_ONCE):
            block = slice(start, start + _ROWS_AT_ONCE)
            # A drawn row can be zero, at least in low dimension; it keeps its place.
            values = np.zeros(embeddings[block].shape, np.int16)
            accepted, kept = lattice.quantise_rows(embeddings[block], self.clip_norm)
            values[kept] = accepted
            features = view(Rows(values, np.zeros(len(values), np.int32)))
            result[block] = teacher.probabilities(features.values.astype(np.float64), weights)
        return result

    def save(self, write: Callable[[str, bytes, int], None]) -> None:
        """Writes the labeller's files; the same labeller gives the same bytes.

        Args:
          write: called with a file's name, bytes and number of rows.
        """
        table = pa.table(
            {"class": pa.array(self.classes, pa.string()), "weights": fixed_size_list(self.weights)}
        )
        centre = pa.array(np.rint(self.view.offset).astype(np.int32))
        features = pa.table({"row": fixed_size_list(self.view.matrix), "centre": centre})
        ridges = self.view.ridges
        about = {
            "features_norm": self.norm.hex(),
            "clip_norm": self.clip_norm,
            "kept": ridges.kept.hex() if ridges is not None else None,
        }
        features = features.replace_schema_metadata({_METADATA: json.dumps(about)})
        write(TEACHER_FILE, parquet_bytes(table), len(table))
        write(FEATURES_FILE, parquet_bytes(features), len(features))
        if ridges is not None:
            bent = pa.table(
                {
                    "row": fixed_size_list(ridges.matrix),
                    "offset": pa.array(ridges.offsets),
                    "scale": pa.array(ridges.scales),
                    "mean": pa.array(ridges.means),
                    "mix": fixed_size_list(ridges.mix),
                }
            )
            write(RIDGES_FILE, parquet_bytes(bent), len(bent))

    @staticmethod
    def load(read: Callable[[str], bytes]) -> "Labeller":
        """The labeller that `save` wrote.

        Args:
          read: the bytes of a file by its name.
        """
        table = pq.read_table(io.BytesIO(read(TEACHER_FILE)))
        features = pq.read_table(io.BytesIO(read(FEATURES_FILE)))
        about = json.loads(features.schema.metadata[_METADATA.encode()])
        centre = features.column("centre").to_numpy().astype(np.float64)
        return Labeller(
            classes=tuple(table.column("class").to_pylist()),
            weights=matrix_of(table.column("weights")),
            view=Projection(
                centre, matrix_of(features.column("row")), _ridges(about["kept"], len(centre), read)
            ),
            norm=float.fromhex(about["features_norm"]),
            clip_norm=about["clip_norm"],
        )


def _ridges(kept: str | None, dimension: int, read: Callable[[str], bytes]) -> Ridges | None:
    if kept is None:
        return None
    table = pq.read_table(io.BytesIO(read(RIDGES_FILE)))
    matrix, mix = (matrix_of(table.column(name)) for name in ("row", "mix"))
    if matrix.shape != (len(table), dimension) or mix.shape != (len(table), len(table)):
        raise ValueError("ridges of another size than the features")
    return Ridges(
        matrix=matrix,
        offsets=table.column("offset").to_numpy(),
        scales=table.column("scale").to_numpy(),
        means=table.column("mean").to_numpy(),
        mix=mix,
        kept=float.fromhex(kept),
    )


def load_labeller(folder: str) -> Labeller:
    """Loads the teacher of a release, which labels embeddings as it labelled the synthetic rows.

    Args:
      folder: a release, or its `mixture` folder, on a local file system.

    >>> import tempfile
    >>> from dpgmm_beam import Release
    >>> release = Release.fit(np.eye(4), [0, 0, 1, 1], classes=["0", "1"], epsilon=1.0, delta=1e-5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     release.save(folder)
    ...     load_labeller(folder).probabilities(np.eye(4)).shape
    (4, 2)
    """
    return Labeller.load(reader_of(folder))
