"""PNGs: their parts, whether pixels are cut off, and what of a damaged one the pixels need."""

import dataclasses
import re
import struct
import zlib
from collections.abc import Iterator

from dpgmm_beam.data.encoded import Cut, Mended

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_INFLATED_AT_ONCE, _DEFLATED_AT_ONCE = 2**20, 2**16

# A hostile file could lead from place to place for ever.
_MOST_PLACES = 64


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Of a PNG; `whole` if its checksum is right."""

    kind: bytes
    content: bytes
    whole: bool


_CHUNK_KIND = re.compile(rb"[A-Za-z]{4}")
_CHUNK_KINDS = re.compile(rb"PLTE|tRNS|IDAT|IEND")


def chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks of a PNG; where a length is wrong, goes on with the next part of the picture."""
    position, lost = len(SIGNATURE), 0
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


def is_cut(data: bytes) -> bool:
    """Whether a PNG that a decoder took has fewer rows than it says: zeros stand for the others."""
    try:
        found = list(chunks(data))
        header = next(chunk.content for chunk in found if chunk.kind == b"IHDR")
        _whole_rows(header, [chunk.content for chunk in found if chunk.kind == b"IDAT"])
    except Cut:
        return True
    except (ValueError, StopIteration, zlib.error, struct.error):
        pass
    return False


def depth_of(data: bytes) -> tuple[int, int]:
    """Bits of a sample, and how many of them the file calls significant (as many, where it does not say)."""
    depth, significant = data[24], 0
    for chunk in chunks(data) if depth == 16 else ():
        if chunk.kind in (b"IDAT", b"IEND"):
            break
        if chunk.kind == b"sBIT" and chunk.whole and chunk.content:
            # Of the colours, not of transparency.
            samples = chunk.content[:-1] if data[25] in (4, 6) else chunk.content
            significant = max(samples, default=0)
    return depth, significant if 0 < significant <= depth else depth


def gray_alpha_as_bytes(data: bytes) -> bytes:
    """A PNG of 16-bit gray and alpha as one of 8-bit RGBA: each sample's two bytes, one after the other."""
    header = data[16:24] + bytes([8, 6]) + data[26:29]
    return data[:16] + header + zlib.crc32(b"IHDR" + header).to_bytes(4, "big") + data[33:]


def mend(data: bytes) -> Mended:
    header, palette, transparency, significant, exif = b"", b"", b"", b"", b""
    pixels: list[bytes] = []
    for chunk in chunks(data):
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
    return Mended(SIGNATURE + b"".join(_chunk(*part) for part in parts), exif)


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
