"""The input, read once: listed, pinned and written as prepared rows into the private folder.

This is the only place that knows input formats.  What it hands on is pairs
(base, number): a run's folder for this state of the data, and a piece there.
"""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.data.rows import HashIds, RecordForm, RowFormat, Rows, SetAside, accept, without_long_lists
from dpgmm_beam.data.schema import LABEL
from dpgmm_beam.data.survey import LabelCounts, compare, undeclared
from dpgmm_beam.data.units import TABLE, IdHasher, UnitKeys
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.plan import Plan
from transforms.bound import BoundRows, CountUnits, is_done, report_file
from transforms.execution import Execution
from transforms.files import finding, keys, listing, opening, prepared, run_files, tables, unit_files
from transforms.files.columns import DEFAULT_COLUMNS, Columns
from transforms.files.listing import Listing, Piece, Stretch
from transforms.files.private import is_local, make_private_folder
from transforms.files.run_files import Base, Workspace
from transforms.files.write import write_whole
from transforms.ordered_map import ordered_map

SLICE_ROWS, SLICE_BYTES = 8192, 2**24
"""Rows decoded at once at most, and bytes of them as double precision."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Files of embeddings: Parquet or arrays.

    Attributes:
      pattern: a file, folder or glob.
      names_file: a JSON list of names in the folder, where not all of it is meant.
      columns: names of the columns.
    """

    pattern: str
    names_file: str = ""
    columns: Columns = DEFAULT_COLUMNS

    def files(self) -> list[finding.InputFile]:
        """The files, by path."""
        found = tables.list_files(self.pattern, self.columns)
        if not self.names_file:
            return found
        names = set(json.loads(opening.read_bytes(self.names_file)))
        return [file for file in found if os.path.basename(file.path) in names]


@dataclasses.dataclass
class PrepareRows(beam.PTransform):
    """PCollection[Source] with one element -> PCollection of pieces, (base, number).

    Attributes:
      plan: what the rows are for.
      workspace: where they go.
      execution: speed only.
    """

    plan: Plan
    workspace: Workspace
    execution: Execution

    def expand(self, source):
        pieces = _pieces(source, self.plan, self.workspace, self.execution)
        if self.plan.config.max_rows_per_unit is None:
            return pieces
        return pieces | "Privacy units" >> BoundRows(self.workspace, self.execution)


@dataclasses.dataclass
class FindBound(beam.PTransform):
    """PCollection[Source] with one element -> base, when it is in a file how many rows of a unit count.

    Attributes:
      plan: with the most that they may be.
      workspace: of this alone.
      execution: speed only.
    """

    plan: Plan
    workspace: Workspace
    execution: Execution

    def expand(self, source):
        pieces = _pieces(source, self.plan, self.workspace, self.execution)
        return pieces | "Units" >> CountUnits(self.workspace, self.execution)


def _pieces(source, plan: Plan, workspace: Workspace, execution: Execution):
    """PCollection[Source] -> (base, number) of pieces, with hashes of privacy units where there are any."""
    units = source | "List" >> beam.ParDo(ListUnits(plan, workspace, execution))
    if execution.spread:
        units = units | "Spread" >> beam.Reshuffle()
    return units | "Prepare" >> beam.ParDo(PrepareUnits(workspace, execution))


@beam.typehints.with_output_types(tuple[Base, int])
@dataclasses.dataclass
class ListUnits(beam.DoFn):
    """Source -> (base, number) of each unit; writes the pinned listing and the first state."""

    plan: Plan
    workspace: Workspace
    execution: Execution

    def process(self, source: Source) -> Iterator[tuple[Base, int]]:
        config = self.plan.config
        columns = source.columns
        if bool(columns.unit) != (config.max_rows_per_unit is not None):
            raise ConfigError(
                "max_rows_per_unit", config.max_rows_per_unit, "come together with a column of ids of units"
            )
        pins = tables.pins_of(source.files(), columns)
        secret = keys.load(self.workspace.key_file)
        # Which rows of a unit count depends on the key; rows as such do not.
        key = chain.commitment(secret) if columns.unit else b""
        base = self.workspace.base(listing.digest(pins, self.plan, self.execution.piece_bytes, columns, key))
        # Footers are read once: a job that begins again finds what they said.
        if FileSystems.exists(run_files.input_file(base)):
            found = Listing.from_json(opening.read_bytes(run_files.input_file(base)))
        else:
            files = tables.read_footers(source.pattern, pins, config.encoder, config.dimension, columns)
            form = self.plan.row_format.records()
            found = listing.cut(files, form, self.execution.piece_bytes, columns)
        check_room(self.plan, found, self.workspace, base)
        write_whole(run_files.input_file(base), found.to_json(), private=True, once=True)
        run_files.write_state(base, chain.begin(self.plan, secret, len(found.pieces)))
        chain.check_key(run_files.load_state(base, 0), secret)
        yield from ((base, unit) for unit in range(len(found.units)))


def check_room(plan: Plan, found: Listing, workspace: Workspace, base: Base) -> None:
    """Raises ConfigError where the private folder's disk has no room for the rows and their views."""
    if not is_local(workspace.rows):
        return
    needed, units, rows = 0, bool(found.columns.unit), plan.row_format
    for number, piece in enumerate(found.pieces):
        if not os.path.exists(workspace.piece(base, number)):
            needed += prepared.file_bytes(piece.rows, rows.records())
            if units and not os.path.exists(unit_files.rows_file(workspace, base, number)):
                needed += prepared.file_bytes(piece.rows, rows.records(units))
                needed += piece.rows * TABLE.itemsize
        for view, dimension in plan.views:
            if not os.path.exists(run_files.view_piece(base, view.name, number)):
                needed += prepared.file_bytes(piece.rows, RecordForm(dimension))
    folder = os.path.abspath(workspace.rows)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    if needed > shutil.disk_usage(folder).free:
        raise ConfigError(
            "private_dir",
            folder,
            "have room for the prepared rows and their features: 8 + 2 d bytes a row, twice",
        )


@beam.typehints.with_output_types(tuple[Base, int])
class PrepareUnits(beam.DoFn):
    """(base, unit) -> (base, piece) of each of the unit's pieces, when their files are whole.

    Where a privacy unit is more than a row, these are files for `BoundRows`.
    """

    def __init__(self, workspace: Workspace, execution: Execution):
        self.workspace, self.execution = workspace, execution

    def setup(self):
        self.known: tuple[Base, Plan, Listing] | None = None

    def process(self, element: tuple[Base, int]) -> Iterator[tuple[Base, int]]:
        base, unit = element
        if self.known is None or self.known[0] != base:
            plan = run_files.load_state(base, 0).plan
            found = Listing.from_json(opening.read_bytes(run_files.input_file(base)))
            self.known = base, plan, found
        _, plan, found = self.known
        numbers, units = found.numbers_of(unit), bool(found.columns.unit)
        missing = [number for number in numbers if not self._is_whole(plan, base, number, units)]
        if missing:
            hash_ids, path_of = None, self.workspace.piece
            if found.columns.unit:
                secret = keys.load(self.workspace.key_file)
                chain.check_key(run_files.load_state(base, 0), secret)
                hash_ids = IdHasher(UnitKeys.of(secret), plan.config.slice)
                path_of = functools.partial(unit_files.rows_file, self.workspace)
            pieces = {path_of(base, number): found.pieces[number] for number in numbers}
            wanted = {path_of(base, number) for number in missing}
            with ThreadPoolExecutor(self.execution.threads) as workers:
                write_pieces(
                    found.units[unit],
                    pieces,
                    wanted,
                    plan.row_format,
                    found.columns,
                    workers,
                    self.execution.threads,
                    hash_ids,
                )
        yield from ((base, number) for number in numbers)

    def _is_whole(self, plan: Plan, base: Base, number: int, units: bool) -> bool:
        """Whether a piece is there; views of it that were cut short are deleted."""
        for view, dimension in plan.views:
            path = run_files.view_piece(base, view.name, number)
            if FileSystems.exists(path) and not prepared.is_whole(path, RecordForm(dimension)):
                run_files.delete_files([path])
        form = plan.row_format.records()
        if not units:
            return prepared.is_whole(self.workspace.piece(base, number), form)
        source = unit_files.rows_file(self.workspace, base, number)
        return is_done(self.workspace, base, number, form) or prepared.is_whole(
            source, plan.row_format.records(units)
        )


def write_pieces(
    unit: tuple[Stretch, ...],
    pieces: dict[str, Piece],
    wanted: set[str],
    row_format: RowFormat,
    columns: Columns,
    workers: Executor,
    threads: int,
    hash_ids: HashIds | None = None,
) -> None:
    """Reads a unit and writes those of its pieces that are wanted, each with what was set aside of it.

    Args:
      pieces: by path, in the order of their rows.
      hash_ids: see `rows.accept`.

    Raises:
      RuntimeError: a file of the input has changed or cannot be decoded.
      OSError: it cannot be read.
    """
    batches = _Batches(_read_unit(unit, row_format, columns))
    for path, piece in pieces.items():
        if path not in wanted:
            for _ in batches.take(piece.rows):
                pass
            continue
        facts = PieceFacts.of_none(piece.rows, row_format)

        def blocks(rows: int = piece.rows, facts: PieceFacts = facts) -> Iterator[Rows]:
            taken = batches.take(rows)
            for block, aside, labels in ordered_map(
                lambda batch: workers.submit(_accept, batch, row_format, hash_ids), taken, threads + 1
            ):
                facts.add(block, aside, labels)
                yield block
            # Before the file appears: rows of two states of the data must not be mixed.
            _check_pins(unit, columns)

        make_private_folder(os.path.dirname(os.path.dirname(path)))
        prepared.write(path, row_format.records(units=hash_ids is not None), blocks())
        write_whole(report_file(path), facts.to_json(), private=True)


def _accept(
    batch: pa.RecordBatch, row_format: RowFormat, hash_ids: HashIds | None
) -> tuple[Rows, SetAside, LabelCounts]:
    rows, aside = accept(batch, row_format, hash_ids)
    if not aside.label:
        return rows, aside, LabelCounts()
    return rows, aside, undeclared(batch.column(LABEL), row_format.classes)


@dataclasses.dataclass
class PieceFacts:
    """What became of a piece's rows: exact, and as private as they are.

    Attributes:
      rows: of the input.
      set_aside: those of them that are none.
      classes: accepted rows of each class.
      undeclared: labels that are none of the classes.
    """

    rows: int
    set_aside: SetAside
    classes: np.ndarray
    undeclared: LabelCounts

    @staticmethod
    def of_none(rows: int, row_format: RowFormat) -> "PieceFacts":
        return PieceFacts(rows, SetAside(), np.zeros(len(row_format.classes), np.int64), LabelCounts())

    def add(self, block: Rows, aside: SetAside, labels: LabelCounts) -> None:
        self.set_aside += aside
        self.classes += np.bincount(block.classes, minlength=len(self.classes))
        self.undeclared.merge(labels)

    def to_json(self) -> bytes:
        content = {
            "rows": self.rows,
            "set_aside": dataclasses.asdict(self.set_aside),
            "classes": self.classes.tolist(),
            "undeclared": self.undeclared.to_json(),
        }
        return json.dumps(content).encode()


class _Batches:
    """A stream of record batches that is taken by numbers of rows."""

    def __init__(self, batches: Iterable[pa.RecordBatch]):
        self._batches = iter(batches)
        self._rest: pa.RecordBatch | None = None

    def take(self, rows: int) -> Iterator[pa.RecordBatch]:
        while rows:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                raise RuntimeError("the input has changed while the job ran: rows are missing; run it again")
            self._rest = batch.slice(rows) if len(batch) > rows else None
            rows -= min(rows, len(batch))
            yield batch.slice(0, len(batch) - (len(self._rest) if self._rest is not None else 0))


def _read_unit(unit: Iterable[Stretch], row_format: RowFormat, columns: Columns) -> Iterator[pa.RecordBatch]:
    slice_rows = max(1, min(SLICE_ROWS, SLICE_BYTES // (8 * (row_format.dimension + row_format.pictures))))
    # Mapped, so that no name keeps a batch with a long list while the next one is read.
    shorten = functools.partial(without_long_lists, row_format=row_format)
    for stretch in unit:
        with opening.reading(stretch.path):
            batches = tables.embeddings(
                stretch.path,
                stretch.row_groups,
                slice_rows,
                row_format.dimension,
                columns,
                row_format.labelled,
            )
            yield from map(shorten, batches)


def _check_pins(unit: Iterable[Stretch], columns: Columns) -> None:
    for stretch in unit:
        if tables.pin_of(stretch.path, columns) != stretch.pin:
            raise RuntimeError(f"{stretch.path} has changed while the job ran; run it again")


def set_aside(folder: str, classes: Sequence[str] = ()) -> dict:
    """What became of the rows in a folder of pieces, in all.  Exact: for the owner alone.

    Args:
      classes: the declared labels; without them no more is said than how many rows were set aside.
    """
    rows, total, accepted, labels = 0, SetAside(), np.zeros(len(classes), np.int64), LabelCounts()
    (found,) = FileSystems.match([FileSystems.join(finding.literal(folder), "piece-*.json")])
    for file in found.metadata_list:
        report = json.loads(opening.read_bytes(file.path))
        rows += report["rows"]
        total += SetAside(**report["set_aside"])
        # Pieces of an earlier version say no more.
        if classes and "classes" in report:
            accepted += report["classes"]
            labels.merge(LabelCounts.from_json(report["undeclared"]))
    aside = dataclasses.asdict(total)
    if not total.unit + total.bound + total.slice:
        # Where a unit is a row there is nothing to say of it.
        del aside["unit"], aside["bound"], aside["slice"]
    result = {"rows": rows, "set_aside": aside}
    if classes:
        survey = compare(labels, classes)
        by_class = dict(zip(classes, accepted.tolist(), strict=True))
        result |= dataclasses.replace(survey, classes=by_class).to_json()
    return result
