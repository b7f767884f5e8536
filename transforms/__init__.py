"""Releases as PTransforms; what they compute is in `dpgmm_beam`.

`PrepareRows`, `FitMixture` and `WriteRelease` are the steps of `Release`; `EmbedImages`
makes its rows.  In a pipeline of your own `PrepareElements` takes the rows that it has, in
the place of `PrepareRows`, and `SampleMixture` gives synthetic ones.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transforms.embed import EmbedImages
    from transforms.fit import FitMixture
    from transforms.prepare import PrepareRows
    from transforms.release import Release
    from transforms.rows import PrepareElements
    from transforms.sample import SampleMixture, SyntheticRow
    from transforms.write import WriteRelease

_HOMES = {
    "EmbedImages": "embed",
    "FitMixture": "fit",
    "PrepareElements": "rows",
    "PrepareRows": "prepare",
    "Release": "release",
    "SampleMixture": "sample",
    "SyntheticRow": "sample",
    "WriteRelease": "write",
}

__all__ = [
    "EmbedImages",
    "FitMixture",
    "PrepareElements",
    "PrepareRows",
    "Release",
    "SampleMixture",
    "SyntheticRow",
    "WriteRelease",
]


def __getattr__(name: str) -> object:
    """A public name, when it is first asked for: a worker that sums needs no image decoder."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"transforms.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
