"""What a Parquet file of synthetic rows says of itself, in the metadata of its schema.

A copy of a release often lacks its manifest: a hub keeps the Parquet files, a user
downloads one of them.  So each holds all that training needs, under the key `dpgmm`, as JSON.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from dpgmm_beam.config import ReleaseConfig, check_classes, check_clip_norm
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.mixture import Mixture
from dpgmm_beam.privacy import accounting, lattice

METADATA_KEY = b"dpgmm"

VERSION = 1
"""Rises when a reader of this version would take the rows for something else."""

SOFT = "soft"


@dataclasses.dataclass(frozen=True)
class RowStatement:
    """Of the rows of one draw from a release.

    Attributes:
      release_id: of the release.
      encoder: spec of the encoder that made the real embeddings, or "precomputed".
      classes: C labels, in the order of `label_probabilities`.
      class_weights: C shares of the classes by their noisy counts: the prior of the real
        rows.  (The classes of synthetic rows take turns.)
      dimension: length of an embedding.
      clip_norm: longest norm of an embedding; None: each has norm 1.
      epsilon, delta: of the release.
      seed: of a draw of `dpgmm sample`; None for the release's own rows.
      labels: what to train on: "soft", the column `label_probabilities`.
    """

    release_id: str
    encoder: str
    classes: tuple[str, ...]
    class_weights: tuple[float, ...]
    dimension: int
    clip_norm: float | None
    epsilon: float
    delta: float
    seed: int | None = None
    labels: str = SOFT

    @staticmethod
    def of(
        config: ReleaseConfig, release_id: str, mixture: Mixture, seed: int | None = None
    ) -> "RowStatement":
        """That of a release's rows, or of a draw of a seed from its mixture."""
        return RowStatement(
            release_id,
            config.encoder,
            config.classes,
            tuple(mixture.class_weights.tolist()),
            config.dimension,
            config.clip_norm,
            config.epsilon,
            config.delta,
            seed,
        )

    def metadata(self, part: int, parts: int) -> dict[bytes, bytes]:
        """The metadata of the schema of one file.

        Args:
          part: number of the file, from 0.
          parts: how many files the draw has.
        """
        content = {"version": VERSION, **dataclasses.asdict(self), "part": part, "parts": parts}
        return {METADATA_KEY: json.dumps(content, sort_keys=True).encode()}


@dataclasses.dataclass(frozen=True)
class StatedPart:
    """What one file says.

    Attributes:
      rows: of the draw that the file is of.
      part, parts: the file's number, and how many there are.
    """

    rows: RowStatement
    part: int
    parts: int


def stated(metadata: Mapping[bytes, bytes] | None) -> StatedPart | None:
    """What the metadata of a file's schema says; None where it says nothing.

    Raises:
      ConfigError: it is damaged, or of another version; the field is `input`.
    """
    data = (metadata or {}).get(METADATA_KEY)
    if data is None:
        return None
    try:
        content = json.loads(data)
        version = content.pop("version")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise _wrong("JSON that states its version") from None
    if version != VERSION:
        raise _wrong(f"version {VERSION}, not {version!r}")
    try:
        part, parts = content.pop("part"), content.pop("parts")
        found = RowStatement(**content)
        found = dataclasses.replace(
            found, classes=_tuple(found.classes), class_weights=_tuple(found.class_weights)
        )
        _check(found)
        if not (type(part) is type(parts) is int and 0 <= part < parts):
            raise TypeError
    except ConfigError as error:
        raise _wrong(f"what a release can have ({error.allowed})") from None
    except (KeyError, TypeError, ValueError):
        raise _wrong("all that dpgmm release writes there") from None
    return StatedPart(found, part, parts)


def _tuple(value: Any) -> tuple:
    if not isinstance(value, list):
        raise TypeError
    return tuple(value)


def _check(found: RowStatement) -> None:
    if not (isinstance(found.release_id, str) and isinstance(found.encoder, str)):
        raise TypeError
    if type(found.dimension) is not int or found.labels != SOFT:
        raise TypeError
    check_classes(found.classes)
    lattice.check_dimension(found.dimension)
    check_clip_norm(found.clip_norm)
    accounting.check_privacy_parameters(found.epsilon, found.delta)
    if len(found.class_weights) != len(found.classes) or not all(
        isinstance(weight, float) and 0 <= weight <= 1 for weight in found.class_weights
    ):
        raise TypeError


def _wrong(allowed: str) -> ConfigError:
    return ConfigError("input", "metadata 'dpgmm'", f"hold {allowed}")
