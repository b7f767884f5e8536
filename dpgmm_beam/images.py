"""Image bytes -> a picture, or nothing: bad bytes never raise, warn or log."""

import io
import logging
import re
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

# About 200 MB decoded.  Larger ones are treated like undecodable ones: a small
# file may claim any size and would otherwise take down the worker.
MAX_PIXELS = 2**26

# The formats that Pillow decodes without help of other programs or libraries
# that write to standard error.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")

_PILLOW = re.compile(r"PIL\.")


def decode_image(data: bytes | None) -> "Image.Image | None":
    """Decodes one image.

    Args:
      data: an encoded image, or None.

    Returns:
      A loaded image of mode "L" (grayscale) or "RGB"; None if `data` is missing,
      empty, truncated, in another format than `FORMATS`, of more than
      `MAX_PIXELS` pixels, or damaged in any way that the decoder notices.
    """
    if not data:
        return None
    from PIL import Image

    _silence_pillow()
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            return None
        image.load()
        return _plain_mode(image)
    except Exception:
        # Damaged files raise whatever the parser happened to trip over.
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
