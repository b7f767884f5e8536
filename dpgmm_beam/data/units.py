"""Privacy units: whose rows are whose, and which of them count.

A unit is all rows of one id: text, bytes or whole numbers, these by their decimal form.  *Bytes
decide*: nothing is normalised, so that "7" and 7 are one unit, and two ways in which Unicode
writes one name are two.  A null or an empty text is no id, and its row is set aside.

Of a unit at most L rows count: those with the smallest keyed hashes.  A row's hash is a function of its
class, its values and the key, and the choice one of the unit's own rows and the key: what other
units hold, the order of rows and the layout of files change nothing, so that a unit that comes or goes
takes no other unit's rows with it.  Rows that are equal have one hash; which of them count
makes no difference.

Ids are hashed as soon as they are read.  What is kept of them, in private files, is keyed hashes of 128 bits.
"""

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpgmm_beam.data.digest import limbs_of
from dpgmm_beam.data.rows import UNIT_HASH, Rows
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.noise import NoiseKey

MAX_SLICES = 4096

_HASH_BYTES = 16

TABLE = np.dtype([("unit", "<u8", (2,)), ("row", "<u8", (2,)), ("piece", "<u4"), ("position", "<u4")])
"""A row as the choice sees it: hashes of its unit and of itself, and where it is."""


@dataclasses.dataclass(frozen=True, repr=False)
class UnitKeys:
    """What ids and rows are hashed with, 64 bytes each; never printed."""

    ids: bytes
    rows: bytes

    @staticmethod
    def of(secret: NoiseKey) -> "UnitKeys":
        """Those of a noise key."""
        return UnitKeys(
            secret.within("privacy unit").stream(64), secret.within("row of a privacy unit").stream(64)
        )


def is_id(kind: pa.DataType) -> bool:
    """Whether a column of this type holds ids: text, bytes or whole numbers, dictionaries of them, or nulls.

    >>> [is_id(each) for each in (pa.string(), pa.int32(), pa.binary(16), pa.float64(), pa.struct([]))]
    [True, True, True, False, False]
    """
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_integer(kind) or pa.types.is_null(kind) or _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    kinds = (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
        pa.types.is_fixed_size_binary,
    )
    return any(is_kind(kind) for is_kind in kinds)


def id_bytes(ids: pa.Array | pa.ChunkedArray) -> pa.LargeBinaryArray:
    """Ids as the bytes that decide; nulls where there is none.

    >>> id_bytes(pa.array([7, None])).to_pylist(), id_bytes(pa.array(["7", ""])).to_pylist()
    ([b'7', None], [b'7', None])
    """
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    if isinstance(ids, pa.ExtensionArray):
        ids = ids.storage
    if pa.types.is_dictionary(ids.type):
        return id_bytes(ids.dictionary).take(ids.indices)
    if pa.types.is_integer(ids.type):
        ids = ids.cast(pa.large_string())
    # Unchecked: text that is not UTF-8 must not fail a job, and is bytes like others.
    found = ids.cast(pa.large_binary(), safe=False)
    return pc.if_else(pc.equal(pc.binary_length(found), 0), pa.scalar(None, pa.large_binary()), found)


@dataclasses.dataclass(frozen=True)
class Slice:
    """One of several parts into which all ids fall, each into one; a function of the id alone.

    An id's place is its SHA-256, without a key, so that it is the same in every release of whatever
    key; slice K/N has the places from (K - 1) / N up to K / N of all.  So 1/2 is 1/4 and 2/4
    together, and releases of slices that have no place in common are of different people.

    Attributes:
      number, count: K and N.

    >>> Slice.parse("2/4")
    Slice(number=2, count=4)
    >>> [str(each) for each in (Slice(k, 3) for k in (1, 2, 3)) if each.of([b"anna"])[0]]
    ['1/3']
    """

    number: int
    count: int

    @staticmethod
    def parse(text: str) -> "Slice":
        """Raises ConfigError unless the text is K/N, 1 <= K <= N <= 4096."""
        number, _, count = text.partition("/")
        if all(each.isascii() and each.isdecimal() and len(each) <= 4 for each in (number, count)):
            found = Slice(int(number), int(count))
            if 1 <= found.number <= found.count <= MAX_SLICES and str(found) == text:
                return found
        raise ConfigError("slice", text, f"be K/N with K from 1 to N, and N at most {MAX_SLICES}: 2/4")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, ids: Iterable[Any]) -> np.ndarray:
        """Which of some ids, as bytes, are in it, (n,)."""
        places = (int.from_bytes(hashlib.sha256(b"dpgmm slice " + each).digest()[:8]) for each in ids)
        return np.array([place * self.count >> 64 == self.number - 1 for place in places], bool)


@dataclasses.dataclass(frozen=True, repr=False)
class IdHasher:
    """What makes keyed hashes of ids: `rows.HashIds`.

    Attributes:
      keys: of a noise key.
      slice: K/N, if only its ids count.
    """

    keys: UnitKeys
    slice: str | None = None

    def __call__(self, ids: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hashes (n, 2) uint64; which rows have an id, (n,); and of which it is in the slice, (n,)."""
        encoded = id_bytes(ids).dictionary_encode()
        buffers = [each.as_buffer() for each in encoded.dictionary]
        distinct = _hashes(buffers, self.keys.ids)
        wanted = np.ones(len(buffers), bool)
        if self.slice is not None:
            wanted = Slice.parse(self.slice).of(each.to_pybytes() for each in buffers)
        present = encoded.indices.is_valid().to_numpy(zero_copy_only=False)
        indices = pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)[present]
        found, within = np.zeros((len(encoded), 2), UNIT_HASH), np.zeros(len(encoded), bool)
        found[present], within[present] = distinct[indices], wanted[indices]
        return found, present, within


def hashes_of_rows(rows: Rows, keys: UnitKeys) -> np.ndarray:
    """Keyed hashes of what rows add to sums, (n, 2) uint64: their classes and values, and not their units."""
    records = dataclasses.replace(rows, units=None, stored=None).records()
    size, data = records.itemsize, records.view(np.uint8).data
    return _hashes((data[start : start + size] for start in range(0, len(data), size)), keys.rows)


def _hashes(items: Iterable[Any], key: bytes) -> np.ndarray:
    digests = (hashlib.blake2b(item, key=key, digest_size=_HASH_BYTES).digest() for item in items)
    return np.frombuffer(b"".join(digests), UNIT_HASH).reshape(-1, 2)


def table_of(rows: Rows, keys: UnitKeys, piece: int = 0, start: int = 0) -> np.ndarray:
    """Rows with hashes of their units as a table, (n,) of TABLE.

    Args:
      piece, start: where the first of them is.
    """
    table = np.empty(len(rows), TABLE)
    table["unit"], table["row"] = rows.units, hashes_of_rows(rows, keys)
    table["piece"], table["position"] = piece, np.arange(start, start + len(rows))
    return table


def smallest(table: np.ndarray, most: int) -> np.ndarray:
    """The rows of each unit with the smallest hashes, at most so many, in the order of units.

    Of a part of all rows, as of all: the smallest of several parts' smallest are the smallest of all.
    """
    order = np.lexsort((table["position"], table["piece"], *table["row"].T[::-1], *table["unit"].T[::-1]))
    table = table[order]
    if len(table) <= 1:
        return table
    new = np.append(True, (table["unit"][1:] != table["unit"][:-1]).any(axis=1))
    starts = np.flatnonzero(new)
    rank = np.arange(len(table)) - np.repeat(starts, np.diff(np.append(starts, len(table))))
    return table[rank < most]


def digest_limbs_of(table: np.ndarray, key: bytes) -> np.ndarray:
    """Limbs, as `digest.digest_limbs` has them, of a table's rows and whose they are, wherever they lie."""
    hashes = np.ascontiguousarray(np.hstack([table["unit"], table["row"]]))
    return limbs_of((bytes(each) for each in hashes), key)


def joined(blocks: list[Rows], keys: UnitKeys) -> np.ndarray:
    """One table of all blocks' rows, whose numbers are those of pieces."""
    tables = (table_of(block, keys, number) for number, block in enumerate(blocks))
    return np.concatenate([np.zeros(0, TABLE), *tables])


def bounded(blocks: list[Rows], most: int, keys: UnitKeys) -> list[Rows]:
    """Blocks of rows with hashes of their units, with those rows only that count, and no hashes.

    >>> rows = Rows(np.array([[1], [2], [3]], np.int16), np.zeros(3, np.int32), units=np.zeros((3, 2), UNIT_HASH))
    >>> sum(map(len, bounded([rows], 2, UnitKeys(b"ids", b"rows"))))
    2
    """  # noqa: E501
    chosen = smallest(joined(blocks, keys), most)
    return [
        block.kept(np.sort(chosen["position"][chosen["piece"] == number]))
        for number, block in enumerate(blocks)
    ]
