"""A decoded picture of any mode -> one of mode "L" or "RGB", eight bits a sample.

Pictures are converted in bands of rows, so that a large one needs little more
memory than its own pixels.  What a pixel becomes:

- transparency is composed on white;
- gray of more than eight bits is scaled from the range that the file states:
  PNG's sBIT, TIFF's bits, sample format and least and greatest value.  Where it
  states none it is the whole range; but 16-bit samples that are all below 2^12
  are 8, 10 or 12 bits deep, and numbers of 32 bits, with a sign or with a point
  go from their own least to their own greatest value (with a point: from 0 to
  1, where all are between);
- Lab goes to sRGB; CMYK and YCbCr as Pillow converts them.  Colour profiles are
  not applied.
"""

import dataclasses
import enum
import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

GROUND = 255
"""What transparency is composed on, of each channel: white."""

_BAND_PIXELS = 2**22
_BAND_ROWS = 8
"""Bands have a multiple of so many rows: the most that a picture is reduced by."""

# Depths that samples of 16 bits are taken to have where all are below a sixteenth of the range.
_DEPTHS = (8, 10, 12)

_BITS, _PHOTOMETRIC, _MIN_SAMPLE, _MAX_SAMPLE, _S_MIN_SAMPLE, _S_MAX_SAMPLE = 258, 262, 280, 281, 340, 341


class Note(enum.StrEnum):
    """What the owner of a picture should know of it."""

    SHALLOW = "16-bit samples, all below 1/16 of the range: taken as 8, 10 or 12 bits deep"
    OWN_RANGE = "the file states no range: scaled from its own least to its own greatest value"


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a file says of samples that have more than eight bits.

    Attributes:
      bits: of a sample.
      significant: how many of them hold something.
      least, most: the range, where the file states one.
      inverted: whether zero is white.
      low: the low bytes of 16-bit colours, as a picture of the same mode.
    """

    bits: int = 8
    significant: int = 8
    least: float | None = None
    most: float | None = None
    inverted: bool = False
    low: "Callable[[], Image.Image] | None" = None


def tiff_samples(image: "Image.Image") -> Samples:
    """What the tags of an open TIFF say."""
    tags = getattr(image, "tag_v2", {})
    bits = int(max(_numbers(tags, _BITS) or [8]))
    least = _numbers(tags, _S_MIN_SAMPLE) or _numbers(tags, _MIN_SAMPLE) or [0.0]
    most = _numbers(tags, _S_MAX_SAMPLE) or _numbers(tags, _MAX_SAMPLE)
    # By TIFF's words the greatest value that is used: of unsigned samples it tells the depth, no more.
    used = int(max(most)).bit_length() if most and 0 < max(most) < 2**bits else bits
    stated = bool(most) and np.isfinite([*least, *most]).all() and max(most) > min(least)
    return Samples(
        bits=bits,
        significant=max(8, used),
        least=min(least) if stated else None,
        most=max(most) if stated else None,
        inverted=_numbers(tags, _PHOTOMETRIC) == [0],
    )


def _numbers(tags, tag: int) -> list[float]:
    value = tags.get(tag)
    values = value if isinstance(value, (tuple, list)) else [value]
    numbers = []
    for each in values:
        try:
            numbers.append(float(each))
        except (TypeError, ValueError, ZeroDivisionError):
            return []
    return numbers


def plain(
    image: "Image.Image", samples: Samples, reduction: int, note: Callable[[Note], None]
) -> "Image.Image":
    """A loaded picture as one of mode "L" or "RGB", reduced by a whole number (the mean of squares).

    Args:
      reduction: 1, 2, 4 or 8.
      note: is told what the owner should know.
    """
    from PIL import Image

    convert = _converter(image, samples, note)
    if convert is None and reduction == 1:
        return image
    rows = max(1, _BAND_PIXELS // image.width // _BAND_ROWS) * _BAND_ROWS
    if rows >= image.height:
        return _reduced(convert(image, 0) if convert else image, reduction)
    result = None
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        band = _reduced(convert(band, top) if convert else band, reduction)
        if result is None:
            size = -(-image.width // reduction), -(-image.height // reduction)
            result = Image.new(band.mode, size)
        result.paste(band, (0, top // reduction))
    assert result is not None
    return result


def _reduced(image: "Image.Image", reduction: int) -> "Image.Image":
    return image.reduce(reduction) if reduction > 1 else image


_Converter = Callable[["Image.Image", int], "Image.Image"]


def _converter(image: "Image.Image", samples: Samples, note: Callable[[Note], None]) -> _Converter | None:
    """What makes a plain picture of a band of rows, given the row that it begins with; None for nothing."""
    mode = image.mode
    see_through = "transparency" in image.info
    if mode == "F" or mode.startswith("I"):
        scale = _scale(image, samples, note)
        return lambda band, top: _scaled(band, scale, image.info.get("transparency"))
    if samples.bits == 16 and samples.low is not None and (deep := _deep_colours(image, samples, note)):
        return deep
    if mode in ("L", "RGB") and not see_through:
        return None
    if mode in ("LA", "La"):
        return lambda band, top: _on_ground(band.convert("LA"), "L")
    if mode in ("1", "L"):
        if see_through:
            return lambda band, top: _on_ground(band.convert("L").convert("LA"), "L")
        return lambda band, top: band.convert("L")
    if mode == "LAB":
        return lambda band, top: _from_lab(band)
    if mode in ("RGBA", "RGBa", "PA") or see_through or (mode == "P" and _palette_has_alpha(image)):
        return lambda band, top: _on_ground(band.convert("RGBA"), "RGB")
    return lambda band, top: band.convert("RGB")


def _palette_has_alpha(image: "Image.Image") -> bool:
    return image.palette is not None and image.palette.mode == "RGBA"


def _on_ground(image: "Image.Image", mode: str) -> "Image.Image":
    from PIL import Image

    alpha = image.getchannel("A")
    colours = image.convert(mode)
    if alpha.getextrema() == (255, 255):
        return colours
    ground = Image.new(mode, image.size, GROUND if mode == "L" else (GROUND,) * 3)
    ground.paste(colours, mask=alpha)
    return ground


@functools.cache
def _lab_to_rgb():
    from PIL import ImageCms

    return ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )


def _from_lab(image: "Image.Image") -> "Image.Image":
    from PIL import ImageCms

    return ImageCms.applyTransform(image, _lab_to_rgb()) or image


# Deep samples

_Scale = Callable[[np.ndarray], np.ndarray]


def _scale(image: "Image.Image", samples: Samples, note: Callable[[Note], None]) -> _Scale:
    """What makes eight bits of the samples of one channel."""
    least, most = _extrema(image)
    low, high, shift = 0.0, 1.0, None
    if image.mode != "F" and samples.bits <= 16 and least >= 0:
        # Those with a sign that is never used are left with 15 bits.
        depth = 15 if image.mode == "I" else 16
        shift = _depth(int(most), min(samples.significant, depth), depth, note) - 8
    elif (
        samples.least is not None
        and samples.most is not None
        and samples.least <= least <= most <= samples.most
    ):
        low, high = samples.least, samples.most
    elif image.mode != "F" or least < 0 or most > 1:
        note(Note.OWN_RANGE)
        low, high = least, most

    def scale(values: np.ndarray) -> np.ndarray:
        if shift is not None:
            scaled = np.minimum(values.astype(np.int64) >> shift, 255)
        else:
            span = high - low
            whole = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low) - low) * (
                255 / span if span > 0 else 0
            )
            scaled = np.clip(np.floor(whole + 0.5), 0, 255)
        scaled = scaled.astype(np.uint8)
        return 255 - scaled if samples.inverted else scaled

    return scale


def _depth(most: int, significant: int, bits: int, note: Callable[[Note], None]) -> int:
    """How many bits samples have.

    Files whose samples are scaled to the whole range, as PNG wants it, go beyond
    what their significant bits hold.
    """
    if significant < bits and most < 1 << significant:
        return max(8, significant)
    shallow = [depth for depth in _DEPTHS if most < 1 << depth]
    if shallow and most:
        note(Note.SHALLOW)
        return shallow[0]
    return bits


def _extrema(image: "Image.Image") -> tuple[float, float]:
    if image.mode != "F":
        least, most = image.getextrema()
        return float(least), float(most)  # type: ignore[arg-type]
    least, most = np.inf, -np.inf
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        values = values[np.isfinite(values)]
        if len(values):
            least, most = min(least, float(values.min())), max(most, float(values.max()))
    return (least, most) if least <= most else (0.0, 0.0)


def _scaled(band: "Image.Image", scale: _Scale, transparent: object) -> "Image.Image":
    from PIL import Image

    values = np.asarray(band)
    pixels = scale(values)
    if isinstance(transparent, int):
        pixels[values == transparent] = GROUND
    return Image.fromarray(pixels)


def _deep_colours(image: "Image.Image", samples: Samples, note: Callable[[Note], None]) -> _Converter | None:
    """A converter of 16-bit colours whose upper bits are empty; None where the high bytes are enough."""
    extrema = image.getextrema()
    channels = 3 if image.mode.startswith("RGB") else 1 if image.mode == "LA" else 0
    if not channels or samples.low is None:
        return None
    high = max(int(extrema[channel][1]) for channel in range(channels))  # type: ignore[index]
    depth = samples.significant
    if high >= (1 << max(0, depth - 8) if depth < 16 else 16):
        return None
    try:
        low_bytes = samples.low()
    except Exception:
        # Of a layout that is not read so: the high bytes are all there is.
        return None
    depth = _depth(((high + 1) << 8) - 1 if high else _greatest(low_bytes, channels), depth, 16, note)

    def convert(band: "Image.Image", top: int) -> "Image.Image":
        from PIL import Image

        lower = low_bytes.crop((0, top, band.width, top + band.height))
        values = (np.asarray(band).astype(np.uint16) << 8) | np.asarray(lower)
        pixels = np.minimum(values[..., :channels] >> (depth - 8), 255).astype(np.uint8)
        mode = "RGB" if channels == 3 else "L"
        colours = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
        if band.mode not in ("RGBA", "LA"):
            return colours
        colours.putalpha(band.getchannel("A"))
        return _on_ground(colours, mode)

    return convert


def _greatest(image: "Image.Image", channels: int) -> int:
    extrema = image.getextrema()
    return max(int(extrema[channel][1]) for channel in range(channels))  # type: ignore[index]


def other_bytes(rawmode: str) -> str | None:
    """The raw mode that takes the low byte where the given one takes the high byte of each sample."""
    other = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    head, bits, order = rawmode.rpartition("16")
    return f"{head}16{other[order]}" if bits and head.endswith(";") and order in other else None
