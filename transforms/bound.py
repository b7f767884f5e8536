"""Which rows of a privacy unit count: pieces with hashes of units -> pieces of the rows that do.

A unit's rows may be in any pieces, so it takes a pass.  It is an external sort in the private
folder: each piece leaves a table of hashes in the order of units, with at most L rows of each;
each range of hashes is then merged from all tables, L rows of each unit are left, and each piece
keeps its own of them.  Through the runner go numbers of pieces and ranges.  A worker holds one piece's
table, or one range's rows, however many rows a unit has.

Every file is a function of rows, ids and key, so a step that runs twice writes the same.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.data import units
from dpgmm_beam.data.digest import DIGEST_LIMBS, digest_of_limbs
from dpgmm_beam.data.rows import RecordForm, Rows
from dpgmm_beam.fit import chain, unit_bound
from dpgmm_beam.fit.checkpoint import Checkpoint
from transforms.execution import Execution
from transforms.files import keys, opening, prepared, run_files, unit_files
from transforms.files.run_files import Base, Workspace
from transforms.files.write import write_whole
from transforms.fit import SumParts
from transforms.passes import fingerprint

RANGE_ROWS = 2**20
"""Rows of a range of hashes, about: 40 MB in memory, a few times."""

_READ_ROWS = 8192


@dataclasses.dataclass
class _ByUnit(beam.PTransform):
    """What goes by ranges of units' hashes, each with all rows of its units.

    Attributes:
      workspace: private files of the run.
      execution: speed only.
    """

    workspace: Workspace
    execution: Execution

    def ranges(self, pieces):
        """(base, number) of pieces with hashes of units -> ranges of units."""
        found = (
            pieces
            | "Table" >> beam.ParDo(WriteTable(self.workspace))
            | "All tables" >> beam.GroupByKey()
            | "Ranges" >> beam.ParDo(CutRanges(self.workspace))
        )
        return found | "Spread ranges" >> beam.Reshuffle() if self.execution.spread else found


@dataclasses.dataclass
class BoundRows(_ByUnit):
    """(base, number) of pieces with hashes of units -> (base, number) of pieces of the rows that count."""

    def expand(self, pieces):
        ranges = self.ranges(pieces)
        kept = (
            ranges
            | "Choose" >> beam.ParDo(ChooseRows(self.workspace))
            | "All choices" >> beam.GroupByKey()
            | "Pieces" >> beam.ParDo(ListPieces())
        )
        if self.execution.spread:
            kept = kept | "Spread" >> beam.Reshuffle()
        return kept | "Keep" >> beam.ParDo(KeepRows(self.workspace))


@dataclasses.dataclass
class CountUnits(_ByUnit):
    """(base, number) of pieces with hashes of units -> base, when their bound is in its file.

    The histogram of `fit.unit_bound`, with noise, by the same tables and ranges.
    """

    def expand(self, pieces):
        ranges = self.ranges(pieces)
        return (
            ranges
            | "Count" >> beam.ParDo(CountRange(self.workspace))
            | "Combine" >> beam.CombinePerKey(SumParts())
            | "Bound" >> beam.ParDo(WriteBound(self.workspace))
        )


@beam.typehints.with_output_types(tuple[tuple[Base, int], np.ndarray])
class CountRange(beam.DoFn):
    """(base, (range, ranges)) -> ((base, ranges), counts behind a fingerprint and a part of the digest)."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace

    def process(self, element):
        base, (number, count) = element
        before, secret = run_files.load_state(base, 0), keys.load(self.workspace.key_file)
        chain.check_key(before, secret)
        table = merged(_tables(self.workspace, base, before.pieces, number, count), _most(before))
        limbs = units.digest_limbs_of(table, chain.row_hash_key(secret))
        yield (
            (base, count),
            np.concatenate([fingerprint([number]), limbs, unit_bound.histogram(table["unit"])]),
        )


@beam.typehints.with_output_types(Base)
class WriteBound(beam.DoFn):
    """((base, ranges), all counts) -> base, when the bound is in its file."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace

    def process(self, element) -> Iterator[Base]:
        (base, count), vector = element
        path = unit_files.bound_file(base)
        if not FileSystems.exists(path):
            whole = fingerprint(range(count))
            if not np.array_equal(vector[: len(whole)], whole):
                raise RuntimeError("some ranges of units are missing or twice: run the same command again")
            limbs, counts = np.split(vector[len(whole) :], [DIGEST_LIMBS])
            before, secret = run_files.load_state(base, 0), keys.load(self.workspace.key_file)
            chain.check_key(before, secret)
            bound = unit_bound.find(before.plan, counts, digest_of_limbs(limbs), secret)
            write_whole(path, str(bound).encode(), private=True, once=True)
        yield base


def _tables(workspace: Workspace, base: Base, pieces: int, number: int, count: int) -> Iterator[np.ndarray]:
    """A range of hashes of each piece's table."""
    for piece in range(pieces):
        yield unit_files.read_table(unit_files.table_file(workspace, base, piece), number, count)


def is_done(workspace: Workspace, base: Base, number: int, form: RecordForm) -> bool:
    """Whether a piece, of this form, needs its rows with hashes of units no more."""
    piece, table = workspace.piece(base, number), unit_files.table_file(workspace, base, number)
    return prepared.is_whole(piece, form) and unit_files.is_whole(table)


@beam.typehints.with_output_types(tuple[Base, tuple[int, int]])
class WriteTable(beam.DoFn):
    """(base, number) -> (base, (number, rows in its table))."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace

    def process(self, element: tuple[Base, int]) -> Iterator[tuple[Base, tuple[int, int]]]:
        base, number = element
        path = unit_files.table_file(self.workspace, base, number)
        if not unit_files.is_whole(path):
            before, secret = run_files.load_state(base, 0), keys.load(self.workspace.key_file)
            chain.check_key(before, secret)
            unit_files.write_table(path, self._table(base, number, before, units.UnitKeys.of(secret)))
        yield base, (number, unit_files.rows_in_table(path))

    def _table(self, base: Base, number: int, before: Checkpoint, unit_keys: units.UnitKeys) -> np.ndarray:
        path, start = unit_files.rows_file(self.workspace, base, number), 0
        form = before.plan.row_format.records(units=True)

        def tables() -> Iterator[np.ndarray]:
            nonlocal start
            for block in prepared.read(path, form, _READ_ROWS):
                yield units.table_of(block, unit_keys, number, start)
                start += len(block)

        return merged(tables(), _most(before))


def _most(before: Checkpoint) -> int:
    most = before.plan.config.max_rows_per_unit
    assert most is not None
    return most


@beam.typehints.with_output_types(tuple[Base, tuple[int, int]])
class CutRanges(beam.DoFn):
    """(base, tables) -> (base, (range, ranges)) of hashes."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace

    def process(self, element) -> Iterator[tuple[Base, tuple[int, int]]]:
        base, tables = element
        # Some may come twice.
        found = dict(tables)
        if found.keys() != set(range(run_files.load_state(base, 0).pieces)):
            raise RuntimeError("some pieces of the input are missing: run the same command again")
        wanted = -(-sum(found.values()) // RANGE_ROWS)
        count = min(1 << max(0, wanted - 1).bit_length(), unit_files.FENCES)
        yield from ((base, (number, count)) for number in range(count))


@beam.typehints.with_output_types(tuple[Base, tuple[int, int]])
class ChooseRows(beam.DoFn):
    """(base, (range, ranges)) -> the same, when it is in a file which rows of its units count."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace

    def process(self, element) -> Iterator[tuple[Base, tuple[int, int]]]:
        base, (number, count) = element
        path = unit_files.choice_file(self.workspace, base, number, count)
        if not unit_files.is_whole(path):
            before = run_files.load_state(base, 0)
            tables = _tables(self.workspace, base, before.pieces, number, count)
            unit_files.write_choice(path, merged(tables, _most(before)), before.pieces)
        yield base, (number, count)


def merged(tables: Iterable[np.ndarray], most: int) -> np.ndarray:
    """The rows of each unit that count, of all tables; holds some 2 RANGE_ROWS and the largest table more."""
    held, rows = [np.zeros(0, units.TABLE)], 0
    for table in tables:
        held.append(table)
        rows += len(table)
        if rows > 2 * RANGE_ROWS:
            held, rows = [units.smallest(np.concatenate(held), most)], 0
    return units.smallest(np.concatenate(held), most)


@beam.typehints.with_output_types(tuple[Base, tuple[int, int]])
class ListPieces(beam.DoFn):
    """(base, ranges) -> (base, (number, ranges)) of each piece, when all ranges are decided."""

    def process(self, element) -> Iterator[tuple[Base, tuple[int, int]]]:
        base, ranges = element
        found = set(ranges)
        (count,) = {count for _, count in found}
        if len(found) != count:
            raise RuntimeError("some ranges of units are missing: run the same command again")
        pieces = run_files.load_state(base, 0).pieces
        yield from ((base, (number, count)) for number in range(pieces))


@beam.typehints.with_output_types(tuple[Base, int])
class KeepRows(beam.DoFn):
    """(base, (number, ranges)) -> (base, number), when the piece holds the rows that count."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace

    def process(self, element) -> Iterator[tuple[Base, int]]:
        base, (number, count) = element
        before = run_files.load_state(base, 0)
        form, form_before = before.plan.row_format.records(), before.plan.row_format.records(units=True)
        path = self.workspace.piece(base, number)
        source = unit_files.rows_file(self.workspace, base, number)
        if not prepared.is_whole(path, form):
            choices = [unit_files.choice_file(self.workspace, base, each, count) for each in range(count)]
            kept = unit_files.read_choices(choices, number, before.pieces)
            try:
                facts = _facts(source, form_before, kept)
                write_whole(report_file(path), json.dumps(facts).encode(), private=True)
                blocks = prepared.read(source, form_before, _READ_ROWS)
                prepared.write(path, form, _kept(blocks, kept))
            except OSError:
                # Another attempt deletes the source once it has written the piece.
                if not prepared.is_whole(path, form):
                    raise
        run_files.delete_files([source])
        yield base, number


def _facts(source: str, form: RecordForm, kept: np.ndarray) -> dict:
    """What became of a piece's rows, those left out included."""
    facts = json.loads(opening.read_bytes(report_file(source)))
    accepted = facts["rows"] - sum(facts["set_aside"].values())
    facts["set_aside"]["bound"] = accepted - len(kept)
    if classes := len(facts.get("classes", ())):
        blocks = prepared.read(source, form, _READ_ROWS)
        counts = (np.bincount(block.classes, minlength=classes) for block in _kept(blocks, kept))
        facts["classes"] = sum(counts, np.zeros(classes, np.int64)).tolist()
    return facts


def _kept(blocks: Iterable[Rows], positions: np.ndarray) -> Iterator[Rows]:
    start = 0
    for block in blocks:
        low, high = np.searchsorted(positions, (start, start + len(block)))
        if low < high:
            yield block.kept(positions[low:high].astype(np.int64) - start)
        start += len(block)


def report_file(piece: str) -> str:
    """Path of what was set aside of a piece: exact, and as private as its rows."""
    return piece.removesuffix(".npy") + ".json"
