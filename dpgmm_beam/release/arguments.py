"""Arguments of functions on arrays in memory, checked one by one."""

import operator
import secrets
from typing import Any

from dpgmm_beam.defaults import AUTO
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.neighbours import MAX_FOUND
from dpgmm_beam.privacy.noise import KEY_BYTES, NoiseKey
from dpgmm_beam.release import manifest

MAX_SEED = 2**64


def whole(argument: str, value: Any) -> int:
    """A whole number of Python's own: numpy's are none for JSON."""
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigError(argument, value, "be a whole number") from None


def number(argument: str, value: Any) -> float:
    """A number of Python's own."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(argument, value, "be a number") from None


def bound_of(most: int | str | None) -> dict[str, Any]:
    """The fields of a configuration that say how many rows of a unit count."""
    if most == AUTO:
        return {"max_rows_per_unit": MAX_FOUND, "bound_found": True}
    return {"max_rows_per_unit": None if most is None else whole("max_rows_per_unit", most)}


def check_seed(seed: int | None) -> int:
    """A seed, drawn where none is given.

    Raises:
      ConfigError: it is not from 0 to 2**64 - 1.
    """
    if seed is None:
        return secrets.randbelow(MAX_SEED)
    if not 0 <= whole("seed", seed) < MAX_SEED:
        raise ConfigError("seed", seed, f"be a whole number from 0 to {MAX_SEED - 1}")
    return int(seed)


def check_key(key: bytes | NoiseKey | None, release_id: str | None) -> None:
    """Raises ConfigError unless a key comes with the name of its one draw, or neither is there."""
    if (key is None) != (release_id is None):
        given, missing = ("key", "release_id") if release_id is None else ("release_id", "key")
        raise ConfigError(given, "given", f"come together with {missing}")
    if not isinstance(key, bytes | NoiseKey | None):
        raise ConfigError("key", "given", f"be {KEY_BYTES} bytes or a NoiseKey")
    if isinstance(key, bytes) and len(key) == KEY_BYTES and len(set(key)) == 1:
        raise ConfigError("key", "given", "hold random bytes (os.urandom(32)), not one repeated")
    if release_id is not None and (
        not 0 < len(release_id) <= manifest.MAX_RELEASE_ID
        or not release_id.isprintable()
        or any(character.isspace() for character in release_id)
    ):
        raise ConfigError(
            "release_id",
            repr(release_id),
            f"be a name of at most {manifest.MAX_RELEASE_ID} printable characters without white space",
        )
