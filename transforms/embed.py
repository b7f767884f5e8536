"""Images -> a private cache of embeddings, one Parquet file per shard of images.

A shard's file name is a digest of the encoder and of the shard's images (paths,
sizes, modification times), so a finished shard is never embedded again: not by
a retried bundle, not by the next run.  What passes through the runner is lists
of file names on the way in.
"""

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam import encoders, images
from dpgmm_beam.errors import ConfigError
from transforms import inputs
from transforms.inputs import InputDescription
from transforms.ordered_map import ordered_map
from transforms.prepare import Source
from transforms.private_files import is_local, make_private_folder, write_private_file, write_private_once

SHARD_PREFIX, SHARD_SUFFIX = "shard-", ".parquet"

# Lists of the cache files of one input; readers of Parquet folders skip the name.
NAMES_PREFIX = "_names-"

# Where the sources of images that could not be used are listed, privately.
REJECTED_FOLDER = "_rejected"

# A shard of this many paths of 200 bytes stays under 2 MB in the runner.
MAX_SHARD_ROWS = 8192

# Embeddings of one row group of a cache file: 5 MB at 1,280 dimensions.
ROW_GROUP_ROWS = 1024

# Enters every file name: raise it when the same input gives other files.
_FORMAT = 1

# Far file systems answer slowly, but many at once.
_FAR_READERS, _NEAR_READERS = 16, 2


@dataclasses.dataclass(frozen=True)
class Shard:
    """The images that share one cache file.

    Attributes:
      name: of the cache file; a digest of all that the file depends on.
      path: the folder of images, or the Parquet file.
      labels, files: of each image, relative to the folder.
      row_groups: of the Parquet file.
      labelled: whether the cache file has labels.
    """

    name: str
    path: str
    labelled: bool
    labels: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    row_groups: tuple[int, ...] = ()


@dataclasses.dataclass
class EmbedImages(beam.PTransform):
    """Embeds images into a cache; applied to a pipeline.

    Attributes:
      input: of kind IMAGE_FOLDER or IMAGE_PARQUET.
      encoder: the spec.
      cache_dir: a private folder on any file system; local ones are made
        owner-only.
      shard_rows: images of a shard at most (of a Parquet input: at least, where
        its row groups are larger).
      batch_size: images per run of the network; 0 is the encoder's own choice.
      threads: of one worker process; 0 is one for each core that it may use.
      prune: delete cache files of earlier inputs, so that the folder holds the
        embeddings of this input exactly and can be an input itself.

    Returns:
      A PCollection with one `Source`, once every cache file is finished.  Their
      columns are `label` (string; absent if the input is unlabelled),
      `embedding` (fixed_size_list<float32>, the encoder's raw output) and
      `source`.  Undecodable images are left out; null labels stay null.

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

    def __post_init__(self):
        if not 1 <= self.shard_rows <= MAX_SHARD_ROWS:
            raise ConfigError(
                "--shard-rows", self.shard_rows, f"be a whole number from 1 to {MAX_SHARD_ROWS}"
            )
        if not 0 <= self.batch_size <= 4096:
            raise ConfigError("--batch-size", self.batch_size, "be a whole number from 1 to 4096, or 0")
        encoders.check_encoder(self.encoder)

    def expand(self, pipeline):
        return (
            pipeline
            | "Input" >> beam.Create([self.input])
            | "Shards" >> beam.ParDo(ListShards(self.encoder, self.cache_dir, self.shard_rows, self.prune))
            | "Spread" >> beam.Reshuffle()
            | "Embed" >> beam.ParDo(EmbedShards(self.encoder, self.cache_dir, self.batch_size, self.threads))
            | "All" >> beam.CombinePerKey(max)
            | "Source" >> beam.Map(as_source, self.cache_dir)
        )


def as_source(finished: tuple[str, int], cache_dir: str) -> Source:
    """The finished cache files of an input, as rows to be read."""
    return Source(cache_dir, finished[0])


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

    def process(self, element: InputDescription) -> Iterator[tuple[str, Shard | None]]:
        shards = list(plan_shards(element, self.encoder, self.shard_rows))
        make_private_folder(self.cache_dir)
        listed = json.dumps(sorted(shard.name for shard in shards)).encode()
        names_file = FileSystems.join(
            self.cache_dir, f"{NAMES_PREFIX}{hashlib.sha256(listed).hexdigest()[:32]}.json"
        )
        if self.prune:
            # Before anything of this run is written, so that not even a run that
            # dies half-way leaves two embeddings of one image side by side.
            delete_others(self.cache_dir, {shard.name for shard in shards})
        write_private_once(names_file, listed)
        # An input without images is embedded, too.
        yield from ((names_file, shard) for shard in shards or [None])


@dataclasses.dataclass
class EmbedShards(beam.DoFn):
    """(file of names, shard) -> (file of names, 1) when the shard's cache file is finished."""

    encoder: str
    cache_dir: str
    batch_size: int
    threads: int

    def setup(self):
        self._threads = self.threads or len(os.sched_getaffinity(0))
        self._workers = ThreadPoolExecutor(self._threads, thread_name_prefix="embed")

    def teardown(self):
        self._workers.shutdown()

    def process(self, element: tuple[str, Shard | None]) -> Iterator[tuple[str, int]]:
        names_file, shard = element
        if shard is not None and not _is_finished(path := FileSystems.join(self.cache_dir, shard.name)):
            # Loaded only now: a run that finds every shard finished needs no model.
            encoder = encoders.encoder_for_process(self.encoder, self.batch_size)
            with encoder.session():
                self._embed(encoder, shard, path)
        yield names_file, 1

    def _embed(self, encoder: encoders.Encoder, shard: Shard, path: str) -> None:
        readers = ThreadPoolExecutor(_NEAR_READERS if is_local(shard.path) else _FAR_READERS)
        rejected: list[str] = []

        def write(file):
            chunks = _read(shard, encoder.batch_size, readers)
            # One chunk more than there are threads is decoded ahead, so none waits.
            embedded = ordered_map(
                self._workers, lambda chunk: _embed_chunk(encoder, chunk), chunks, self._threads + 1
            )
            _write(file, cache_schema(self.encoder, encoder.dimension, shard.labelled), embedded, rejected)

        with readers:
            write_private_file(path, write)
        if rejected:
            lines = "".join(json.dumps({"source": source}) + "\n" for source in rejected)
            name = shard.name.removesuffix(SHARD_SUFFIX) + ".jsonl"
            write_private_file(
                FileSystems.join(self.cache_dir, REJECTED_FOLDER, name),
                lambda file: file.write(lines.encode()),
            )


def plan_shards(description: InputDescription, encoder: str, shard_rows: int) -> Iterator[Shard]:
    """The shards of an input, in the order of paths.

    Images of a folder are cut into shards where the checksum of a path says so
    (as well as after `shard_rows`), so that a new image changes the shard that
    it falls into and seldom another.  Row groups of a Parquet file are put together
    until they have `shard_rows` rows.

    Raises:
      ConfigError: see `transforms.inputs`.
    """
    version = [_FORMAT, encoders.encoder_fingerprint(encoder), description.labelled]
    if description.kind == inputs.IMAGE_FOLDER:
        folder = description.pattern.rstrip("/")
        for files in _cut(inputs.list_images(folder), len(folder) + 1, shard_rows):
            yield Shard(
                name=_shard_name(version, [dataclasses.astuple(file) for file in files]),
                path=folder,
                labelled=True,
                labels=tuple(file.label for file in files),
                files=tuple(file.path[len(folder) + 1 :] for file in files),
            )
        return
    listed = {file.path: file for file in inputs.list_parquet(description.pattern)}
    for groups in inputs.read_footers(
        description.pattern, {path: file.pin for path, file in listed.items()}, encoder
    ):
        for members in _pack(groups.rows, shard_rows):
            yield Shard(
                name=_shard_name(version, [dataclasses.astuple(listed[groups.path]), members]),
                path=groups.path,
                labelled=description.labelled,
                row_groups=members,
            )


def finished_shards(cache_dir: str) -> set[str]:
    """Names of the finished cache files in a folder, of this input or another."""
    pattern = FileSystems.join(inputs.literal(cache_dir), f"{SHARD_PREFIX}*{SHARD_SUFFIX}")
    (match,) = FileSystems.match([pattern])
    return {os.path.basename(file.path) for file in match.metadata_list}


def delete_others(cache_dir: str, names: set[str]) -> None:
    """Deletes the cache files whose names are not given; may run twice at once."""
    for name in finished_shards(cache_dir) - names:
        path = FileSystems.join(cache_dir, name)
        try:
            FileSystems.delete([path])
        except OSError:
            if FileSystems.exists(path):
                raise


def cache_schema(encoder: str, dimension: int, labelled: bool) -> pa.Schema:
    """Schema of a cache file; its metadata names the encoder."""
    fields = [
        pa.field(inputs.EMBEDDING, pa.list_(pa.float32(), dimension)),
        pa.field(inputs.SOURCE, pa.string()),
    ]
    if labelled:
        fields.insert(0, pa.field(inputs.LABEL, pa.string()))
    return pa.schema(fields, metadata={inputs.ENCODER_KEY: encoder.encode()})


def _shard_name(version: Sequence, sources: Sequence) -> str:
    digest = hashlib.sha256(json.dumps([version, sources]).encode()).hexdigest()
    return f"{SHARD_PREFIX}{digest}{SHARD_SUFFIX}"


def _cut(files: Sequence[inputs.ImageFile], prefix: int, shard_rows: int) -> Iterator[list[inputs.ImageFile]]:
    shard: list[inputs.ImageFile] = []
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
        with inputs.open_parquet(path):
            return True
    except pa.ArrowInvalid:
        # Cut short by a machine that lost power: as good as absent.
        return False


def _read(shard: Shard, rows: int, readers: Executor) -> Iterator[pa.Table]:
    """The shard's images in tables (image, source[, label]) of `rows` rows, read ahead."""
    if shard.row_groups:
        yield from _rechunk(_read_row_groups(shard, rows), rows)
        return

    def read(start: int) -> pa.Table:
        part = slice(start, start + rows)
        paths = [f"{shard.path}/{name}" for name in shard.files[part]]
        columns = {
            inputs.IMAGE: pa.array([_read_image(path) for path in paths], pa.large_binary()),
            inputs.SOURCE: pa.array([_printable(path) for path in paths], pa.string()),
            inputs.LABEL: pa.array([_printable(label) for label in shard.labels[part]], pa.string()),
        }
        return pa.table(columns)

    yield from ordered_map(readers, read, range(0, len(shard.files), rows), 2 * _workers_of(readers))


def _workers_of(readers: Executor) -> int:
    return getattr(readers, "_max_workers", _NEAR_READERS)


def _read_image(path: str) -> bytes:
    try:
        return inputs.read_bytes(path)
    except OSError as error:
        # To leave it out would make the result depend on luck.  The path is not
        # repeated: this text travels to the runner's log.
        raise RuntimeError(
            f"an image of the input could not be read ({type(error).__name__}); do not change the input"
            " while a job runs, then run the same command again"
        ) from None


def _printable(text: str) -> str:
    """File names need not be valid text; Parquet strings must be."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _read_row_groups(shard: Shard, rows: int) -> Iterator[pa.Table]:
    columns = [inputs.IMAGE, inputs.LABEL] if shard.labelled else [inputs.IMAGE]
    with inputs.open_parquet(shard.path) as file:
        for row_group in shard.row_groups:
            start = 0
            for batch in file.iter_batches(batch_size=rows, row_groups=[row_group], columns=columns):
                sources = [f"{shard.path}#{row_group}:{start + row}" for row in range(len(batch))]
                start += len(batch)
                table = {
                    inputs.IMAGE: batch.column(inputs.IMAGE).cast(pa.large_binary()),
                    inputs.SOURCE: pa.array(sources, pa.string()),
                }
                if shard.labelled:
                    table[inputs.LABEL] = _plain_labels(batch.column(inputs.LABEL))
                yield pa.table(table)


def _plain_labels(labels: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(labels.type):
        labels = labels.dictionary_decode()
    # Unchecked: a label that is not UTF-8 is undeclared, and must not fail a job.
    return labels.cast(pa.string(), safe=False)


def _rechunk(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    pending = None
    for table in tables:
        pending = table if pending is None else pa.concat_tables([pending, table])
        while len(pending) >= rows:
            yield pending.slice(0, rows)
            pending = pending.slice(rows)
    if pending is not None and len(pending):
        yield pending


def _embed_chunk(encoder: encoders.Encoder, chunk: pa.Table) -> tuple[pa.Table, list[str]]:
    """The chunk's cache rows (embedding, source[, label]), and the sources of its bad images."""
    decoded = [images.decode_image(data.as_py()) for data in chunk.column(inputs.IMAGE)]
    good = pa.array([image is not None for image in decoded], pa.bool_())
    prepared = encoder.prepare([image for image in decoded if image is not None])
    embeddings = encoder.embed(prepared)
    values = pa.array(np.ascontiguousarray(embeddings, np.float32).reshape(-1))
    rows = chunk.drop_columns([inputs.IMAGE]).filter(good)
    rows = rows.append_column(inputs.EMBEDDING, pa.FixedSizeListArray.from_arrays(values, encoder.dimension))
    bad = chunk.column(inputs.SOURCE).filter(pc.invert(good)).to_pylist()
    return rows, bad


def _write(file: Any, schema: pa.Schema, chunks: Iterable[tuple[pa.Table, list[str]]], rejected: list[str]):
    """Writes row groups of bounded size, so that a shard need not fit into memory."""
    # Embeddings don't compress and are not searched by value.
    options = {
        "compression": {name: "zstd" for name in schema.names if name != inputs.EMBEDDING},
        "use_dictionary": [inputs.LABEL] if inputs.LABEL in schema.names else False,
        "write_statistics": False,
    }
    with pq.ParquetWriter(file, schema, **options) as writer:
        pending: list[pa.Table] = []
        count = 0
        for rows, bad in chunks:
            rejected.extend(bad)
            pending.append(rows.select(schema.names).cast(schema))
            count += len(rows)
            if count >= ROW_GROUP_ROWS:
                writer.write_table(pa.concat_tables(pending))
                pending, count = [], 0
        if count:
            writer.write_table(pa.concat_tables(pending))
