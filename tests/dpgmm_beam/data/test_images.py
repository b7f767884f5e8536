import io
import logging
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from dpgmm_beam.data import images


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(data):
    return images.use_image(data, lambda image: image)


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
    "none": None,
    "empty": b"",
    "text": b"not an image at all",
    "truncated png": encode(photo())[:-200],
    "truncated jpeg": encode(photo((200, 200)), "JPEG")[:3000],
    "header only": encode(photo())[:30],
    "bomb": bomb(60_000, 60_000),
    "large": bomb(9_000, 9_500),
    "beyond the limit": bomb(2**13, 2**13 + 1),
    "a tall line": encode(Image.new("L", (1, 2**19))),
    "a wide line": encode(Image.new("L", (2**19, 1))),
    "just too long": encode(Image.new("RGB", (3, 3 * images.MAX_ASPECT + 1))),
    "tiff": encode(photo(), "TIFF"),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_are_nothing_and_say_nothing(name, caplog, capfd):
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        assert decode(BAD[name]) is None
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
            decoded = decode(bytes(damaged))
            assert decoded is None or decoded.mode in ("L", "RGB")


def test_long_pictures_within_the_bound():
    for size in ((1, 256), (256, 1), (3, 3 * images.MAX_ASPECT)):
        assert decode(encode(Image.new("L", size))).size == size


def test_webp_needs_twice_the_memory(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 2000)
    assert decode(encode(Image.new("RGB", (50, 40)))) is not None
    assert decode(encode(Image.new("RGB", (50, 40)), "WEBP")) is None
    assert decode(encode(Image.new("RGB", (50, 20)), "WEBP")) is not None


def test_files_beyond_the_bound_are_not_opened(monkeypatch):
    data = encode(photo())
    monkeypatch.setattr(images, "MAX_BYTES", len(data))
    assert decode(data) is not None
    assert decode(data + b"\0") is None


@pytest.mark.parametrize("error", [MemoryError, OverflowError, ValueError, RecursionError, AssertionError])
def test_whatever_the_use_of_a_picture_raises(error):
    """A resize can fail as well as a decoder: 2**25 x 1 pixels made 224 wide are 2**33."""

    def use(image):
        raise error

    assert images.use_image(encode(photo()), use) is None


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
    room = images._Room(10)
    monkeypatch.setattr(images, "_room", room)
    for _ in range(3):
        assert images.use_image(encode(photo()), lambda image: 1 // 0) is None
    assert room._taken == 0
