"""What a run reads, cut into units of whole row groups and pieces of bounded size.

A unit is what one worker reads from end to end: row groups of one file or of
many small ones.  A piece is what every later pass works by: a range of a unit's
rows, prepared as one file.  Pieces do not depend on how the input was cut into
files and row groups, but for one thing: a file can only be read from the
beginning of a row group, so a unit never divides one.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping

from dpgmm_beam.data.rows import RecordForm
from dpgmm_beam.fit.plan import Plan
from transforms.files.columns import DEFAULT_COLUMNS, Columns
from transforms.files.row_groups import RowGroups

LEAST_PIECE_ROWS = 4096
PIECES = 64
"""Small data is cut into about so many pieces, for the sake of many workers."""

_SCHEME = 2
"""Raise it when the same input gives other prepared rows."""


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Row groups of one file, and the file's pin."""

    path: str
    pin: str
    row_groups: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Piece:
    """The rows from `start` up to `stop` of a unit."""

    unit: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Listing:
    """The whole input of a run.

    Attributes:
      units: each a tuple of stretches, read in their order.
      pieces: by number; at least one, so that a run without rows is a run.
      columns: names of the columns in the files.
    """

    units: tuple[tuple[Stretch, ...], ...]
    pieces: tuple[Piece, ...]
    columns: Columns = DEFAULT_COLUMNS

    def numbers_of(self, unit: int) -> list[int]:
        """Numbers of a unit's pieces, in the order of their rows."""
        return [number for number, piece in enumerate(self.pieces) if piece.unit == unit]

    def to_json(self) -> bytes:
        return json.dumps(
            {
                "units": [[dataclasses.astuple(stretch) for stretch in unit] for unit in self.units],
                "pieces": [dataclasses.astuple(piece) for piece in self.pieces],
                "columns": dataclasses.asdict(self.columns),
            }
        ).encode()

    @staticmethod
    def from_json(data: bytes) -> "Listing":
        content = json.loads(data)
        units = (
            tuple(Stretch(path, pin, tuple(row_groups)) for path, pin, row_groups in unit)
            for unit in content["units"]
        )
        pieces = tuple(Piece(*piece) for piece in content["pieces"])
        return Listing(tuple(units), pieces, Columns(**content["columns"]))


def digest(
    pins: Mapping[str, str],
    plan: Plan,
    piece_bytes: int,
    columns: Columns = DEFAULT_COLUMNS,
    key: bytes = b"",
) -> str:
    """Names the data as this plan's rows are prepared from it, before a footer is read.

    Args:
      pins: of the files, by path.
      piece_bytes: see `cut`.
      columns: names of the columns.
      key: what the choice of rows depends on, where a privacy unit is more than a row.
    """
    row_format = dataclasses.asdict(plan.row_format)
    if not plan.row_format.pictures:
        # Rows without pictures have the names that they had before there were any.
        row_format = {name: value for name, value in row_format.items() if not name.startswith("picture")}
    limits = (PIECES, LEAST_PIECE_ROWS, piece_bytes)
    names = columns.to_tuple()
    of_units = plan.config.max_rows_per_unit, plan.config.slice, key.hex()
    text = json.dumps(
        [_SCHEME, limits, row_format, plan.config.encoder, names, of_units, sorted(pins.items())]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cut(
    files: Iterable[RowGroups],
    form: RecordForm,
    piece_bytes: int,
    columns: Columns = DEFAULT_COLUMNS,
) -> Listing:
    """Cuts files into units and pieces.

    Args:
      files: ordered by path.
      form: of a row in a piece.
      piece_bytes: the size of a prepared piece at most (or of LEAST_PIECE_ROWS rows).
      columns: names of the columns.
    """
    files = list(files)
    total = sum(sum(file.rows) for file in files)
    most = max(LEAST_PIECE_ROWS, piece_bytes // form.itemsize)
    piece_rows = min(max(LEAST_PIECE_ROWS, total // PIECES), most)
    units: list[tuple[Stretch, ...]] = []
    pieces: list[Piece] = []
    gathered: list[Stretch] = []
    rows = 0

    def close() -> None:
        nonlocal gathered, rows
        if rows:
            count = -(-rows // piece_rows) if rows > 1.5 * piece_rows else 1
            edges = [rows * i // count for i in range(count + 1)]
            pieces.extend(Piece(len(units), *edge) for edge in itertools.pairwise(edges))
            units.append(tuple(gathered))
        gathered, rows = [], 0

    for file in files:
        groups: list[int] = []
        for number, count in enumerate(file.rows):
            groups.append(number)
            rows += count
            if rows >= piece_rows:
                gathered.append(Stretch(file.path, file.pin, tuple(groups)))
                groups = []
                close()
        if groups:
            gathered.append(Stretch(file.path, file.pin, tuple(groups)))
    close()
    if not pieces:
        return Listing(((),), (Piece(0, 0, 0),), columns)
    return Listing(tuple(units), tuple(pieces), columns)
