"""The released mixture: per class a Gaussian mixture with structured covariances.

The covariance of component k of class c is

    Sigma_ck = B blockdiag(S_ck, I) B^T

where the basis B (d x d) is shared by all and S_ck (r x r, r <= d) acts on the
first r coordinates of the basis.  So a component costs d + r (r + 1) / 2
numbers, and every covariance is positive definite.

On disk (`save`, `load`): `components.parquet` with columns class, class_weight,
component, weight, mean (d doubles) and covariance (the packed upper triangle
of S_ck, row by row), and `basis.parquet` with the d rows of B.
"""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.privacy import lattice

COMPONENTS_FILE, BASIS_FILE = "components.parquet", "basis.parquet"
_ROWS_AT_ONCE = 1024


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
      weights: (C, K) weights of the components within their class.
      means: (C, K, d).
      covariances: (C, K, r, r), the S_ck above.
      basis: (d, d), the B above, invertible.
      normalized: whether the real rows have norm 1, and so must the sampled.
      clip_norm: norm of the longest real row.
    """

    classes: tuple[str, ...]
    class_weights: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    basis: np.ndarray
    normalized: bool = True
    clip_norm: float = 1.0

    @property
    def dimension(self) -> int:
        return self.means.shape[2]

    def __getitem__(self, label: str) -> "Mixture":
        """The mixture of one class."""
        position = self.classes.index(label)
        one = slice(position, position + 1)
        return dataclasses.replace(
            self,
            classes=(label,),
            class_weights=np.ones(1),
            weights=self.weights[one],
            means=self.means[one],
            covariances=self.covariances[one],
        )

    def sample(self, n: int, seed: int | np.random.Generator | None = None) -> np.ndarray:
        """Draws n embeddings, (n, d) float32, classes by their weights."""
        return self.sample_labelled(n, seed)[0]

    def sample_labelled(
        self, n: int, seed: int | np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws n embeddings and their class indices, (n, d) float32 and (n,) int."""
        generator = np.random.default_rng(seed)
        classes = generator.choice(len(self.classes), size=n, p=self.class_weights)
        return Sampler(self).draw(classes, generator), classes

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
        count, components = self.weights.shape
        r = self.covariances.shape[2]
        labels = [label for label in self.classes for _ in range(components)]
        packed = np.stack([lattice.pack_triangle(s) for s in self.covariances.reshape(-1, r, r)])
        table = pa.table(
            {
                "class": pa.array(labels, pa.string()),
                "class_weight": pa.array(np.repeat(self.class_weights, components), pa.float64()),
                "component": pa.array(np.tile(np.arange(components), count), pa.int32()),
                "weight": pa.array(self.weights.ravel(), pa.float64()),
                "mean": fixed_size_list(self.means.reshape(-1, self.dimension)),
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
        shape = (len(classes), len(table) // len(classes))
        covariances = np.stack(
            [lattice.unpack_triangle(row) for row in matrix_of(table.column("covariance"))]
        )
        return Mixture(
            classes=classes,
            class_weights=table.column("class_weight").to_numpy()[:: shape[1]].copy(),
            weights=table.column("weight").to_numpy().reshape(shape).copy(),
            means=matrix_of(table.column("mean")).reshape(*shape, -1),
            covariances=covariances.reshape(*shape, *covariances.shape[1:]),
            basis=matrix_of(pq.read_table(io.BytesIO(read(BASIS_FILE))).column("row")),
            normalized=about["normalized"],
            clip_norm=about["clip_norm"],
        )


def load_mixture(folder: str) -> Mixture:
    """Loads the mixture of a release.

    Args:
      folder: a release, or its `mixture` folder, on a local file system.

    >>> import tempfile
    >>> from dpgmm_beam import Release
    >>> release = Release.fit(np.eye(4), epsilon=1.0, delta=1e-5, samples_per_class=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     release.save(folder)
    ...     load_mixture(folder).classes
    ('all',)
    """
    return Mixture.load(reader_of(folder))


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
        return np.concatenate(
            [
                self._draw(classes[start : start + _ROWS_AT_ONCE], generator)
                for start in range(0, max(len(classes), 1), _ROWS_AT_ONCE)
            ]
        )

    def _draw(self, classes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
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
        return (rows / np.maximum(norms, shortest) * mixture.clip_norm).astype(np.float32)
