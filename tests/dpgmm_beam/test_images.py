import io
import logging
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from dpgmm_beam import images


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(size=(40, 30), mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_png_round_trip(mode):
    decoded = images.decode_image(encode(photo(mode=mode)))
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
    decoded = images.decode_image(encode(image, kind))
    assert decoded.mode == mode
    assert decoded.size == (40, 30)


def test_sixteen_bits_are_scaled_not_clipped():
    deep = Image.fromarray(np.arange(0, 2**16, 2**8, dtype=np.uint16).reshape(16, 16))
    decoded = images.decode_image(encode(deep))
    assert np.array_equal(np.asarray(decoded).ravel(), np.arange(256))


def bomb(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


BAD = {
    "none": None,
    "empty": b"",
    "text": b"not an image at all",
    "truncated png": encode(photo())[:-200],
    "truncated jpeg": encode(photo((200, 200)), "JPEG")[:3000],
    "header only": encode(photo())[:30],
    "bomb": bomb(60_000, 60_000),
    "large": bomb(9_000, 9_500),
    "beyond the limit": bomb(1, images.MAX_PIXELS + 1),
    "tiff": encode(photo(), "TIFF"),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_are_nothing_and_say_nothing(name, caplog, capfd):
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        assert images.decode_image(BAD[name]) is None
    assert not caught
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_any_damage_is_survived():
    """Flipped bytes give an image or nothing, never an exception."""
    random = np.random.default_rng(1)
    for data in (encode(photo()), encode(photo(), "JPEG"), encode(photo(mode="P"), "GIF")):
        for _ in range(150):
            damaged = bytearray(data)
            for position in random.integers(0, len(data), 4):
                damaged[position] = random.integers(256)
            decoded = images.decode_image(bytes(damaged))
            assert decoded is None or decoded.mode in ("L", "RGB")
