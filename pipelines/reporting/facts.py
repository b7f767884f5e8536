"""What a report says of a release: read from the release alone, so as public as it is.

Everything is a function of the release's bytes: rows are the first of its files, and the
projection is of the released mixture, with its signs fixed.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam.data.rows import embedding_matrix, label_indices
from dpgmm_beam.data.schema import COMPONENT_CLASS, EMBEDDING, PROBABILITIES
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.mixture import Mixture
from dpgmm_beam.release import fidelity, manifest
from dpgmm_beam.release.class_rows import NOISE_STDDEVS
from pipelines import sample
from transforms.files.publish import exists, files_below, join
from transforms.files.small import measure, read_bounded, read_small

READ_ROWS, READ_VALUES = 20_000, 2**25
"""The most synthetic rows that figures are taken from, and numbers in them."""

PROJECTED_ROWS = 1500


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """The first synthetic rows of a release.

    Attributes:
      embeddings: (n, d) float32.
      probabilities: (n, C) float32, of the teacher.
      drawn: (n,) index of the class whose mixture a row was drawn from.
    """

    embeddings: np.ndarray
    probabilities: np.ndarray
    drawn: np.ndarray

    def __len__(self) -> int:
        return len(self.drawn)

    @property
    def labelled(self) -> np.ndarray:
        """(n,) index of the teacher's likeliest class."""
        return self.probabilities.argmax(axis=1)


@dataclasses.dataclass(frozen=True)
class Projection:
    """Two fixed directions in which rows are shown: the leading ones of the mixture's covariance.

    Attributes:
      centre: (d,) mean of the mixture.
      axes: (d, 2); the entry of each that is largest in size is positive.
      shares: (2,) of the mixture's variance.
    """

    centre: np.ndarray
    axes: np.ndarray
    shares: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return (np.asarray(rows, np.float64) - self.centre) @ self.axes


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the released covariance, largest first, over its trace.

    Attributes:
      total: (d,) of all rows.
      within: (d,) of rows about the centre of their component.
      effective: (sum of eigenvalues)^2 / sum of their squares: of how many equal directions it is as spread.
      between: share of the variance that lies between components.
    """

    total: np.ndarray
    within: np.ndarray
    effective: float
    between: float


@dataclasses.dataclass(frozen=True)
class ClassFacts:
    """What the release says of one class.

    Attributes:
      label: the declared class.
      share: its weight in the mixture.
      rows: noisy number of private rows; it may be negative.
      components: effective number of components.
      agreement: share of the rows drawn from it that the teacher calls likeliest it; NaN without rows.
      entropy: mean entropy of the labels of these rows, in bits.
      called: share of all rows that the teacher calls likeliest it.
    """

    label: str
    share: float
    rows: float
    components: float
    agreement: float
    entropy: float
    called: float


@dataclasses.dataclass(frozen=True, eq=False)
class ReleaseFacts:
    """All that a report says of a release.

    Attributes:
      content: its manifest.
      digest: SHA-256 of the manifest's bytes, hexadecimal: it names all other files' digests.
      mixture: the released one.
      synthetic: the rows that figures were taken from.
      classes: in the declared order.
      rows_stddev: standard deviation of each class's noisy number of rows.
      projection, spectrum: of the mixture.
    """

    content: Mapping[str, Any]
    digest: str
    mixture: Mixture
    synthetic: Synthetic
    classes: tuple[ClassFacts, ...]
    rows_stddev: float
    projection: Projection
    spectrum: Spectrum

    @property
    def config(self) -> Mapping[str, Any]:
        return self.content["config"]

    @property
    def privacy(self) -> Mapping[str, Any]:
        return self.content["privacy"]

    @property
    def has_teacher(self) -> bool:
        return len(self.classes) > 1

    @property
    def synthetic_rows(self) -> int:
        """Of the whole release."""
        return self.config["samples_per_class"] * len(self.classes)

    @property
    def bytes(self) -> int:
        return sum(file["size"] for file in self.content["files"])

    @property
    def gaussians(self) -> str:
        """How many components a class has, in words: "7", or "2 to 7" where classes differ."""
        numbers = (self.mixture.weights > 0).sum(axis=1)
        least, most = int(numbers.min()), int(numbers.max())
        return str(most) if least == most else f"{least} to {most}"

    @property
    def agreement(self) -> float:
        """Share of the rows whose likeliest class is the one that they were drawn from."""
        return float((self.synthetic.labelled == self.synthetic.drawn).mean())

    @property
    def entropy(self) -> float:
        """Mean entropy of a label, in bits."""
        return float(fidelity.entropies(self.synthetic.probabilities).mean())

    @property
    def rows(self) -> float:
        """Noisy number of private rows of all classes."""
        return sum(each.rows for each in self.classes)

    @property
    def norms(self) -> tuple[float, float]:
        """Of the shortest and the longest synthetic row."""
        norms = np.sqrt((self.synthetic.embeddings.astype(np.float64) ** 2).sum(axis=1))
        return float(norms.min()), float(norms.max())

    @property
    def noisy(self) -> tuple[ClassFacts, ...]:
        """Classes that are no more than noise, by the rule of the release itself."""
        return tuple(each for each in self.classes if each.rows < NOISE_STDDEVS * self.rows_stddev)


def read_release(folder: str) -> ReleaseFacts:
    """Checks a release as `dpgmm verify` does, and reads it.

    Args:
      folder: of the release, on any file system that Beam knows.

    Raises:
      ConfigError: it is not a release, or does not verify.
    """
    path = join(folder, manifest.FILE_NAME)
    if not exists(path):
        raise ConfigError("release", folder, f"be a folder with a {manifest.FILE_NAME}")
    data = read_small("--release", path, manifest.MAX_BYTES)
    content = manifest.parse(data, folder)
    present = files_below(folder) - {manifest.FILE_NAME}
    problems = manifest.check(
        content, present, lambda name, most: measure(join(folder, *name.split("/")), most)
    )
    if problems:
        raise ConfigError("release", folder, f"verify, and dpgmm verify says: {problems[0]}")
    mixture = sample.load(folder).mixture
    assert mixture.class_rows_stddev is not None
    try:
        synthetic = _read_rows(folder, content["files"], mixture)
    except (pa.ArrowException, KeyError, OSError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("release", folder, "hold synthetic rows as dpgmm release writes them") from None
    with one_thread():
        projection, spectrum = _directions(mixture)
    return ReleaseFacts(
        content=content,
        digest=hashlib.sha256(data).hexdigest(),
        mixture=mixture,
        synthetic=synthetic,
        classes=_classes(mixture, synthetic),
        rows_stddev=mixture.class_rows_stddev,
        projection=projection,
        spectrum=spectrum,
    )


def _read_rows(folder: str, files: Sequence[Mapping[str, Any]], mixture: Mixture) -> Synthetic:
    """The first rows, which are of all classes: within a file the classes take turns."""
    classes = mixture.classes
    wanted = max(1, min(READ_ROWS, READ_VALUES // (mixture.dimension + len(classes))))
    blocks: list[Synthetic] = []
    for batch in _batches(folder, files, wanted):
        embeddings, whole = embedding_matrix(batch.column(EMBEDDING), mixture.dimension)
        probabilities, known = embedding_matrix(batch.column(PROBABILITIES), len(classes))
        drawn = label_indices(batch.column(COMPONENT_CLASS), classes)
        if not (whole.all() and known.all() and (drawn >= 0).all()):
            raise ValueError
        blocks.append(Synthetic(embeddings, probabilities, drawn))
        wanted -= len(batch)
        if wanted <= 0:
            break
    return Synthetic(*(np.concatenate([getattr(block, name) for block in blocks]) for name in _fields()))


def _fields() -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(Synthetic))


def _batches(folder: str, files: Sequence[Mapping[str, Any]], rows: int) -> Iterator[pa.RecordBatch]:
    parts = sorted(file["path"] for file in files if file["path"].startswith(f"{manifest.SYNTHETIC}/"))
    for path in parts:
        data = read_bounded(join(folder, *path.split("/")), manifest.MAX_FILE_BYTES)
        for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(min(rows, 4096)):
            yield batch.slice(0, rows)
            rows -= len(batch)
            if rows <= 0:
                return


def _directions(mixture: Mixture) -> tuple[Projection, Spectrum]:
    shares = mixture.class_weights[:, None] * mixture.weights
    r = mixture.covariances.shape[2]
    middle = np.eye(mixture.dimension)
    middle[:r, :r] = np.einsum("ck,ckij->ij", shares, mixture.covariances)
    within = mixture.basis @ middle @ mixture.basis.T
    centre = np.einsum("ck,ckd->d", shares, mixture.means)
    offsets = ((mixture.means - centre) * np.sqrt(shares)[:, :, None]).reshape(-1, mixture.dimension)
    values, vectors = np.linalg.eigh(within + offsets.T @ offsets)
    trace = float(values.sum())
    axes = vectors[:, ::-1][:, :2]
    if axes.shape[1] < 2:
        # Of one dimension: the second coordinate is 0.
        axes, values = np.column_stack([axes, np.zeros(1)]), np.append(0.0, values)
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.where(axes[largest, [0, 1]] < 0, -1.0, 1.0)
    total = np.maximum(values[::-1], 0.0)
    spectrum = Spectrum(
        total=total[: mixture.dimension] / trace,
        within=np.maximum(np.linalg.eigvalsh(within)[::-1], 0.0) / trace,
        effective=float(total.sum() ** 2 / (total**2).sum()),
        between=float((offsets**2).sum() / trace),
    )
    return Projection(centre, axes, total[:2] / trace), spectrum


def _classes(mixture: Mixture, synthetic: Synthetic) -> tuple[ClassFacts, ...]:
    count, labelled = len(mixture.classes), synthetic.labelled
    right = labelled == synthetic.drawn
    drawn = np.bincount(synthetic.drawn, minlength=count).astype(float)
    drawn[drawn == 0] = math.nan
    entropies = fidelity.entropies(synthetic.probabilities)
    agreement = np.bincount(synthetic.drawn, right, count) / drawn
    entropy = np.bincount(synthetic.drawn, entropies, count) / drawn
    called = np.bincount(labelled, minlength=count) / len(synthetic)
    components = fidelity.effective_numbers(mixture.weights)
    assert mixture.class_rows is not None
    columns = (mixture.class_weights, mixture.class_rows, components, agreement, entropy, called)
    return tuple(
        ClassFacts(label, *map(float, figures))
        for label, *figures in zip(mixture.classes, *columns, strict=True)
    )
