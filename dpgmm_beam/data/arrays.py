"""Arrays, data frames and Arrow columns of a user's own as columns of embeddings, labels and pictures."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dpgmm_beam.data.rows import HashIds, RowFormat, Rows, SetAside, accept, without_views
from dpgmm_beam.data.schema import EMBEDDING, LABEL, PICTURE, UNIT
from dpgmm_beam.data.units import is_id
from dpgmm_beam.encoders import dct
from dpgmm_beam.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

SLICE_ROWS = 8192
"""Rows that are put on the lattice at once."""

_WANTED_PICTURES = "hold pictures: uint8 arrays of shape (h, w) or (h, w, 3), or PIL's images"
_WANTED = "hold numbers: an array of shape (n, d), a data frame of d columns, or a column of lists"


def embedding_column(embeddings: Any) -> pa.Array:
    """Embeddings as Arrow's lists of numbers, without a copy where that can be.

    Args:
      embeddings: (n, d) of numbers, by numpy or whatever has `to_numpy` or `__array__`; or n lists, in an
        Arrow array, a list or an array of objects, where None is a row without an embedding.

    Raises:
      ConfigError: it is none of these; nothing of its values is told.

    >>> embedding_column([[1.0, 2.0], [3.0, 4.0]]).type
    FixedSizeListType(fixed_size_list<item: double>[2])
    """
    if isinstance(embeddings, pa.Array | pa.ChunkedArray):
        column = _one_chunk(embeddings)
        if not is_list_of_numbers(column.type):
            raise ConfigError("embeddings", f"a column of {_shown(column.type)}", _WANTED)
        return column
    array = _numpy(embeddings, "embeddings", _WANTED)
    if array.dtype == object and array.ndim == 1:
        try:
            column = pa.array([None if each is None else np.asarray(each) for each in array])
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            raise ConfigError("embeddings", "an array of objects", _WANTED) from None
        if not is_list_of_numbers(column.type):
            raise ConfigError("embeddings", f"a column of {_shown(column.type)}", _WANTED)
        return column
    if array.ndim != 2 or array.shape[1] < 1 or array.dtype.kind not in "fiuO":
        raise ConfigError("embeddings", f"an array of {array.dtype} of {_dimensions(array)}", _WANTED)
    if array.dtype not in (np.float32, np.float64):
        try:
            array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
        except (OverflowError, TypeError, ValueError):
            raise ConfigError("embeddings", "an array of objects", _WANTED) from None
    flat = pa.array(np.ascontiguousarray(array).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])


def label_column(labels: Any) -> pa.Array:
    """Labels as Arrow's strings or integers; None and NaN are rows without a label.

    Raises:
      ConfigError: they are neither; nothing of their values is told.

    >>> label_column(np.array(["cat", None], object)).to_pylist()
    ['cat', None]
    """
    return _column("labels", labels, is_label, "hold one string or integer for each row")


def unit_column(units: Any) -> pa.Array:
    """Ids of privacy units as Arrow's strings, bytes or integers; None and NaN are rows without one.

    Raises:
      ConfigError: they are none of these; nothing of their values is told.

    >>> unit_column([12, None]).to_pylist()
    [12, None]
    """
    return _column("units", units, is_id, "hold one string, bytes or integer for each row")


def picture_column(pictures: Any, form: dct.PictureForm) -> pa.Array:
    """Pictures as Arrow's lists of cosine coefficients, letterboxed.

    Args:
      pictures: (n, h, w) or (n, h, w, 3) uint8, or n of such pictures, or of PIL's, of any sizes; None, and
        what is no such picture, is a row without one.
      form: what they are brought to.

    Raises:
      ConfigError: they are none of these; nothing of their values is told.

    >>> picture_column(np.zeros((2, 9, 9), np.uint8), dct.PictureForm(8, 1)).type
    FixedSizeListType(fixed_size_list<item: float>[64])
    """
    if not isinstance(pictures, list | tuple):
        pictures = _numpy(pictures, "pictures", _WANTED_PICTURES)
        if pictures.dtype != np.uint8 and pictures.dtype != object:
            raise ConfigError("pictures", f"an array of {pictures.dtype}", _WANTED_PICTURES)
    coefficients = np.zeros((len(pictures), form.dimension), np.float32)
    missing = np.ones(len(pictures), bool)
    for row, picture in enumerate(pictures):
        # What is no picture, or can't be read, is a row without one: what is wrong is a fact about it.
        with contextlib.suppress(Exception):
            found = dct.letterboxed([_image(picture)], form.side, form.channels)
            coefficients[row] = dct.coefficients_of_letterboxed(found, form)[0]
            missing[row] = False
    flat = pa.array(coefficients.ravel())
    return pa.FixedSizeListArray.from_arrays(flat, form.dimension, mask=pa.array(missing))


def _image(picture: Any) -> "Image.Image":
    from PIL import Image

    if isinstance(picture, Image.Image):
        return picture
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8:
        raise ValueError("not a picture")
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels))


def _column(argument: str, values: Any, is_kind: Callable[[pa.DataType], bool], wanted: str) -> pa.Array:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        column = _one_chunk(values)
    else:
        # numpy would make one type of the entries of a list, and a text of what is missing.
        array: Any = values if isinstance(values, list | tuple) else _numpy(values, argument, wanted)
        if not isinstance(array, list | tuple) and array.ndim != 1:
            raise ConfigError(argument, f"an array of {_dimensions(array)}", wanted)
        try:
            column = pa.array(array, from_pandas=True) if len(array) else pa.nulls(0, pa.string())
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            raise ConfigError(argument, f"a {type(values).__name__} of several types", wanted) from None
    if not is_kind(column.type):
        raise ConfigError(argument, f"a column of {_shown(column.type)}", wanted)
    return column


def is_list_of_numbers(kind: pa.DataType) -> bool:
    """Whether a column of this type holds embeddings."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(each(kind) for each in lists):
        return pa.types.is_null(kind)
    value = kind.value_type
    return pa.types.is_floating(value) or pa.types.is_integer(value) or pa.types.is_null(value)


def is_label(kind: pa.DataType) -> bool:
    """Whether a column of this type holds labels."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    strings = pa.types.is_string(plain) or pa.types.is_large_string(plain)
    return strings or pa.types.is_integer(plain) or pa.types.is_null(plain)


def dimension_of(column: pa.Array) -> int:
    """The length of all embeddings of a column.

    Raises:
      ConfigError: they have several lengths, or there is none.
    """
    if pa.types.is_fixed_size_list(column.type):
        return column.type.list_size
    known = not pa.types.is_null(column.type)
    lengths: list[int] = column.value_lengths().drop_null().unique().to_pylist() if known else []
    if len(lengths) != 1:
        raise ConfigError("dimension", None, "be given, because the embeddings do not have one length")
    return int(lengths[0])


def batch_of(
    embeddings: pa.Array,
    labels: pa.Array | None,
    units: pa.Array | None = None,
    pictures: pa.Array | None = None,
) -> pa.RecordBatch:
    """Columns as the rows of an input.

    Raises:
      ConfigError: there are not as many labels, ids of units, or pictures as embeddings.
    """
    columns = {EMBEDDING: embeddings}
    others = ((LABEL, "labels", labels), (UNIT, "units", units), (PICTURE, "pictures", pictures))
    for name, argument, values in others:
        if values is not None:
            if len(values) != len(embeddings):
                raise ConfigError(argument, "another number of them", "be one for each row")
            columns[name] = values
    return pa.RecordBatch.from_pydict(columns)


def accepted(
    batch: pa.RecordBatch, row_format: RowFormat, hash_ids: HashIds | None = None
) -> Iterator[tuple[Rows, SetAside]]:
    """The accepted rows of a record batch of any size, and how many were not, slice by slice."""
    for start in range(0, len(batch), SLICE_ROWS):
        yield accept(batch.slice(start, SLICE_ROWS), row_format, hash_ids)


def _shown(kind: pa.DataType) -> str:
    """A type's name; without the fields of structs, which Arrow makes of the keys of dictionaries."""
    return re.sub(r"struct<.*>", "struct", str(kind))


def _dimensions(array: np.ndarray) -> str:
    """Not the shape: the number of rows is a fact about the data."""
    return f"{array.ndim} dimension{'s' * (array.ndim != 1)}"


def as_numpy(values: Any) -> np.ndarray:
    """Whatever has `to_numpy` or `__array__` as an array; tensors also with a gradient or of bfloat16.

    Raises whatever that raises.
    """
    if isinstance(values, np.ma.MaskedArray):
        # What is masked is missing.
        numbers = values.ndim == 2 and values.dtype.kind in "fiu"
        filled: np.ndarray = np.array(values.data, np.float64 if numbers else object)
        filled[np.ma.getmaskarray(values)] = np.nan if numbers else None  # type: ignore[no-untyped-call]
        return filled
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        # numpy has no such type; float32 has all of its values.
        values = values.float() if "bfloat16" in str(values.dtype) else values
    return np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        combined = column.combine_chunks()
        # Of no chunk, or of more than fits into one.
        column = combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    column = without_views(column)
    return column.cast(pa.large_string()) if pa.types.is_string_view(column.type) else column


def _numpy(values: Any, argument: str, wanted: str) -> np.ndarray:
    try:
        return as_numpy(values)
    except ValueError:
        # Lists of several lengths.
        result = np.empty(len(values), object)
        result[:] = list(values)
        return result
    except Exception as error:
        raise ConfigError(argument, f"a {type(values).__name__} ({type(error).__name__})", wanted) from None
