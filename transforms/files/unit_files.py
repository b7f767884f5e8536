"""Private files by which it is decided which rows of a privacy unit count.

    ROWS/DATA/units/rows-00012.npy       a piece's rows with hashes of their units, until it is decided
    ROWS/DATA/units/table-00012          hashes of them and of their units, in the order of units
    FOLDER/DATA/bound                    how many rows of a unit count, where data is to say so
    ROWS/DATA/units/chosen-0003-of-0008  of all units whose hashes lie in a range, which rows count

A table is `units.TABLE` behind FENCES + 1 numbers, that say where each range of hashes begins; a choice is
positions in pieces, uint32, behind one number for each piece and one more.  Both end with the CRC-32
of all of it.  Ranges of them are read: neither who chooses nor who keeps holds more than it needs.
"""

import contextlib
import zlib
from collections.abc import Sequence

import numpy as np
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.data.units import TABLE
from transforms.files.opening import open_ranges, read_bytes
from transforms.files.run_files import Base, Workspace
from transforms.files.write import write_whole

FENCES = 4096
"""Ranges of hashes that a table can be read by; a power of two."""

_CRC_BYTES = 4
_EDGE = np.dtype("<u8")


def folder(workspace: Workspace, base: Base) -> str:
    return FileSystems.join(workspace.piece(base, 0).rpartition("/")[0], "units")


def rows_file(workspace: Workspace, base: Base, number: int) -> str:
    """Path of a piece's rows with hashes of their units."""
    return FileSystems.join(folder(workspace, base), f"rows-{number:05d}.npy")


def table_file(workspace: Workspace, base: Base, number: int) -> str:
    return FileSystems.join(folder(workspace, base), f"table-{number:05d}")


def choice_file(workspace: Workspace, base: Base, number: int, count: int) -> str:
    return FileSystems.join(folder(workspace, base), f"chosen-{number:04d}-of-{count:04d}")


def bound_file(base: Base) -> str:
    """Path of how many rows of a unit count, where that was found."""
    return FileSystems.join(base, "bound")


def _write(path: str, edges: np.ndarray, values: np.ndarray) -> None:
    data = edges.astype(_EDGE).tobytes() + values.tobytes()
    write_whole(path, data + zlib.crc32(data).to_bytes(_CRC_BYTES, "little"), private=True)


def is_whole(path: str) -> bool:
    """Whether a file is there with every byte as it was written."""
    if not FileSystems.exists(path):
        return False
    with contextlib.suppress(ValueError):
        data = read_bytes(path)
        return zlib.crc32(data[:-_CRC_BYTES]).to_bytes(_CRC_BYTES, "little") == data[-_CRC_BYTES:]
    return False


def write_table(path: str, table: np.ndarray) -> None:
    """Writes a table in the order of its units' hashes."""
    edges = np.searchsorted(table["unit"][:, 0] // np.uint64(2**64 // FENCES), np.arange(FENCES + 1))
    _write(path, edges, table)


def read_table(path: str, number: int, count: int) -> np.ndarray:
    """The rows of a table whose units' hashes lie in a range.

    Args:
      number, count: which range, of how many of one width; a power of two up to FENCES.
    """
    width = FENCES // count
    return _read(path, number * width, (number + 1) * width, FENCES, TABLE)


def rows_in_table(path: str) -> int:
    with open_ranges(path) as file:
        return int(np.frombuffer(file.read_at(8, FENCES * 8), _EDGE)[0])


def write_choice(path: str, chosen: np.ndarray, pieces: int) -> None:
    """Writes which rows count.

    Args:
      chosen: of TABLE, in any order.
      pieces: how many there are.
    """
    chosen = chosen[np.lexsort((chosen["position"], chosen["piece"]))]
    _write(
        path,
        np.searchsorted(chosen["piece"], np.arange(pieces + 1)),
        np.ascontiguousarray(chosen["position"]),
    )


def read_choices(paths: Sequence[str], piece: int, pieces: int) -> np.ndarray:
    """Positions of the rows of a piece that count, in their order, of all ranges."""
    found = [_read(path, piece, piece + 1, pieces, np.dtype("<u4")) for path in paths]
    return np.sort(np.concatenate(found))


def _read(path: str, first: int, end: int, edges: int, kind: np.dtype) -> np.ndarray:
    """Values between two of the edges that a file begins with."""
    with open_ranges(path) as file:
        start, stop = (int(np.frombuffer(file.read_at(8, 8 * edge), _EDGE)[0]) for edge in (first, end))
        size = kind.itemsize * (stop - start)
        data = file.read_at(size, 8 * (edges + 1) + kind.itemsize * start)
    if len(data) != size:
        raise RuntimeError(f"{path} is damaged: run the same command again")
    return np.frombuffer(data, kind)
