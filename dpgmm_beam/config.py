"""The public configuration of a release: everything on which its bytes depend but data and key.

What only changes speed (block sizes, caches, workers) is not here, and neither
are paths.  Defaults come from theory or from public data, never from the data
to be released; docs/method.md gives the reasons.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpgmm_beam.data.rows import RowFormat, normal_form
from dpgmm_beam.data.units import Slice
from dpgmm_beam.defaults import ROUNDS, SAMPLES_PER_CLASS, UNUSED_ROUNDS
from dpgmm_beam.encoders import dct
from dpgmm_beam.errors import ConfigError, printable
from dpgmm_beam.privacy import accounting, lattice
from dpgmm_beam.privacy.allocation import SHARES, check_share
from dpgmm_beam.privacy.neighbours import ADD_REMOVE, MAX_FOUND, Neighbours

# Beyond these a job takes many GiB in one place, or many minutes before it reads the first row.
MAX_CLASSES = 2**13
"""A file of synthetic rows has a row of each class, and each row a probability of each class."""

MAX_LABEL = 1024
"""Characters of a label."""

MAX_COMPONENTS, MAX_ROUNDS = 2**10, 200

AUTO_COMPONENTS, AUTO_GAUSSIANS = 40, 2**12
"""Components of a class at most, and of all classes together, where their number is not given."""

MAX_SHAPES = 2**22
"""Values in the covariances of all classes together."""

MAX_GAUSSIANS = 2**14
"""Components of all classes together: each has a covariance of 64 x 64."""

MAX_VALUES = 2**24
"""Values in all means together: what a stage sums, many times in memory."""

MAX_SAMPLES = 2**28
"""Synthetic rows of all classes together: some 30,000 files, each of which the manifest names."""


PICTURE_SUBSPACE_DIM = 256
"""Directions of pictures with shapes of their own, where rows are enough: `Method.subspace_dim` elsewhere."""

_WIRE_NAMES = {"subspace_dim": "reduced"}
"""What digests and manifests call a field, where it has been renamed since."""


@dataclasses.dataclass(frozen=True)
class Method:
    """Constants of the fit.

    >>> Method(teacher_steps=10).to_dict()["teacher_steps"]
    10

    Attributes:
      residual_radius: clipping radius of a row round its class's mean, over the
        root mean squared residual.
      subspace_dim: directions in which components are found (`reduced` in a manifest, where names stay).
      damping: of the feature whitening, as a share of the largest eigenvalue
        of the covariance's noise where variances are mean ones.
      teacher_steps: gradient steps of the labelling teacher, after the pass that finds its start; 0: none.
      teacher_clip: clipping norm of a row's gradient, which is at most sqrt 2.
      teacher_rate: step size, in units of the whitened rows' squared norm.
      teacher_noise_cap: the most by which one step's noise may move a logit.
      teacher_momentum: of the steps.
      teacher_ridges: ridge functions that the teacher sees beside a row, in a release of several components.
      picture_side: embeddings are cosine coefficients of pictures so many pixels wide and high (encoder
        dct:SIDE); 0: they are not.  What is alike for frequencies alike is then pooled over them.
    """

    residual_radius: float = 0.7
    subspace_dim: int = 96
    damping: float = 0.3
    teacher_steps: int = 19
    teacher_clip: float = 0.25
    teacher_rate: float = 3.0
    teacher_noise_cap: float = 0.05
    teacher_momentum: float = 0.9
    teacher_ridges: int = 256
    picture_side: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the manifest and the digest."""
        values = {_WIRE_NAMES.get(name, name): value for name, value in dataclasses.asdict(self).items()}
        if not self.picture_side:
            # Releases of anything else are described, and draw their noise, as before there were pictures.
            del values["picture_side"]
        return values

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Method":
        """The inverse of `to_dict`."""
        names = {wire: name for name, wire in _WIRE_NAMES.items()}
        return Method(**{names.get(name, name): value for name, value in data.items()})


@dataclasses.dataclass(frozen=True)
class ReleaseConfig:
    """A release, but for the data and the key.

    Attributes:
      encoder: spec of the encoder that made the embeddings.
      classes: the declared labels; at least one, distinct.
      dimension: length of an embedding.
      epsilon, delta: the budget of the release.
      clip_norm: embeddings are clipped to it; None: normalised to 1, but those of `dct`, whose
        length is a picture's contrast, are clipped to what few pictures exceed.
      labelled: whether the data has labels; if not, there is one class.
      samples_per_class: synthetic rows of each class.
      components: Gaussians a class; None: as many as the noisy number of rows of a class allows, but 1
        with `dct` below epsilon 4: there rounds cost more than they give (docs/method.md).
      rounds: stages of clustering (not used for one component); None: 8, which is
        replaced by the number.
      shares: of 1/z^2 for each mechanism, relative to their sum.
      max_rows_per_unit: rows of a privacy unit (a person, say) that count, over all classes;
        None: a unit is a row.
      adjacency: what neighbouring data sets differ by, "add_remove" or "replace_one".
      bound_found: whether the rows of a unit that count were found from noisy counts (`fit.unit_bound`), for
        which the budget has paid; until they are, `max_rows_per_unit` is the most that they may be.
      slice: K/N, which part of all units is released (`data.units.Slice`); None: all.
      decodable: SIDE or SIDE:rgb, form of the pictures beside the embeddings, where what makes pictures of
        embeddings is released, too (`fit.pictures`); None: it is not.
      method: constants of the fit.

    Raises:
      ConfigError: naming the field.

    >>> config = ReleaseConfig("precomputed", ("cat", "dog"), 512, epsilon=1.0, delta=1e-6)
    >>> config.samples_per_class, config.rounds
    (6000, 8)
    >>> ReleaseConfig("precomputed", ("cat", "cat"), 512, epsilon=1.0, delta=1e-6)
    Traceback (most recent call last):
    ...
    dpgmm_beam.errors.ConfigError: classes=cat,cat is refused: it must be distinct, and 'cat' is there twice.
    """

    encoder: str
    classes: tuple[str, ...]
    dimension: int
    epsilon: float
    delta: float
    clip_norm: float | None = None
    labelled: bool = True
    samples_per_class: int = SAMPLES_PER_CLASS
    components: int | None = None
    rounds: int | None = None
    shares: tuple[tuple[str, float], ...] = SHARES
    max_rows_per_unit: int | None = None
    adjacency: str = ADD_REMOVE
    slice: str | None = None
    bound_found: bool = False
    decodable: str | None = None
    method: Method = Method()

    def __post_init__(self):
        accounting.check_privacy_parameters(self.epsilon, self.delta)
        Neighbours(self.adjacency, self.max_rows_per_unit)
        if self.bound_found and self.max_rows_per_unit is None:
            raise ConfigError("bound_found", True, "come with max_rows_per_unit, which it is about")
        if self.slice is not None:
            Slice.parse(self.slice)
            if self.max_rows_per_unit is None:
                raise ConfigError(
                    "slice",
                    self.slice,
                    "be of privacy units: say whose rows are whose, and max_rows_per_unit",
                )
        check_classes(self.classes)
        lattice.check_dimension(self.dimension)
        if self.encoder.startswith("dct:"):
            self._take_pictures()
        if self.decodable is not None:
            self._check_decodable()
        check_clip_norm(self.clip_norm)
        if not self.labelled and len(self.classes) != 1:
            raise ConfigError("classes", ",".join(self.classes), "be one class, for the data has no labels")
        if self.rounds is None:
            # Resolved here, so that the digest of a release holds a number.
            object.__setattr__(self, "rounds", UNUSED_ROUNDS if self.components == 1 else ROUNDS)
        classes = len(self.classes)
        if classes * self.dimension > MAX_VALUES:
            raise ConfigError(
                "classes",
                f"{classes} classes",
                f"be at most {MAX_VALUES // self.dimension} classes of embeddings of length {self.dimension}",
            )
        gaussians = min(MAX_GAUSSIANS, MAX_VALUES // self.dimension)
        for name, most, reason in (
            ("samples_per_class", MAX_SAMPLES // classes, f" with {classes} classes"),
            ("components", MAX_COMPONENTS, ""),
            (
                "components",
                max(1, gaussians // classes),
                f" with {classes} classes of embeddings of length {self.dimension}",
            ),
            ("rounds", MAX_ROUNDS, ""),
        ):
            if getattr(self, name) is not None and not 1 <= getattr(self, name) <= most:
                raise ConfigError(
                    name,
                    getattr(self, name),
                    f"be a whole number from 1 to {most}{reason}",
                )
        for mechanism, share in self.shares:
            check_share(mechanism, share)

    def _check_decodable(self) -> None:
        check_decodable(self.decodable, self.encoder)
        assert self.picture_form is not None
        most = MAX_VALUES // self.picture_form.dimension
        if len(self.classes) > most:
            raise ConfigError("decodable", self.decodable, f"be of at most {most} classes")

    def _take_pictures(self) -> None:
        """Fills in what follows from embeddings being pictures, so that the digest holds it."""
        argument = self.encoder.partition(":")[2]
        if wrong := dct.validation_error(argument):
            raise ConfigError("encoder", self.encoder, wrong)
        form = dct.PictureForm.of(argument)
        if self.dimension != form.dimension:
            raise ConfigError("dimension", self.dimension, f"be {form.dimension} with {self.encoder}")
        method = dataclasses.replace(self.method, picture_side=form.side)
        if method.subspace_dim == Method.subspace_dim:
            method = dataclasses.replace(method, subspace_dim=PICTURE_SUBSPACE_DIM)
        object.__setattr__(self, "method", method)
        if self.clip_norm is None:
            object.__setattr__(self, "clip_norm", form.usual_norm)

    @property
    def clustering_stages(self) -> int:
        """How many stages find components: `rounds`, but none for a single one."""
        return self.rounds if self.rounds and self.components != 1 else 0

    @property
    def component_room(self) -> int:
        """Room for components of a class: their number, or the most that are found."""
        if self.components is not None:
            return self.components
        values = MAX_VALUES // self.dimension
        return max(1, min(AUTO_COMPONENTS, min(AUTO_GAUSSIANS, values) // len(self.classes)))

    @property
    def subspace_room(self) -> int:
        """Room for directions in which components are found: as many centres may lie at equal distances."""
        return min(max(self.method.subspace_dim, self.components or 1), self.dimension)

    @property
    def shaped_room(self) -> int:
        """Room for directions in which classes and components have shapes of their own."""
        moments = math.isqrt(2 * MAX_SHAPES // len(self.classes))
        covariances = math.isqrt(8 * MAX_SHAPES // (len(self.classes) * self.component_room))
        return max(1, min(self.method.subspace_dim, self.dimension, moments, covariances))

    @property
    def ridges(self) -> int:
        """How many ridge functions the teacher sees: none where there are no components to bend between."""
        return self.method.teacher_ridges if self.clustering_stages and len(self.classes) > 1 else 0

    @property
    def picture_form(self) -> dct.PictureForm | None:
        """Form of the picture beside each embedding; None where there is none."""
        return None if self.decodable is None else dct.PictureForm.of(self.decodable)

    @property
    def neighbours(self) -> Neighbours:
        """What neighbouring data sets differ by."""
        return Neighbours(self.adjacency, self.max_rows_per_unit)

    @property
    def row_format(self) -> RowFormat:
        usual = RowFormat(self.classes, self.dimension, self.clip_norm, self.labelled)
        if (form := self.picture_form) is None:
            return usual
        return dataclasses.replace(usual, pictures=form.dimension, picture_norm=form.usual_norm)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the manifest and the digest.

        What is of single rows that come or go says nothing of units: its digest is what it was before
        there were any.  The same goes for pictures beside rows.
        """
        usual = {
            "max_rows_per_unit": None,
            "adjacency": ADD_REMOVE,
            "slice": None,
            "bound_found": False,
            "decodable": None,
        }
        fields = dataclasses.asdict(self)
        return {
            **{name: value for name, value in fields.items() if usual.get(name, fields) != value},
            "classes": list(self.classes),
            "shares": dict(self.shares),
            "method": self.method.to_dict(),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the configuration."""
        return digest_of(self.to_dict())

    @property
    def fit_digest(self) -> str:
        """SHA-256 of all of the configuration on which a sum or its noise depends.

        How many rows are drawn from what was fitted is not in it: rows cost nothing,
        and more of them must not be another draw of the noise.  Neither is a bound that was found: it
        follows from data and key, and a release has its name before.
        """
        left_out = {"samples_per_class", *(("max_rows_per_unit",) if self.bound_found else ())}
        return digest_of({name: value for name, value in self.to_dict().items() if name not in left_out})

    @property
    def unbounded(self) -> "ReleaseConfig":
        """The configuration as it was before a bound was found."""
        most = MAX_FOUND if self.bound_found else self.max_rows_per_unit
        return dataclasses.replace(self, max_rows_per_unit=most)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "ReleaseConfig":
        """The inverse of `to_dict`."""
        typed = {
            "classes": tuple(data["classes"]),
            "shares": tuple(data["shares"].items()),
            "method": Method.from_dict(data["method"]),
        }
        return ReleaseConfig(**{**data, **typed})


def digest_of(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, as plain data, in canonical JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_decodable(form: str | None, encoder: str) -> None:
    """Raises ConfigError unless a form of pictures is SIDE or SIDE:rgb, or None, and the encoder's are none.

    >>> check_decodable("28:rgb", "efficientnet_lite0")
    """
    if form is None:
        return
    if dct.validation_error(form):
        raise ConfigError(
            "decodable",
            form,
            f"be SIDE from {dct.MIN_SIDE} to {dct.MAX_SIDE} pixels (grey), or SIDE:{dct.COLOUR} with SIDE up"
            f" to {dct.MAX_COLOUR_SIDE}",
        )
    if encoder.startswith("dct:"):
        raise ConfigError("decodable", form, f"be left out with {encoder}, whose embeddings are pictures")


def check_clip_norm(clip_norm: float | None) -> None:
    """Raises ConfigError unless the norm is above 1e-18 and below 1e18, or None."""
    if clip_norm is not None and not lattice.MIN_NORM < clip_norm < lattice.MAX_NORM:
        raise ConfigError(
            "clip_norm", clip_norm, f"be a number above {lattice.MIN_NORM:g} and below {lattice.MAX_NORM:g}"
        )


def check_classes(classes: Sequence[str]) -> None:
    """Raises ConfigError unless there are 1 to 8192 classes, all distinct, of 1 to 1024 characters."""
    if not classes:
        raise ConfigError("classes", "''", "name at least one class")
    if len(classes) > MAX_CLASSES:
        raise ConfigError("classes", f"{len(classes)} classes", f"be at most {MAX_CLASSES} classes")
    seen: dict[str, str] = {}
    for label in classes:
        if not label:
            raise ConfigError("classes", ",".join(classes), "hold no empty label")
        if len(label) > MAX_LABEL:
            raise ConfigError("classes", label, f"hold labels of at most {MAX_LABEL} characters")
        try:
            label.encode()
        except UnicodeEncodeError:
            raise ConfigError("classes", label, "be text in UTF-8") from None
        form = normal_form(label)
        if form in seen:
            twice = "twice" if seen[form] == label else "in two ways of writing it in Unicode"
            raise ConfigError(
                "classes", ",".join(classes), f"be distinct, and '{printable(label)}' is there {twice}"
            )
        seen[form] = label
