"""Releases as PTransforms; what they compute is in `dpgmm_beam`.

`PrepareRows`, `FitMixture` and `WriteRelease` are the steps of `Release`; `EmbedImages`
makes its rows.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transforms.embed import EmbedImages
    from transforms.fit import FitMixture
    from transforms.prepare import PrepareRows
    from transforms.release import Release
    from transforms.write import WriteRelease

_HOMES = {
    "EmbedImages": "embed",
    "FitMixture": "fit",
    "PrepareRows": "prepare",
    "Release": "release",
    "WriteRelease": "write",
}

__all__ = ["EmbedImages", "FitMixture", "PrepareRows", "Release", "WriteRelease"]


def __getattr__(name: str) -> object:
    """A public name, when it is first asked for: a worker that sums needs no image decoder."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"transforms.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
