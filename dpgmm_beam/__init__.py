"""Differentially private Gaussian mixtures of embeddings: the mathematics.

Nothing in this package imports Apache Beam; `transforms` wires it into
pipelines and `pipelines` holds the programs.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dpgmm_beam.mixture import Mixture, load_mixture

__all__ = ["Mixture", "__version__", "load_mixture"]


def __getattr__(name: str) -> object:
    """The names of `mixture`, when they are first asked for: numpy, scipy and pyarrow take their time."""
    if name in ("Mixture", "load_mixture"):
        return getattr(importlib.import_module("dpgmm_beam.mixture"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
