"""What the pixels of a damaged picture need, without the rest: for a second, tolerant try.

Text, colour profiles, times and thumbnails never decide over pixels: where a
decoder stumbles over one, the file is put together again from the parts that
pixels are made of.  A picture whose pixels themselves are cut stays cut.  All of
this looks at bytes; it needs no more memory than a copy of the file.
"""

import re
import struct

from dpgmm_beam.data import jpeg, png
from dpgmm_beam.data.encoded import Cut, Mended

# A hostile file could lead from place to place for ever.
_MOST_MARKERS = 2**20


def mend(data: bytes, kind: str) -> Mended | None:
    """The picture from the parts that its pixels need; None where there is nothing to mend.

    Args:
      data: an encoded picture that could not be decoded.
      kind: its format, as Pillow names it.

    Raises:
      Cut: pixels are missing.
      ValueError, struct.error, zlib.error, IndexError: they are damaged.
    """
    menders = {"PNG": png.mend, "JPEG": jpeg.mend, "GIF": _mend_gif, "WEBP": _mend_webp, "TIFF": _mend_tiff}
    return menders[kind](data) if kind in menders else None


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
