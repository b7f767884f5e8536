"""Which files are images: by their names where these say it, otherwise by their first bytes.

What a name says is a function of the name alone, and what the bytes say one of the
file alone: whether a file is a row never depends on other files.
"""

from collections.abc import Mapping

from dpgmm_beam.data import images

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "PNG": ("png", "apng"),
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "jif"),
    "WEBP": ("webp",),
    "BMP": ("bmp", "dib"),
    "GIF": ("gif",),
    "TIFF": ("tif", "tiff"),
    "AVIF": ("avif", "avifs"),
}
"""Of each format, as Pillow calls it.  What the decoder can't read here it sets aside by name."""

_IMAGES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)

# Files beside images that are so common that a million of them must not be opened.
_OTHERS = (
    "txt md rst json yaml yml toml xml html htm log py ipynb sh pdf doc docx xls xlsx"
    " npy npz pt pth pkl parquet arrow feather h5 hdf5 mat cls caption ini cfg db zip gz zst tar tgz 7z rar"
    " mp3 mp4 mov avi mkv webm wav aac xmp thm sha256 md5 license"
)
_NO_IMAGES = frozenset(_OTHERS.split())

_LISTS = frozenset(["csv", "tsv", "jsonl", "ndjson"])

_HALF_OR_OLD = "bak backup orig old tmp temp part partial crdownload download swp sav"
_BACKUPS = frozenset(_HALF_OR_OLD.split())

SNIFFED_BYTES = 64
"""How much of a file's beginning `by_content` wants."""

# Pictures in formats that no decoder here reads, so that they are called by their names.
_UNREAD = (
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"qoif", "QOI"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"<svg", "SVG"),
    (0, b"%PDF", "PDF"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def suffix_of(name: str) -> str:
    """What follows the last dot, in small letters; empty without one."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def is_image(name: str) -> bool:
    """Whether a name says that its file is an image."""
    return suffix_of(name) in _IMAGES and not name.startswith(".")


def why_none(name: str) -> str:
    """Why a name says that its file is no image; empty where it does not say so."""
    suffix = suffix_of(name)
    if suffix in _LISTS:
        return f"no image, by its name's ending .{suffix}; a list of images is an input by itself"
    if suffix in _NO_IMAGES:
        return f"no image, by its name's ending .{suffix}"
    if name.endswith("~") or suffix in _BACKUPS:
        return "a backup or a file half-written, by its name"
    return ""


def why_none_inside(head: bytes) -> str:
    """Why a file is no image, by its first SNIFFED_BYTES; empty if it may be one.

    The decoder's own tests are asked, so that what is found here is what it would try.
    """
    from PIL import Image

    if not head:
        return "an empty file"
    Image.init()
    for name in sorted({*SUFFIXES, *images.FORMATS}):
        accept = Image.OPEN[name][1] if name in Image.OPEN else None
        if accept is not None and accept(head[:16]):
            return ""
    for start, mark, format_name in _UNREAD:
        if head[start : start + len(mark)] == mark:
            return f"in a format that is not read: {format_name}"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "in a format that is not read: HEIF"
    return "no image, by its first bytes"
