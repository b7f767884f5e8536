"""Images -> a private cache of embeddings, one Parquet file per shard of images.

A finished shard is never embedded again: not by a retried bundle, not by the next run
(`transforms.files.shards`, `transforms.files.cache`).
What passes through the runner is lists of file names on the way in.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.config import check_decodable
from dpgmm_beam.data import images
from dpgmm_beam.data.images import Note, Reason
from dpgmm_beam.data.schema import EMBEDDING, LABEL, PICTURE, SOURCE, UNIT
from dpgmm_beam.encoders import dct, registry
from dpgmm_beam.encoders.preparation import Preparation
from dpgmm_beam.errors import ConfigError
from transforms.files import cache
from transforms.files.cache import Remarks
from transforms.files.columns import Columns
from transforms.files.encoded_images import EncodedImage, load, parts_of, printable, size_of
from transforms.files.inputs import InputDescription
from transforms.files.private import is_local, make_private_folder
from transforms.files.shards import MAX_SHARD_ROWS, Shard, plan_shards
from transforms.files.write import write_whole
from transforms.ordered_map import ordered_map
from transforms.prepare import Source

if TYPE_CHECKING:
    from PIL import Image

# Encoded images, in bytes, that are read ahead in all (or a single one that is larger).
AHEAD_BYTES = 2**28

# Far file systems answer slowly, but many at once.
_FAR_READERS, _NEAR_READERS = 16, 2


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
            self.cache_dir, f"{cache.NAMES_PREFIX}{hashlib.sha256(listed).hexdigest()[:32]}.json"
        )
        if self.prune:
            # Before anything of this run is written, so that not even a run that
            # dies half-way leaves two embeddings of one image side by side.
            cache.delete_others(self.cache_dir, {shard.name for shard in shards})
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
        if shard is not None and not cache.is_finished(path := FileSystems.join(self.cache_dir, shard.name)):
            # Loaded only now: a run that finds every shard finished needs no model.
            encoder = registry.encoder_for_process(self.encoder, self.batch_size)
            with encoder.session():
                self._embed(encoder, shard, path)
        yield names_file, 1

    def _embed(self, encoder: registry.Encoder, shard: Shard, path: str) -> None:
        readers = ThreadPoolExecutor(_NEAR_READERS if is_local(shard.path) else _FAR_READERS)
        remarks = Remarks()

        use = Preparation(encoder)
        form = None if self.decodable is None else dct.PictureForm.of(self.decodable)
        schema = cache.schema_of(
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
            cache.write_rows(file, schema, embedded, remarks)
            # Before the file appears: a finished shard is never looked at again, so nobody would be told.
            remarks.write(self.cache_dir, shard.name)

        with readers:
            write_whole(path, write, private=True)


@np.errstate(all="ignore")
def _embed_part(
    use: Preparation, part: list[EncodedImage], schema: pa.Schema, form: dct.PictureForm | None
) -> tuple[pa.Table, Remarks]:
    """The part's cache rows, and what is to be said of its images.

    Pictures are decoded and prepared one by one: many large ones would not fit
    into memory.  What numpy would warn of is a fact about an image.
    """
    prepared: list[np.ndarray] = []
    pictures: list[np.ndarray] = []
    good, remarks = [], Remarks()
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
