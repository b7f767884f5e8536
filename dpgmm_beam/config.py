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

from dpgmm_beam import budget, lattice
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.rows import RowFormat

SHARES = (
    ("means/count", 0.01),
    ("means/sum", 0.07),
    ("moment/moment", 0.12),
    ("teacher/gradient", 0.70),
    ("rounds/count", 0.02),
    ("rounds/sum", 0.08),
)
"""Shares of 1/z^2, by mechanism; what a release does not use is spread over the others."""


ROUNDS, UNUSED_ROUNDS = 8, 4
"""Default rounds of a release of several components, and of one, which does none."""


@dataclasses.dataclass(frozen=True)
class Method:
    """Constants of the fit.

    Attributes:
      residual_radius: clipping radius of a row round its class's mean, over the
        root mean squared residual.
      reduced: directions in which components are found.
      damping: of the feature whitening, as a share of the largest eigenvalue
        of the covariance's noise.
      teacher_steps: gradient steps of the labelling teacher.
      teacher_clip: clipping norm of a row's gradient, which is at most sqrt 2.
      teacher_rate: step size, in units of the whitened rows' squared norm.
      teacher_noise_cap: the most by which one step's noise may move a logit.
      teacher_momentum: of the steps.
    """

    residual_radius: float = 1.2
    reduced: int = 64
    damping: float = 1 / 7
    teacher_steps: int = 20
    teacher_clip: float = 0.25
    teacher_rate: float = 3.0
    teacher_noise_cap: float = 0.05
    teacher_momentum: float = 0.9


@dataclasses.dataclass(frozen=True)
class ReleaseConfig:
    """A release, but for the data and the key.

    Attributes:
      encoder: spec of the encoder that made the embeddings.
      classes: the declared labels; at least one, distinct.
      dimension: length of an embedding.
      epsilon, delta: the budget of the release.
      clip_norm: embeddings are clipped to it; None: normalised to 1.
      labelled: whether the data has labels; if not, there is one class.
      samples_per_class: synthetic rows of each class.
      components: Gaussians a class.
      rounds: stages of clustering (used when components > 1); None: 8, which is
        replaced by the number.
      shares: of 1/z^2 for each mechanism, relative to their sum.
      method: constants of the fit.

    Raises:
      ConfigError: naming the option of `dpgmm release`.
    """

    encoder: str
    classes: tuple[str, ...]
    dimension: int
    epsilon: float
    delta: float
    clip_norm: float | None = None
    labelled: bool = True
    samples_per_class: int = 6000
    components: int = 1
    rounds: int | None = None
    shares: tuple[tuple[str, float], ...] = SHARES
    method: Method = Method()

    def __post_init__(self):
        budget.check_privacy_parameters(self.epsilon, self.delta)
        check_classes(self.classes)
        lattice.check_dimension(self.dimension)
        if self.clip_norm is not None and not (
            math.isfinite(self.clip_norm) and lattice.MIN_NORM < self.clip_norm < lattice.MAX_NORM
        ):
            raise ConfigError("--clip-norm", self.clip_norm, "be a finite number above 0")
        if not self.labelled and len(self.classes) != 1:
            raise ConfigError("--classes", ",".join(self.classes), "be one class, for the data has no labels")
        if self.rounds is None:
            # Resolved here, so that the digest of a release holds a number.
            object.__setattr__(self, "rounds", ROUNDS if self.components > 1 else UNUSED_ROUNDS)
        for name, least in (("samples_per_class", 1), ("components", 1), ("rounds", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')}", getattr(self, name), f"be at least {least}")

        for mechanism, share in self.shares:
            if not (math.isfinite(share) and share > 0):
                raise ConfigError("--share", f"{mechanism}={share}", "be a finite number above 0")

    @property
    def clustering_stages(self) -> int:
        """How many stages find components: `rounds`, but none for a single one."""
        return self.rounds if self.rounds and self.components > 1 else 0

    @property
    def row_format(self) -> RowFormat:
        return RowFormat(self.classes, self.dimension, self.clip_norm, self.labelled)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the manifest and the digest."""
        return {**dataclasses.asdict(self), "classes": list(self.classes), "shares": dict(self.shares)}

    @property
    def digest(self) -> str:
        """SHA-256 of the configuration."""
        return digest_of(self.to_dict())

    @property
    def fit_digest(self) -> str:
        """SHA-256 of all of the configuration on which a sum or its noise depends.

        How many rows are drawn from what was fitted is not in it: rows cost nothing,
        and more of them must not be another draw of the noise.
        """
        return digest_of(
            {name: value for name, value in self.to_dict().items() if name != "samples_per_class"}
        )

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "ReleaseConfig":
        """The inverse of `to_dict`."""
        typed = {
            "classes": tuple(data["classes"]),
            "shares": tuple(data["shares"].items()),
            "method": Method(**data["method"]),
        }
        return ReleaseConfig(**{**data, **typed})


def digest_of(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, as plain data, in canonical JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def with_shares(changes: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """The default shares with some changed, each by a text NAME=VALUE.

    Raises:
      ConfigError: the text is not of that form, or names no mechanism.
    """
    shares = dict(SHARES)
    for text in changes:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if name not in shares or not math.isfinite(number):
            raise ConfigError("--share", text, f"be NAME=NUMBER with NAME one of {', '.join(shares)}")
        shares[name] = number
    return tuple(shares.items())


def check_classes(classes: Sequence[str]) -> None:
    """Raises ConfigError unless there is at least one class and all are distinct and not empty."""
    if not classes:
        raise ConfigError("--classes", "''", "name at least one class")
    seen = set()
    for label in classes:
        if not label:
            raise ConfigError("--classes", ",".join(classes), "hold no empty label")
        if label in seen:
            raise ConfigError("--classes", ",".join(classes), f"be distinct, and '{label}' is there twice")
        seen.add(label)
