"""Image bytes -> what is made of the picture, or nothing: bad bytes never raise, warn or log.

An image is a row, and a row must cost a worker neither its life nor its memory.
So a shape is looked at before anything is decoded, and of the pictures that the
threads of a process hold at once all but the first are as small together.
"""

import contextlib
import io
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from PIL import Image

# Larger images are treated like undecodable ones: a small file may claim any
# size and would otherwise take down the worker.  Decoders and conversions have
# up to twelve bytes a pixel at once, 768 MiB, and that of WebP eighteen.
MAX_PIXELS = 2**26
_WEBP_FACTOR = 2

# Of the longer side to the shorter one: a resize that makes the shorter side fit
# would make the other one that much longer.
MAX_ASPECT = 256

MAX_BYTES = 2**28
"""Of an encoded image."""

# The formats that Pillow decodes without help of other programs or libraries
# that write to standard error.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")

# Pixels of a resized picture, for each unit of the aspect ratio.
_RESIZED_PIXELS = 2**18

_PILLOW = re.compile(r"PIL\.")

_Made = TypeVar("_Made")


class _Room:
    """Pixels that the threads of a process have decoded at once."""

    def __init__(self, pixels: int):
        self._pixels, self._taken = pixels, 0
        self._change = threading.Condition()

    @contextlib.contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Waits until there is room, or nobody else has any."""
        with self._change:
            self._change.wait_for(lambda: not self._taken or self._taken + pixels <= self._pixels)
            self._taken += pixels
        try:
            yield
        finally:
            with self._change:
                self._taken -= pixels
                self._change.notify_all()


_room = _Room(MAX_PIXELS)


def use_image(data: bytes | None, use: "Callable[[Image.Image], _Made]") -> _Made | None:
    """Decodes one image and makes something of it, e.g. the pixels that an encoder wants.

    Args:
      data: an encoded image, or None.
      use: is given a loaded picture of mode "L" (grayscale) or "RGB".  It must not keep it.

    Returns:
      What `use` returned; None if `data` is missing, empty, truncated, of more
      than `MAX_BYTES`, in another format than `FORMATS`, of more than
      `MAX_PIXELS` pixels (WebP: half as many), more than `MAX_ASPECT` times as long as wide or as wide
      as long, damaged in any way that the decoder notices, or if `use` raises
      anything.
    """
    if not data or len(data) > MAX_BYTES:
        return None
    from PIL import Image

    _silence_pillow()
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        pixels, aspect = image.width * image.height, max(image.size) / min(image.size)
        pixels *= _WEBP_FACTOR if image.format == "WEBP" else 1
        if pixels > MAX_PIXELS or aspect > MAX_ASPECT:
            return None
        with _room.take(pixels + int(_RESIZED_PIXELS * aspect)):
            image.load()
            image = _plain_mode(image)
            return use(image)
    except Exception:
        # Damaged files raise whatever the parser happened to trip over, and
        # pictures of odd shapes what their use did.
        return None


def _plain_mode(image: "Image.Image") -> "Image.Image":
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    if image.mode.startswith("I"):
        # 16 bits a pixel: Pillow's own conversion clips instead of scaling.
        return image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode == "P":
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _silence_pillow() -> None:
    """What Pillow says depends on the data, and a worker's log is not private.

    Checked on every call, because libraries and tests reset the filters.
    """
    pillow = logging.getLogger("PIL")
    if pillow.level < logging.ERROR:
        pillow.setLevel(logging.ERROR)
    if ("ignore", None, Warning, _PILLOW, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", category=Warning, module=_PILLOW.pattern)
