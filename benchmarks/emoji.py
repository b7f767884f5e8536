"""Coloured pictures in eight groups: emoji of two makers, from two packages of npm.

`npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0` brings them: Noto's pictures
(Apache-2.0) and Twemoji's (CC BY 4.0), 64 pixels wide, with a table of what each shows.
"""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

MAKERS = ("google", "twitter")
CLASSES = ("people", "hands", "smileys", "nature", "travel", "things", "symbols", "flags")
_GROUPS = {
    "Smileys & Emotion": "smileys",
    "Animals & Nature": "nature",
    "Food & Drink": "nature",
    "Travel & Places": "travel",
    "Activities": "things",
    "Objects": "things",
    "Symbols": "symbols",
    "Flags": "flags",
}
_PARTS = 5
"""A fifth of all emoji is tested on, in all skin tones and of both makers."""


def read(folder: str, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pictures, on black.

    Args:
      folder: with the two packages, as npm packs them.
      side: in pixels.

    Returns:
      (n, side, side, 3) uint8, (n,) classes and (n,) whether each is to be tested on.
    """
    pictures, classes, tested = [], [], []
    for maker in MAKERS:
        (path,) = Path(folder).glob(f"emoji-datasource-{maker}-*.tgz")
        with tarfile.open(path) as package:
            found = {member.name.removeprefix("package/"): member for member in package.getmembers()}

            def data(name: str, package=package, found=found) -> bytes:
                file = package.extractfile(found[name])
                assert file is not None
                return file.read()

            for emoji in json.loads(data("emoji.json")):
                if (group := _group(emoji)) is None:
                    continue
                part = hashlib.sha256(emoji["unified"].encode()).digest()[0] % _PARTS
                for variant in (emoji, *emoji.get("skin_variations", {}).values()):
                    name = f"img/{maker}/64/{variant['image']}"
                    if name not in found:
                        continue
                    picture = Image.open(io.BytesIO(data(name))).convert("RGBA")
                    shown = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
                    shown = shown.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
                    pictures.append(np.asarray(shown))
                    classes.append(CLASSES.index(group))
                    tested.append(part == 0)
    return np.stack(pictures), np.array(classes), np.array(tested)


def _group(emoji: dict) -> str | None:
    """The class of an entry of the table, or None."""
    if emoji["category"] == "People & Body":
        about = emoji["subcategory"]
        return "hands" if about.startswith("hand") or about == "body-parts" else "people"
    return _GROUPS.get(emoji["category"])
