import io
import logging
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from dpgmm_beam.data import images
from dpgmm_beam.data.images import Note, Reason


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(data, **options):
    return images.use_image(data, lambda image: image.copy(), **options)


def photo(size=(40, 30), mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_png_round_trip(mode):
    decoded = decode(encode(photo(mode=mode)))
    assert decoded.mode == mode
    assert np.array_equal(np.asarray(decoded), np.asarray(photo(mode=mode)))


@pytest.mark.parametrize(
    ("image", "kind", "mode"),
    [
        (photo(mode="P"), "PNG", "RGB"),
        (photo(mode="RGBA"), "PNG", "RGB"),
        (photo(mode="LA"), "PNG", "L"),
        (photo(mode="1"), "PNG", "L"),
        (photo(mode="CMYK"), "JPEG", "RGB"),
        (photo(mode="L"), "JPEG", "L"),
        (photo(), "WEBP", "RGB"),
    ],
)
def test_other_modes_become_rgb_or_grayscale(image, kind, mode):
    decoded = decode(encode(image, kind))
    assert decoded.mode == mode
    assert decoded.size == (40, 30)


def test_sixteen_bits_are_scaled_not_clipped():
    deep = Image.fromarray(np.arange(0, 2**16, 2**8, dtype=np.uint16).reshape(16, 16))
    decoded = decode(encode(deep))
    assert np.array_equal(np.asarray(decoded).ravel(), np.arange(256))


def bomb(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


BAD = {
    "none": (None, Reason.MISSING),
    "empty": (b"", Reason.EMPTY),
    "text": (b"not an image at all", Reason.NOT_A_PICTURE),
    "truncated png": (encode(photo())[:-200], Reason.CUT),
    "truncated jpeg": (encode(photo((200, 200)), "JPEG")[:3000], Reason.CUT),
    "header only": (encode(photo())[:30], Reason.CUT),
    "bomb": (bomb(60_000, 60_000), Reason.TOO_LARGE),
    "a tall line": (encode(Image.new("L", (1, 2**19))), Reason.TOO_LONG),
    "a wide line": (encode(Image.new("L", (2**19, 1))), Reason.TOO_LONG),
    "just too long": (encode(Image.new("RGB", (3, 3 * images.MAX_ASPECT + 1))), Reason.TOO_LONG),
    "pixels that are no stream": (encode(photo()).replace(b"IDAT\x78", b"IDAT\x00"), Reason.DAMAGED),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Reason.OTHER_FORMAT),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", Reason.OTHER_FORMAT),
    "pdf": (b"%PDF-1.7\n", Reason.OTHER_FORMAT),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_have_a_reason_and_say_nothing(name, caplog, capfd):
    data, reason = BAD[name]
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        assert decode(data) is reason
    assert not caught
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_look_at_the_header_agrees_with_what_becomes_of_a_picture():
    for data, reason in BAD.values():
        # What is wrong with pixels is seen by a decoder only.
        looked = images.look(data)
        header = isinstance(looked, images.Header)
        assert looked is reason or (header and reason in (Reason.CUT, Reason.DAMAGED))
    for kind in images.FORMATS:
        assert images.look(encode(photo(), kind)) == images.Header(kind, 40, 30)
    assert images.look(encode(photo())[:33] + PNG_SIDES["a checksum"] + encode(photo())[33:]).kind == "PNG"


def test_any_damage_is_survived(capfd):
    """Flipped, lost and doubled bytes give a picture or a reason, never an exception nor a word."""
    random = np.random.default_rng(1)
    sources = [encode(photo(mode="P" if kind == "GIF" else "RGB"), kind) for kind in images.FORMATS]
    sources += [
        encode(photo(), "TIFF", compression=name) for name in ("jpeg", "tiff_lzw", "tiff_deflate", "zstd")
    ]
    sources += [
        encode(photo(mode="1"), "TIFF", compression="group4"),
        encode(photo(), "JPEG", progressive=True),
    ]
    outcomes = set()
    for data in sources:
        for turn in range(60):
            damaged = bytearray(data)
            for position in random.integers(0, len(data), 4):
                damaged[position] = random.integers(256)
            if turn % 3 == 1:
                del damaged[random.integers(len(damaged)) :]
            if turn % 3 == 2:
                start = random.integers(len(damaged))
                damaged[start:start] = damaged[start : start + 40]
            decoded = decode(bytes(damaged))
            assert isinstance(decoded, Reason) or decoded.mode in ("L", "RGB")
            outcomes.add(decoded if isinstance(decoded, Reason) else None)
    assert {None, Reason.CUT, Reason.DAMAGED} <= outcomes
    assert capfd.readouterr() == ("", "")


def test_long_pictures_within_the_bound():
    for size in ((1, 256), (256, 1), (3, 3 * images.MAX_ASPECT)):
        assert decode(encode(Image.new("L", size))).size == size


def test_files_beyond_the_bound_are_not_opened(monkeypatch):
    data = encode(photo())
    monkeypatch.setattr(images, "MAX_BYTES", len(data))
    assert decode(data).mode == "RGB"
    assert decode(data + b"\0") is Reason.FILE_TOO_LARGE


@pytest.mark.parametrize("error", [MemoryError, OverflowError, ValueError, RecursionError, AssertionError])
def test_whatever_the_use_of_a_picture_raises(error):
    """A resize can fail as well as a decoder: 2**25 x 1 pixels made 224 wide are 2**33."""

    def use(image):
        raise error

    assert images.use_image(encode(photo()), use) is Reason.UNPREPARED


def test_pictures_of_all_threads_share_one_room():
    """Together they have no more pixels than there is room for, or there is one alone."""
    room, taken, most = images._Room(100), [], []
    lock = threading.Lock()

    def decode_one(pixels):
        with room.take(pixels):
            with lock:
                taken.append(pixels)
                most.append((sum(taken), len(taken)))
            # Others get their turn.
            threading.Event().wait(0)
            with lock:
                taken.remove(pixels)

    sizes = np.random.default_rng(0).integers(1, 140, 200).tolist()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode_one, sizes))
    assert len(most) == 200
    assert all(together <= 100 or count == 1 for together, count in most)


def test_small_pictures_do_not_wait_for_each_other():
    """Eight are under way at once: each waits for all others."""
    barrier = threading.Barrier(8, timeout=30)
    data = encode(photo())
    with ThreadPoolExecutor(8) as pool:
        waited = pool.map(lambda _: images.use_image(data, lambda image: barrier.wait()), range(8))
        assert sorted(waited) == list(range(8))


def test_a_failed_use_leaves_its_room(monkeypatch):
    room = images._Room(2**40)
    monkeypatch.setattr(images, "_room", room)
    for _ in range(3):
        assert images.use_image(encode(photo()), lambda image: 1 // 0) is Reason.UNPREPARED
    assert room._taken == 0


def chunk(name, data, spoil=0):
    checksum = zlib.crc32(name + data) ^ spoil
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def same(data, expected):
    decoded = decode(data)
    return not isinstance(decoded, Reason) and np.array_equal(np.asarray(decoded), np.asarray(expected))


# What stands beside the pixels of a PNG; each before them and behind.
PNG_SIDES = {
    "a profile of 2 MB": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2_000_000))),
    "text of 2 MB": chunk(b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(b"x" * 2_000_000)),
    "international text of 2 MB": chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"x" * 2_000_000)),
    "text without an end": chunk(b"iTXt", b"XML:com.adobe.xmp"),
    "text that does not inflate": chunk(b"zTXt", b"k\0\0nothing"),
    "a checksum": chunk(b"tEXt", b"Software\0x", spoil=1),
    "a profile's checksum": chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"zz"), spoil=1),
    "EXIF": chunk(b"eXIf", b"nothing"),
    "EXIF's checksum": chunk(b"eXIf", b"MM\0*", spoil=1),
    "short gamma": chunk(b"gAMA", b"\0"),
    "short density": chunk(b"pHYs", b"\0"),
    "no intent": chunk(b"sRGB", b""),
    "short white point": chunk(b"cHRM", b"\0\0"),
    "short animation": chunk(b"acTL", b"\0"),
    "a frame of no animation": chunk(b"fcTL", bytes(26)),
    "an unknown one": chunk(b"prVt", b"x" * 70, spoil=3),
    "a length that is too long": struct.pack(">I", 2**30) + b"tEXtSoftware\0x1234",
    "a length that is too short": struct.pack(">I", 2) + b"tEXt" + b"Software, and more of it" * 3,
}


@pytest.mark.parametrize("name", PNG_SIDES)
def test_a_pngs_side_information_never_decides_over_its_pixels(name):
    picture = photo()
    data = encode(picture)
    end = data.index(b"IEND") - 4
    assert same(data[:33] + PNG_SIDES[name] + data[33:], picture)
    assert same(data[:end] + PNG_SIDES[name] + data[end:], picture)


def test_a_png_may_end_behind_its_pixels():
    picture = photo()
    data = encode(picture)
    for end in (-4, -8, -12, -16, -18):
        assert same(data[:end], picture)
    assert same(data + b"trailing" * 500, picture)


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_that_lacks_rows_is_cut(interlaced):
    """Also where its compressed data end as they should."""
    height, width = 30, 40
    rows = np.random.default_rng(0).integers(1, 256, (height, width), np.uint8)
    if interlaced:
        passes = (
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        )
        parts = [rows[y::down, x::across] for x, y, across, down in passes]
    else:
        parts = [rows]
    raw = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, int(interlaced)))

    def png(raw):
        return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")

    assert same(png(raw), rows)
    # The checksum behind the rows is none of them, wherever it is wrong or cut.
    compressed = zlib.compress(raw)
    for stream in (compressed[:-4] + b"\0\0\0\0", compressed[:-4], compressed[:-1]):
        data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", stream) + chunk(b"IEND", b"")
        assert same(data, rows)
    assert decode(png(raw[: -width - 1])) is Reason.CUT
    assert decode(png(raw[: len(raw) // 2])) is Reason.CUT


def segment(marker, content, length=None):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2 if length is None else length) + content


JPEG_SIDES = {
    "EXIF": segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "short EXIF": segment(0xE1, b"Exif\0\0"),
    "XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
    "a profile": segment(0xE2, b"ICC_PROFILE\0\1\2rubbish"),
    "other pictures": segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff"),
    "Photoshop's": segment(0xED, b"Photoshop 3.0\x008BIM\xff\xff\xff\xff\xff"),
    "short Adobe": segment(0xEE, b"Adobe"),
    "short JFIF": segment(0xE0, b"JFIF"),
    "a comment": segment(0xFE, b"\xff\xd8\xff\xda"),
    "a length that is too long": segment(0xE1, b"Exif\0\0" + b"x" * 20, 60_000),
    "a length that is too short": segment(0xE1, b"Exif\0\0" + b"x" * 50, 20),
    "no length": segment(0xE1, b"", 0),
    "a thumbnail behind a wrong length": segment(0xE1, b"Exif\0\0" + encode(photo((8, 8)), "JPEG"), 30),
}


@pytest.mark.parametrize("name", JPEG_SIDES)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpegs_side_information_never_decides_over_its_pixels(name, progressive):
    data = encode(photo(), "JPEG", progressive=progressive)
    assert same(data[:2] + JPEG_SIDES[name] + data[2:], decode(data))
    assert same(data[:20] + JPEG_SIDES[name] + data[20:], decode(data))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_needs_no_end_marker(mode, progressive):
    data = encode(photo((120, 90), mode), "JPEG", progressive=progressive)
    picture = decode(data)
    for ending in (b"", b"\xff", b"\0" * 5000, b"\xff" * 300):
        assert same(data[:-2] + ending, picture)
    for trailing in (b"\0", b"\r\n", b"\xff\xd9", os.urandom(3000), data, b"\xff\xd9" + data[:400]):
        assert same(data + trailing, picture)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_rows_is_cut(mode, progressive):
    """Also where somebody has put an end marker behind what is left, or zeros."""
    data = encode(photo((120, 90), mode), "JPEG", progressive=progressive, restart_marker_rows=2)
    start = data.index(b"\xff\xda") + 40
    for end in np.linspace(start, len(data) - 60, 9).astype(int):
        assert decode(data[:end]) is Reason.CUT
        assert decode(data[:end] + b"\0" * 8192) is Reason.CUT
        if not progressive and end < len(data) * 3 // 4:
            assert decode(data[:end] + b"\xff\xd9") is Reason.CUT


def test_a_gray_jpeg_is_not_cut():
    """Its last pixel is what decoders put where others are missing."""
    for mode in ("L", "RGB", "CMYK"):
        for progressive in (False, True):
            gray = encode(Image.new(mode, (50, 70), 128 if mode == "L" else (128,) * len(mode)), "JPEG")
            half = photo((50, 70)).convert(mode)
            half.paste(Image.new(mode, (50, 30), 128 if mode == "L" else (128,) * len(mode)), (0, 40))
            for data in (gray, encode(half, "JPEG", progressive=progressive, quality=90)):
                assert not isinstance(decode(data), Reason)


def test_a_gif_needs_neither_comments_nor_an_end():
    frames = [photo(mode="P"), photo((40, 30), "P").rotate(90)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], comment=b"a comment")
    picture = decode(data)
    assert picture.size == (40, 30)
    assert same(data[:-1], picture)
    assert same(data + b"trailing", picture)
    at = data.index(b"!\xfe")
    frame = data[data.index(b",", at) :]
    for broken in (b"!\xfe\xf0short", b"rubbish"):
        assert same(data[:at] + broken + frame, picture)
    still = encode(frames[0], "GIF")
    assert decode(still[: len(still) // 2]) is Reason.CUT


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webp_needs_its_frame_alone(options, mode):
    data = encode(photo(mode=mode), "WEBP", exif=Image.Exif(), icc_profile=b"profile", **options)
    picture = decode(data)
    assert not isinstance(picture, Reason)
    wrong = b"XMP " + struct.pack("<I", 999_999) + b"short"
    assert same(data[:4] + struct.pack("<I", len(data) + len(wrong) - 8) + data[8:] + wrong, picture)
    assert same(data[:4] + struct.pack("<I", 2**30) + data[8:], picture)
    assert same(data + b"trailing", picture)
    assert decode(data[: len(data) // 2]) is Reason.CUT


def test_a_tiff_needs_the_tags_of_its_pixels_alone():
    picture = photo()
    for compression in ("raw", "tiff_lzw", "tiff_deflate"):
        data = encode(picture, "TIFF", compression=compression)
        assert same(data, picture)
        order = "<"
        start = struct.unpack(order + "I", data[4:8])[0]
        count = struct.unpack(order + "H", data[start : start + 2])[0]
        entries = data[start + 2 : start + 2 + 12 * count]
        # EXIF, GPS, a profile, and Photoshop's, each far behind the end of the file.
        broken = b"".join(struct.pack("<HHII", tag, 4, 1, 2**31) for tag in (34665, 34853))
        broken += b"".join(struct.pack("<HHII", tag, 7, 2**20, 2**31) for tag in (34675, 34377))
        page = struct.pack("<H", count + 4) + entries + broken + bytes(4)
        assert same(data[:4] + struct.pack("<I", len(data)) + data[8:] + page, picture)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_are_turned_as_exif_says(kind):
    """All eight; the same as turning the pixels."""
    corner = Image.new("RGB", (64, 32), "white")
    corner.paste((255, 0, 0), (0, 0, 16, 8))
    places = set()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "AVIF" else {}
        turned = np.asarray(decode(encode(corner, kind, exif=exif, **options))).astype(int)
        assert turned.shape[:2] == ((32, 64) if orientation < 5 else (64, 32))
        red = turned[..., 1] < 128
        places.add((orientation > 4, red[:4, :4].all(), red[:4, -4:].all(), red[-4:, :4].all()))
        assert red.sum() in range(100, 160)
    assert len(places) == 8


def test_orientation_survives_mending_and_broken_exif_turns_nothing():
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = encode(photo(), "JPEG", exif=exif)
    assert decode(jpeg).size == (30, 40)
    assert same(jpeg[:-2], decode(jpeg))
    png = encode(photo(), exif=exif)
    assert decode(png).size == (30, 40)
    assert decode(png[:33] + PNG_SIDES["a checksum"] + png[33:]).size == (30, 40)
    for value in (0, 9, 65535):
        exif[0x0112] = value
        assert decode(encode(photo(), "JPEG", exif=exif)).size == (40, 30)


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        pixel = np.asarray(decode(data).convert("RGB"))[5, 10].astype(int)
        assert np.abs(pixel - [255, 0, 0]).max() < 12, kind


def test_transparency_is_composed_on_white():
    """As a page shows it; what is opaque keeps its bits."""
    alpha = Image.fromarray(np.repeat(np.array([0, 128, 255], np.uint8), 10)[None].repeat(12, 0))
    for mode, colour in (("RGBA", (10, 200, 30)), ("LA", (40,))):
        picture = Image.new(mode, (30, 12), (*colour, 0))
        picture.putalpha(alpha)
        for kind in ("PNG", "TIFF") if mode == "LA" else ("PNG", "TIFF", "WEBP"):
            found = np.asarray(
                decode(encode(picture, kind, **({"lossless": True} if kind == "WEBP" else {})))
            )
            assert (found[:, :10] == 255).all(), (mode, kind)
            blended = np.array(colour) * 128 / 255 + 127
            assert np.abs(found[:, 10:20].reshape(-1, len(colour)) - blended).max() <= 1
            assert (found[:, 20:].reshape(-1, len(colour)) == colour).all()
    assert decode(encode(photo(mode="RGBA"))).tobytes() == photo().tobytes()


def test_transparent_colours_are_composed_on_white():
    gray = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    found = np.asarray(decode(encode(gray, transparency=7))).ravel()
    assert found[7] == 255
    assert np.array_equal(np.delete(found, 7), np.delete(np.arange(256), 7))
    colours = Image.new("RGB", (4, 4), (1, 2, 3))
    colours.putpixel((0, 0), (3, 2, 1))
    found = np.asarray(decode(encode(colours, transparency=(1, 2, 3))))
    assert found[0, 0].tolist() == [3, 2, 1]
    assert (found.reshape(-1, 3)[1:] == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 100, 50, 25])
    palette.putpixel((0, 0), 0)
    for kind in ("PNG", "GIF"):
        found = np.asarray(decode(encode(palette, kind, transparency=1)))
        assert found[0, 0].tolist() == [9, 9, 9]
        assert (found.reshape(-1, 3)[1:] == 255).all()


def png_of(samples, bits, colour, extra=b""):
    """A PNG of samples (height, width, channels) of 1 to 16 bits."""
    height, width = samples.shape[:2]
    if bits == 16:
        rows = [b"\0" + row.astype(">u2").tobytes() for row in samples]
    else:
        unpacked = ((samples.reshape(height, -1, 1) >> np.arange(bits)[::-1]) & 1).reshape(height, -1)
        rows = [b"\0" + np.packbits(row).tobytes() for row in unpacked]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + extra
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits(bits):
    most = 2**bits - 1
    samples = np.random.default_rng(0).integers(0, most + 1, (9, 13))
    assert np.array_equal(np.asarray(decode(png_of(samples, bits, 0))), samples * 255 // most)
    see_through = png_of(samples, bits, 0, chunk(b"tRNS", struct.pack(">H", 1)))
    assert np.array_equal(np.asarray(decode(see_through)), np.where(samples == 1, 255, samples * 255 // most))


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("stated", [False, True])
def test_deep_samples_by_what_the_file_says(colour, channels, bits, stated):
    """Samples of fewer bits stand at the lower end of 16, as cameras and scanners write them."""
    shown = channels - (colour in (4, 6))
    eight = np.random.default_rng(0).integers(0, 256, (12, 20, channels))
    eight[0, 0, :] = 255
    samples = eight << (bits - 8)
    if colour in (4, 6):
        samples[..., -1] = 2**16 - 1
    extra = chunk(b"sBIT", bytes([bits] * shown + [16] * (channels - shown))) if stated and bits < 16 else b""
    notes = []
    found = np.asarray(decode(png_of(samples, 16, colour, extra), note=notes.append)).reshape(12, 20, shown)
    if bits == 14 and not stated:
        # Nothing tells these from dark ones of sixteen bits.
        assert np.array_equal(found, eight[..., :shown] >> 2)
    else:
        assert np.array_equal(found, eight[..., :shown])
    assert notes == ([Note.SHALLOW] if bits < 14 and not stated else [])


def test_samples_that_are_scaled_up_as_png_wants_it():
    """Significant bits at the upper end: they are all that is looked at."""
    eight = np.arange(256).reshape(16, 16)
    notes = []
    data = png_of(eight << 8, 16, 0, chunk(b"sBIT", b"\x0c"))
    assert np.array_equal(np.asarray(decode(data, note=notes.append)), eight)
    assert notes == []


def test_black_is_black():
    notes = []
    assert not np.asarray(decode(png_of(np.zeros((5, 5), int), 16, 0), note=notes.append)).any()
    assert not np.asarray(decode(png_of(np.zeros((5, 5, 3), int), 16, 2), note=notes.append)).any()


def tiff(values, **tags):
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    directory = ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[int(tag[1:])] = value
    return encode(Image.fromarray(values), "TIFF", tiffinfo=directory)


def test_tiffs_by_what_their_tags_say():
    ramp = np.arange(256).reshape(16, 16)
    assert np.array_equal(np.asarray(decode(tiff((ramp << 8).astype(np.uint16)))), ramp)
    assert np.array_equal(np.asarray(decode(tiff((ramp << 6).astype(np.uint16), t281=2**14 - 1))), ramp)
    notes = []
    unit = (ramp / 255).astype(np.float32)
    assert np.array_equal(np.asarray(decode(tiff(unit), note=notes.append)), ramp)
    assert notes == []
    thousands = (ramp * 4 - 1000).astype(np.float32)
    thousands[0, 0] = np.nan
    thousands[0, 1] = -1000
    found = np.asarray(decode(tiff(thousands), note=notes.append))
    assert np.array_equal(found.ravel()[2:], ramp.ravel()[2:])
    assert found[0, 0] == 0
    assert notes == [Note.OWN_RANGE]
    stated = tiff((ramp * 2).astype(np.float32), t340=0.0, t341=1020.0)
    assert np.abs(np.asarray(decode(stated)).astype(int) * 2 - ramp).max() <= 1
    whole = (ramp * 1000 - 100_000).astype(np.int32)
    assert np.array_equal(np.asarray(decode(tiff(whole), note=notes.append)), ramp)
    assert notes == [Note.OWN_RANGE] * 2


def as_tag(data, tag, value):
    """A little-endian TIFF with another value in a tag of one short."""
    (start,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[start : start + 2])
    for at in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack("<H", data[at : at + 2])[0] == tag:
            return data[: at + 8] + struct.pack("<HH", value, 0) + data[at + 12 :]
    raise AssertionError(tag)


def test_where_zero_is_white():
    for values in (
        np.arange(256, dtype=np.uint8).reshape(16, 16),
        np.arange(256, dtype=np.uint16).reshape(16, 16) << 8,
    ):
        data = as_tag(tiff(values), 262, 0)
        assert np.array_equal(np.asarray(decode(data)).ravel(), np.arange(256)[::-1])


def test_sixteen_bit_colours_in_tiff():
    """Pillow writes none: its own gray one, three times as narrow, called by another name."""
    eight = np.random.default_rng(0).integers(0, 256, (6, 5, 3))
    eight[0, 0] = 255
    for bits in (12, 16):
        values = (eight << (bits - 8)).astype("<u2")
        offset = 8 + values.nbytes
        bits_at = offset + 2 + 9 * 12 + 4
        entries = [(256, 3, 1, 5), (257, 3, 1, 6), (258, 3, 3, bits_at), (259, 3, 1, 1), (262, 3, 1, 2)]
        entries += [(273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, 6), (279, 4, 1, values.nbytes)]
        page = struct.pack("<H", 9) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
        data = (
            b"II*\0" + struct.pack("<I", offset) + values.tobytes() + page + struct.pack("<HHH", 16, 16, 16)
        )
        assert np.array_equal(np.asarray(decode(data)), eight)


def test_lab_is_shown_as_srgb():
    from PIL import ImageCms

    picture = Image.new("RGB", (8, 8), (200, 60, 30))
    lab = ImageCms.profileToProfile(
        picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    found = np.asarray(decode(encode(lab, "TIFF"))).astype(int)
    assert np.abs(found - np.array((200, 60, 30))).max() <= 3


def test_tiffs_of_each_compression(capfd):
    picture = photo((64, 48))
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "zstd", "lzma"):
        assert same(encode(picture, "TIFF", compression=compression), picture)
    assert not isinstance(decode(encode(picture, "TIFF", compression="jpeg")), Reason)
    for compression in ("group3", "group4"):
        fax = picture.convert("1")
        assert same(encode(fax, "TIFF", compression=compression), fax.convert("L"))
    assert decode(as_tag(encode(picture, "TIFF"), 259, 6)) is Reason.OTHER_FORMAT
    assert capfd.readouterr() == ("", "")


def test_tiffs_that_lack_bytes_are_cut():
    whole = encode(photo((64, 48)), "TIFF", compression="raw")
    assert decode(whole[:5000]) is Reason.CUT


def test_the_suffix_is_nowhere():
    """Nothing but content says what a file is."""
    for kind in images.FORMATS:
        assert images.sniff(encode(photo(), kind)[:64]) == kind


@pytest.mark.parametrize("progressive", [False, True])
def test_large_jpegs_are_decoded_at_a_reduced_scale(monkeypatch, progressive):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)).resize(
        (2400, 1800)
    )
    data = encode(picture, "JPEG", progressive=progressive)
    assert decode(data).size == (2400, 1800)
    monkeypatch.setattr(images, "LARGE_PIXELS", 2**21)
    assert decode(data, side=224).size == (1200, 900)
    assert decode(data, side=64).size == (1200, 900)
    small = np.asarray(picture.resize((1200, 900), Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(decode(data, side=224)).astype(int) - small).mean() < 3
    monkeypatch.setattr(images, "LEAST_SIDE", 16)
    assert decode(data, side=100).size == (300, 225)
    assert decode(data, side=450).size == (1200, 900)
    assert decode(data, side=451).size == (2400, 1800)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
def test_large_pictures_of_other_formats_are_reduced(monkeypatch, mode):
    """By the mean of squares, in bands of rows; the bands are not seen."""
    picture = photo((640, 1300))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) << 8)
        plain = decode(encode(picture))
    else:
        picture = picture.convert(mode)
        plain = decode(encode(picture))
    monkeypatch.setattr(images, "LARGE_PIXELS", 2**19)
    monkeypatch.setattr(images, "LEAST_SIDE", 100)
    whole = decode(encode(picture), side=50)
    assert whole.size == (160, 325)
    assert whole.tobytes() == plain.reduce(4).tobytes()
    monkeypatch.setattr(images.pixels, "_BAND_PIXELS", 640 * 50)
    assert decode(encode(picture), side=50).tobytes() == whole.tobytes()


def test_what_is_too_large_is_so_by_its_memory(monkeypatch):
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", 12 * 2000)
    assert not isinstance(decode(encode(Image.new("RGB", (50, 40)))), Reason)
    assert decode(encode(Image.new("RGB", (50, 41)))) is Reason.TOO_LARGE
    assert not isinstance(decode(encode(Image.new("L", (50, 50)))), Reason)
    assert decode(encode(Image.new("RGB", (50, 40)), "WEBP")) is Reason.TOO_LARGE
    assert not isinstance(decode(encode(Image.new("RGB", (50, 20)), "WEBP")), Reason)
    assert not isinstance(decode(encode(Image.new("RGB", (50, 40)), "JPEG")), Reason)
    monkeypatch.setattr(images, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(images, "LEAST_SIDE", 16)
    assert decode(encode(photo((200, 160)), "JPEG"), side=8).size == (25, 20)
    # Several scans: all coefficients are kept.
    assert decode(encode(photo((200, 160)), "JPEG", progressive=True), side=8) is Reason.TOO_LARGE


def test_no_jpeg_of_one_scan_is_too_large():
    """Its sides have sixteen bits, and an eighth of them fits."""
    head = encode(Image.new("RGB", (16, 16)), "JPEG")
    at = head.index(b"\xff\xc0") + 5
    huge = head[:at] + struct.pack(">HH", 65500, 65500) + head[at + 4 :]
    # No byte holds more than eight blocks, so that what is decoded at all has bytes for it.
    assert decode(huge) is images.look(huge) is Reason.CUT
    plan = images._plan(images.encoded.opened(huge, "JPEG"), huge + bytes(2**26), 224)
    assert plan.reduction == 8


def test_files_that_are_too_small_for_their_pictures_are_not_decoded(monkeypatch):
    monkeypatch.setattr(images, "_decoded", lambda *_: pytest.fail("decoded"))
    for data in (bomb(9_000, 9_500), encode(photo((9, 9)), "JPEG")):
        if data[:2] == b"\xff\xd8":
            at = data.index(b"\xff\xc0") + 5
            data = data[:at] + struct.pack(">HH", 9_000, 9_000) + data[at + 4 :]
        assert decode(data) is Reason.CUT
