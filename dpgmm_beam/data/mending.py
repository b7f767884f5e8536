"""What the pixels of a damaged picture need, without the rest: for a second, tolerant try.

Text, colour profiles, times and thumbnails never decide over pixels: where a
decoder stumbles over one, the file is put together again from the parts that
pixels are made of.  A picture whose pixels themselves are cut stays cut.  All of
this looks at bytes; it needs no more memory than a copy of the file.
"""

import dataclasses
import hashlib
import importlib
import io
import itertools
import re
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_INFLATED_AT_ONCE, _DEFLATED_AT_ONCE = 2**20, 2**16

# A hostile file could lead from place to place for ever.
_MOST_PLACES, _MOST_MARKERS = 64, 2**20


class Cut(ValueError):
    """Pixels are missing."""


@dataclasses.dataclass(frozen=True)
class Mended:
    """A picture that was put together again.

    Attributes:
      data: the encoded picture.
      exif: what the file has as EXIF, which is left out of `data`; b"" for none.
    """

    data: bytes
    exif: bytes = b""


def opened(data: bytes, kind: str) -> "Image.Image":
    """Opens a picture by its format's own class: `Image.open` refuses large ones by numbers of pixels."""
    return getattr(importlib.import_module(f"PIL.{_MODULES[kind]}"), _CLASSES[kind])(io.BytesIO(data))


_MODULES = {
    "PNG": "PngImagePlugin",
    "JPEG": "JpegImagePlugin",
    "WEBP": "WebPImagePlugin",
    "BMP": "BmpImagePlugin",
    "GIF": "GifImagePlugin",
    "TIFF": "TiffImagePlugin",
    "AVIF": "AvifImagePlugin",
}
_CLASSES = {kind: module.replace("Plugin", "File") for kind, module in _MODULES.items()}


def mend(data: bytes, kind: str) -> Mended | None:
    """The picture from the parts that its pixels need; None where there is nothing to mend.

    Args:
      data: an encoded picture that could not be decoded.
      kind: its format, as Pillow names it.

    Raises:
      Cut: pixels are missing.
      ValueError, struct.error, zlib.error, IndexError: they are damaged.
    """
    menders = {"PNG": _mend_png, "JPEG": _mend_jpeg, "GIF": _mend_gif, "WEBP": _mend_webp, "TIFF": _mend_tiff}
    return menders[kind](data) if kind in menders else None


# PNG


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Of a PNG; `whole` if its checksum is right."""

    kind: bytes
    content: bytes
    whole: bool


_CHUNK_KIND = re.compile(rb"[A-Za-z]{4}")
_CHUNK_KINDS = re.compile(rb"PLTE|tRNS|IDAT|IEND")


def png_chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks of a PNG; where a length is wrong, goes on with the next part of the picture."""
    position, lost = len(PNG_SIGNATURE), 0
    while position + 8 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind = data[position + 4 : position + 8]
        end = position + 12 + length
        checksum = data[end - 4 : end]
        whole = (
            end <= len(data)
            and zlib.crc32(memoryview(data)[position + 4 : end - 4]).to_bytes(4, "big") == checksum
        )
        follows = end + 8 > len(data) or _CHUNK_KIND.fullmatch(data, end + 4, end + 8)
        if not whole and not (_CHUNK_KIND.fullmatch(kind) and end <= len(data) and follows):
            if kind == b"IDAT" and end > len(data):
                # The last of a file that was cut; its pixels may all be there.
                yield Chunk(kind, data[position + 8 :], False)
                return
            found = _CHUNK_KINDS.search(data, position + 8)
            lost += 1
            if found is None or lost > _MOST_PLACES:
                return
            position = found.start() - 4
            continue
        yield Chunk(kind, data[position + 8 : end - 4], whole)
        if kind == b"IEND":
            return
        position = end


def png_is_cut(data: bytes) -> bool:
    """Whether a PNG that a decoder took has fewer rows than it says: zeros stand for the others."""
    try:
        chunks = list(png_chunks(data))
        header = next(chunk.content for chunk in chunks if chunk.kind == b"IHDR")
        _whole_rows(header, [chunk.content for chunk in chunks if chunk.kind == b"IDAT"])
    except Cut:
        return True
    except (ValueError, StopIteration, zlib.error, struct.error):
        pass
    return False


def png_depth(data: bytes) -> tuple[int, int]:
    """Bits of a sample, and how many of them the file calls significant (as many, where it does not say)."""
    depth, significant = data[24], 0
    for chunk in png_chunks(data) if depth == 16 else ():
        if chunk.kind in (b"IDAT", b"IEND"):
            break
        if chunk.kind == b"sBIT" and chunk.whole and chunk.content:
            # Of the colours, not of transparency.
            samples = chunk.content[:-1] if data[25] in (4, 6) else chunk.content
            significant = max(samples, default=0)
    return depth, significant if 0 < significant <= depth else depth


def png_gray_alpha_as_bytes(data: bytes) -> bytes:
    """A PNG of 16-bit gray and alpha as one of 8-bit RGBA: each sample's two bytes, one after the other."""
    header = data[16:24] + bytes([8, 6]) + data[26:29]
    return data[:16] + header + zlib.crc32(b"IHDR" + header).to_bytes(4, "big") + data[33:]


def _mend_png(data: bytes) -> Mended:
    header, palette, transparency, significant, exif = b"", b"", b"", b"", b""
    pixels: list[bytes] = []
    for chunk in png_chunks(data):
        if chunk.kind == b"IHDR" and not header:
            if not chunk.whole:
                raise ValueError("the header is damaged")
            header = chunk.content
        elif chunk.kind == b"PLTE" and not palette:
            palette = chunk.content
        elif chunk.kind == b"tRNS" and chunk.whole:
            transparency = chunk.content
        elif chunk.kind == b"sBIT" and chunk.whole:
            significant = chunk.content
        elif chunk.kind == b"eXIf" and chunk.whole:
            exif = chunk.content
        elif chunk.kind == b"IDAT":
            pixels.append(chunk.content)
    if not header:
        raise Cut
    rows = _whole_rows(header, pixels)
    parts = [(b"IHDR", header), (b"sBIT", significant), (b"PLTE", palette), (b"tRNS", transparency)]
    parts = [(kind, content) for kind, content in parts if content]
    parts += [(b"IDAT", rows), (b"IEND", b"")]
    return Mended(PNG_SIGNATURE + b"".join(_chunk(*part) for part in parts), exif)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return len(content).to_bytes(4, "big") + kind + content + checksum.to_bytes(4, "big")


_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}

# First column and row of each pass of an interlaced PNG, and the steps.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _whole_rows(header: bytes, pixels: list[bytes]) -> bytes:
    """The compressed rows, with a checksum that is right: it stands behind them and is none of them.

    Raises:
      Cut: they are not all there.
      zlib.error: they are damaged.
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS[colour]
    expected = 0
    for x, y, step_x, step_y in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns > 0 and rows > 0:
            expected += rows * (1 + (columns * bits + 7) // 8)
    stream = b"".join(pixels)
    # Without zlib's frame of two bytes before and the checksum behind.
    inflater, checksum, end = zlib.decompressobj(-zlib.MAX_WBITS), 1, 2
    # What goes on long after the last row is no checksum's business.
    while end < len(stream) and not inflater.eof and expected > -_INFLATED_AT_ONCE:
        content = stream[end : end + _DEFLATED_AT_ONCE]
        end += len(content)
        while not inflater.eof and expected > -_INFLATED_AT_ONCE:
            inflated = inflater.decompress(content, _INFLATED_AT_ONCE)
            content = inflater.unconsumed_tail
            checksum = zlib.adler32(inflated, checksum)
            expected -= len(inflated)
            if not content and len(inflated) < _INFLATED_AT_ONCE:
                break
    if expected > 0:
        raise Cut
    if not inflater.eof:
        return stream
    return stream[: end - len(inflater.unused_data)] + checksum.to_bytes(4, "big")


# JPEG

JPEG_END = b"\xff\xd9"

JPEG_PIXELS = 8 * 256
"""In a byte, at the very most: eight blocks of 16 by 16."""

_COMPARED_SIDE = 512

# What is no marker in compressed data: a stuffed byte, a restart, a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_FRAME = re.compile(rb"\xff[\xc0-\xc3\xc9\xca]\x00[\x0b\x0e\x11\x14][\x08\x0c]", re.DOTALL)
_TABLE = re.compile(rb"\xff[\xc4\xdb\xdd\xee]")

_ARITHMETIC = (0xC9, 0xCA, 0xCB)
_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, *_ARITHMETIC)
_TABLES = (0xC4, 0xDB, 0xDD, 0xCC)

# What follows the pixels of a whole picture changes none of them.
_FILLER = hashlib.shake_256(b"dpgmm: bits that no picture has").digest(4096).replace(b"\xff", b"\x7f")


@dataclasses.dataclass(frozen=True)
class _Jpeg:
    """A JPEG without its side information.

    Attributes:
      head: up to the first scan.
      scans: what follows, without an end marker.
      ended: whether there was one.
      frame: the marker that tells how the pixels are compressed.
      exif: what the file has as EXIF.
    """

    head: bytes
    scans: bytes
    ended: bool
    frame: int
    exif: bytes

    def whole(self) -> bytes:
        return self.head + self.scans + JPEG_END

    def continued(self) -> bytes:
        return self.head + self.scans + _FILLER + JPEG_END


def jpeg_is_cut(data: bytes, looks_cut: bool) -> bool:
    """Whether a JPEG that a decoder took lacks pixels that its header promises.

    Args:
      looks_cut: whether its end looks like what a decoder makes up; else a JPEG with an end marker is whole.
    """
    try:
        parsed = _parse_jpeg(data)
        return (looks_cut or not parsed.ended) and _lacks_pixels(parsed)
    except Exception:
        return False


def jpeg_keeps_coefficients(data: bytes) -> bool:
    """Whether a decoder needs all coefficients of a JPEG in memory: it has several scans."""
    try:
        head = _parse_jpeg(data, scans=False).head
    except (ValueError, IndexError, struct.error):
        return True
    position, components = 2, 0
    while position + 4 <= len(head):
        marker, length = head[position + 1], int.from_bytes(head[position + 2 : position + 4], "big")
        if marker in _FRAMES:
            components = head[position + 9]
            if marker in (0xC2, 0xCA):
                return True
        if marker == 0xDA:
            return head[position + 4] < components
        position += 2 + length
    return True


def _mend_jpeg(data: bytes) -> Mended:
    parsed = _parse_jpeg(data)
    if _lacks_pixels(parsed):
        raise Cut
    return Mended(parsed.whole(), parsed.exif)


def _lacks_pixels(parsed: _Jpeg) -> bool:
    """Whether a decoder makes pixels up: of other bytes behind the last it makes other ones.

    Large pictures are compared at a reduced scale.
    """
    if parsed.frame in _ARITHMETIC:
        # Such a decoder reads ahead.
        return False
    pictures = []
    for data in (parsed.whole(), parsed.continued()):
        image = opened(data, "JPEG")
        if image.width * image.height > JPEG_PIXELS * len(data):
            return True
        image.draft(None, (_COMPARED_SIDE, _COMPARED_SIDE))
        pictures.append(hashlib.sha256(image.tobytes()).digest())
    return pictures[0] != pictures[1]


def _parse_jpeg(data: bytes, scans: bool = True) -> _Jpeg:
    """Takes a JPEG apart.

    Args:
      scans: whether compressed data are looked at, too.

    Raises:
      Cut: it ends before its first scan.
      ValueError: it has no frame that could be decoded.
    """
    try:
        return _walk_jpeg(data, 2, scans)
    except (ValueError, IndexError):
        # A segment whose length is wrong.  The largest frame is no thumbnail's, and its tables
        # are where segments lead to it.
        frames = [found.start() for found in _FRAME.finditer(data)]
        if not frames:
            raise Cut from None
        frame = max(frames, key=lambda at: data[at + 5 : at + 9])
        for found in itertools.islice(_TABLE.finditer(data, 2, frame), _MOST_PLACES):
            with_tables = _leads_to(data, found.start(), frame)
            if with_tables:
                return _walk_jpeg(data, found.start(), scans)
        return _walk_jpeg(data, frame, scans)


def _leads_to(data: bytes, position: int, frame: int) -> bool:
    for _ in range(_MOST_MARKERS):
        if (
            position >= frame
            or data[position] != 0xFF
            or data[position + 1] in (0x00, 0xD8, 0xD9, 0xDA, 0xFF)
        ):
            return False
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if length < 2:
            return False
        position += 2 + length
        if position == frame:
            return True
    return False


def _walk_jpeg(data: bytes, position: int, scans: bool) -> _Jpeg:
    head, frame, exif = [data[:2]], 0, b""
    while True:
        while data[position : position + 2] == b"\xff\xff":
            position += 1
        if position + 4 > len(data):
            raise Cut
        if data[position] != 0xFF:
            raise ValueError("no marker where one must be")
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in (0x00, 0xD8, 0xD9) or length < 2:
            raise ValueError("no segment where one must be")
        segment = data[position : position + 2 + length]
        position += 2 + length
        if marker in _FRAMES:
            frame = marker
        elif marker == 0xE1 and segment[4:10] == b"Exif\0\0" and not exif:
            exif = segment[4:]
        is_adobe = marker == 0xEE and segment[4:9] == b"Adobe" and length >= 14
        if marker in (*_FRAMES, *_TABLES, 0xDA) or is_adobe:
            head.append(segment)
        if marker == 0xDA:
            if not frame:
                raise ValueError("a scan without a frame")
            end = _end_of_scans(data, position) if scans else position
            return _Jpeg(b"".join(head), data[position:end], data[end : end + 2] == JPEG_END, frame, exif)


def _end_of_scans(data: bytes, position: int) -> int:
    """Where the compressed data end: at the end marker, or where the file does."""
    for _ in range(_MOST_MARKERS):
        found = _MARKER.search(data, position)
        if found is None:
            # What a disk or a download put in the place of what is missing is nobody's pixels.
            return len(data.rstrip(b"\0").rstrip(b"\xff"))
        marker = found.group()[1]
        if marker == 0xD9:
            return found.start()
        if marker not in (*_TABLES, 0xDA, 0xFE, *range(0xE0, 0xF0)):
            position = found.end()
            continue
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    raise ValueError("too many markers")


# GIF


def _mend_gif(data: bytes) -> Mended:
    """The first frame alone."""
    width, height, flags = struct.unpack("<HHB", data[6:11])
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    head, control = data[:position], b""
    while True:
        block = data[position : position + 1]
        if block == b"!" and (end := _end_of_blocks(data, position + 2)) is not None:
            if data[position + 1 : position + 3] == b"\xf9\x04":
                control = data[position : position + 8]
            position = end
            continue
        if block != b",":
            # A comment whose length is wrong: the first place where a frame can begin.
            position = _next_frame(data, len(head), width, height)
        break
    local = data[position + 9]
    start = position + 10 + (3 << (local & 7) + 1 if local & 0x80 else 0) + 1
    end = _end_of_blocks(data, start)
    body = data[position:] + b"\0" if end is None else data[position:end]
    return Mended(head + control + body + b";")


def _end_of_blocks(data: bytes, position: int) -> int | None:
    while position < len(data):
        if not data[position]:
            return position + 1
        position += 1 + data[position]
    return None


def _next_frame(data: bytes, position: int, width: int, height: int) -> int:
    for _ in range(_MOST_MARKERS):
        position = data.find(b",", position)
        if position < 0:
            break
        if position + 12 <= len(data):
            x, y, columns, rows, flags = struct.unpack("<HHHHB", data[position + 1 : position + 10])
            code = position + 10 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
            fits = 0 < columns <= width - x and 0 < rows <= height - y
            if fits and code < len(data) and 2 <= data[code] <= 8 and not flags & 0x18:
                return position
        position += 1
    raise Cut


# WebP


def _mend_webp(data: bytes) -> Mended:
    """The (first) frame alone."""
    exif = alpha = b""
    size = b""
    position, end = 12, len(data)
    while position + 8 <= end:
        kind, (length,) = (
            data[position : position + 4],
            struct.unpack("<I", data[position + 4 : position + 8]),
        )
        content = data[position + 8 : position + 8 + length]
        if kind == b"ANMF" and len(content) > 16:
            # A frame's own chunks follow its sixteen bytes of facts.
            size, position = content[6:12], position + 24
            continue
        if kind == b"VP8X":
            size = content[4:10]
        elif kind == b"ALPH" and len(content) == length:
            alpha = _riff_chunk(kind, content)
        elif kind == b"EXIF" and len(content) == length:
            exif = content
        elif kind in (b"VP8 ", b"VP8L"):
            if len(content) < length:
                raise Cut
            frame = _riff_chunk(kind, content)
            if alpha and kind == b"VP8 ":
                frame = _riff_chunk(b"VP8X", b"\x10\0\0\0" + size) + alpha + frame
            exif = exif or _exif_behind(data, position + 8 + length + length % 2)
            return Mended(b"RIFF" + struct.pack("<I", 4 + len(frame)) + b"WEBP" + frame, exif)
        position += 8 + length + length % 2
        if position > end:
            # A chunk whose length is wrong.
            found = re.compile(rb"VP8[ LX]|ALPH|ANMF").search(data, position - length - length % 2)
            if found is None:
                raise Cut
            position = found.start()
    raise Cut


def _exif_behind(data: bytes, position: int) -> bytes:
    while position + 8 <= len(data):
        (length,) = struct.unpack("<I", data[position + 4 : position + 8])
        if data[position : position + 4] == b"EXIF":
            return data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
    return b""


def _riff_chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


# TIFF

# Sizes, bits, compression, colour, where the pixels are, orientation, and the least and greatest value.
_TIFF_TAGS = frozenset(
    (
        *(256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 280, 281, 284, 292, 293, 317, 320),
        *(322, 323, 324, 325, 332, 338, 339, 340, 341, 347, 529, 530, 531, 532),
    )
)


def _mend_tiff(data: bytes) -> Mended | None:
    """The first page with the tags alone that its pixels need."""
    order = "<" if data[:2] == b"II" else ">"
    magic, start = struct.unpack(order + "HI", data[2:8])
    if magic != 42:
        return None
    if start + 2 > len(data):
        raise Cut
    (count,) = struct.unpack(order + "H", data[start : start + 2])
    entries = [data[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
    kept = [each for each in entries if len(each) == 12 and _number(order, each) in _TIFF_TAGS]
    kept.sort(key=lambda entry: _number(order, entry))
    padded = data + b"\0" * (len(data) % 2)
    page = struct.pack(order + "H", len(kept)) + b"".join(kept) + b"\0\0\0\0"
    return Mended(padded[:4] + struct.pack(order + "I", len(padded)) + padded[8:] + page)


def _number(order: str, entry: bytes) -> int:
    return struct.unpack(order + "H", entry[:2])[0]
