"""The released mixture: per class a Gaussian mixture with structured covariances.

The covariance of component k of class c is

    Sigma_ck = B blockdiag(S_ck, I) B^T

where the basis B (d x d) is shared by all and S_ck (r x r, r <= d) acts on the
first r coordinates of the basis.  So a component costs d + r (r + 1) / 2
numbers, and every covariance is positive definite.

On disk (`save`, `load`): `components.parquet` with columns class, class_weight,
component, weight, mean (d doubles) and covariance (the packed upper triangle
of S_ck, row by row), and `basis.parquet` with the d rows of B.  Components that a class
does not have, of weight 0, have no row.
"""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.privacy import lattice

COMPONENTS_FILE, BASIS_FILE = "components.parquet", "basis.parquet"
_ROWS_AT_ONCE = 1024


class Teacher(Protocol):
    """What tells the classes of embeddings; `release.labels.Labeller` is one.

    Attributes:
      classes: C labels.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """Class probabilities, (n, d) -> (n, C) float32."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Rows that were drawn from a mixture.

    Where numpy takes an array this stands for its embeddings, so that
    `mixture.log_prob(mixture.sample(10))` is what it looks like.

    Attributes:
      embeddings: (n, d) float32.
      component_class: (n,) the class in whose mixture each row was drawn.  At a small
        epsilon, or with few data, classes overlap: it is no label.
      component: (n,) int32, which component of that class it was drawn in.
      label_probabilities: (n, C) float32, the teacher's, in the order of all classes of
        the release; None where the mixture has no teacher.
      labels: (n,) the teacher's likeliest class of each row; None without a teacher.

    >>> drawn = Sample(np.ones((2, 3), np.float32), np.array(["cat", "dog"]), np.zeros(2, np.int32))
    >>> len(drawn), np.asarray(drawn).shape
    (2, (2, 3))
    """

    embeddings: np.ndarray
    component_class: np.ndarray
    component: np.ndarray
    label_probabilities: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.embeddings, dtype=dtype, copy=copy)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussian mixtures, one for each class.

    >>> weights, means = np.ones((2, 1)), np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> covariances = np.full((2, 1, 2, 2), np.eye(2))
    >>> mixture = Mixture(("cat", "dog"), np.full(2, 0.5), weights, means, covariances, basis=np.eye(2))
    >>> np.asarray(mixture.sample(3, seed=1)).shape
    (3, 2)
    >>> mixture["cat"].log_prob([[1.0, 0.0]]).round(3)
    array([-1.838])

    Attributes:
      classes: C labels.
      class_weights: (C,) shares of the classes, summing to 1.
      weights: (C, K) weights of the components within their class; 0 of those that it does not have.
      means: (C, K, d).
      covariances: (C, K, r, r), the S_ck above.
      basis: (d, d), the B above, invertible.
      normalized: whether the real rows have norm 1, and so must the sampled.
      clip_norm: norm of the longest real row.
      class_rows: (C,) float64, the noisy number of rows of each class, as the mechanism
        gave it: it may be below 0.  None unless the mixture is a release's.
      class_rows_stddev: of that noise, before it was rounded to whole rows.
      labeller: the release's teacher; None unless the mixture is a release's.
    """

    classes: tuple[str, ...]
    class_weights: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    basis: np.ndarray
    normalized: bool = True
    clip_norm: float = 1.0
    class_rows: np.ndarray | None = None
    class_rows_stddev: float | None = None
    labeller: Teacher | None = None

    @property
    def dimension(self) -> int:
        return self.means.shape[2]

    def __getitem__(self, label: str) -> "Mixture":
        """The mixture of one class, with the teacher of all."""
        position = self.classes.index(label)
        one = slice(position, position + 1)
        return dataclasses.replace(
            self,
            classes=(label,),
            class_weights=np.ones(1),
            weights=self.weights[one],
            means=self.means[one],
            covariances=self.covariances[one],
            class_rows=None if self.class_rows is None else self.class_rows[one],
        )

    def sample(self, n: int, seed: int | np.random.Generator | None = None) -> Sample:
        """Draws n rows, classes by their weights, and labels them as the release does.

        Costs nothing in privacy, however often and however many.
        """
        generator = np.random.default_rng(seed)
        classes = generator.choice(len(self.classes), size=n, p=self.class_weights)
        embeddings, components = Sampler(self).draw_with_components(classes, generator)
        probabilities = labels = None
        if self.labeller is not None:
            probabilities = self.labeller.probabilities(embeddings)
            labels = np.array(self.labeller.classes, object)[probabilities.argmax(axis=1)]
        return Sample(embeddings, np.array(self.classes, object)[classes], components, probabilities, labels)

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Log density of each row under the whole mixture, (n, d) -> (n,).

        The density is that of the Gaussians in the embedding space, before a
        sample is brought back to norm 1.
        """
        from scipy.special import logsumexp

        joint = self.log_prob_by_class(rows) + np.log(self.class_weights)
        return logsumexp(joint, axis=1)

    def log_prob_by_class(self, rows: np.ndarray) -> np.ndarray:
        """Log density of each row under each class's mixture, (n, d) -> (n, C)."""
        # Slow to import, and of no use to those who fit or sample.
        from scipy.linalg import solve_triangular
        from scipy.special import logsumexp

        rows = np.asarray(rows, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.dimension:
            raise ConfigError("rows", f"an array of shape {rows.shape}", f"have shape (n, {self.dimension})")
        inverse = np.linalg.inv(self.basis)
        r = self.covariances.shape[2]
        _, log_basis = np.linalg.slogdet(self.basis)
        whitened = rows @ inverse.T
        result = np.empty((len(rows), len(self.classes)))
        for c in range(len(self.classes)):
            logs = np.empty((len(rows), self.weights.shape[1]))
            for k in range(self.weights.shape[1]):
                offset = whitened - inverse @ self.means[c, k]
                factor = np.linalg.cholesky(self.covariances[c, k])
                top = solve_triangular(factor, offset[:, :r].T, lower=True)
                squares = (top**2).sum(axis=0) + (offset[:, r:] ** 2).sum(axis=1)
                log_scale = (
                    log_basis + np.log(np.diag(factor)).sum() + 0.5 * self.dimension * np.log(2 * np.pi)
                )
                with np.errstate(divide="ignore"):
                    logs[:, k] = np.log(self.weights[c, k]) - 0.5 * squares - log_scale
            result[:, c] = logsumexp(logs, axis=1)
        return result

    def save(self, write: Callable[[str, bytes, int], None]) -> None:
        """Writes the mixture's files; the same mixture gives the same bytes.

        Args:
          write: called with a file's name, bytes and number of rows.
        """
        of, component = np.nonzero(self.weights > 0)
        packed = np.stack([lattice.pack_triangle(each) for each in self.covariances[of, component]])
        table = pa.table(
            {
                "class": pa.array([self.classes[label] for label in of], pa.string()),
                "class_weight": pa.array(self.class_weights[of], pa.float64()),
                "component": pa.array(component, pa.int32()),
                "weight": pa.array(self.weights[of, component], pa.float64()),
                "mean": fixed_size_list(self.means[of, component]),
                "covariance": fixed_size_list(packed),
            }
        )
        about = {"normalized": self.normalized, "clip_norm": self.clip_norm, "classes": list(self.classes)}
        table = table.replace_schema_metadata({"dpgmm.mixture": json.dumps(about)})
        write(COMPONENTS_FILE, parquet_bytes(table), len(table))
        write(BASIS_FILE, parquet_bytes(pa.table({"row": fixed_size_list(self.basis)})), self.dimension)

    @staticmethod
    def load(read: Callable[[str], bytes]) -> "Mixture":
        """The mixture that `save` wrote.

        Args:
          read: the bytes of a file by its name.
        """
        table = pq.read_table(io.BytesIO(read(COMPONENTS_FILE)))
        about = json.loads(table.schema.metadata[b"dpgmm.mixture"])
        classes = tuple(about["classes"])
        positions = {label: position for position, label in enumerate(classes)}
        of = np.array([positions[label] for label in table.column("class").to_pylist()])
        component = table.column("component").to_numpy()
        shape = (len(classes), int(component.max()) + 1)
        # What a class does not have lies on its first.
        rows = np.repeat(np.searchsorted(of, np.arange(len(classes)))[:, None], shape[1], axis=1)
        rows[of, component] = np.arange(len(table))
        weights = np.zeros(shape)
        weights[of, component] = table.column("weight").to_numpy()
        covariances = np.stack(
            [lattice.unpack_triangle(row) for row in matrix_of(table.column("covariance"))]
        )
        return Mixture(
            classes=classes,
            class_weights=table.column("class_weight").to_numpy()[rows[:, 0]],
            weights=weights,
            means=matrix_of(table.column("mean"))[rows],
            covariances=covariances[rows],
            basis=matrix_of(pq.read_table(io.BytesIO(read(BASIS_FILE))).column("row")),
            normalized=about["normalized"],
            clip_norm=about["clip_norm"],
        )


def reader_of(folder: str) -> Callable[[str], bytes]:
    """What reads files of a release's mixture, from the release or its `mixture` folder, by their names."""
    path = Path(folder)
    if (path / "mixture").is_dir():
        path = path / "mixture"
    return lambda name: (path / name).read_bytes()


def fixed_size_list(matrix: np.ndarray) -> pa.FixedSizeListArray:
    """The rows of a matrix (n, d) as an Arrow array."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])


def matrix_of(column: pa.ChunkedArray) -> np.ndarray:
    """The inverse of `fixed_size_list`."""
    values = column.combine_chunks()
    return values.flatten().to_numpy().reshape(len(column), -1)


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file; the same table gives the same bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", row_group_size=4096)
    return sink.getvalue()


# The lattices of exact sampling: a standard normal deviate, a Cholesky factor,
# the basis and a mean.  With d <= 8192 and factors of norm under 2**6, every
# inner product stays under 2**53 (checked in Sampler).
_DEVIATE_BITS, _FACTOR_BITS, _BASIS_BITS = 12, 14, 20


class Sampler:
    """Draws rows of a mixture by exact integer products.

    The products are exact, so the rows do not depend on how many threads the
    linear algebra uses nor on how draws are batched, only on the generator.
    """

    def __init__(self, mixture: Mixture):
        self.mixture = mixture
        with one_thread():
            factors = np.linalg.cholesky(mixture.covariances)
        self._factors = lattice.to_lattice(factors, _FACTOR_BITS)
        self._basis = lattice.to_lattice(mixture.basis / mixture.clip_norm, _BASIS_BITS)
        self._means = lattice.to_lattice(mixture.means / mixture.clip_norm, _BASIS_BITS)
        self._cumulative = np.cumsum(mixture.weights, axis=1)
        # Deviates are under 2**(4 + 12); each product is rescaled to 12 bits.
        longest = np.sqrt(mixture.dimension) * 2.0 ** (4 + _DEVIATE_BITS)
        factor_norm = np.sqrt((self._factors**2).sum(axis=-1)).max()
        lattice.check_exact(longest, factor_norm)
        stretched = longest * max(1.0, factor_norm * 2.0**-_FACTOR_BITS)
        lattice.check_exact(stretched, np.sqrt((self._basis**2).sum(axis=1)).max())

    def draw(self, classes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """One row for each class index, (n,) -> (n, d) float32."""
        return self.draw_with_components(classes, generator)[0]

    def draw_with_components(
        self, classes: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """One row for each class index, and which component of its class it is of.

        Returns:
          (n, d) float32 and (n,) int32.
        """
        drawn = [
            self._draw(classes[start : start + _ROWS_AT_ONCE], generator)
            for start in range(0, max(len(classes), 1), _ROWS_AT_ONCE)
        ]
        rows, components = zip(*drawn, strict=True)
        return np.concatenate(rows), np.concatenate(components)

    def _draw(self, classes: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        mixture = self.mixture
        r = mixture.covariances.shape[2]
        uniforms = generator.random(len(classes))
        components = (uniforms[:, None] * self._cumulative[classes, -1:] >= self._cumulative[classes]).sum(
            axis=1
        )
        components = np.minimum(components, mixture.weights.shape[1] - 1)
        deviates = np.rint(generator.standard_normal((len(classes), mixture.dimension)) * 2.0**_DEVIATE_BITS)
        pairs = classes * mixture.weights.shape[1] + components
        for pair in np.unique(pairs):
            chosen = pairs == pair
            factor = self._factors.reshape(-1, r, r)[pair]
            deviates[chosen, :r] = np.rint(deviates[chosen, :r] @ factor.T * 2.0**-_FACTOR_BITS)
        residuals = np.rint(deviates @ self._basis.T * 2.0**-_DEVIATE_BITS)
        rows = residuals + self._means[classes, components]
        norms = np.sqrt(lattice.square_norms(rows))[:, None]
        shortest = 1.0 if mixture.normalized else 2.0**_BASIS_BITS
        scaled = (rows / np.maximum(norms, shortest) * mixture.clip_norm).astype(np.float32)
        return scaled, components.astype(np.int32)
