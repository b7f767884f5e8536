"""Rows of a pipeline of your own: elements in, prepared pieces in the private folder out.

Rows go from the worker that has them straight into private files, on the lattice and in
spills of bounded size; what travels on is the spills' names.

    FOLDER/spilled/rows/NAME.npy       rows of one bundle, or of a part of it; NAME is a keyed digest of them
    FOLDER/spilled/pieces/NAME.npy     spills put together; NAME is a digest of their names

A bundle that runs twice writes the same file twice, or another one that nobody hears of: only names that
a runner has committed come to the steps that gather them.  A piece's name says which spills are in it, and
a base's name which pieces, so that however often anything is repeated, no file holds but what its name says.
Spills stay until the run has ended (`pipelines.runs`): a runner may ask for them again.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems
from apache_beam.transforms.window import GlobalWindows
from apache_beam.typehints.row_type import RowTypeConstraint

from dpgmm_beam.data import arrays
from dpgmm_beam.data.digest import digest_limbs, digest_of_limbs
from dpgmm_beam.data.rows import HashIds, RecordForm, Rows, SetAside, concatenate
from dpgmm_beam.data.schema import EMBEDDING, LABEL
from dpgmm_beam.data.units import IdHasher, UnitKeys
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.lattice import MAX_ROWS
from dpgmm_beam.privacy.noise import NoiseKey
from transforms import elements
from transforms.bound import BoundRows, is_done, report_file
from transforms.execution import Execution
from transforms.files import keys, opening, prepared, run_files, unit_files
from transforms.files.listing import LEAST_PIECE_ROWS, PIECES
from transforms.files.private import is_local, make_private_folder
from transforms.files.run_files import Base, Workspace
from transforms.files.write import write_whole

SPILL_BYTES = 2**24
"""Of rows that a bundle holds in memory, about, and of a spill."""

ROWS_AT_ONCE = 1024
"""Single rows that are put on the lattice together."""

_SPILLED = "spilled"
_READ_ROWS = 8192

Spill = tuple[str, int, bytes]
"""Name of a file below FOLDER/spilled, how many rows it holds and their 64 bytes of the data digest."""


@dataclasses.dataclass
class PrepareElements(beam.PTransform):
    """PCollection of rows -> PCollection of pieces, (base, number), for `FitMixture`.

    An element is one row, or a batch of rows:

    - a dictionary, NamedTuple, `beam.Row` or any object with the fields: the embedding is a list or an
      array (d,) of numbers, the label a string or an integer;
    - a batch of rows: the same with an embedding of shape (n, d) and n labels;
    - a `pyarrow.RecordBatch` or `Table` with the fields as columns.

    Batches spare a runner the coding of single rows.  Whatever is no such row is set aside, as in
    files.  The release's bytes are those of `dpgmm release` on the same rows, whatever their
    order, bundles and batches.

    Attributes:
      plan: what the rows are for.
      workspace: private files of the run (`pipelines.own.private_run` makes one).
      execution: speed only.
      embedding_field, label_field: names of the fields.
      unit_field: name of the field with the id of the privacy unit, text, bytes or an integer, where the
        plan bounds rows of a unit; a row without one is set aside.  "": a unit is a row.

    Raises:
      ConfigError: the rows are unbounded or windowed, or their type has no such fields.
    """

    plan: Plan
    workspace: Workspace
    execution: Execution = dataclasses.field(default_factory=Execution)
    embedding_field: str = EMBEDDING
    label_field: str = LABEL
    unit_field: str = ""

    def expand(self, rows):
        self._check(rows)
        spill = SpillRows(self.plan, self.workspace, self.embedding_field, self.label_field, self.unit_field)
        nothing = rows.pipeline | "Also without rows" >> beam.Create([(0, ("", 0, bytes(64)))])
        spills = (
            rows
            | "Spill" >> beam.ParDo(spill)
            | "By group" >> beam.GroupByKey()
            | "Merge" >> beam.ParDo(MergeSpills(self.plan, self.workspace, self.execution))
        )
        units = (
            (spills, nothing)
            | "All" >> beam.Flatten()
            | "All pieces" >> beam.GroupByKey()
            | "Number" >> beam.ParDo(NumberPieces(self.plan, self.workspace))
        )
        if self.execution.spread:
            units = units | "Spread" >> beam.Reshuffle()
        pieces = units | "Place" >> beam.ParDo(PlacePiece(self.workspace))
        return (
            pieces | "Privacy units" >> BoundRows(self.workspace, self.execution)
            if self.unit_field
            else pieces
        )

    def _check(self, rows) -> None:
        if (decodable := self.plan.config.decodable) is not None:
            raise ConfigError(
                "decodable",
                decodable,
                "be left out of a pipeline of your own, whose rows have no pictures",
            )
        most = self.plan.config.max_rows_per_unit
        if bool(self.unit_field) != (most is not None):
            raise ConfigError(
                "unit_field", self.unit_field, "be given where the plan has max_rows_per_unit only"
            )
        if not rows.is_bounded:
            raise ConfigError("rows", "an unbounded PCollection", "be bounded: a release is of one data set")
        if not rows.windowing.is_default():
            allowed = "be in the one global window: apply beam.WindowInto(GlobalWindows()) before"
            raise ConfigError("rows", f"a PCollection in {rows.windowing.windowfn}", allowed)
        kind = rows.element_type
        with contextlib.suppress(Exception):
            kind = RowTypeConstraint.from_user_type(kind) or kind
        if isinstance(kind, RowTypeConstraint):
            fields = [name for name, _ in kind._fields]
            wanted = {"embedding_field": self.embedding_field}
            if self.plan.config.labelled:
                wanted["label_field"] = self.label_field
            if self.unit_field:
                wanted["unit_field"] = self.unit_field
            for argument, name in wanted.items():
                if name not in fields:
                    raise ConfigError(argument, name, f"be a field of the rows: {', '.join(fields)}")


def path_of(workspace: Workspace, name: str) -> str:
    """Path of a spill, or of a piece that is not numbered yet."""
    return FileSystems.join(workspace.folder, _SPILLED, *name.split("/")) + ".npy"


@beam.typehints.with_output_types(tuple[int, Spill])
class SpillRows(beam.DoFn):
    """Elements -> (group, spill) of each file that the bundle's rows were written to."""

    def __init__(self, plan: Plan, workspace: Workspace, embedding: str, label: str, unit: str = ""):
        # Plain data: what a plan computes lazily has no business in the graph.
        self.row_format, self.workspace = plan.row_format, workspace
        self.fields, self.has_units, self.slice = (embedding, label, unit), bool(unit), plan.config.slice

    def setup(self):
        self.secret: NoiseKey | None = None

    def start_bundle(self):
        self.embeddings: list[np.ndarray | None] = []
        self.labels: list[str | None] = []
        self.units: list[bytes | None] = []
        self.rows: list[Rows] = []
        self.held, self.left_out = 0, SetAside()

    def process(self, element) -> Iterator[tuple[int, Spill]]:
        embedding, label, unit = elements.fields_of(element, self.fields)
        if elements.is_batch(embedding, label):
            batch = elements.as_batch(embedding, label, self.row_format, unit if self.has_units else None)
            for rows, left_out in arrays.accepted(batch, self.row_format, self._hash_ids()):
                self._take(rows, left_out)
                if self.held >= SPILL_BYTES:
                    yield self._spill()
            return
        self.embeddings.append(elements.as_vector(embedding, self.row_format.dimension))
        self.labels.append(elements.as_label(label))
        self.units.append(elements.as_id(unit))
        if len(self.embeddings) >= ROWS_AT_ONCE:
            self._take_single_rows()
            if self.held >= SPILL_BYTES:
                yield self._spill()

    def finish_bundle(self):
        self._take_single_rows()
        # Also what was set aside: it is for the owner to see.
        if self.held or self.left_out != SetAside():
            yield GlobalWindows.windowed_value(self._spill())

    def __getstate__(self):
        # What is derived from the key stays in the process.
        return {name: value for name, value in self.__dict__.items() if name != "secret"}

    def _key(self) -> NoiseKey:
        if self.secret is None:
            self.secret = keys.load(self.workspace.key_file)
        return self.secret

    def _hash_ids(self) -> HashIds | None:
        if not self.has_units:
            return None
        return IdHasher(UnitKeys.of(self._key()), self.slice)

    def _take_single_rows(self) -> None:
        if not self.embeddings:
            return
        dimension = self.row_format.dimension
        good = [position for position, vector in enumerate(self.embeddings) if vector is not None]
        matrix = np.array([self.embeddings[position] for position in good]).reshape(len(good), dimension)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), dimension)
        labels = pa.array([self.labels[position] for position in good], pa.string())
        units = pa.array([self.units[position] for position in good], pa.large_binary())
        batch = arrays.batch_of(vectors, labels, units if self.has_units else None)
        self.left_out += SetAside(length=len(self.embeddings) - len(good))
        for rows, left_out in arrays.accepted(batch, self.row_format, self._hash_ids()):
            self._take(rows, left_out)
        self.embeddings, self.labels, self.units = [], [], []

    def _take(self, rows: Rows, left_out: SetAside) -> None:
        self.left_out += left_out
        if len(rows):
            self.rows.append(rows)
            self.held += len(rows) * self.row_format.records(self.has_units).itemsize

    def _spill(self) -> tuple[int, Spill]:
        """Writes what is held."""
        hash_key = chain.row_hash_key(self._key())
        rows, left_out = concatenate(self.rows, self.row_format.dimension), self.left_out
        self.rows, self.held, self.left_out = [], 0, SetAside()
        report = _report(len(rows), left_out)
        # Keyed, for it travels: nobody checks a guess at the rows by it.
        sha = hashlib.blake2b(report, key=hash_key, digest_size=16)
        sha.update(rows.records().view(np.uint8).data)
        name = f"rows/{sha.hexdigest()}"
        path = path_of(self.workspace, name)
        write_whole(report_file(path), report, private=True)
        prepared.write(path, self.row_format.records(self.has_units), rows.blocks(_READ_ROWS))
        # Of whose rows they are, too: a run goes on with the same rows of the same units only.
        digest = digest_of_limbs(digest_limbs(rows, hash_key))
        return int(sha.hexdigest()[:8], 16) % PIECES, (name, len(rows), digest)


def _report(rows: int, left_out: SetAside) -> bytes:
    """As `prepare` has it: how many rows there were, and how many of them were set aside."""
    aside = dataclasses.asdict(left_out)
    return json.dumps({"rows": rows + sum(aside.values()), "set_aside": aside}).encode()


@beam.typehints.with_output_types(tuple[int, Spill])
class MergeSpills(beam.DoFn):
    """(group, spills) -> (0, spill) of the pieces that the group's spills were put together to."""

    def __init__(self, plan: Plan, workspace: Workspace, execution: Execution):
        self.workspace = workspace
        self.form = plan.row_format.records(units=plan.config.max_rows_per_unit is not None)
        self.piece_rows = max(LEAST_PIECE_ROWS, execution.piece_bytes // self.form.itemsize)

    def process(self, element) -> Iterator[tuple[int, Spill]]:
        # One name may come several times: of two bundles of the same rows, both count.
        spills = sorted(element[1])
        start = rows = 0
        for position, (_, count, _) in enumerate(spills):
            rows += count
            if rows >= self.piece_rows or position == len(spills) - 1:
                yield 0, self._merge(spills[start : position + 1])
                start, rows = position + 1, 0

    def _merge(self, spills: list[Spill]) -> Spill:
        names = [name for name, _, _ in spills]
        name = f"pieces/{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:32]}"
        path = path_of(self.workspace, name)
        if not prepared.is_whole(path, self.form):
            paths = [path_of(self.workspace, each) for each in names]
            reports = [json.loads(opening.read_bytes(report_file(each))) for each in paths]
            aside = sum((SetAside(**each["set_aside"]) for each in reports), SetAside())
            report = {"rows": sum(each["rows"] for each in reports), "set_aside": dataclasses.asdict(aside)}
            write_whole(report_file(path), json.dumps(report).encode(), private=True)
            prepared.write(path, self.form, self._read(spills))
        rows, digest = sum(rows for _, rows, _ in spills), add_digests(each for _, _, each in spills)
        return name, rows, digest

    def _read(self, spills: list[Spill]) -> Iterator[Rows]:
        for name, count, _ in spills:
            path, found = path_of(self.workspace, name), 0
            if not prepared.is_whole(path, self.form):
                raise RuntimeError(f"{path} is damaged or gone: run the same pipeline again")
            for block in prepared.read(path, self.form, _READ_ROWS):
                found += len(block)
                yield block
            if found != count:
                raise RuntimeError(f"{path} does not hold the rows that were written: run the pipeline again")


def add_digests(digests: Iterable[bytes]) -> bytes:
    """The digest of all rows of several sets, 64 bytes; see `digest_of_limbs`."""
    total = sum(int.from_bytes(each, "little") for each in digests)
    return (total % 2**512).to_bytes(64, "little")


@beam.typehints.with_output_types(tuple[Base, tuple[int, str]])
class NumberPieces(beam.DoFn):
    """(0, pieces) -> (base, (number, name)) of each; writes the pinned list and the first state.

    Rows that an earlier attempt has numbered, in bundles of its own, keep those numbers: a run goes on at
    its last state, which is of the same rows.
    """

    def __init__(self, plan: Plan, workspace: Workspace):
        self.plan, self.workspace = plan, workspace

    def process(self, element) -> Iterator[tuple[Base, tuple[int, str]]]:
        found = sorted(piece for piece in element[1] if piece[0])
        if sum(rows for _, rows, _ in found) > MAX_ROWS:
            raise ConfigError("rows", "the PCollection", f"hold at most {MAX_ROWS} rows")
        names = [name for name, _, _ in found]
        rows = add_digests(digest for _, _, digest in found).hex()
        # A folder that somebody uses for another plan, too, has another base for it.
        of = {"rows": rows, "config": self.plan.config.digest, "release_id": self.plan.release_id}
        begun = self._begun(of)
        if begun is None:
            data = json.dumps({**of, "pieces": names}, sort_keys=True).encode()
            base = self.workspace.base(hashlib.sha256(data).hexdigest()[:32])
            write_whole(run_files.input_file(base), data, private=True, once=True)
        else:
            base, names = begun
        secret = keys.load(self.workspace.key_file)
        run_files.write_state(base, chain.begin(self.plan, secret, max(1, len(names))))
        chain.check_key(run_files.load_state(base, 0), secret)
        # Without rows there is one piece, so that a run without rows is a run.
        yield from ((base, (number, name)) for number, name in enumerate(names or [""]))

    def _begun(self, of: dict[str, str]) -> tuple[Base, list[str]] | None:
        """The run's folder of the same rows and its pieces' names, where all of them are there."""
        for base in sorted(run_files.bases(self.workspace.folder)):
            with contextlib.suppress(OSError, ValueError, KeyError):
                about = json.loads(opening.read_bytes(run_files.input_file(base)))
                names = about.pop("pieces")
                if about == of and all(self._is_there(base, *each) for each in enumerate(names)):
                    return base, names
        return None

    def _is_there(self, base: Base, number: int, name: str) -> bool:
        paths = self.workspace.piece(base, number), path_of(self.workspace, name)
        return any(map(FileSystems.exists, paths))


@beam.typehints.with_output_types(tuple[Base, int])
class PlacePiece(beam.DoFn):
    """(base, (number, name)) -> (base, number), when the piece lies where passes, or `BoundRows`, read it."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace

    def process(self, element) -> Iterator[tuple[Base, int]]:
        base, (number, name) = element
        plan = run_files.load_state(base, 0).plan
        target, units = self.workspace.piece(base, number), plan.config.max_rows_per_unit is not None
        form = plan.row_format.records(units)
        done = units and is_done(self.workspace, base, number, plan.row_format.records())
        if units:
            target = unit_files.rows_file(self.workspace, base, number)
        if not name:
            write_whole(report_file(target), _report(0, SetAside()), private=True)
            prepared.write(target, form, [])
        elif not done and not prepared.is_whole(target, form):
            source = path_of(self.workspace, name)
            if not prepared.is_whole(source, form):
                # So that the next run puts the rows together anew.
                run_files.delete_files([target, source])
                raise RuntimeError(f"{target} is damaged or gone: run the same pipeline again")
            write_whole(report_file(target), opening.read_bytes(report_file(source)), private=True)
            _place(source, target, form)
        for view, length in plan.views:
            path = run_files.view_piece(base, view.name, number)
            if FileSystems.exists(path) and not prepared.is_whole(path, RecordForm(length)):
                run_files.delete_files([path])
        yield base, number


def _place(source: str, target: str, form: RecordForm) -> None:
    """Gives a whole file a second name, without a copy where the file system can."""
    if is_local(source) and is_local(target):
        folder, name = os.path.split(target)
        make_private_folder(folder)
        hidden = os.path.join(folder, f".{name}-{uuid.uuid4().hex}")
        with contextlib.suppress(OSError):
            os.link(source, hidden)
            try:
                os.replace(hidden, target)
            finally:
                # Of two names of one file a rename drops neither.
                if os.path.lexists(hidden):
                    os.unlink(hidden)
            return
    prepared.write(target, form, prepared.read(source, form, _READ_ROWS))
