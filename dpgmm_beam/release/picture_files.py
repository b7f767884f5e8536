"""Files of decoded pictures: PNG by label, Parquet or tars; the same pictures give the same bytes."""

import dataclasses
import enum
import io
import json
import tarfile
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from dpgmm_beam.data.schema import COMPONENT, COMPONENT_CLASS, IMAGE, LABEL, PROBABILITIES
from dpgmm_beam.errors import printable
from dpgmm_beam.mixture import fixed_size_list
from dpgmm_beam.release.folder_names import folder_names

IMAGES = "images"
"""Folder of all of them."""

SHEET_FILE = "sheet.png"

SHEET_CLASSES, SHEET_PICTURES, SHEET_SIDE = 50, 10, 64
"""Of the sheet: rows, pictures of a row, and pixels of a picture, at most."""

_NAME_PIXELS, _GAP, _LEAST_SIDE = 120, 2, 28


class Format(enum.StrEnum):
    """How pictures are written."""

    PNG = "png"
    PARQUET = "parquet"
    WEBDATASET = "webdataset"


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """Decoded rows.

    Attributes:
      first: number of the first of them, in the whole draw.
      pixels: (n, height, width, 1 or 3) uint8.
      labels: of each, by the teacher or by where it was drawn.
      label_probabilities: (n, C) float32.
      component_class: of each, the class in which it was drawn.
      component: (n,) int32.
    """

    first: int
    pixels: np.ndarray
    labels: Sequence[str]
    label_probabilities: np.ndarray
    component_class: Sequence[str]
    component: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)


def png(pixels: np.ndarray) -> bytes:
    """A picture, (height, width, 1 or 3) uint8, as a PNG without side information."""
    return _png(image_of(pixels))


def image_of(pixels: np.ndarray) -> Image.Image:
    """A picture, (height, width, 1 or 3) uint8, for Pillow."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def files_of(
    pictures: Pictures, kind: Format, classes: Sequence[str], piece: int, pieces: int
) -> list[tuple[str, bytes, int]]:
    """Path, bytes and number of pictures of each file of one piece.

    Args:
      pictures: of the piece.
      kind: of the files.
      classes: of the release.
      piece, pieces: number of the piece, and how many there are.
    """
    encoded = [png(pixels) for pixels in pictures.pixels]
    numbers = range(pictures.first, pictures.first + len(pictures))
    if kind == Format.PNG:
        folders = dict(zip(classes, folder_names(classes), strict=True))
        return [
            (f"{IMAGES}/{folders[label]}/{number:08d}.png", data, 1)
            for number, label, data in zip(numbers, pictures.labels, encoded, strict=True)
        ]
    name = f"{IMAGES}/part-{piece:05d}-of-{pieces:05d}"
    if kind == Format.PARQUET:
        return [(f"{name}.parquet", _parquet(pictures, encoded), len(pictures))]
    return [(f"{name}.tar", _tar(pictures, encoded, numbers), len(pictures))]


def _parquet(pictures: Pictures, encoded: list[bytes]) -> bytes:
    table = pa.table(
        {
            LABEL: pa.array(list(pictures.labels), pa.string()),
            IMAGE: pa.array(encoded, pa.binary()),
            PROBABILITIES: fixed_size_list(pictures.label_probabilities),
            COMPONENT_CLASS: pa.array(list(pictures.component_class), pa.string()),
            COMPONENT: pa.array(pictures.component, pa.int32()),
        }
    )
    sink = io.BytesIO()
    # PNG is compressed already; readers that know of pictures find them by the name of their column.
    pq.write_table(
        table, sink, compression="none", use_dictionary=[LABEL, COMPONENT_CLASS], write_statistics=False
    )
    return sink.getvalue()


def _tar(pictures: Pictures, encoded: list[bytes], numbers: range) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for row, (number, data) in enumerate(zip(numbers, encoded, strict=True)):
            about = {
                LABEL: pictures.labels[row],
                PROBABILITIES: pictures.label_probabilities[row].tolist(),
                COMPONENT_CLASS: pictures.component_class[row],
                COMPONENT: int(pictures.component[row]),
            }
            for suffix, content in (("json", json.dumps(about).encode()), ("png", data)):
                info = tarfile.TarInfo(f"{number:08d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def samples_of(pictures: Pictures, classes: Sequence[str]) -> dict[str, list[tuple[int, bytes]]]:
    """The first pictures of each class that the sheet may show: their numbers, and small PNGs."""
    found: dict[str, list[tuple[int, bytes]]] = {label: [] for label in classes[:SHEET_CLASSES]}
    for row, label in enumerate(pictures.labels):
        if label in found and len(found[label]) < SHEET_PICTURES:
            image = image_of(pictures.pixels[row])
            image.thumbnail((SHEET_SIDE, SHEET_SIDE), Image.Resampling.BICUBIC)
            found[label].append((pictures.first + row, _png(image)))
    return {label: samples for label, samples in found.items() if samples}


def sheet(samples: dict[str, list[tuple[int, bytes]]], classes: Sequence[str]) -> bytes:
    """A PNG of the first pictures of each class: rows are classes, of which the names stand before.

    Args:
      samples: of each class the numbers of pictures and their PNGs, in any order.
      classes: of the release.
    """
    shown = list(classes[:SHEET_CLASSES])
    rows = [
        [Image.open(io.BytesIO(data)) for _, data in sorted(samples.get(label, []))[:SHEET_PICTURES]]
        for label in shown
    ]
    sizes = [image.size for row in rows for image in row]
    mode = "L" if all(image.mode == "L" for row in rows for image in row) else "RGB"
    width, height = (max((size[axis] for size in sizes), default=_LEAST_SIDE) for axis in (0, 1))
    columns = max(1, *map(len, rows)) if rows else 1
    size = (_NAME_PIXELS + columns * (width + _GAP), len(shown) * (height + _GAP))
    whole = Image.new(mode, size, "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(12)
    for number, (label, row) in enumerate(zip(shown, rows, strict=True)):
        top = number * (height + _GAP)
        draw.text((4, top + height // 2), _fitting(draw, font, label), "black", font, anchor="lm")
        for column, image in enumerate(row):
            whole.paste(image, (_NAME_PIXELS + column * (width + _GAP), top))
    return _png(whole)


def _fitting(draw: ImageDraw.ImageDraw, font, label: str) -> str:
    text = printable(label)
    while len(text) > 1 and draw.textlength(text, font) > _NAME_PIXELS - 8:
        text = text[:-2] + "…"
    return text
