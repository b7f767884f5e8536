"""Files of prepared rows: fixed-size records that map into memory without decoding.

The format is numpy's own (.npy, version 1.0) for records of a `rows.RecordForm`, with four
bytes behind the array that readers of .npy do not look at: the CRC-32 of the
records, by which a file that a machine lost power over is told from a whole one.
Local files are mapped; elsewhere ranges are read, the next while one is used.
"""

import contextlib
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.data.rows import RecordForm, Rows
from transforms.files.opening import open_ranges
from transforms.files.private import is_local
from transforms.files.write import write_whole

CRC_BYTES = 4
_RANGE_BYTES = 2**24


def write(path: str, form: RecordForm, blocks: Iterable[Rows]) -> None:
    """Writes rows to a file that appears whole; a second attempt writes the same bytes."""

    def fill(file: Any) -> None:
        count = checksum = 0
        file.write(_header(form, 0))
        for block in blocks:
            data = block.records().view(np.uint8).data
            checksum = zlib.crc32(data, checksum)
            file.write(data)
            count += len(block)
        file.write(checksum.to_bytes(CRC_BYTES, "little"))
        # numpy pads the header so that the count may grow in place.
        file.seek(0)
        file.write(_header(form, count))

    if is_local(path):
        write_whole(path, fill, private=True)
        return
    with tempfile.TemporaryFile() as spool:
        fill(spool)
        spool.seek(0)
        write_whole(path, lambda file: shutil.copyfileobj(spool, file, _RANGE_BYTES), private=True)


def is_whole(path: str, form: RecordForm) -> bool:
    """Whether a file is there with every byte as it was written; reads all of it."""
    checksum = 0
    # Asked first: file systems differ in what they raise for a file that is not there.
    if not FileSystems.exists(path):
        return False
    try:
        with open_ranges(path) as file:
            count, start = _read_header(file, form)
            size = count * form.itemsize
            if file.size() != start + size + CRC_BYTES:
                return False
            for offset in range(start, start + size, _RANGE_BYTES):
                data = file.read_at(min(_RANGE_BYTES, start + size - offset), offset)
                checksum = zlib.crc32(data, checksum)
            return file.read_at(CRC_BYTES, start + size) == checksum.to_bytes(CRC_BYTES, "little")
    except ValueError:
        return False


def read(path: str, form: RecordForm, block_rows: int) -> Iterator[Rows]:
    """The file's rows in consecutive blocks.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not such a file.
    """
    if is_local(path):
        records = np.load(path, mmap_mode="r")
        if records.dtype != form.dtype:
            raise ValueError(f"{os.path.basename(path)} does not hold rows of {form.dimension} values")
        ranges: Iterable[np.ndarray] = [np.asarray(records)]
    else:
        ranges = _far_ranges(path, form, block_rows)
    for found in ranges:
        for start in range(0, len(found), block_rows):
            yield Rows.of_records(found[start : start + block_rows])


def _far_ranges(path: str, form: RecordForm, block_rows: int) -> Iterator[np.ndarray]:
    """Ranges of whole blocks, the next one on its way while the last is used."""
    kind = form.dtype
    step = max(1, _RANGE_BYTES // (kind.itemsize * block_rows)) * block_rows
    with open_ranges(path) as file, ThreadPoolExecutor(1) as reader:
        count, offset = _read_header(file, form)

        def fetch(start: int) -> np.ndarray:
            rows = min(step, count - start)
            data = file.read_at(rows * kind.itemsize, offset + start * kind.itemsize)
            return np.frombuffer(data, kind)

        ahead = None
        for start in range(0, count, step):
            current = ahead or reader.submit(fetch, start)
            ahead = reader.submit(fetch, start + step) if start + step < count else None
            yield current.result()


def file_bytes(rows: int, form: RecordForm) -> int:
    """Bytes of a file of so many rows."""
    return len(_header(form, rows)) + rows * form.itemsize + CRC_BYTES


def _header(form: RecordForm, count: int) -> bytes:
    sink = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        sink, {"descr": np.lib.format.dtype_to_descr(form.dtype), "fortran_order": False, "shape": (count,)}
    )
    return sink.getvalue()


def _read_header(file: Any, form: RecordForm) -> tuple[int, int]:
    """Number of records, and where they start.

    Raises:
      ValueError: the file holds other records.
    """
    empty = _header(form, 0)
    head = file.read_at(min(len(empty), file.size()), 0)
    with contextlib.suppress(ValueError):
        count = int(head[head.rindex(b"(") + 1 : head.rindex(b",)")])
        if head == _header(form, count):
            return count, len(empty)
    raise ValueError(f"not a file of rows of {form.dimension} values")
