"""The private teacher that labels synthetic rows with probabilities."""

import dataclasses

import numpy as np

from dpgmm_beam import lattice, stages
from dpgmm_beam.rows import Rows
from dpgmm_beam.state import State

_ROWS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Labeller:
    """Multinomial logistic regression on whitened features, as the stages fitted it.

    Attributes:
      final: the state after the last stage.
      clip_norm: as in `lattice.quantise_rows`.
    """

    final: State
    clip_norm: float | None

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """Class probabilities of embeddings, (n, d) -> (n, C) float32.

        Computed from exact products, so they do not depend on threads or batches.
        """
        classes = len(self.final["counts"])
        if classes == 1:
            return np.ones((len(embeddings), 1), np.float32)
        # Without a single step there is no average, only where the teacher starts.
        theta = self.final["average"] if "average" in self.final else self.final["theta"]
        weights = stages.logit_weights(self.final, theta)
        result = np.empty((len(embeddings), classes), np.float32)
        for start in range(0, len(embeddings), _ROWS_AT_ONCE):
            block = slice(start, start + _ROWS_AT_ONCE)
            # A drawn row can be zero, at least in low dimension; it keeps its place.
            values = np.zeros(embeddings[block].shape, np.int16)
            accepted, kept = lattice.quantise_rows(embeddings[block], self.clip_norm)
            values[kept] = accepted
            features = stages.FEATURES.apply(Rows(values, np.zeros(len(values), np.int32)), self.final)
            result[block] = stages.probabilities(features.values.astype(np.float64), weights)
        return result
