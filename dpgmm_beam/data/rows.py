"""Rows of a record batch as lattice vectors with class indices, and as the records of a file.

Bad rows are set aside here, silently: a label that is null or not declared, an
embedding that is null, of another length, not finite, zero or huge.  How many
is a statistic of the data: `SetAside` is for the owner's private folder only.
"""

import dataclasses
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpgmm_beam.data.schema import EMBEDDING, LABEL, PICTURE, UNIT
from dpgmm_beam.privacy import lattice

MAX_LABEL_BYTES = 3 * 2**12
"""No label that is longer can be declared: config.MAX_LABEL characters have no more, decomposed either."""

UNIT_HASH = np.dtype("<u8")
"""Of two such a hash of a privacy unit is made."""

_QUANTISED_ROWS = 256

_SPARE_VALUES = 2**20


@dataclasses.dataclass(frozen=True)
class RecordForm:
    """A row in a file: class index, squared norm and values; 8 + 2 d bytes.

    Attributes:
      dimension: number of its values.
      units: whether the hash of its privacy unit comes behind; 16 bytes.
      pictures: coefficients of its picture, before that; 2 bytes each.

    >>> RecordForm(3).itemsize, RecordForm(3, units=True, pictures=5).itemsize
    (14, 40)
    """

    dimension: int
    units: bool = False
    pictures: int = 0

    @property
    def dtype(self) -> np.dtype:
        """The type of an array of such rows."""
        fields = [("class", "<i4"), ("square", "<i4"), ("values", "<i2", (self.dimension,))]
        fields += [("picture", "<i2", (self.pictures,))] if self.pictures else []
        return np.dtype([*fields, *([("unit", UNIT_HASH, (2,))] if self.units else [])])

    @property
    def itemsize(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class RowFormat:
    """What a row must look like: public configuration.

    Attributes:
      classes: the declared labels, in their order.
      dimension: length of an embedding.
      clip_norm: as in `lattice.quantise_rows`.
      labelled: False when the data has no label column: all rows are then of
        the one declared class.
      pictures: coefficients of the picture beside each embedding; 0 where there is none.
      picture_norm: pictures are clipped to it.
    """

    classes: tuple[str, ...]
    dimension: int
    clip_norm: float | None
    labelled: bool = True
    pictures: int = 0
    picture_norm: float | None = None

    def records(self, units: bool = False) -> RecordForm:
        """What its rows are in a file, with hashes of their privacy units or without."""
        return RecordForm(self.dimension, units, self.pictures)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Accepted rows of one block.

    Attributes:
      values: (n, d) int16, integers of norm at most lattice.UNIT.
      classes: (n,) int32, indices of the declared classes.
      squares: (n,) int32, squared norms of the values, where they are known.
      stored: (n,) records of a `RecordForm`, the rows as a file holds them, where they come from one.
      units: (n, 2) of UNIT_HASH, keyed hashes of the rows' privacy units, until it is decided which rows
        count (`data.units`).
      pictures: (n, p) int16, coefficients of each row's picture, integers of norm at most lattice.UNIT in
        steps of their own norm bound; None where rows are embeddings alone.

    >>> rows = Rows(np.array([[3, 4], [0, 5]], np.int16), np.array([0, 1], np.int32))
    >>> len(rows), rows.square_norms().tolist(), [len(block) for block in rows.blocks(1)]
    (2, [25.0, 25.0], [1, 1])
    """

    values: np.ndarray
    classes: np.ndarray
    squares: np.ndarray | None = None
    stored: np.ndarray | None = None
    units: np.ndarray | None = None
    pictures: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.classes)

    @staticmethod
    def of_records(records: np.ndarray) -> "Rows":
        """The rows of an array of records of any `RecordForm`, without a copy."""
        units, pictures = (
            records[name] if name in (records.dtype.names or ()) else None for name in ("unit", "picture")
        )
        return Rows(records["values"], records["class"], records["square"], records, units, pictures)

    def records(self) -> np.ndarray:
        """The rows as an array (n,) of records, of the `RecordForm` that holds all of them."""
        if self.stored is not None:
            return self.stored
        pictures = 0 if self.pictures is None else self.pictures.shape[1]
        form = RecordForm(self.values.shape[1], self.units is not None, pictures)
        result = np.empty(len(self), form.dtype)
        result["class"], result["square"], result["values"] = self.classes, self.square_norms(), self.values
        if self.units is not None:
            result["unit"] = self.units
        if self.pictures is not None:
            result["picture"] = self.pictures
        return result

    def kept(self, positions: np.ndarray) -> "Rows":
        """Some of the rows, in the order of their positions, without hashes of their units."""
        squares, pictures = (part_of(each, positions) for each in (self.squares, self.pictures))
        return Rows(self.values[positions], self.classes[positions], squares, pictures=pictures)

    def square_norms(self) -> np.ndarray:
        """Exact squared norms of the values, (n,) float64."""
        if self.squares is not None:
            return self.squares.astype(np.float64)
        return lattice.square_norms(self.values.astype(np.float64))

    def blocks(self, block_rows: int) -> Iterator["Rows"]:
        """Consecutive blocks of at most `block_rows` rows."""
        for start in range(0, len(self), block_rows):
            block = slice(start, start + block_rows)
            beside = (self.squares, self.units, self.pictures)
            squares, units, pictures = (part_of(each, block) for each in beside)
            yield Rows(self.values[block], self.classes[block], squares, units=units, pictures=pictures)


def part_of(values: np.ndarray | None, where: np.ndarray | slice) -> np.ndarray | None:
    """Some rows of an array that need not be there."""
    return None if values is None else values[where]


def label_indices(labels: pa.Array | pa.ChunkedArray, classes: tuple[str, ...]) -> np.ndarray:
    """Indices of labels among the classes, (n,) int32; -1 for null or undeclared ones.

    Labels are compared as they stand, blanks and case included, but for Unicode's
    ways to write one character: both sides in its normal form C.  Integer labels
    are compared by their decimal form: 7 is the class "7".
    """
    if isinstance(labels, pa.ChunkedArray):
        labels = labels.combine_chunks()
    if pa.types.is_dictionary(labels.type):
        # A long label that many rows share is looked up once, and never repeated in memory.
        distinct = np.append(label_indices(labels.dictionary, classes), np.int32(-1))
        return distinct[pc.fill_null(labels.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)]
    if not (pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type)):
        # Cast without checks: bytes that are not UTF-8 must not fail a job.
        labels = labels.cast(pa.string(), safe=False)
    composed = [normal_form(label) for label in classes]
    found = pc.fill_null(pc.index_in(labels, value_set=pa.array(composed, type=labels.type)), -1)
    indices = found.to_numpy(zero_copy_only=False).astype(np.int32)
    # Most are found, or plain ASCII, which is its own normal form.
    others = pc.and_(pc.equal(found, -1), pc.invert(pc.string_is_ascii(labels)))
    others = np.flatnonzero(pc.fill_null(others, False).to_numpy(zero_copy_only=False))
    if len(others):
        place = {label: index for index, label in enumerate(composed)}
        rest = labels.take(pa.array(others)).cast(pa.large_binary() if _is_large(labels) else pa.binary())
        texts = pc.dictionary_encode(rest)
        composed_texts = (_composed(each.as_buffer()) for each in texts.dictionary)
        known = [-1 if text is None else place.get(text, -1) for text in composed_texts]
        indices[others] = np.array(known, np.int32)[texts.indices.to_numpy(zero_copy_only=False)]
    return indices


def normal_form(label: str) -> str:
    """A label as it is compared: in Unicode's normal form C."""
    return unicodedata.normalize("NFC", label)


def _is_large(labels: pa.Array) -> bool:
    return pa.types.is_large_string(labels.type)


def _composed(label: pa.Buffer) -> str | None:
    if len(label) > MAX_LABEL_BYTES:
        return None
    try:
        return normal_form(str(label, "utf-8"))
    except UnicodeDecodeError:
        return None


def embedding_matrix(column: pa.Array | pa.ChunkedArray, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the right length as a matrix, and which rows have it.

    Args:
      column: list, large_list, views of them or fixed_size_list of floats, nulls allowed; or
        all nulls, of type null or a list of it.

    Returns:
      (m, dimension) float array and a mask (n,) of its m rows.  A null inside
      an embedding becomes NaN, which `lattice.quantise_rows` sets aside.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_null(column.type):
        return np.zeros((0, dimension), np.float32), np.zeros(len(column), bool)
    column = without_views(column)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    keep = valid & (lengths == dimension)
    if not keep.all():
        column = column.filter(pa.array(keep))
    # flatten() honours offsets and skips the values under nulls.
    values = column.flatten()
    if pa.types.is_null(values.type):
        values = values.cast(pa.float32())
    if values.null_count:
        values = pc.fill_null(values, float("nan"))
    matrix = values.to_numpy(zero_copy_only=False).reshape(-1, dimension)
    return matrix, keep


def without_views(column: pa.Array) -> pa.Array:
    """Lists that are views of others as lists of their own; anything else as it is."""
    if not (pa.types.is_list_view(column.type) or pa.types.is_large_list_view(column.type)):
        return column
    # Arrow's own cast gets the last offset wrong.
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    nulls = column.is_null() if column.null_count else None
    return pa.LargeListArray.from_arrays(pa.array(offsets), column.flatten(), mask=nulls)


def rows_of(
    embeddings: np.ndarray,
    classes: Sequence[int],
    clip_norm: float | None = None,
    pictures: np.ndarray | None = None,
    picture_norm: float | None = None,
) -> Rows:
    """Rows from arrays in memory; those that are not finite, zero or huge are left out.

    Args:
      embeddings: (n, d) of any floating type.
      classes: (n,) indices of the declared classes.
      clip_norm: as in `lattice.quantise_rows`.
      pictures: (n, p) coefficients of pictures, clipped to `picture_norm`.

    >>> rows = rows_of(np.array([[3.0, 4.0], [0.0, 0.0]]), [1, 0])
    >>> rows.values.tolist(), rows.classes.tolist()
    ([[19661, 26214]], [1])
    """
    with np.errstate(all="ignore"):
        values, kept = lattice.quantise_rows(np.asarray(embeddings, np.float64), clip_norm)
        if pictures is not None:
            seen, there = lattice.quantise_rows(np.asarray(pictures, np.float64), picture_norm)
            values, seen, kept = values[there[kept]], seen[kept[there]].astype(np.int16), kept & there
    found = Rows(values.astype(np.int16), np.asarray(classes, np.int32)[kept])
    return found if pictures is None else dataclasses.replace(found, pictures=seen)


@dataclasses.dataclass(frozen=True)
class SetAside:
    """How many rows of some were left out, by the first reason.  Exact, and therefore private.

    Attributes:
      length: the embedding, or the picture beside it, is null or of another length.
      label: the label is null or not declared.
      value: the embedding, or the picture beside it, is not finite, zero or huge.
      unit: the id of the privacy unit is null or empty.
      bound: the unit has more rows than count.
      slice: the unit is in another slice.
    """

    length: int = 0
    label: int = 0
    value: int = 0
    unit: int = 0
    bound: int = 0
    slice: int = 0

    def __add__(self, other: "SetAside") -> "SetAside":
        return SetAside(
            *(one + two for one, two in zip(*map(dataclasses.astuple, (self, other)), strict=True))
        )


HashIds = Callable[[pa.Array], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Keyed hashes (n, 2) of ids, which rows have one, and whose is in the slice: `units.IdHasher`."""


def rows_of_batch(batch: pa.RecordBatch | pa.Table, row_format: RowFormat) -> Rows:
    """The accepted rows of a record batch."""
    return accept(batch, row_format)[0]


def without_long_lists(batch: pa.RecordBatch, row_format: RowFormat) -> pa.RecordBatch:
    """The batch, without the values of embeddings and pictures that are too long, where these are many.

    Such rows are set aside all the same, but batches wait for each other, and
    one list may be as long as a million others.
    """
    batch = _without_long(batch, EMBEDDING, row_format.dimension)
    return _without_long(batch, PICTURE, row_format.pictures) if row_format.pictures else batch


def _without_long(batch: pa.RecordBatch, name: str, length: int) -> pa.RecordBatch:
    column = batch.column(name)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return batch
    values = pc.sum(pc.list_value_length(column)).as_py() or 0
    if values <= len(batch) * length + _SPARE_VALUES:
        return batch
    right = pc.equal(pc.list_value_length(column), length)
    kept = pc.if_else(right, column, pa.scalar(None, column.type))
    return batch.set_column(batch.schema.get_field_index(name), name, kept)


@np.errstate(all="ignore")
def accept(
    batch: pa.RecordBatch | pa.Table, row_format: RowFormat, hash_ids: HashIds | None = None
) -> tuple[Rows, SetAside]:
    """The accepted rows of a record batch, and how many were not.

    What numpy would warn of, a signalling NaN say, is a fact about a row.

    Args:
      hash_ids: what makes hashes of the column `unit`; None: a privacy unit is a row.
    """
    matrix, keep = embedding_matrix(batch.column(EMBEDDING), row_format.dimension)
    pictures = None
    if row_format.pictures:
        pictures, there = embedding_matrix(batch.column(PICTURE), row_format.pictures)
        matrix, pictures, keep = matrix[there[keep]], pictures[keep[there]], keep & there
    if row_format.labelled:
        classes = label_indices(batch.column(LABEL), row_format.classes)[keep]
    else:
        classes = np.zeros(len(matrix), dtype=np.int32)
    declared = classes >= 0
    if not declared.all():
        matrix, classes = matrix[declared], classes[declared]
        pictures = part_of(pictures, declared)
    left_out = SetAside(int((~keep).sum()), int((~declared).sum()))
    units = None
    if hash_ids is not None:
        hashes, known, within = (each[keep][declared] for each in hash_ids(batch.column(UNIT)))
        left_out += SetAside(unit=int((~known).sum()), slice=int((known & ~within).sum()))
        matrix, classes, units = matrix[within], classes[within], hashes[within]
        pictures = part_of(pictures, within)
    values = np.empty(matrix.shape, np.int16)
    seen = None if pictures is None else np.empty(pictures.shape, np.int16)
    squares, good = np.empty(len(matrix), np.int32), np.empty(len(matrix), bool)
    count = 0
    # Blocks that stay in the cache of a core are several times as fast.
    for start in range(0, len(matrix), _QUANTISED_ROWS):
        block = slice(start, start + _QUANTISED_ROWS)
        on_lattice, found = lattice.quantise_rows(matrix[block], row_format.clip_norm)
        if pictures is not None and seen is not None:
            picture, there = lattice.quantise_rows(pictures[block], row_format.picture_norm)
            on_lattice, picture, found = on_lattice[there[found]], picture[found[there]], found & there
            seen[count : count + len(picture)] = picture
        good[block] = found
        values[count : count + len(on_lattice)] = on_lattice
        squares[count : count + len(on_lattice)] = lattice.square_norms(on_lattice)
        count += len(on_lattice)
    left_out += SetAside(value=len(good) - count)
    units, seen = part_of(units, good), part_of(seen, slice(count))
    return Rows(values[:count], classes[good], squares[:count], units=units, pictures=seen), left_out


def concatenate(blocks: list[Rows], dimension: int) -> Rows:
    """One block of all the rows."""
    if not blocks:
        return Rows(np.zeros((0, dimension), np.int16), np.zeros(0, np.int32))
    with_units = all(block.units is not None for block in blocks)
    return Rows(
        np.concatenate([block.values for block in blocks]),
        np.concatenate([block.classes for block in blocks]),
        units=np.concatenate([block.units for block in blocks]) if with_units else None,
    )
