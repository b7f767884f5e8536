"""Which decoders there are, for which encoders' embeddings, and one of each per process.

A decoder fits a release by the *name* of the encoder and never by the length of an
embedding: efficientnet_lite0 and CLIP's ViT-bigG-14 both have 1,280 numbers.  Nothing here
imports a deep learning library.
"""

import dataclasses
import importlib
import importlib.metadata
import os
import threading
from collections.abc import Callable

from dpgmm_beam.decoders.decoder import Decoder, Origin
from dpgmm_beam.errors import ConfigError

ENTRY_POINTS = "dpgmm_beam.decoders"
"""Packages may add decoders under this entry point group; see docs/decoders.md."""

_DEFAULT_SIZES = {"efficientnet_lite0": "efficientnet_lite0:128"}


@dataclasses.dataclass(frozen=True)
class Registration:
    """How the decoders of one name are made.

    Attributes:
      load: (argument, origin) -> decoder, where the argument is what follows ":" in the spec, or "".
      encoders: argument -> specs of the encoders whose embeddings it decodes.  It is called before
        anything is decoded, loads no weights, and raises a ConfigError of the field `decoder`
        where the argument is not one.
      fingerprint: argument -> what tells two sets of weights of one spec apart, e.g. the digest of a file.
      shown: argument -> what a manifest says of it: no path of this machine.
    """

    load: Callable[[str, Origin], Decoder]
    encoders: Callable[[str], tuple[str, ...]]
    fingerprint: Callable[[str], str]
    shown: Callable[[str], str]


_REGISTRY: dict[str, Registration] = {}
_lock = threading.RLock()


def register_decoder(
    name: str,
    load: Callable[[str, Origin], Decoder],
    encoders: Callable[[str], tuple[str, ...]],
    fingerprint: Callable[[str], str] = lambda argument: "",
    shown: Callable[[str], str] = lambda argument: argument,
) -> None:
    """Makes `name` or `name:argument` a decoder; see `Registration`.

    Registering in a script reaches this process only.  Workers are processes of
    their own: an entry point (docs/decoders.md) reaches those, too.

    >>> register_decoder("squares", lambda argument, origin: NotImplemented, lambda argument: ("levels:8",))
    >>> check_decoder("squares", "levels:8")
    >>> check_decoder("squares", "levels:9")
    Traceback (most recent call last):
    ...
    dpgmm_beam.errors.ConfigError: decoder=squares is refused: it must be of the release's encoder, \
levels:9; it decodes embeddings of levels:8.
    >>> del _REGISTRY["squares"]
    """
    _REGISTRY[name] = Registration(load, encoders, fingerprint, shown)


def same_encoder(one: str, other: str) -> bool:
    """Whether two specs are of one encoder.

    >>> same_encoder("efficientnet_lite0", "efficientnet_lite0:128")
    True
    """
    return _DEFAULT_SIZES.get(one, one) == _DEFAULT_SIZES.get(other, other)


def check_decoder(spec: str, encoder: str) -> None:
    """Checks that a decoder is one, and of an encoder's embeddings; loads no weights.

    Args:
      spec: of the decoder.
      encoder: spec of the encoder.

    Raises:
      ConfigError: the name is unknown, its argument malformed, or it decodes others' embeddings.
    """
    registration, argument = _find(spec)
    decoded = registration.encoders(argument)
    if not any(same_encoder(encoder, each) for each in decoded):
        raise ConfigError(
            "decoder",
            spec,
            f"be of the release's encoder, {encoder}; it decodes embeddings of {' or '.join(decoded)}",
        )


def decoder_fingerprint(spec: str) -> str:
    """What tells two sets of weights of one spec apart; "" where nothing on this machine does."""
    registration, argument = _find(spec)
    return registration.fingerprint(argument)


def shown_decoder(spec: str) -> str:
    """The spec without paths of this machine."""
    registration, argument = _find(spec)
    name, colon, _ = spec.partition(":")
    return f"{name}{colon}{registration.shown(argument)}"


def load_decoder(spec: str, origin: Origin) -> Decoder:
    """Loads the decoder of a spec; slow (seconds).

    Raises:
      ConfigError: see `check_decoder`.
    """
    check_decoder(spec, origin.encoder)
    registration, argument = _find(spec)
    decoder = registration.load(argument, origin)
    decoder.spec = shown_decoder(spec)
    return decoder


def _find(spec: str) -> tuple[Registration, str]:
    name, _, argument = spec.partition(":")
    with _lock:
        if name not in _REGISTRY:
            for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
                # Loading the module registers it.
                entry_point.load()
        if name not in _REGISTRY:
            names = ", ".join(sorted(_REGISTRY))
            raise ConfigError("decoder", spec, f"be one of {names} (NAME or NAME:ARGUMENT)")
        return _REGISTRY[name], argument


def _module(name: str):
    """One of this package's modules, when it is first used: torch takes seconds."""
    return importlib.import_module(f"dpgmm_beam.decoders.{name}")


def _file_name(path: str) -> str:
    return os.path.basename(path.rstrip("/"))


register_decoder(
    "dct",
    lambda argument, origin: _module("inverse").load(argument, origin),
    lambda argument: _module("inverse").encoders(argument),
)
register_decoder(
    "torch",
    lambda argument, origin: _module("convolution").load(argument, origin),
    lambda argument: _module("convolution").encoders(argument),
    lambda argument: _module("convolution").fingerprint(argument),
    _file_name,
)
