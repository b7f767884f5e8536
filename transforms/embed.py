"""Images -> a private cache of embeddings, one Parquet file per shard of images.

A shard's file name is a digest of the encoder and of the shard's images (paths,
sizes, times of modification and, on local disks, of any change), so a finished
shard is never embedded again: not by a retried bundle, not by the next run.
What passes through the runner is lists of file names on the way in.
"""

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.config import check_decodable
from dpgmm_beam.data import images
from dpgmm_beam.data.images import Note, Reason
from dpgmm_beam.data.rows import MAX_LABEL_BYTES
from dpgmm_beam.data.schema import EMBEDDING, IMAGE, LABEL, PICTURE, SOURCE, UNIT
from dpgmm_beam.data.units import id_bytes
from dpgmm_beam.encoders import dct, registry
from dpgmm_beam.errors import ConfigError
from transforms.files import finding, image_folders, image_lists, opening, parquet, tars
from transforms.files.columns import DEFAULT_COLUMNS, Columns
from transforms.files.image_folders import ImageFile
from transforms.files.inputs import InputDescription
from transforms.files.parquet_schema import PICTURE_KEY
from transforms.files.private import is_local, make_private_folder
from transforms.files.small import read_bounded
from transforms.files.write import write_whole
from transforms.ordered_map import ordered_map
from transforms.prepare import Source

if TYPE_CHECKING:
    from PIL import Image

SHARD_PREFIX, SHARD_SUFFIX = "shard-", ".parquet"

# Lists of the cache files of one input; readers of Parquet folders skip the name.
NAMES_PREFIX = "_names-"

# Where the sources of images that could not be used are listed with the reason, privately, and those
# of which their owner should know something.
REJECTED_FOLDER, NOTES_FOLDER = "_rejected", "_notes"
_REMARKS_SUFFIX = ".jsonl"

# A shard of this many paths of 200 bytes stays under 2 MB in the runner.
MAX_SHARD_ROWS = 8192

# Embeddings of one row group of a cache file: 5 MB at 1,280 dimensions.
ROW_GROUP_ROWS = 1024

# Encoded images, in bytes: of one batch, and of all that are read ahead (or of
# a single one that is larger).
PART_BYTES, AHEAD_BYTES = 2**25, 2**28

# Enters every file name: raise it when the same input gives other files.
_FORMAT = 3

# Far file systems answer slowly, but many at once.
_FAR_READERS, _NEAR_READERS = 16, 2


@dataclasses.dataclass(frozen=True)
class Shard:
    """The images that share one cache file.

    Attributes:
      name: of the cache file; a digest of all that the file depends on.
      path: the folder of images, or the Parquet file or tar.
      labels, files, sizes: of each image; the file is relative to the folder, or a path of its own.
      row_groups: of the Parquet file.
      labelled: whether the cache file has labels.
      columns: names of the file's columns; they also say whether the cache file has ids of units.
      tar: whether the file is a tar, of which the shard has all rows.
      units: ids of the images that are files.
    """

    name: str
    path: str
    labelled: bool
    labels: tuple[str | None, ...] = ()
    files: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    row_groups: tuple[int, ...] = ()
    columns: Columns = DEFAULT_COLUMNS
    tar: bool = False
    units: tuple[str | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """An image as the input has it.

    Attributes:
      source: names it to the owner.
      label: text as bytes, for it need not be UTF-8; None if there is none.
      size: in bytes; of what can't or shall not be read, image_folders.NO_FILE.
      data: None before a file is read.
      reason: why it shall not be read.
      unit: the id of the privacy unit; None where there is none.
    """

    source: str
    label: bytes | None
    size: int
    data: bytes | None = None
    reason: Reason | None = None
    unit: bytes | None = None


@dataclasses.dataclass
class _Remarks:
    """What is written beside a cache file: sources and what is said of them."""

    rejected: list[tuple[str, Reason]] = dataclasses.field(default_factory=list)
    notes: list[tuple[str, Note]] = dataclasses.field(default_factory=list)

    def extend(self, other: "_Remarks") -> None:
        self.rejected.extend(other.rejected)
        self.notes.extend(other.notes)

    def write(self, cache_dir: str, shard: str) -> None:
        name = shard.removesuffix(SHARD_SUFFIX) + _REMARKS_SUFFIX
        for folder, key, found in (
            (REJECTED_FOLDER, "reason", self.rejected),
            (NOTES_FOLDER, "note", self.notes),
        ):
            if found:
                lines = "".join(json.dumps({"source": source, key: said}) + "\n" for source, said in found)
                write_whole(FileSystems.join(cache_dir, folder, name), lines.encode(), private=True)


@dataclasses.dataclass
class EmbedImages(beam.PTransform):
    """Embeds images into a cache; applied to a pipeline.

    Attributes:
      input: of a kind that has images.
      encoder: the spec.
      cache_dir: a private folder on any file system; local ones are made
        owner-only.
      shard_rows: images of a shard at most (of a Parquet input: at least, where
        its row groups are larger).
      batch_size: images per run of the network; 0 is the encoder's own choice.
      threads: of one worker process; 0 is one for each core that it may use.
      decodable: SIDE or SIDE:rgb: beside each embedding the image itself is kept, as cosine coefficients of a
        picture of that form; None: it is not.
      prune: delete cache files of earlier inputs, so that the folder holds the
        embeddings of this input exactly and can be an input itself.

    Returns:
      A PCollection with one `Source`, once every cache file is finished.  Their
      columns are `label` (string; absent if the input is unlabelled),
      `embedding` (fixed_size_list<float32>, the encoder's raw output), `source`,
      `picture` (fixed_size_list<float32>; absent unless decodable) and `unit` (binary, the ids of privacy
      units as they are, for two folders of embeddings must agree on them; absent if units are images).
      Undecodable images are left out; null labels stay null.

    Raises:
      ConfigError: at construction, for bad parameters.
    """

    input: InputDescription
    encoder: str
    cache_dir: str
    shard_rows: int = 1024
    batch_size: int = 0
    threads: int = 0
    prune: bool = False
    decodable: str | None = None

    def __post_init__(self):
        if not 1 <= self.shard_rows <= MAX_SHARD_ROWS:
            raise ConfigError("shard_rows", self.shard_rows, f"be a whole number from 1 to {MAX_SHARD_ROWS}")
        if not 0 <= self.batch_size <= 4096:
            raise ConfigError("batch_size", self.batch_size, "be a whole number from 1 to 4096, or 0")
        registry.check_encoder(self.encoder)
        check_decodable(self.decodable, self.encoder)

    def expand(self, pipeline):
        listing = ListShards(self.encoder, self.cache_dir, self.shard_rows, self.prune, self.decodable)
        embedding = EmbedShards(self.encoder, self.cache_dir, self.batch_size, self.threads, self.decodable)
        return (
            pipeline
            | "Input" >> beam.Create([self.input])
            | "Shards" >> beam.ParDo(listing)
            | "Spread" >> beam.Reshuffle()
            | "Embed" >> beam.ParDo(embedding)
            | "All" >> beam.CombinePerKey(max)
            | "Source"
            >> beam.Map(as_source, self.cache_dir, self.input.columns.has_units, self.decodable is not None)
        )


def as_source(
    finished: tuple[str, int], cache_dir: str, units: bool = False, pictures: bool = False
) -> Source:
    """The finished cache files of an input, as rows to be read."""
    columns = Columns(unit=UNIT if units else "", picture=PICTURE if pictures else "")
    return Source(cache_dir, finished[0], columns)


@dataclasses.dataclass
class ListShards(beam.DoFn):
    """InputDescription -> (file of their names, shard) of its shards; lists inside the worker.

    The names stay in the private folder, however many there are: whoever reads
    the cache needs them, for it may hold other inputs' files.
    """

    encoder: str
    cache_dir: str
    shard_rows: int
    prune: bool
    decodable: str | None = None

    def process(self, element: InputDescription) -> Iterator[tuple[str, Shard | None]]:
        shards = list(plan_shards(element, self.encoder, self.shard_rows, self.decodable))
        make_private_folder(self.cache_dir)
        listed = json.dumps(sorted(shard.name for shard in shards)).encode()
        names_file = FileSystems.join(
            self.cache_dir, f"{NAMES_PREFIX}{hashlib.sha256(listed).hexdigest()[:32]}.json"
        )
        if self.prune:
            # Before anything of this run is written, so that not even a run that
            # dies half-way leaves two embeddings of one image side by side.
            delete_others(self.cache_dir, {shard.name for shard in shards})
        write_whole(names_file, listed, private=True, once=True)
        # An input without images is embedded, too.
        yield from ((names_file, shard) for shard in shards)
        if not shards:
            yield names_file, None


@dataclasses.dataclass
class EmbedShards(beam.DoFn):
    """(file of names, shard) -> (file of names, 1) when the shard's cache file is finished."""

    encoder: str
    cache_dir: str
    batch_size: int
    threads: int
    decodable: str | None = None

    def setup(self):
        self._threads = self.threads or len(os.sched_getaffinity(0))
        self._workers = ThreadPoolExecutor(self._threads, thread_name_prefix="embed")

    def teardown(self):
        self._workers.shutdown()

    def process(self, element: tuple[str, Shard | None]) -> Iterator[tuple[str, int]]:
        names_file, shard = element
        if shard is not None and not _is_finished(path := FileSystems.join(self.cache_dir, shard.name)):
            # Loaded only now: a run that finds every shard finished needs no model.
            encoder = registry.encoder_for_process(self.encoder, self.batch_size)
            with encoder.session():
                self._embed(encoder, shard, path)
        yield names_file, 1

    def _embed(self, encoder: registry.Encoder, shard: Shard, path: str) -> None:
        readers = ThreadPoolExecutor(_NEAR_READERS if is_local(shard.path) else _FAR_READERS)
        remarks = _Remarks()

        use = Preparation(encoder)
        form = None if self.decodable is None else dct.PictureForm.of(self.decodable)
        schema = cache_schema(
            self.encoder, encoder.dimension, shard.labelled, shard.columns.has_units, self.decodable
        )

        def start(part: list[EncodedImage]) -> Future:
            read = readers.submit(load, shard, part)
            return self._workers.submit(lambda: _embed_part(use, read.result(), schema, form))

        def write(file):
            # Two parts a reader are read ahead, and one more than there are threads is embedded.
            ahead = 2 * (_NEAR_READERS if is_local(shard.path) else _FAR_READERS) + self._threads + 1
            parts = parts_of(shard, encoder.batch_size)
            embedded = ordered_map(start, parts, ahead, size_of, AHEAD_BYTES)
            _write(file, schema, embedded, remarks)
            # Before the file appears: a finished shard is never looked at again, so nobody would be told.
            remarks.write(self.cache_dir, shard.name)

        with readers:
            write_whole(path, write, private=True)


def plan_shards(
    description: InputDescription, encoder: str, shard_rows: int, decodable: str | None = None
) -> Iterator[Shard]:
    """The shards of an input, in the order of paths.

    Images of a folder are cut into shards where the checksum of a path says so
    (as well as after `shard_rows`), so that a new image changes the shard that
    it falls into and seldom another.  Row groups of a Parquet file are put together
    until they have `shard_rows` rows.  A tar is one shard: it can only be read from
    its beginning.

    Raises:
      ConfigError: see `transforms.files.inputs.describe_input`.
    """
    columns = description.columns
    version = [_FORMAT, registry.encoder_fingerprint(encoder), description.labelled, columns.has_units]
    if decodable is not None:
        # Others have the names that they had before there were pictures.
        version.append(f"dct:{decodable}")
    if description.kind in (image_folders.IMAGE_FOLDER, image_lists.IMAGE_LIST):
        folder, found = _files_of(description)
        for files in _cut(found, len(folder) + 1, shard_rows):
            yield Shard(
                name=_shard_name(version, [(*dataclasses.astuple(file), _changed(file)) for file in files]),
                path=folder,
                labelled=description.labelled,
                labels=tuple(file.label for file in files),
                files=tuple(file.path.removeprefix(folder + "/") for file in files),
                sizes=tuple(file.size for file in files),
                columns=columns,
                units=tuple(file.unit for file in files) if columns.has_units else (),
            )
        return
    if description.kind == tars.IMAGE_TARS:
        version.append(columns.to_tuple())
        for file in tars.list_tars(description.pattern):
            yield Shard(
                name=_shard_name(version, [dataclasses.astuple(file), _changed(file)]),
                path=file.path,
                labelled=description.labelled,
                columns=columns,
                tar=True,
            )
        return
    listed = {file.path: file for file in finding.list_parquet(description.pattern)}
    pins = {path: file.pin for path, file in listed.items()}
    version.append(columns.to_tuple())
    for groups in parquet.read_footers(description.pattern, pins, encoder, columns=columns):
        for members in _pack(groups.rows, shard_rows):
            yield Shard(
                name=_shard_name(
                    version,
                    [(*dataclasses.astuple(listed[groups.path]), _changed(listed[groups.path])), members],
                ),
                path=groups.path,
                labelled=description.labelled,
                row_groups=members,
                columns=columns,
            )


def _files_of(description: InputDescription) -> tuple[str, list[ImageFile]]:
    """A folder, and the images that are files, in it or anywhere, sorted by path."""
    pattern = description.pattern
    if description.kind == image_lists.IMAGE_LIST:
        found = image_lists.list_images(pattern, description.columns, description.labelled)
        return os.path.dirname(pattern), found
    level = description.columns.unit_level
    return image_folders.base(pattern), image_folders.list_images(pattern, description.labelled, level=level)


def finished_shards(cache_dir: str) -> set[str]:
    """Names of the finished cache files in a folder, of this input or another."""
    if is_local(cache_dir):
        names = os.listdir(cache_dir) if os.path.isdir(cache_dir) else []
        return {name for name in names if name.startswith(SHARD_PREFIX) and name.endswith(SHARD_SUFFIX)}
    pattern = FileSystems.join(finding.literal(cache_dir), f"{SHARD_PREFIX}*{SHARD_SUFFIX}")
    (match,) = FileSystems.match([pattern])
    return {os.path.basename(file.path) for file in match.metadata_list}


def remarks(cache_dir: str, folder: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What is written beside cache files: sources, and what is said of them.

    Args:
      folder: REJECTED_FOLDER or NOTES_FOLDER.
      names: of the cache files.
    """
    written = _remarks_files(cache_dir, folder)
    for name in names:
        path = written.get(name)
        for line in opening.read_bytes(path).splitlines() if path else ():
            source, said = json.loads(line).values()
            yield source, said


def _remarks_files(cache_dir: str, folder: str) -> dict[str, str]:
    """Paths of the files beside cache files, by the names of these."""
    pattern = FileSystems.join(finding.literal(cache_dir), folder, f"{SHARD_PREFIX}*{_REMARKS_SUFFIX}")
    (match,) = FileSystems.match([pattern])
    return {
        os.path.basename(file.path).removesuffix(_REMARKS_SUFFIX) + SHARD_SUFFIX: file.path
        for file in match.metadata_list
    }


def cached_labels(cache_dir: str, names: Iterable[str]) -> Iterator[pa.Table]:
    """Labels (or sources, where there are none) of the rows of each cache file."""
    for name in names:
        with parquet.open_parquet(FileSystems.join(cache_dir, name)) as file:
            yield file.read([LABEL if LABEL in file.schema_arrow.names else SOURCE])


def delete_others(cache_dir: str, names: set[str]) -> None:
    """Deletes the cache files whose names are not given, and what is beside them; may run twice at once."""
    others = [FileSystems.join(cache_dir, name) for name in finished_shards(cache_dir) - names]
    for folder in (REJECTED_FOLDER, NOTES_FOLDER):
        for name, path in _remarks_files(cache_dir, folder).items():
            if name not in names:
                others.append(path)
    for path in others:
        try:
            FileSystems.delete([path])
        except OSError:
            if FileSystems.exists(path):
                raise


def cache_schema(
    encoder: str, dimension: int, labelled: bool, units: bool = False, decodable: str | None = None
) -> pa.Schema:
    """Schema of a cache file; its metadata names the encoder, and the form of its pictures."""
    fields = [
        pa.field(EMBEDDING, pa.list_(pa.float32(), dimension)),
        pa.field(SOURCE, pa.string()),
    ]
    if labelled:
        fields.insert(0, pa.field(LABEL, pa.string()))
    if units:
        fields.append(pa.field(UNIT, pa.binary()))
    metadata = {parquet.ENCODER_KEY: encoder.encode()}
    if decodable is not None:
        length = dct.PictureForm.of(decodable).dimension
        fields.append(pa.field(PICTURE, pa.list_(pa.float32(), length)))
        metadata[PICTURE_KEY] = decodable.encode()
    return pa.schema(fields, metadata=metadata)


def _shard_name(version: Sequence, sources: Sequence) -> str:
    digest = hashlib.sha256(json.dumps([version, sources]).encode()).hexdigest()
    return f"{SHARD_PREFIX}{digest}{SHARD_SUFFIX}"


def _changed(file: finding.InputFile) -> int:
    """When a local file was last changed in any way, renamed and touched included, in ns; 0 elsewhere.

    Programs can set the time of modification, but not this one.  An object store sets its time by
    itself.  The file's number would tell no more, and some file systems give it another one after
    each mount.
    """
    # Where a row of a list means no file, its path may be none that could be looked at.
    looked_at = is_local(file.path) and file.size != image_folders.NO_FILE
    found = finding.stat_of(file.path) if looked_at else None
    return found.st_ctime_ns if found else 0


def _cut(
    files: Sequence[image_folders.ImageFile], prefix: int, shard_rows: int
) -> Iterator[list[image_folders.ImageFile]]:
    shard: list[ImageFile] = []
    for file in files:
        shard.append(file)
        checksum = zlib.crc32(file.path[prefix:].encode(errors="surrogateescape"))
        cut_here = checksum % max(shard_rows // 2, 1) == 0
        if cut_here or len(shard) == shard_rows:
            yield shard
            shard = []
    if shard:
        yield shard


def _pack(rows: Sequence[int], shard_rows: int) -> Iterator[tuple[int, ...]]:
    members: list[int] = []
    total = 0
    for row_group, count in enumerate(rows):
        members.append(row_group)
        total += count
        if total >= shard_rows:
            yield tuple(members)
            members, total = [], 0
    if members:
        yield tuple(members)


def _is_finished(path: str) -> bool:
    if not FileSystems.exists(path):
        return False
    try:
        with parquet.open_parquet(path):
            return True
    except pa.ArrowInvalid:
        # Cut short by a machine that lost power: as good as absent.
        return False


def _listed(shard: Shard, rows: int) -> Iterator[EncodedImage]:
    """The shard's images in their order; those of a folder are not read yet."""
    if shard.row_groups:
        yield from _read_row_groups(shard, rows)
    if shard.tar:
        for sample in tars.samples(shard.path, shard.columns, shard.labelled):
            reason = Reason.FILE_TOO_LARGE if sample.data is None else None
            source = f"{shard.path}#{sample.name}"
            said = _label_bytes(sample.label)
            yield EncodedImage(source, said, sample.size, sample.data, reason, sample.unit)
    units = shard.units or [None] * len(shard.files)
    for name, label, size, unit in zip(shard.files, shard.labels, shard.sizes, units, strict=True):
        reason = _reason_of_size(size)
        whole = name.startswith("/") or not is_local(name)
        source = name if whole else f"{shard.path}/{name}"
        size = image_folders.NO_FILE if reason else size
        # Bytes decide, of a file's name as of any id.
        who = None if unit is None else unit.encode(errors="surrogateescape")
        yield EncodedImage(source, _label_bytes(label), size, reason=reason, unit=who)


def _label_bytes(label: str | None) -> bytes | None:
    return None if label is None else printable(label).encode()


def _read_row_groups(shard: Shard, rows: int) -> Iterator[EncodedImage]:
    with opening.reading(shard.path), parquet.open_rows(shard.path, shard.columns.label) as file:
        for row_group in shard.row_groups:
            start = 0
            # Of images of some megabytes, few are read at a time.
            found = file.metadata.row_group(row_group)
            at_once = max(1, min(rows, PART_BYTES * found.num_rows // max(found.total_byte_size, 1)))
            for batch in parquet.images(file, row_group, at_once, shard.path, shard.columns, shard.labelled):
                labels = _labels(batch.column(LABEL)) if shard.labelled else [None] * len(batch)
                units = (
                    id_bytes(batch.column(UNIT)).to_pylist() if shard.columns.unit else [None] * len(batch)
                )
                rows_read = zip(batch.column(IMAGE), labels, units, strict=True)
                for row, (image, label, unit) in enumerate(rows_read):
                    size = len(image.as_buffer()) if image.is_valid else image_folders.NO_FILE
                    reason = Reason.MISSING if not image.is_valid else _reason_of_size(size)
                    size, data = (image_folders.NO_FILE, None) if reason else (size, image.as_py())
                    source = f"{shard.path}#{row_group}:{start + row}"
                    yield EncodedImage(source, label, size, data, reason, unit)
                start += len(batch)


def _reason_of_size(size: int) -> Reason | None:
    """Why a file shall not be read."""
    if size == image_folders.NO_FILE:
        return Reason.NO_FILE
    return Reason.FILE_TOO_LARGE if size > images.MAX_BYTES else None


def _labels(labels: pa.Array) -> list[bytes | None]:
    """Labels as text; one that no class can have is as good as none, and may be too long to repeat."""
    if pa.types.is_dictionary(labels.type):
        labels = _without_long(labels.dictionary).take(labels.indices)
    # Unchecked: a label that is not UTF-8 is undeclared, and must not fail a job.
    return _without_long(labels.cast(pa.string(), safe=False)).cast(pa.binary()).to_pylist()


def _without_long(labels: pa.Array) -> pa.Array:
    return pc.if_else(pc.greater(pc.binary_length(labels), MAX_LABEL_BYTES), None, labels)


def _parts(found: Iterable[EncodedImage], rows: int) -> Iterator[list[EncodedImage]]:
    """As many images as the network takes at once, or fewer where they are large."""
    part: list[EncodedImage] = []
    size = 0
    for image in found:
        if part and (len(part) == rows or size + image.size > PART_BYTES):
            yield part
            part, size = [], 0
        part.append(image)
        size += max(image.size, 0)
    if part:
        yield part


def parts_of(shard: Shard, rows: int) -> Iterator[list[EncodedImage]]:
    """The shard's images in their order, so many together, or fewer where they are large; see `load`."""
    return _parts(_listed(shard, rows), rows)


def size_of(part: list[EncodedImage]) -> int:
    """Bytes of a part's images."""
    return sum(max(image.size, 0) for image in part)


def load(shard: Shard, part: list[EncodedImage]) -> list[EncodedImage]:
    """The images with their bytes; those that can't or shall not be read have none."""
    return [
        image
        if image.reason or image.data is not None
        else dataclasses.replace(image, data=_read_image(image))
        for image in part
    ]


def _read_image(image: EncodedImage) -> bytes:
    try:
        return read_bounded(image.source, image.size)
    except OSError as error:
        # To leave it out would make the result depend on luck.
        raise RuntimeError(
            f"{printable(image.source)} could not be read ({type(error).__name__}); do not change the input"
            " while a job runs, then run the same command again"
        ) from None


def printable(text: str) -> str:
    """File names need not be valid text; Parquet strings must be."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


class Preparation:
    """What is made of each picture: an array of the encoder's own shape.

    Raises:
      Exception: at construction, whatever the encoder raises for a plain picture.
    """

    def __init__(self, encoder: registry.Encoder):
        from PIL import Image

        self.encoder = encoder
        plain = encoder.prepare([Image.new("RGB", (64, 64))])
        self._form = plain.shape, plain.dtype
        self.side = max(plain.shape[1:3], default=1)

    def __call__(self, picture: "Image.Image") -> np.ndarray:
        prepared = self.encoder.prepare([picture])
        if (prepared.shape, prepared.dtype) != self._form:
            raise ValueError("an image was prepared in another form than others are")
        return prepared


@np.errstate(all="ignore")
def _embed_part(
    use: Preparation, part: list[EncodedImage], schema: pa.Schema, form: dct.PictureForm | None
) -> tuple[pa.Table, _Remarks]:
    """The part's cache rows, and what is to be said of its images.

    Pictures are decoded and prepared one by one: many large ones would not fit
    into memory.  What numpy would warn of is a fact about an image.
    """
    prepared: list[np.ndarray] = []
    pictures: list[np.ndarray] = []
    good, remarks = [], _Remarks()
    side = use.side if form is None else max(use.side, form.side)

    def looked_at(picture: "Image.Image") -> tuple[np.ndarray, np.ndarray | None]:
        beside = None if form is None else dct.letterboxed([picture], form.side, form.channels)
        return use(picture), beside

    for image in part:
        source = printable(image.source)
        notes: list[Note] = []
        made = (
            image.reason
            if image.reason is not None
            else images.use_image(image.data, looked_at, side, notes.append)
        )
        if isinstance(made, Reason):
            remarks.rejected.append((source, made))
            continue
        remarks.notes.extend((source, note) for note in notes)
        prepared.append(made[0])
        if made[1] is not None:
            pictures.append(made[1])
        good.append(image)
    dimension = use.encoder.dimension
    vectors = use.encoder.embed(np.concatenate(prepared)) if good else np.zeros((0, dimension))
    values = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    columns = {
        EMBEDDING: pa.FixedSizeListArray.from_arrays(values, dimension),
        SOURCE: pa.array([printable(image.source) for image in good], pa.string()),
        LABEL: pa.array([image.label for image in good], pa.binary()).cast(pa.string(), safe=False),
        UNIT: pa.array([image.unit for image in good], pa.binary()),
    }
    if form is not None:
        found = np.concatenate(pictures) if good else dct.letterboxed([], form.side, form.channels)
        coefficients = dct.coefficients_of_letterboxed(found, form)
        columns[PICTURE] = pa.FixedSizeListArray.from_arrays(pa.array(coefficients.ravel()), form.dimension)
    return pa.table([columns[name] for name in schema.names], schema=schema), remarks


def _write(file: Any, schema: pa.Schema, chunks: Iterable[tuple[pa.Table, _Remarks]], remarks: _Remarks):
    """Writes row groups of bounded size, so that a shard need not fit into memory."""
    # Embeddings don't compress and are not searched by value.
    options = {
        "compression": {name: "zstd" for name in schema.names if name not in (EMBEDDING, PICTURE)},
        "use_dictionary": [LABEL] if LABEL in schema.names else False,
        "write_statistics": False,
    }
    with pq.ParquetWriter(file, schema, **options) as writer:
        pending: list[pa.Table] = []
        count = 0
        for rows, said in chunks:
            remarks.extend(said)
            pending.append(rows)
            count += len(rows)
            if count >= ROW_GROUP_ROWS:
                writer.write_table(pa.concat_tables(pending))
                pending, count = [], 0
        if count:
            writer.write_table(pa.concat_tables(pending))
