"""What a private report says: of a network's tests, and of real rows beside synthetic ones.

All of it is exact and of real rows: for the owner of the data, and nobody else.
"""

import dataclasses
import hashlib
import heapq
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dpgmm_beam.data.rows import RowFormat, Rows, rows_of_batch
from dpgmm_beam.data.schema import LABEL
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.mixture import Mixture, Sampler
from dpgmm_beam.privacy import lattice
from dpgmm_beam.recipe import METRICS_FILE
from dpgmm_beam.release import fidelity
from dpgmm_beam.release.synthesis import generator_of_seed
from pipelines import cli, labelled_rows
from pipelines.reporting.facts import PROJECTED_ROWS, ReleaseFacts
from transforms.files import finding, inputs, tables
from transforms.files.columns import DEFAULT_COLUMNS, Columns
from transforms.files.publish import exists, join
from transforms.files.small import read_small

COMPARED_ROWS = 4000
"""Of each sample."""

MAX_METRICS_BYTES = 2**26
_BATCH_ROWS = 1024
_HASH_BYTES = 16


@dataclasses.dataclass(frozen=True)
class NetworkFacts:
    """What `dpgmm train` measured on real test rows.

    Attributes:
      metrics: the content of `metrics.json`.
      accuracies: (C,) by class; NaN where a class has no test rows.
      confusion: (C, C) test rows by class and by what the network calls them, or None.
    """

    metrics: Mapping[str, Any]
    accuracies: np.ndarray
    confusion: np.ndarray | None

    @property
    def accuracy(self) -> float:
        return float(self.metrics["accuracy"])

    def mistakes(self, most: int) -> list[tuple[int, int, int]]:
        """The commonest: class, what it was called and how often."""
        if self.confusion is None:
            return []
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = [(int(index // len(wrong)), int(index % len(wrong))) for index in order]
        return [(row, column, int(wrong[row, column])) for row, column in pairs if wrong[row, column]]


def read_network(folder: str, classes: tuple[str, ...]) -> NetworkFacts:
    """The measurements of a network that was trained on a release of these classes.

    Raises:
      ConfigError: there are none in the folder, or they are of other classes.
    """
    path = join(folder, METRICS_FILE)
    if not exists(path):
        raise ConfigError("network", folder, f"be a folder with a {METRICS_FILE}, as dpgmm train writes it")
    data = read_small("--network", path, MAX_METRICS_BYTES)
    try:
        metrics = json.loads(data)
        by_class = metrics["per_class_accuracy"]
        if set(by_class) != set(classes):
            raise ConfigError(
                "network", folder, "be one that was trained on this release: it has other classes"
            )
        for name in ("accuracy", "test_rows", "train_rows"):
            if not (isinstance(metrics[name], int | float) and math.isfinite(metrics[name])):
                raise TypeError
        accuracies = np.array(
            [math.nan if by_class[each] is None else by_class[each] for each in classes], float
        )
        confusion = metrics.get("confusion_matrix")
        if confusion is not None:
            # In the order of the network's classes, which is its metrics' own.
            order = [list(metrics.get("classes", classes)).index(each) for each in classes]
            confusion = np.array(confusion, np.int64)[np.ix_(order, order)]
    except ConfigError:
        raise
    except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
        raise ConfigError("network", folder, f"hold a {METRICS_FILE} written by dpgmm train") from None
    return NetworkFacts(metrics, accuracies, confusion)


@dataclasses.dataclass(frozen=True)
class Measures:
    """How alike a sample is to the real rows.

    Attributes:
      neighbours: precision, recall, density, coverage, in whitened directions.
      frechet: Frechet distance of the embeddings, over the trace of the real rows' covariance.
      nearest: accuracy of the nearest-neighbour two-sample test.
      linear: accuracy of a linear two-sample classifier.
    """

    neighbours: fidelity.NeighbourMeasures
    frechet: float
    nearest: float
    linear: float


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Real rows beside synthetic ones.

    Attributes:
      real_rows: accepted rows of the data.
      compared: rows in each sample.
      directions: of the whitened space.
      synthetic: of synthetic rows, as many of each class as the real sample has.
      reference: of other real rows, as many: what a perfect release would come to.
      by_class: (C,) accepted real rows.
      mean_distances: (C,) of class means, over the root mean square distance of a real row
        to its class's mean; NaN where a class has no rows.
      real_points, synthetic_points: (m, 2), projected as the public report projects.
    """

    real_rows: int
    compared: int
    directions: int
    synthetic: Measures
    reference: Measures
    by_class: np.ndarray
    mean_distances: np.ndarray
    real_points: np.ndarray
    synthetic_points: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class RealRows:
    """A sample of the real rows that depends neither on their order nor on their files.

    Attributes:
      embeddings: (n, d) float32, brought to the norm that the release has.
      classes: (n,) class indices.
      by_class: (C,) accepted rows of all the data.
      sums: (C, d) of all accepted rows.
      square: sum of their squared norms.
    """

    embeddings: np.ndarray
    classes: np.ndarray
    by_class: np.ndarray
    sums: np.ndarray
    square: float


def read_real(pattern: str, release: ReleaseFacts, columns: Columns = DEFAULT_COLUMNS) -> RealRows:
    """Reads real embeddings in bounded memory and keeps the rows of the least hashes.

    Raises:
      ConfigError: the pattern matches no Parquet of embeddings of the release's encoder and dimension,
        or too few rows.
    """
    config = release.config
    found = _describe(pattern, config["dimension"], columns)
    encoder = None if config["encoder"] == "precomputed" else config["encoder"]
    if unnamed := labelled_rows.check_encoder(
        "private_embeddings", pattern, found.encoder, "--release", encoder
    ):
        cli.note(unnamed.replace("private_embeddings", "--private-embeddings"))
    classes, clip_norm = tuple(config["classes"]), config["clip_norm"]
    if not found.labelled and len(classes) > 1:
        raise ConfigError("private_embeddings", pattern, f"have a column '{columns.label or LABEL}'")
    row_format = RowFormat(classes, config["dimension"], clip_norm, found.labelled)
    norm = (clip_norm or 1.0) / lattice.UNIT
    kept: list[tuple[int, bytes, int]] = []
    by_class = np.zeros(len(classes), np.int64)
    sums, square = np.zeros((len(classes), config["dimension"])), 0.0
    for rows in _accepted(pattern, row_format, columns):
        by_class += np.bincount(rows.classes, minlength=len(classes))
        np.add.at(sums, rows.classes, rows.values)
        square += float(rows.square_norms().sum())
        _keep(kept, rows, 2 * COMPARED_ROWS)
    if len(kept) < 4 * (fidelity.NEIGHBOURS + 1):
        raise ConfigError(
            "private_embeddings",
            pattern,
            f"hold {4 * (fidelity.NEIGHBOURS + 1)} rows at least with a declared label and a good embedding"
            f" of length {config['dimension']}",
        )
    kept.sort(reverse=True)
    values = np.stack([np.frombuffer(data, np.int16) for _, data, _ in kept])
    return RealRows(
        (values * norm).astype(np.float32),
        np.array([index for _, _, index in kept]),
        by_class,
        sums * norm,
        square * norm**2,
    )


def _keep(kept: list[tuple[int, bytes, int]], rows: Rows, most: int) -> None:
    """Holds the rows of the least hashes in a heap, by their negatives."""
    for values, index in zip(rows.values, rows.classes.tolist(), strict=True):
        data = values.tobytes()
        digest = hashlib.blake2b(data, digest_size=_HASH_BYTES, salt=b"report").digest()
        item = (-int.from_bytes(digest, "big"), data, index)
        if len(kept) < most:
            heapq.heappush(kept, item)
        elif item > kept[0]:
            heapq.heapreplace(kept, item)


def _describe(pattern: str, dimension: int, columns: Columns) -> inputs.InputDescription:
    try:
        labelled_rows.check_files("--private-embeddings", pattern, columns)
        return inputs.describe_input(pattern, "precomputed", dimension, columns)
    except ConfigError as error:
        if error.argument == "dimension":
            allowed = f"hold embeddings of length {dimension}, as the release does"
        elif error.argument == "encoder":
            allowed = "hold embeddings, not images"
        elif error.argument.endswith("_column"):
            raise
        else:
            allowed = error.allowed
        raise ConfigError("private_embeddings", pattern, allowed) from None


def _accepted(pattern: str, row_format: RowFormat, columns: Columns) -> Iterator[Rows]:
    for found in tables.list_files(finding.absolute(pattern), columns):
        groups = range(len(tables.row_counts(found.path, columns)))
        for batch in tables.embeddings(
            found.path,
            groups,
            _BATCH_ROWS,
            row_format.dimension,
            columns,
            labelled=row_format.labelled,
        ):
            yield rows_of_batch(batch, row_format)


def compare(real: RealRows, release: ReleaseFacts) -> Comparison:
    """Compares a sample of real rows with synthetic ones of the same classes, and with other real ones.

    The synthetic rows are drawn as `dpgmm sample` draws, so that there are as many of each
    class as in the real sample, however unequal the classes.
    """
    half = len(real.classes) // 2
    one, two = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    first, second = real.embeddings[one], real.embeddings[two]
    drawn = Sampler(release.mixture).draw(real.classes[one], generator_of_seed(0, 0))
    with one_thread():
        whitening = fidelity.Whitening.of(first)
        spread = float(np.trace(fidelity.covariance(first)))
        synthetic, reference = (_measures(first, other, whitening, spread) for other in (drawn, second))
    shown = slice(0, PROJECTED_ROWS // 2)
    return Comparison(
        real_rows=int(real.by_class.sum()),
        compared=half,
        directions=whitening.axes.shape[1],
        synthetic=synthetic,
        reference=reference,
        by_class=real.by_class,
        mean_distances=_mean_distances(real, release.mixture),
        real_points=release.projection(first[shown]),
        synthetic_points=release.projection(drawn[shown]),
    )


def _measures(real: np.ndarray, other: np.ndarray, whitening: fidelity.Whitening, spread: float) -> Measures:
    rows, others = whitening(real), whitening(other)
    return Measures(
        fidelity.neighbour_measures(rows, others),
        fidelity.frechet_distance(real, other) / max(spread, np.finfo(float).tiny),
        fidelity.nearest_neighbour_accuracy(rows, others),
        fidelity.linear_accuracy(rows, others),
    )


def _mean_distances(real: RealRows, mixture: Mixture) -> np.ndarray:
    means = real.sums / np.where(real.by_class > 0, real.by_class, np.nan)[:, None]
    explained = float(np.nansum(real.by_class * (means**2).sum(axis=1)))
    within = max(real.square - explained, np.finfo(float).tiny) / real.by_class.sum()
    released = np.einsum("ck,ckd->cd", mixture.weights, mixture.means)
    return np.sqrt(((means - released) ** 2).sum(axis=1) / within)
