"""Shards of an input of images: those that share one file of embeddings.

A shard's name is a digest of the encoder and of the shard's images (paths, sizes, times of
modification and, on local disks, of any change).
"""

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence

from dpgmm_beam.encoders import registry
from transforms.files import finding, image_folders, image_lists, parquet, tars
from transforms.files.columns import DEFAULT_COLUMNS, Columns
from transforms.files.image_folders import ImageFile
from transforms.files.inputs import InputDescription
from transforms.files.private import is_local

SHARD_PREFIX, SHARD_SUFFIX = "shard-", ".parquet"

# A shard of this many paths of 200 bytes stays under 2 MB in the runner.
MAX_SHARD_ROWS = 8192

# Enters every file name: raise it when the same input gives other files.
_FORMAT = 3


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


def _cut(files: Sequence[ImageFile], prefix: int, shard_rows: int) -> Iterator[list[ImageFile]]:
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
