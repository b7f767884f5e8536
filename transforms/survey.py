"""What an input holds, looked at row by row for its owner: exact, and nothing of it is for others.

A job never calls this for what it releases; it is what `dpgmm inspect` prints
and what is written into private folders.
"""

import collections
import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from dpgmm_beam.data import images
from dpgmm_beam.data.images import Header, Note, Reason
from dpgmm_beam.data.rows import RowFormat, accept
from dpgmm_beam.data.schema import LABEL, UNIT
from dpgmm_beam.data.survey import LabelCounts, UnitCounts
from transforms.embed import EmbedImages
from transforms.files import cache, encoded_images, inputs, opening, tables
from transforms.files.encoded_images import EncodedImage
from transforms.files.inputs import InputDescription
from transforms.files.left_out import left_out
from transforms.files.shards import MAX_SHARD_ROWS, Shard, plan_shards
from transforms.ordered_map import ordered_map

MAX_NAMED = 10_000
"""Sources that are named one by one, at most, with what is said of them."""

_PART_ROWS = 64
_TABLE_ROWS = 8192
_AHEAD_BYTES = 2**28

NULL_OR_LENGTH, NOT_A_NUMBER = "null, or of another length", "not finite, zero or huge"
"""Why an embedding is no row."""


@dataclasses.dataclass
class Named:
    """Sources with what is said of them: all are counted, some are named."""

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def add(self, source: str, said: str, most: int = MAX_NAMED) -> None:
        self.counts[said] += 1
        if len(self.examples) < most:
            self.examples.append((source, said))

    def to_json(self, key: str) -> dict:
        named = [{"source": source, key: said} for source, said in self.examples]
        return {"counts": dict(sorted(self.counts.items())), "named": named}


@dataclasses.dataclass
class Found:
    """What an input holds.

    Attributes:
      rows: all that are listed; `good` of them would be embedded, or are embeddings.
      size: of the images, in bytes.
      labels: of the good rows.
      formats: of images, by their content.
      smallest, largest: width and height of the pictures with the fewest and the most pixels.
      rejected: rows that are none, with their reasons.
      passed_over: what the listing leaves out.
      notes: what their owner should know of pictures.
      units: good rows of each privacy unit; None where a unit is a row.
    """

    labels: LabelCounts
    rows: int = 0
    good: int = 0
    size: int = 0
    formats: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    rejected: Named = dataclasses.field(default_factory=Named)
    passed_over: Named = dataclasses.field(default_factory=Named)
    notes: Named = dataclasses.field(default_factory=Named)
    units: UnitCounts | None = None

    def to_json(self) -> dict:
        return {
            **({"units": self.units.to_json()} if self.units else {}),
            "rows": self.rows,
            "good_rows": self.good,
            "bytes": self.size,
            "labels": self.labels.to_json(),
            "formats": dict(sorted(self.formats.items())),
            "smallest": self.smallest,
            "largest": self.largest,
            "rejected": self.rejected.to_json("reason"),
            "passed_over": self.passed_over.to_json("reason"),
            "notes": self.notes.to_json("note"),
        }


def look(
    description: InputDescription,
    encoder: str,
    labels: LabelCounts,
    decode: bool = False,
    side: int = images.LEAST_SIDE,
    threads: int = 1,
    progress: Callable[[float], None] = lambda part: None,
) -> Found:
    """Looks at every row of an input.

    Args:
      encoder: a spec.
      labels: to be counted up.
      decode: read each row to its end: decode pictures, look at the numbers of embeddings.
        Without it headers and labels are read.
      side: as in `images.use_image`.
      progress: is told which part of the input has been looked at.

    Raises:
      RuntimeError, OSError: a file could not be read.
    """
    found = Found(labels, units=UnitCounts() if description.columns.has_units else None)
    for item in left_out(description):
        found.passed_over.add(item.path, item.reason)
    if description.holds_embeddings:
        _look_at_embeddings(description, encoder, found, decode, progress)
    else:
        _look_at_images(description, encoder, found, decode, side, threads, progress)
    return found


@dataclasses.dataclass(frozen=True)
class _Seen:
    source: str
    label: str | None
    size: int
    header: Header | Reason
    notes: tuple[Note, ...] = ()
    unit: bytes | None = None


def _look_at_images(
    description: InputDescription,
    encoder: str,
    found: Found,
    decode: bool,
    side: int,
    threads: int,
    progress: Callable[[float], None],
) -> None:
    shards = list(plan_shards(description, encoder, MAX_SHARD_ROWS))
    # Where shards do not say how many images they have, they are as large as each other.
    total, done = sum(len(shard.files) or 1 for shard in shards), 0
    with ThreadPoolExecutor(threads) as workers:
        for shard in shards:

            def start(part: list[EncodedImage], shard: Shard = shard) -> Future:
                return workers.submit(_look_at_part, shard, part, decode, side)

            parts = encoded_images.parts_of(shard, _PART_ROWS)
            for seen in ordered_map(start, parts, threads + 1, encoded_images.size_of, _AHEAD_BYTES):
                for each in seen:
                    _add(found, each)
                done += len(seen) if shard.files else 0
                progress(done / total)
            done += 0 if shard.files else 1


def _look_at_part(shard: Shard, part: list[EncodedImage], decode: bool, side: int) -> list[_Seen]:
    return [_look_at_image(image, decode, side) for image in encoded_images.load(shard, part)]


def _look_at_image(image: EncodedImage, decode: bool, side: int) -> _Seen:
    notes: list[Note] = []
    header = images.look(image.data, side) if image.reason is None else image.reason
    if decode and not isinstance(header, Reason):
        refused = images.use_image(image.data, lambda picture: None, side, notes.append)
        header = header if refused is None else refused
    label = None if image.label is None else image.label.decode(errors="backslashreplace")
    source = encoded_images.printable(image.source)
    return _Seen(source, label, max(image.size, 0), header, tuple(notes), image.unit)


def _add(found: Found, seen: _Seen) -> None:
    found.rows += 1
    found.size += seen.size
    if isinstance(seen.header, Reason):
        found.rejected.add(seen.source, seen.header)
        return
    found.good += 1
    found.labels.add(seen.label)
    if found.units is not None:
        found.units.add_all(pa.array([seen.unit], pa.binary()))
    found.formats[seen.header.kind] += 1
    size = seen.header.width, seen.header.height
    pixels = size[0] * size[1]
    if found.smallest is None or pixels < found.smallest[0] * found.smallest[1]:
        found.smallest = size
    if found.largest is None or pixels > found.largest[0] * found.largest[1]:
        found.largest = size
    for note in seen.notes:
        found.notes.add(seen.source, note)


def _look_at_embeddings(
    description: InputDescription,
    encoder: str,
    found: Found,
    decode: bool,
    progress: Callable[[float], None],
) -> None:
    columns = description.columns

    def add(rows: int, labels: pa.Array | None, units: pa.Array | None = None) -> None:
        found.rows += rows
        found.good += rows
        if labels is not None:
            found.labels.add_all(labels)
        if found.units is not None and units is not None:
            found.units.add_all(units)
        if description.rows:
            progress(min(1.0, found.rows / description.rows))

    if description.labelled and not decode and not columns.unit:
        for labels in inputs.labels_of(description):
            add(len(labels), labels)
        return
    dimension = description.dimension or 1
    row_format = RowFormat(("",), dimension, None, labelled=False)
    pins = tables.pins_of(tables.list_files(description.pattern, columns), columns)
    for groups in tables.read_footers(description.pattern, pins, encoder, dimension, columns):
        if not decode and not columns.unit:
            add(sum(groups.rows), None)
            continue
        numbers = range(len(groups.rows))
        with opening.reading(groups.path):
            for batch in tables.embeddings(
                groups.path, numbers, _TABLE_ROWS, dimension, columns, description.labelled
            ):
                add(
                    len(batch),
                    batch.column(LABEL) if description.labelled else None,
                    batch.column(UNIT) if columns.unit else None,
                )
                if not decode:
                    continue
                left = accept(batch, row_format)[1]
                found.good -= left.length + left.value
                found.rejected.counts.update({NULL_OR_LENGTH: left.length, NOT_A_NUMBER: left.value})
    # What was never met is not said.
    found.rejected.counts += collections.Counter()


def left_out_of_images(
    description: InputDescription,
    encoder: str,
    cache_dir: str,
    shard_rows: int = EmbedImages.shard_rows,
    labels: bool = False,
    decodable: str | None = None,
) -> dict:
    """What an embedding job left out of its input, and why, as JSON for a private folder.

    It is called when the job is done, and raises nothing: an input that is gone by then is a
    fact like others.

    Args:
      labels: count those of the cached embeddings, too.
    """
    try:
        found = Found(LabelCounts())
        for item in left_out(description):
            found.passed_over.add(item.path, item.reason)
        names = [shard.name for shard in plan_shards(description, encoder, shard_rows, decodable)]
        for source, reason in cache.read_remarks(cache_dir, cache.REJECTED_FOLDER, names):
            found.rejected.add(source, reason)
        for source, note in cache.read_remarks(cache_dir, cache.NOTES_FOLDER, names):
            found.notes.add(source, note)
        for table in cache.cached_labels(cache_dir, names) if labels else ():
            found.good += len(table)
            if LABEL in table.column_names:
                found.labels.add_all(table.column(LABEL))
    except (OSError, RuntimeError, ValueError) as error:
        return {"error": str(error)}
    content = found.to_json()
    kept = ("rejected", "passed_over", "notes", *(("good_rows", "labels") if labels else ()))
    return {key: content[key] for key in kept}


# What a release of so many rows takes, by the model of docs/scale.md: core seconds a row of reading and
# quantising, of the second moment and the projection (for d^2), and of twenty steps of the teacher (for d C);
# and of one synthetic row.
_READ, _MOMENT, _TEACHER, _OUT, _START = 11e-6, 20e-6 / 512**2, 24e-6 / (512 * 10), 6.7e-5, 3.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a release would take: roughly, on the machine of docs/scale.md.

    Attributes:
      rows: that are released.
      seconds: from prepared embeddings to files.
      disk: bytes of the private folder while the release runs, and of embeddings in it, if they are made.
    """

    rows: int
    seconds: float
    disk: int


def cost(rows: int, dimension: int, classes: int, cores: int, samples_per_class: int, embedded: bool) -> Cost:
    """Of a release.

    >>> cost(10**6, 512, 10, 2, 6000, embedded=False)
    Cost(rows=1000000, seconds=32.5, disk=2064000000)
    """
    row = _READ + _MOMENT * dimension**2 + _TEACHER * dimension * classes
    seconds = _START + (rows * row + _OUT * samples_per_class * classes) / max(1, cores)
    disk = rows * (16 + 4 * dimension) + (rows * 4 * dimension if embedded else 0)
    return Cost(rows, round(seconds, 1), disk)
