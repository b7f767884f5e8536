"""Image bytes -> what is made of the picture, or a reason: bad bytes never raise, warn or log.

An image is a row, and a row must cost a worker neither its life nor its memory.
So a header is looked at before anything is decoded, and what the threads of a
process hold of decoded pictures is bounded together.  What stands beside the
pixels in a file never decides over them: a picture that a decoder refuses is
tried again without its side information (`dpgmm_beam.data.mending`).
"""

import contextlib
import ctypes
import dataclasses
import enum
import functools
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from dpgmm_beam.data import encoded, jpeg, mending, pixels, png
from dpgmm_beam.data.pixels import Note

if TYPE_CHECKING:
    from PIL import Image

MAX_DECODED_BYTES = 3 * 2**28
"""Of the pictures that the threads of a process have decoded at once, 768 MiB: a small file
may claim any size and would otherwise take down the worker."""

LARGE_PIXELS = 2**25
"""Larger pictures are reduced, by 2, 4 or 8, to no less than is comfortable for the encoder: JPEGs while
they are decoded, others after it."""

COMFORT, LEAST_SIDE = 2, 512
"""A reduced picture's shorter side is at least so many times the encoder's, and so many pixels."""

# Of the longer side to the shorter one: a resize that makes the shorter side fit
# would make the other one that much longer.
MAX_ASPECT = 256

MAX_BYTES = 2**28
"""Of an encoded image."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""The formats that Pillow decodes in the process, and that can be kept from writing to standard error."""

# Pixels of a resized picture, for each unit of the aspect ratio.
_RESIZED_PIXELS = 2**18

# Bytes of a pixel in Pillow's memory, and in conversions of what is handed on.
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_COLOUR_BYTES, _HANDED_ON_BYTES = 4, 8

# What formats can hold in a byte at the very most, deflate 1,032 bytes: what claims more lacks pixels.
_PIXELS_OF_A_BYTE = {"PNG": 1032 * 8, "JPEG": jpeg.MAX_PIXELS_A_BYTE}

# Of decoders that hold the picture several times.
_DECODER_BYTES = {"WEBP": 20, "AVIF": 20, "GIF": 4}

# TIFF's compressions: none, CCITT's, LZW, JPEG, deflate, PackBits, LZMA, Zstandard, WebP.  Not the
# JPEG of before 1995, whose decoder ends the process where it meets what it does not expect.
_TIFF_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32771, 32773, 32946, 34925, 50000, 50001)

_SIGNATURES = {
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "BMP": re.compile(rb"BM"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "TIFF": re.compile(rb"II\x2a\0|MM\0\x2a|II\x2b\0|MM\0\x2b"),
    "AVIF": re.compile(rb"....ftyp(avif|avis|(mif1|msf1).{4}(.{4})*?avi[fs])", re.DOTALL),
}

# Pictures of formats that are not read: JPEG XL, JPEG 2000, HEIC, Photoshop's, icons, Netpbm's, PDF, SVG,
# DICOM, Windows metafiles, OpenEXR, Radiance and camera raws.
_OTHER_PICTURES = re.compile(
    rb"\xff\x0a|\0\0\0\x0cJXL |\0\0\0\x0cjP  |\xff\x4f\xff\x51|....ftyp(hei|hev|mif1|msf1|crx)|8BPS"
    rb"|\0\0[\1\2]\0|P[1-7fF][\s#]|%PDF"
    rb"|(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg"
    rb"|.{128}DICM|\xd7\xcd\xc6\x9a|\x76\x2f\x31\x01|#\?RADIANCE|FUJIFILM",
    re.DOTALL,
)

_ORIENTATION = 0x0112

_PILLOW = re.compile(r"PIL\.")

_Made = TypeVar("_Made")


class Reason(enum.StrEnum):
    """Why an image is no row."""

    MISSING = "missing"
    """There is none: a null."""
    NO_FILE = "no regular file"
    """A fifo, a device, a link to nothing."""
    EMPTY = "empty"
    NOT_A_PICTURE = "not a picture"
    OTHER_FORMAT = "a format that is not read"
    CUT = "cut"
    """Pixels are missing."""
    DAMAGED = "damaged"
    TOO_LARGE = "too large"
    """More than `MAX_DECODED_BYTES` once it is decoded, at the least scale that serves."""
    TOO_LONG = "too long"
    """More than `MAX_ASPECT` times as long as wide, or as wide as long."""
    FILE_TOO_LARGE = "a file that is too large"
    """More than `MAX_BYTES`."""
    UNPREPARED = "refused by the encoder"
    """What prepares a picture for the network raised an error, or made something of another form."""


class _Refused(Exception):
    def __init__(self, reason: Reason):
        self.reason = reason


class _Room:
    """Bytes that the threads of a process have decoded at once."""

    def __init__(self, most: int):
        self._most, self._taken = most, 0
        self._change = threading.Condition()

    @contextlib.contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Waits until there is room, or nobody else has any."""
        with self._change:
            self._change.wait_for(lambda: not self._taken or self._taken + size <= self._most)
            self._taken += size
        try:
            yield
        finally:
            with self._change:
                self._taken -= size
                self._change.notify_all()


_room = _Room(MAX_DECODED_BYTES)


def use_image(
    data: bytes | None,
    use: "Callable[[Image.Image], _Made]",
    side: int = LEAST_SIDE,
    note: Callable[[Note], None] = lambda note: None,
) -> "_Made | Reason":
    """Decodes one image and makes something of it, e.g. the pixels that an encoder wants.

    The first frame of an animation or page of a document is taken, turned as EXIF
    says.  See `dpgmm_beam.data.pixels` for what becomes of transparency and of
    deep samples.

    Args:
      data: an encoded image, or None.  Its content tells its format.
      use: is given a loaded picture of mode "L" (grayscale) or "RGB".  It must not keep it.
      side: pixels of the longer side of what `use` makes of a picture; pictures of more than
        `LARGE_PIXELS` are reduced with regard to it.
      note: is told what the picture's owner should know.

    Returns:
      What `use` returned, or why there is nothing.
    """
    kind = _kind_of(data)
    if isinstance(kind, Reason):
        return kind
    assert data is not None
    try:
        return _use(data, kind, use, side, note)
    except _Refused as error:
        first = error.reason
    if first not in (Reason.CUT, Reason.DAMAGED):
        return first
    try:
        with _room.take(MAX_DECODED_BYTES):
            mended = mending.mend(data, kind)
        if mended is None or mended.data == data:
            return first
        return _use(mended.data, kind, use, side, note, mended.exif)
    except encoded.Cut:
        return Reason.CUT
    except _Refused as error:
        return error.reason
    except Exception:
        # Whatever a parser trips over.
        return first


@dataclasses.dataclass(frozen=True)
class Header:
    """What an image's header says: its format, and its size in pixels before it is turned."""

    kind: str
    width: int
    height: int


def look(data: bytes | None, side: int = LEAST_SIDE) -> Header | Reason:
    """What an image's header says, or what is wrong with it.

    A picture that is cut or damaged behind its header is found by `use_image` only.

    Args:
      data, side: as in `use_image`.
    """
    kind = _kind_of(data)
    if isinstance(kind, Reason):
        return kind
    assert data is not None
    reason = Reason.DAMAGED
    for again in (False, True):
        try:
            with _room.take(MAX_DECODED_BYTES if again else 0):
                whole = mending.mend(data, kind) if again else encoded.Mended(data)
            if whole is None:
                break
            with _opened(whole.data, kind) as image:
                _plan(image, whole.data, side)
                return Header(kind, image.width, image.height)
        except _Refused as error:
            reason = error.reason
            if reason not in (Reason.CUT, Reason.DAMAGED):
                break
        except encoded.Cut:
            return Reason.CUT
        except Exception:
            # Whatever a parser trips over.
            pass
    return reason


_SNIFFED_BYTES = 2**12


def sniff(head: bytes) -> str | Reason:
    """The format of an image by its first bytes, as Pillow names it, or why it is none of `FORMATS`."""
    for kind, signature in _SIGNATURES.items():
        if signature.match(head):
            return kind if kind in _formats() else Reason.OTHER_FORMAT
    return Reason.OTHER_FORMAT if _OTHER_PICTURES.match(head) else Reason.NOT_A_PICTURE


@functools.cache
def _formats() -> frozenset[str]:
    """Those of `FORMATS` that this machine's Pillow was built with."""
    from PIL import features

    built = {"WEBP": "webp", "AVIF": "avif"}
    found = {kind for kind in FORMATS if kind not in built or features.check(built[kind])}
    return frozenset(found if _silence_libtiff() else found - {"TIFF"})


def _kind_of(data: bytes | None) -> str | Reason:
    """The format of an image, by its first bytes, or why it is none to decode."""
    if reason := _reason_of_bytes(data):
        return reason
    assert data is not None
    _silence()
    return sniff(data[:_SNIFFED_BYTES])


def _reason_of_bytes(data: bytes | None) -> Reason | None:
    if data is None:
        return Reason.MISSING
    if not data:
        return Reason.EMPTY
    return Reason.FILE_TOO_LARGE if len(data) > MAX_BYTES else None


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How a picture is decoded.

    Attributes:
      reduction: by which it is handed on smaller than it is.
      size: bytes that this takes.
      samples: see `pixels.Samples`.
    """

    reduction: int
    size: int
    samples: pixels.Samples


@contextlib.contextmanager
def _opened(data: bytes, kind: str) -> "Iterator[Image.Image]":
    """A picture of which the header is read.

    Raises:
      _Refused: it can't be.
    """
    try:
        image = encoded.opened(data, kind)
    except MemoryError:
        raise _Refused(Reason.TOO_LARGE) from None
    except Exception as error:
        # Damaged files raise whatever the parser happened to trip over.
        raise _Refused(_reason_of(error)) from None
    with image:
        yield image


def _plan(image: "Image.Image", data: bytes, side: int) -> _Plan:
    """Looks at a header before anything is decoded.

    Raises:
      _Refused: the picture is too long or too large.
    """
    kind, (width, height) = image.format or "", image.size
    if not width or not height:
        raise _Refused(Reason.DAMAGED)
    aspect = max(image.size) / min(image.size)
    if aspect > MAX_ASPECT:
        raise _Refused(Reason.TOO_LONG)
    samples = pixels.Samples()
    per_pixel = _PIXEL_BYTES.get(image.mode, _COLOUR_BYTES)
    if kind == "PNG":
        bits, significant = png.depth_of(data)
        samples = pixels.Samples(bits, significant)
    elif kind == "TIFF":
        _check_tiff(image, data)
        samples = pixels.tiff_samples(image)
    if samples.bits == 16 and image.mode in ("RGB", "RGBA", "LA"):
        samples = dataclasses.replace(samples, low=_low_bytes_of(data, kind))
        per_pixel += _COLOUR_BYTES
    reduction = 1
    if width * height > LARGE_PIXELS:
        wanted = max(COMFORT * side, LEAST_SIDE)
        reduction = max([each for each in (8, 4, 2) if min(width, height) // wanted >= each], default=1)
    handed_on = -(-width // reduction) * -(-height // reduction)
    size, decoder = width * height * per_pixel, width * height * _DECODER_BYTES.get(kind, 0)
    if kind == "TIFF":
        decoder = 2 * _tiff_buffer(image)
    if kind == "JPEG":
        size = handed_on * _COLOUR_BYTES
        decoder = _coefficient_bytes(image) if jpeg.keeps_coefficients(data) else 0
    # A decoder is done when a picture is handed on.
    size += max(decoder, handed_on * _HANDED_ON_BYTES)
    if size > MAX_DECODED_BYTES:
        raise _Refused(Reason.TOO_LARGE)
    if width * height > _PIXELS_OF_A_BYTE.get(kind, sys.maxsize) * len(data):
        raise _Refused(Reason.CUT)
    resized = int(_RESIZED_PIXELS * aspect) * (_COLOUR_BYTES + _HANDED_ON_BYTES)
    return _Plan(reduction, size + resized, samples)


def _coefficient_bytes(image: "Image.Image") -> int:
    """Of a JPEG, two for each sample: what a decoder keeps where it has several scans."""
    layers = getattr(image, "layer", [])
    across, down = max((each[1] for each in layers), default=1), max((each[2] for each in layers), default=1)
    samples = sum(each[1] * each[2] for each in layers) / max(1, across * down) if layers else 4
    return int(2 * image.width * image.height * samples)


def _tiff_buffer(image: "Image.Image") -> int:
    """Bytes of a compressed TIFF's strip or tile; nothing of others, which are read row by row."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(259, 1) == 1:
        return 0
    bits = tags.get(258, (1,))
    rows = min(int(tags.get(278, image.height)), image.height)
    strip = image.width * rows
    tile = int(tags.get(322, 0)) * int(tags.get(323, 0))
    return (tile or strip) * sum(bits if isinstance(bits, tuple) else (bits,)) // 8


def _check_tiff(image: "Image.Image", data: bytes) -> None:
    """Raises `_Refused` for what its decoder would not refuse by itself, or only at a high price."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(259, 1) not in _TIFF_COMPRESSIONS:
        raise _Refused(Reason.OTHER_FORMAT)
    tile = int(tags.get(322, 0)) * int(tags.get(323, 0))
    if tile > 4 * max(image.width, 2**12) * max(image.height, 2**12):
        raise _Refused(Reason.TOO_LARGE)
    for starts, sizes in ((273, 279), (324, 325)):
        offsets, counts = (tags.get(tag, ()) for tag in (starts, sizes))
        for start, count in zip(offsets, counts, strict=False):
            if start + count > len(data):
                raise _Refused(Reason.CUT)


def _low_bytes_of(data: bytes, kind: str) -> "Callable[[], Image.Image]":
    """Decodes the low bytes of 16-bit colours, of which Pillow gives the high ones."""

    def low() -> "Image.Image":
        from PIL import Image

        if kind == "PNG" and data[25] == 4:
            image = encoded.opened(png.gray_alpha_as_bytes(data), kind)
            return Image.merge("LA", (image.getchannel("G"), image.getchannel("A")))
        image = encoded.opened(data, kind)
        swapped = []
        for tile in getattr(image, "tile", []):
            arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
            mode = pixels.other_bytes(str(arguments[0]))
            if mode is None:
                raise _Refused(Reason.DAMAGED)
            changed = (mode, *arguments[1:])
            swapped.append(tile._replace(args=changed if isinstance(tile.args, tuple) else mode))
        image.tile = swapped  # type: ignore[attr-defined]
        image.load()
        return image

    return low


def _use(
    data: bytes,
    kind: str,
    use: "Callable[[Image.Image], _Made]",
    side: int,
    note: Callable[[Note], None],
    exif: bytes = b"",
) -> _Made:
    with _opened(data, kind) as image:
        try:
            plan = _plan(image, data, side)
        except _Refused:
            raise
        except Exception as error:
            raise _Refused(_reason_of(error)) from None
        with _room.take(plan.size):
            try:
                picture = _decoded(image, data, plan, note, exif)
            except _Refused:
                raise
            except MemoryError:
                raise _Refused(Reason.TOO_LARGE) from None
            except Exception as error:
                raise _Refused(_reason_of(error)) from None
            try:
                return use(picture)
            except Exception:
                # Pictures of odd shapes raise what their use did.
                raise _Refused(Reason.UNPREPARED) from None


def _decoded(
    image: "Image.Image", data: bytes, plan: _Plan, note: Callable[[Note], None], exif: bytes
) -> "Image.Image":
    from PIL import Image

    reduction, gray = plan.reduction, None
    if image.format == "JPEG":
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        reduction = 1
    image.load()
    if _is_cut(image, data):
        raise _Refused(Reason.CUT)
    _mend_transparency(image, data)
    if image.format == "PNG" and data[25] == 4 and image.mode == "RGBA":
        # Pillow makes colours of gray of sixteen bits with transparency.
        gray = Image.merge("LA", (image.getchannel("R"), image.getchannel("A")))
    picture = pixels.plain(gray or image, plan.samples, reduction, note)
    turn = _turns().get(_orientation(image, exif))
    return picture if turn is None else picture.transpose(turn)


def _is_cut(image: "Image.Image", data: bytes) -> bool:
    """Whether a decoded picture lacks pixels; looks closer where its end is what decoders put there."""
    if image.format == "JPEG":
        last = image.getpixel((image.width - 1, image.height - 1))
        gray = all(value in (127, 128) for value in (last if isinstance(last, tuple) else (last,)))
        return (gray or not data.endswith(jpeg.END)) and jpeg.is_cut(data, gray)
    if image.format == "PNG":
        zeros = not any(image.crop((0, image.height - 1, image.width, image.height)).tobytes())
        return zeros and png.is_cut(data)
    return False


def _mend_transparency(image: "Image.Image", data: bytes) -> None:
    """Brings a PNG's transparent gray or colour to the samples that Pillow makes of its own."""
    transparent = image.info.get("transparency")
    if image.format != "PNG" or not isinstance(transparent, (int, tuple)):
        return
    depth = data[24]
    if image.mode == "L" and depth < 8 and isinstance(transparent, int):
        image.info["transparency"] = transparent * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16 and isinstance(transparent, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


def _orientation(image: "Image.Image", exif: bytes) -> int:
    """EXIF's, 1 to 8; broken EXIF has none."""
    from PIL import Image

    with contextlib.suppress(Exception):
        found = image.getexif()
        if exif:
            found = Image.Exif()
            found.load(exif)
        return int(found.get(_ORIENTATION, 1))
    return 1


@functools.cache
def _turns() -> "dict[int, Image.Transpose]":
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }


def _reason_of(error: Exception) -> Reason:
    """What kept a picture from being decoded, by what its decoder said of it."""
    if type(error).__name__ == "DecompressionBombError":
        return Reason.TOO_LARGE
    said = str(error).lower()
    if "truncated" in said or "not enough" in said or isinstance(error, EOFError):
        return Reason.CUT
    return Reason.DAMAGED


def _silence() -> None:
    """What Pillow says depends on the data, and a worker's log is not private.

    Checked on every call, because libraries and tests reset the filters.
    """
    pillow = logging.getLogger("PIL")
    if pillow.level <= logging.CRITICAL:
        pillow.setLevel(logging.CRITICAL + 1)
    if ("ignore", None, Warning, _PILLOW, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", category=Warning, module=_PILLOW.pattern)


@functools.cache
def _silence_libtiff() -> bool:
    """Keeps libtiff from writing to standard error; False where that can't be done."""
    from PIL import features

    if not features.check("libtiff"):
        return True
    try:
        from PIL import _imaging

        library = ctypes.CDLL(_imaging.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            handler = getattr(library, name)
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)
    except (ImportError, OSError, AttributeError, TypeError):
        return False
    return True
