"""Folders that are named for labels: any text makes a name, and no two labels the same one."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence

_PLAIN = frozenset("_-. +,()")
_MOST = 100

# Windows keeps these for itself, whatever follows the dot.
_RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"{name}{number}" for name in ("com", "lpt") for number in range(10))]
)


def folder_names(labels: Sequence[str]) -> tuple[str, ...]:
    """A name for each label, that any file system takes and that none takes for another's.

    Letters and digits stay as they are; other characters become %XX, as in addresses.  Long
    names are cut.  What was cut, and labels that differ only in case or in how Unicode writes
    them, end in ~ and a digest of the label.

    >>> folder_names(["cat", "a/b", "..", "Dog", "dog", "CON", "größe 9"])
    ('cat', 'a%2Fb', '%2E%2E', 'Dog~0eb129bf', 'dog~cd6357ef', 'CON~a3dbc4b6', 'größe 9')
    """
    names = [_name(label) for label in labels]
    alike = Counter(map(_folded, names))
    return tuple(
        f"{name}~{hashlib.sha256(label.encode()).hexdigest()[:8]}"
        if alike[_folded(name)] > 1 or _folded(name).partition(".")[0] in _RESERVED or name != _written(label)
        else name
        for name, label in zip(names, labels, strict=True)
    )


def _name(label: str) -> str:
    """The label as it is written, cut to what leaves room for a digest."""
    name = _written(label)
    while len(name.encode()) > _MOST:
        name = name[:-1]
    # Not in the middle of an escaped character.
    return name if name == _written(label) else name.rstrip("%")


def _written(label: str) -> str:
    written = "".join(map(_character, label))
    # Hidden, this folder and the one above; blanks and dots at the end are dropped by Windows.
    if written[:1] in (".", " "):
        written = f"%{ord(written[0]):02X}{written[1:]}"
    if written[-1:] in (".", " "):
        written = f"{written[:-1]}%{ord(written[-1]):02X}"
    return written


def _character(character: str) -> str:
    if character in _PLAIN or (character.isalnum() and unicodedata.normalize("NFC", character) == character):
        return character
    return "".join(f"%{byte:02X}" for byte in character.encode())


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
