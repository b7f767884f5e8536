"""Differentially private Gaussian mixtures of embeddings: the mathematics.

Nothing in this package imports Apache Beam; `transforms` wires it into
pipelines and `pipelines` holds the programs.  The names below are the public face;
docs/api.md lists them.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dpgmm_beam.config import Method, ReleaseConfig
    from dpgmm_beam.data.rows import Rows, rows_of
    from dpgmm_beam.decoders.decoder import Decoder
    from dpgmm_beam.decoders.registry import register_decoder
    from dpgmm_beam.encoders.encoder import Encoder
    from dpgmm_beam.encoders.registry import register_encoder
    from dpgmm_beam.errors import ConfigError
    from dpgmm_beam.fit.plan import Plan
    from dpgmm_beam.mixture import Mixture, Sample
    from dpgmm_beam.network import Network, load_network, train_network
    from dpgmm_beam.privacy.noise import NoiseKey
    from dpgmm_beam.release.in_memory import release_in_memory
    from dpgmm_beam.release.labels import Labeller, load_labeller
    from dpgmm_beam.release.loading import load_mixture
    from dpgmm_beam.release.release import Release, load_release

_HOMES = {
    "ConfigError": "errors",
    "Decoder": "decoders.decoder",
    "Encoder": "encoders.encoder",
    "Labeller": "release.labels",
    "Method": "config",
    "Mixture": "mixture",
    "Network": "network",
    "NoiseKey": "privacy.noise",
    "Plan": "fit.plan",
    "Release": "release.release",
    "ReleaseConfig": "config",
    "Rows": "data.rows",
    "Sample": "mixture",
    "load_labeller": "release.labels",
    "load_mixture": "release.loading",
    "load_network": "network",
    "load_release": "release.release",
    "register_decoder": "decoders.registry",
    "register_encoder": "encoders.registry",
    "release_in_memory": "release.in_memory",
    "rows_of": "data.rows",
    "train_network": "network",
}

__all__ = [
    "ConfigError",
    "Decoder",
    "Encoder",
    "Labeller",
    "Method",
    "Mixture",
    "Network",
    "NoiseKey",
    "Plan",
    "Release",
    "ReleaseConfig",
    "Rows",
    "Sample",
    "__version__",
    "load_labeller",
    "load_mixture",
    "load_network",
    "load_release",
    "register_decoder",
    "register_encoder",
    "release_in_memory",
    "rows_of",
    "train_network",
]


def __getattr__(name: str) -> object:
    """A public name, when it is first asked for: numpy, scipy and pyarrow take their time."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"dpgmm_beam.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
