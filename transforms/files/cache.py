"""A private cache of embeddings: one Parquet file per shard of images, with remarks beside it.

    CACHE/shard-DIGEST.parquet            embeddings of a shard's images
    CACHE/_names-DIGEST.json              names of the cache files of one input
    CACHE/_rejected/shard-DIGEST.jsonl    sources of images that could not be used, with the reason
    CACHE/_notes/shard-DIGEST.jsonl       sources of those of which their owner should know something

A cache file is named after its shard, so a finished shard is never embedded again.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.data.images import Note, Reason
from dpgmm_beam.data.schema import EMBEDDING, LABEL, PICTURE, SOURCE, UNIT
from dpgmm_beam.encoders import dct
from transforms.files import finding, opening, parquet
from transforms.files.parquet_schema import PICTURE_KEY
from transforms.files.private import is_local
from transforms.files.shards import SHARD_PREFIX, SHARD_SUFFIX
from transforms.files.write import write_whole

# Lists of the cache files of one input; readers of Parquet folders skip the name.
NAMES_PREFIX = "_names-"

# Where the sources of images that could not be used are listed with the reason, privately, and those
# of which their owner should know something.
REJECTED_FOLDER, NOTES_FOLDER = "_rejected", "_notes"
_REMARKS_SUFFIX = ".jsonl"

# Embeddings of one row group of a cache file: 5 MB at 1,280 dimensions.
ROW_GROUP_ROWS = 1024


@dataclasses.dataclass
class Remarks:
    """What is written beside a cache file: sources and what is said of them."""

    rejected: list[tuple[str, Reason]] = dataclasses.field(default_factory=list)
    notes: list[tuple[str, Note]] = dataclasses.field(default_factory=list)

    def extend(self, other: "Remarks") -> None:
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


def read_remarks(cache_dir: str, folder: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
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


def schema_of(
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


def write_rows(
    file: Any, schema: pa.Schema, chunks: Iterable[tuple[pa.Table, Remarks]], remarks: Remarks
) -> None:
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


def is_finished(path: str) -> bool:
    """Whether a cache file is there, whole."""
    if not FileSystems.exists(path):
        return False
    try:
        with parquet.open_parquet(path):
            return True
    except pa.ArrowInvalid:
        # Cut short by a machine that lost power: as good as absent.
        return False


def finished_shards(cache_dir: str) -> set[str]:
    """Names of the finished cache files in a folder, of this input or another."""
    if is_local(cache_dir):
        names = os.listdir(cache_dir) if os.path.isdir(cache_dir) else []
        return {name for name in names if name.startswith(SHARD_PREFIX) and name.endswith(SHARD_SUFFIX)}
    pattern = FileSystems.join(finding.literal(cache_dir), f"{SHARD_PREFIX}*{SHARD_SUFFIX}")
    (match,) = FileSystems.match([pattern])
    return {os.path.basename(file.path) for file in match.metadata_list}


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
