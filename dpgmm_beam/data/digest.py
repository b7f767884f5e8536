"""The digest of the data: a keyed hash of the multiset of its rows."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from dpgmm_beam.data.rows import Rows

DIGEST_LIMBS = 32
_LIMB_BITS = 16


def no_limbs() -> np.ndarray:
    """What limbs of rows are added to."""
    return np.zeros(DIGEST_LIMBS, np.int64)


def digest_limbs(rows: Rows, key: bytes) -> np.ndarray:
    """Sum over rows of their keyed 512-bit hashes, as 32 limbs of 16 bits.

    The limbs are int64 and are added without carries, so they sum like any
    other statistic, in any order; `digest_of_limbs` carries at the end.  An
    additive multiset hash (Bellare and Micciancio 1997) under a secret key.

    Args:
      key: 64 bytes or fewer, derived from the release's secret.

    Returns:
      (32,) int64.
    """
    records = rows.records()
    size, data = records.itemsize, records.view(np.uint8).data
    return limbs_of((data[start : start + size] for start in range(0, len(data), size)), key)


def limbs_of(items: Iterable[Any], key: bytes) -> np.ndarray:
    """The same of items of bytes."""
    hashes = b"".join(hashlib.blake2b(item, key=key).digest() for item in items)
    return np.frombuffer(hashes, dtype="<u2").reshape(-1, DIGEST_LIMBS).sum(axis=0, dtype=np.int64)


def digest_of_limbs(limbs: np.ndarray) -> bytes:
    """64 bytes: the limbs' sum modulo 2**512."""
    total = sum(int(limb) << (_LIMB_BITS * position) for position, limb in enumerate(limbs))
    return (total % 2**512).to_bytes(64, "little")
