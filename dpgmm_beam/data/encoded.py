"""An encoded picture: opened by its format's own class, cut, or put together again."""

import dataclasses
import importlib
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


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
