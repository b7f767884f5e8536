"""Encoded images of a shard, read in their order and in parts of bounded size."""

import dataclasses
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from dpgmm_beam.data import images
from dpgmm_beam.data.images import Reason
from dpgmm_beam.data.rows import MAX_LABEL_BYTES
from dpgmm_beam.data.schema import IMAGE, LABEL, UNIT
from dpgmm_beam.data.units import id_bytes
from transforms.files import image_folders, opening, parquet, tars
from transforms.files.private import is_local
from transforms.files.shards import Shard
from transforms.files.small import read_bounded

PART_BYTES = 2**25
"""Of encoded images, of a part; a single one may be larger."""


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


def printable(text: str) -> str:
    """File names need not be valid text; Parquet strings must be."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


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


def _read_image(image: EncodedImage) -> bytes:
    try:
        return read_bounded(image.source, image.size)
    except OSError as error:
        # To leave it out would make the result depend on luck.
        raise RuntimeError(
            f"{printable(image.source)} could not be read ({type(error).__name__}); do not change the input"
            " while a job runs, then run the same command again"
        ) from None
