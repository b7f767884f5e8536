"""Fields of a pipeline's own elements: of one row, or of a batch of rows.

What becomes of an element's rows is decided here as it is for files.  Whatever an element does
when it is looked at, it fails no job: its rows are set aside.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dpgmm_beam.data import arrays
from dpgmm_beam.data.rows import RowFormat
from dpgmm_beam.errors import ConfigError


def fields_of(element: Any, names: Sequence[str]) -> list[Any]:
    """An element's fields; None for those that it does not have."""
    if isinstance(element, pa.RecordBatch | pa.Table):
        # A column that is not there is one of nulls.
        # A column that is there twice is none, either.
        nulls = pa.nulls(len(element))
        places = [element.schema.get_field_index(name) for name in names]
        return [nulls if place < 0 else element.column(place) for place in places]
    return [_field(element, name) for name in names]


def _field(element: Any, name: str) -> Any:
    try:
        return element.get(name) if isinstance(element, Mapping) else getattr(element, name, None)
    except Exception:
        # Whatever an element does when it is looked at, it is set aside.
        return None


def is_batch(embedding: Any, label: Any) -> bool:
    """Whether an element is several rows; a label of one row is no list."""
    if isinstance(embedding, pa.Array | pa.ChunkedArray):
        return True
    try:
        if isinstance(embedding, list | tuple):
            # Of which none is a vector, none is a row.
            return isinstance(label, list | tuple) and any(hasattr(each, "__len__") for each in embedding)
        return getattr(embedding, "ndim", 1) == 2
    except Exception:
        return False


def as_vector(embedding: Any, dimension: int) -> np.ndarray | None:
    """One embedding as (d,) float64; None where it is none of this length."""
    try:
        vector = arrays.as_numpy(embedding)
        if vector.shape != (dimension,):
            return None
        if vector.dtype == object:
            # None in a list becomes NaN, as null does in a file; texts are no numbers.
            if not all(each is None or isinstance(each, int | float | np.number) for each in vector):
                return None
        elif vector.dtype.kind not in "fiu":
            return None
        return vector.astype(np.float64)
    except Exception:
        # Whatever an element does when it is looked at, it is set aside.
        return None


def as_label(label: Any) -> str | None:
    """A label as text; None where it is none."""
    if isinstance(label, str):
        try:
            label.encode()
        except UnicodeEncodeError:
            return None
        return str(label)
    if not isinstance(label, int | np.integer) or isinstance(label, bool):
        return None
    # Python refuses to print the longest of them.
    return str(int(label)) if int(label).bit_length() < 4096 else None


def as_id(unit: Any) -> bytes | None:
    """An id of a privacy unit as the bytes that decide; None where it is none."""
    if isinstance(unit, bytes | bytearray | memoryview):
        return bytes(unit)
    text = as_label(unit)
    return None if text is None else text.encode()


def as_batch(embeddings: Any, labels: Any, row_format: RowFormat, units: Any = None) -> pa.RecordBatch:
    """A batch's columns.

    What becomes of a row depends on no other row of its batch: where values are objects of
    Python, each is looked at by itself, as in elements of one row.
    """
    column = _embeddings(embeddings, row_format.dimension)
    others = {
        "labels": _labels(labels) if row_format.labelled else None,
        "units": _ids(units) if units is not None else None,
    }
    # Where there are not as many nobody can say which label or id is which row's.
    return arrays.batch_of(
        column,
        **{
            name: each if each is None or len(each) == len(column) else pa.nulls(len(column), pa.string())
            for name, each in others.items()
        },
    )


def _embeddings(embeddings: Any, dimension: int) -> pa.Array:
    if not isinstance(embeddings, pa.Array | pa.ChunkedArray):
        try:
            matrix = embeddings if isinstance(embeddings, list | tuple) else arrays.as_numpy(embeddings)
        except Exception:
            return pa.nulls(len(embeddings))
        if isinstance(matrix, list | tuple) or matrix.dtype == object:
            vectors = [as_vector(each, dimension) for each in matrix]
            return pa.array(vectors, pa.list_(pa.float64(), dimension))
        embeddings = matrix
    try:
        return arrays.embedding_column(embeddings)
    except ConfigError:
        # By the type of all of them.
        return pa.nulls(len(embeddings))


def _labels(labels: Any) -> pa.Array:
    return _column(labels, arrays.label_column, as_label, pa.string())


def _ids(units: Any) -> pa.Array:
    return _column(units, arrays.unit_column, as_id, pa.large_binary())


def _column(
    values: Any, of_arrow: Callable[[Any], pa.Array], of_one: Callable[[Any], Any], kind: pa.DataType
) -> pa.Array:
    """A batch's labels or ids; empty where it has no such values, nulls where Arrow's are of another type."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        try:
            return of_arrow(values)
        except ConfigError:
            return pa.nulls(len(values), pa.string())
    try:
        # One text or number is an array without a length, and can't be gone through.
        listed = values if isinstance(values, list | tuple) else arrays.as_numpy(values)
        found = [of_one(each) for each in listed]
    except Exception:
        found = []
    # By Arrow's own lights they would be of one type, or of none.
    return pa.array(found, kind)
