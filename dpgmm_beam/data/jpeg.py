"""JPEGs: how they are compressed, whether pixels are cut off, and what of a damaged one they need."""

import dataclasses
import hashlib
import itertools
import re
import struct

from dpgmm_beam.data.encoded import Cut, Mended, opened

END = b"\xff\xd9"

MAX_PIXELS_A_BYTE = 8 * 256
"""In a byte, at the very most: eight blocks of 16 by 16."""

# A hostile file could lead from place to place for ever.
_MOST_PLACES, _MOST_MARKERS = 64, 2**20

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
        return self.head + self.scans + END

    def continued(self) -> bytes:
        return self.head + self.scans + _FILLER + END


def is_cut(data: bytes, looks_cut: bool) -> bool:
    """Whether a JPEG that a decoder took lacks pixels that its header promises.

    Args:
      looks_cut: whether its end looks like what a decoder makes up; else a JPEG with an end marker is whole.
    """
    try:
        parsed = _parse_jpeg(data)
        return (looks_cut or not parsed.ended) and _lacks_pixels(parsed)
    except Exception:
        return False


def keeps_coefficients(data: bytes) -> bool:
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


def mend(data: bytes) -> Mended:
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
        if image.width * image.height > MAX_PIXELS_A_BYTE * len(data):
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
            return _Jpeg(b"".join(head), data[position:end], data[end : end + 2] == END, frame, exif)


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
