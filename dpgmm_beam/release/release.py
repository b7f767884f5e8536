"""A release as a value: fitted to arrays or loaded from a folder, sampled from, saved.

scikit-learn's words are used where they mean the same: `fit`, `sample`, `score_samples`, `predict`,
`predict_proba`, `n_components`.  `fit` belongs to the class since `dpgmm_beam.fit` is the package
of the steps of a fit.
"""

import dataclasses
import functools
import io
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.data import arrays
from dpgmm_beam.data.digest import digest_of_limbs
from dpgmm_beam.data.rows import Rows, SetAside
from dpgmm_beam.data.schema import COMPONENT, COMPONENT_CLASS, EMBEDDING, LABEL, PROBABILITIES
from dpgmm_beam.data.units import IdHasher, UnitKeys, bounded, digest_limbs_of, joined, smallest
from dpgmm_beam.decoders.picture_map import PictureMap
from dpgmm_beam.defaults import LABELS
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit import unit_bound
from dpgmm_beam.fit.chain import row_hash_key
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.mixture import Mixture, Sample, Sampler, matrix_of
from dpgmm_beam.privacy.allocation import with_shares
from dpgmm_beam.privacy.noise import KEY_BYTES, NoiseKey
from dpgmm_beam.release import manifest
from dpgmm_beam.release.arguments import bound_of, check_key, check_seed, number, whole
from dpgmm_beam.release.folder import CheckedFiles, read_file, save_files
from dpgmm_beam.release.in_memory import release_in_memory
from dpgmm_beam.release.labels import Labeller
from dpgmm_beam.release.loading import read_mixture
from dpgmm_beam.release.row_statement import RowStatement
from dpgmm_beam.release.synthesis import Parts, draw_part, generator_of_seed

BLOCK_ROWS, MOST_THREADS = 512, 8

ONLY_CLASS = "all"
"""Label of the one class of rows without labels."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Release:
    """A differentially private release: mixture, teacher, synthetic rows and manifest.

    Everything in it is public: a function of noisy sums, of the configuration and of fresh randomness.

    Attributes:
      manifest: content of manifest.json.
      read: the bytes of a file of the release by its path.

    >>> generator = np.random.default_rng(0)
    >>> y = np.array(["cat", "dog"])[generator.integers(0, 2, 2000)]
    >>> X = generator.normal(size=(2000, 8)) + 3 * (y == "cat")[:, None]
    >>> release = Release.fit(X, y, classes=("cat", "dog"), epsilon=1.0, delta=1e-6, samples_per_class=10)
    >>> release
    Release(classes=2, dimension=8, n_components=auto, epsilon=1, delta=1e-06)
    >>> rows = release.sample(100, seed=1)
    >>> rows.embeddings.shape, rows.labels.shape, rows.label_probabilities.shape
    ((100, 8), (100,), (100, 2))
    >>> release.score_samples(X[:3]).shape
    (3,)
    """

    manifest: dict[str, Any]
    read: Callable[[str], bytes]

    @classmethod
    def fit(
        cls,
        embeddings: Any,
        labels: Any = None,
        *,
        epsilon: float,
        delta: float,
        classes: Sequence[str] | None = None,
        key: bytes | NoiseKey | None = None,
        release_id: str | None = None,
        n_components: int | None = ReleaseConfig.components,
        samples_per_class: int = ReleaseConfig.samples_per_class,
        encoder: str = "precomputed",
        dimension: int | None = None,
        clip_norm: float | None = None,
        rounds: int | None = None,
        favor: str = LABELS,
        shares: Mapping[str, float] | None = None,
        method: Method | None = None,
        units: Any = None,
        max_rows_per_unit: int | str | None = None,
        adjacency: str = ReleaseConfig.adjacency,
        slice: str | None = None,
        decodable: str | None = None,
        pictures: Any = None,
        report: Callable[[SetAside], object] | None = None,
        threads: int = 0,
    ) -> "Release":
        """Fits a release to rows in memory; bit for bit the files of `dpgmm release` on the same rows.

        Each call with a key of its own spends (epsilon, delta) once more on these rows.

        Args:
          embeddings: (n, d) of numbers: an array, a data frame, a tensor; or a column of lists, by Arrow or
            as objects.
          labels: (n,) of strings or integers; None: the rows are one class.
          epsilon, delta: the budget, for adding or removing one row (or see `units`, `adjacency`).
          classes: the labels that the release has, in their order.  They are declared and never taken from
            `labels`: a class that one row brings about would tell that the row is there.  Rows of other
            labels are set aside.  Integers are compared by their decimal form: 7 is "7".  May be left out
            only without labels.
          key: 32 secret bytes, with a release_id that names this one draw, ever (nothing here keeps a
            register of ids, as the private folder of `dpgmm release` does).  None: a key and an id are
            drawn and the key is dropped, so that nobody can derive the release again.
          release_id: the public name of the release.
          n_components: Gaussians a class; None: as many as its noisy size allows.
          samples_per_class: synthetic rows of each class that `save` writes, kept in memory until then;
            `sample` draws as many as one likes.
          encoder: public name of what made the embeddings.
          dimension: length of an embedding; needed only where lists have several.
          clip_norm: clip embeddings to it; None: they are normalised to 1.
          rounds: of clustering, when there are several components.
          favor: "labels" or "rows", what the budget is for where they pull at it.
          shares: parts of the budget by mechanism (docs/privacy.md); others stay as they are.
          method: constants of the fit.
          units: (n,) of strings, bytes or integers: whose row each is.  The privacy unit is then all rows of
            one id; rows without one are set aside.  None: it is a row.
          max_rows_per_unit: how many rows of a unit count, over all classes; noise is so many times as large.
            "auto": as a noisy histogram says, for which the budget pays (`fit.unit_bound`).
          adjacency: what epsilon is for, "add_remove" or "replace_one" unit.
          slice: "K/N": only the units of the K-th of N parts, into which ids fall by their hashes.
          decodable: SIDE or SIDE:rgb: the release learns to make pictures of embeddings, SIDE pixels wide
            (`picture_map`, and `dpgmm decode --decoder private_linear`), for a tenth of the budget.
          pictures: the picture of each row, with `decodable`: (n, h, w) or (n, h, w, 3) uint8, or n of such
            pictures or PIL's, of any sizes; rows whose picture is None are set aside.
          report: called with how many rows were set aside and why: exact, and as private as the rows.
          threads: that fit side by side; 0: as many as cores, and 8 at most.  They change only the speed.

        Raises:
          ConfigError: naming the argument; nothing that is told depends on the values of rows.
        """
        check_key(key, release_id)
        if not 0 <= whole("threads", threads) <= 256:
            raise ConfigError("threads", threads, "be a whole number from 0 to 256")
        if classes is None:
            if labels is not None:
                raise ConfigError(
                    "classes", None, "be declared: classes that are learnt from labels tell of single rows"
                )
            classes = (ONLY_CLASS,)
        elif isinstance(classes, str):
            raise ConfigError("classes", classes, "be a list of labels")
        column = arrays.embedding_column(embeddings)
        config = ReleaseConfig(
            encoder=encoder,
            classes=tuple(map(str, classes)),
            dimension=arrays.dimension_of(column) if dimension is None else whole("dimension", dimension),
            epsilon=number("epsilon", epsilon),
            delta=number("delta", delta),
            clip_norm=None if clip_norm is None else number("clip_norm", clip_norm),
            labelled=labels is not None,
            samples_per_class=whole("samples_per_class", samples_per_class),
            components=None if n_components is None else whole("n_components", n_components),
            rounds=None if rounds is None else whole("rounds", rounds),
            shares=with_shares(
                [f"{name}={share}" for name, share in (shares or {}).items()],
                favor,
                decodable is not None,
            ),
            method=method or Method(),
            **bound_of(max_rows_per_unit),
            adjacency=adjacency,
            slice=slice,
            decodable=decodable,
        )
        if (units is None) != (max_rows_per_unit is None):
            raise ConfigError(
                "max_rows_per_unit", max_rows_per_unit, "come together with units, the ids of its rows"
            )
        if (pictures is None) != (decodable is None):
            raise ConfigError("decodable", decodable, "come together with pictures, one for each row")
        form = config.picture_form
        plan = Plan(config, release_id or secrets.token_hex(16))
        batch = arrays.batch_of(
            column,
            None if labels is None else arrays.label_column(labels),
            None if units is None else arrays.unit_column(units),
            None if form is None else arrays.picture_column(pictures, form),
        )
        secret = key if isinstance(key, NoiseKey) else NoiseKey(key or secrets.token_bytes(KEY_BYTES))
        rows, left_out, plan = _accepted(batch, plan, secret)
        if report is not None:
            report(left_out)
        files = release_in_memory(
            plan,
            lambda: (block for each in rows for block in each.blocks(BLOCK_ROWS)),
            secret,
            threads or min(MOST_THREADS, os.cpu_count() or 1),
        )
        return cls(json.loads(files[manifest.FILE_NAME]), files.__getitem__)

    @classmethod
    def of(cls, read: Callable[[str], bytes], where: str) -> "Release":
        """The release whose files a function reads; each is checked against its digest when it is read.

        Args:
          read: the bytes of a file by its path in the release.
          where: names the release in errors.

        Raises:
          ConfigError: there is no release of this version.
        """
        try:
            data = read(manifest.FILE_NAME)
        except OSError:
            raise ConfigError("release", where, f"be a folder with a {manifest.FILE_NAME}") from None
        content = manifest.parse(data, where)
        plan = manifest.plan_of(content)
        try:
            digests = {str(file["path"]): file["sha256"] for file in content["files"]}
        except (KeyError, TypeError):
            digests = {}
        # Else a manifest could name any file of this machine.
        if digests.keys() != manifest.files_of(plan.config).keys():
            raise ConfigError("release", where, f"hold a {manifest.FILE_NAME} with the files of a release")

        return cls(content, CheckedFiles(read, digests, where))

    def __repr__(self) -> str:
        config = self.config
        count = "auto" if config.components is None else config.components
        return (
            f"Release(classes={len(config.classes)}, dimension={config.dimension},"
            f" n_components={count}, epsilon={config.epsilon:g}, delta={config.delta:g})"
        )

    @functools.cached_property
    def config(self) -> ReleaseConfig:
        """The public configuration."""
        return manifest.plan_of(self.manifest).config

    @property
    def release_id(self) -> str:
        """The public name of the release."""
        return self.manifest["release_id"]

    @property
    def privacy(self) -> dict[str, Any]:
        """What the manifest states: epsilon, delta, adjacency, privacy_unit, mechanisms, dp_event."""
        return self.manifest["privacy"]

    @property
    def classes(self) -> tuple[str, ...]:
        """The declared labels, in the order of probabilities."""
        return self.config.classes

    @property
    def n_components(self) -> int:
        """Gaussians of a class, of the one that has most."""
        return self.mixture.weights.shape[1]

    @functools.cached_property
    def mixture(self) -> Mixture:
        """The released mixture, with its teacher and the noisy sizes of its classes."""
        try:
            return read_mixture(lambda name: self.read(f"{manifest.MIXTURE}/{name}"))
        except ConfigError:
            raise
        except (pa.ArrowException, AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise ConfigError(
                "release", self.release_id, "hold a mixture that rows can be drawn from"
            ) from None

    @property
    def labeller(self) -> Labeller:
        """The teacher that gives probabilities of classes."""
        found = self.mixture.labeller
        assert isinstance(found, Labeller)
        return found

    @functools.cached_property
    def picture_map(self) -> PictureMap | None:
        """What it says of pictures of embeddings; None unless it is decodable.

        Raises:
          ConfigError: its files hold something else.
        """
        config = self.config
        if config.decodable is None:
            return None
        try:
            found = PictureMap.load(lambda name: self.read(f"{manifest.MIXTURE}/{name}"))
            if found.fits(config.picture_form, config.classes, config.dimension):
                return found
        except ConfigError:
            raise
        except (pa.ArrowException, AttributeError, IndexError, KeyError, TypeError, ValueError):
            pass
        raise ConfigError("release", self.release_id, "hold what makes pictures of its embeddings")

    @functools.cached_property
    def _sampler(self) -> Sampler:
        return Sampler(self.mixture)

    def parts(self, n: int) -> Parts:
        """How n rows are cut into the parts that `table` draws.

        Raises:
          ConfigError: n is not from 1 to 2**31.
        """
        n = whole("rows", n)
        if not 1 <= n <= 2**31:
            raise ConfigError("rows", n, f"be a whole number from 1 to {2**31}")
        return Parts(len(self.classes), n)

    def table(self, n: int, part: int, seed: int) -> pa.Table:
        """One part of the n rows of a seed, with the columns of a release's synthetic files.

        The parts one after another are the rows of `dpgmm sample --rows n --seed seed`.
        """
        with one_thread():
            generator = generator_of_seed(seed, part)
            statement = RowStatement.of(self.config, self.release_id, self.mixture, seed)
            data = draw_part(self.parts(n), part, self._sampler, self.labeller, generator, statement)
        return pq.read_table(io.BytesIO(data))

    def sample(self, n: int = 1, seed: int | None = None) -> Sample:
        """Draws n labelled rows, the classes in turns; costs nothing in privacy, however often.

        Args:
          n: how many.
          seed: 0 to 2**64 - 1; the same gives the same rows, those of `dpgmm sample`.  None: it is drawn.

        Raises:
          ConfigError: n or seed is out of its range.
        """
        seed = check_seed(seed)
        tables = [self.table(n, part, seed) for part in range(len(self.parts(n)))]
        # Each states which part it is.
        table = pa.concat_tables(each.replace_schema_metadata() for each in tables)
        return Sample(
            embeddings=matrix_of(table.column(EMBEDDING)),
            component_class=np.array(table.column(COMPONENT_CLASS).to_pylist(), object),
            component=table.column(COMPONENT).to_numpy(),
            label_probabilities=matrix_of(table.column(PROBABILITIES)),
            labels=np.array(table.column(LABEL).to_pylist(), object),
        )

    def score_samples(self, embeddings: Any) -> np.ndarray:
        """Log density of embeddings under the mixture, (n, d) -> (n,).

        Embeddings are brought to norm 1, or clipped, as those that were fitted.

        Raises:
          ConfigError: they have another dimension.
        """
        rows = _matrix(embeddings)
        norms = np.sqrt((rows**2).sum(axis=1, keepdims=True))
        clip_norm = self.config.clip_norm
        with np.errstate(divide="ignore", invalid="ignore"):
            rows = rows / norms if clip_norm is None else rows / np.maximum(1.0, norms / clip_norm)
        return self.mixture.log_prob(rows)

    def predict_proba(self, embeddings: Any) -> np.ndarray:
        """The teacher's class probabilities, (n, d) -> (n, C) float32, in the order of `classes`.

        Raises:
          ConfigError: embeddings have another dimension.
        """
        rows = _matrix(embeddings)
        if rows.shape[1] != self.config.dimension:
            wanted = f"have shape (n, {self.config.dimension})"
            raise ConfigError("embeddings", f"an array of shape {rows.shape}", wanted)
        return self.labeller.probabilities(rows)

    def predict(self, embeddings: Any) -> np.ndarray:
        """The class that the teacher takes for the likeliest, (n, d) -> (n,) of text."""
        return np.array(self.classes, object)[self.predict_proba(embeddings).argmax(axis=1)]

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the release into a new or empty local folder, which appears whole or not at all.

        It is the folder that `dpgmm release` makes, for `dpgmm verify`, `train`, `sample` and `load_release`.

        Raises:
          ConfigError: something is in the folder already.
          OSError: it cannot be written.
        """
        paths = *sorted(file["path"] for file in self.manifest["files"]), manifest.FILE_NAME
        save_files(folder, paths, self.read)


def load_release(folder: str | os.PathLike) -> Release:
    """Loads a release that `dpgmm release` or `Release.save` has written.

    Its files are read when they are first needed, and each is checked against the manifest then.

    Args:
      folder: of the release, on a local file system.

    Raises:
      ConfigError: it holds no release of this version, or a file is not as the manifest says.

    >>> import tempfile
    >>> release = Release.fit(np.eye(4), epsilon=1.0, delta=1e-5, samples_per_class=3, n_components=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     release.save(folder)
    ...     load_release(folder).sample(2, seed=1).labels.tolist()
    ['all', 'all']
    """
    return Release.of(functools.partial(read_file, str(folder)), str(folder))


def _matrix(embeddings: Any) -> np.ndarray:
    column = arrays.embedding_column(embeddings)
    return column.flatten().to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(column), -1)


def _accepted(batch: pa.RecordBatch, plan: Plan, secret: NoiseKey) -> tuple[list[Rows], SetAside, Plan]:
    """The rows that count, in blocks, how many were set aside, and the plan with the bound that was found."""
    config, unit_keys = plan.config, UnitKeys.of(secret)
    most = config.max_rows_per_unit
    hash_ids = None if most is None else IdHasher(unit_keys, config.slice)
    rows, left_out = [], SetAside()
    for block, aside in arrays.accepted(batch, config.row_format, hash_ids):
        rows.append(block)
        left_out += aside
    if most is None:
        return rows, left_out, plan
    if config.bound_found:
        table = smallest(joined(rows, unit_keys), most)
        digest = digest_of_limbs(digest_limbs_of(table, row_hash_key(secret)))
        most = unit_bound.find(plan, unit_bound.histogram(table["unit"]), digest, secret)
        plan = Plan(dataclasses.replace(config, max_rows_per_unit=most), plan.release_id)
    accepted = sum(map(len, rows))
    rows = bounded(rows, most, unit_keys)
    return rows, left_out + SetAside(bound=accepted - sum(map(len, rows))), plan
