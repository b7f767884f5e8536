"""Which decoders there are, for which encoders' embeddings, and one of each per process.

A decoder fits a release by the *name* of the encoder and never by the length of an
embedding: efficientnet_lite0 and CLIP's ViT-bigG-14 both have 1,280 numbers.  Nothing here
imports a deep learning library.
"""

import dataclasses
import importlib
import importlib.metadata
import os
import re
import threading
from collections.abc import Callable
from typing import Any

from dpgmm_beam import plugins
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
      path: whether the argument begins with a path (or, where nothing is there, a name), after which
        options may follow, `,NAME=VALUE`, which may be paths, too.
      also_reads: argument -> other paths on this machine that are read.
      piece_images: pictures that are made and written as one piece of work: that many, decoded,
        must fit into memory.
      released: whether it is made of what a decodable release holds, and so decodes that release's
        embeddings, whatever the encoder.
    """

    load: Callable[[str, Origin], Decoder]
    encoders: Callable[[str], tuple[str, ...]]
    fingerprint: Callable[[str], str]
    path: bool
    also_reads: Callable[[str], tuple[str, ...]]
    piece_images: int
    released: bool


_REGISTRY: dict[str, Registration] = {}
_lock = threading.RLock()


def register_decoder(
    name: str,
    load: Callable[[str, Origin], Decoder],
    encoders: Callable[[str], tuple[str, ...]],
    fingerprint: Callable[[str], str] = lambda argument: "",
    path: bool = False,
    also_reads: Callable[[str], tuple[str, ...]] = lambda argument: (),
    piece_images: int = 512,
    released: bool = False,
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
    _REGISTRY[name] = Registration(load, encoders, fingerprint, path, also_reads, piece_images, released)


def same_encoder(one: str, other: str) -> bool:
    """Whether two specs are of one encoder.

    >>> same_encoder("efficientnet_lite0", "efficientnet_lite0:128")
    True
    """
    return _DEFAULT_SIZES.get(one, one) == _DEFAULT_SIZES.get(other, other)


def check_decoder(spec: str, encoder: str, decodable: bool = False) -> None:
    """Checks that a decoder is one, and of an encoder's embeddings; loads no weights.

    Args:
      spec: of the decoder.
      encoder: spec of the encoder.
      decodable: whether the release of the embeddings is.

    Raises:
      ConfigError: the name is unknown, its argument malformed, or it decodes others' embeddings.
    """
    registration, argument = _find(spec)
    decoded = registration.encoders(argument)
    if registration.released:
        if not decodable:
            raise ConfigError("decoder", spec, "be of a release that was made with --decodable SIDE")
        return
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


def piece_images(spec: str) -> int:
    """How many pictures of a decoder are made and written together."""
    return _find(spec)[0].piece_images


def read_paths(spec: str) -> tuple[str, ...]:
    """All paths on this machine that a decoder reads: each must be public."""
    registration, argument = _find(spec)
    found = list(registration.also_reads(argument))

    def note(path: str) -> str:
        found.append(path)
        return path

    with_paths(spec, note)
    return tuple(found)


def with_paths(spec: str, change: Callable[[str], str]) -> str:
    """The spec with other paths of this machine in the place of those that it names.

    >>> with_paths("torch:/here/decoder.pt", lambda path: path.upper())
    'torch:/HERE/DECODER.PT'
    """
    registration, argument = _find(spec)
    if not registration.path:
        return spec
    name, _, _ = spec.partition(":")
    start, options = split(argument)
    changed = [start, *options.values()]
    changed = [change(each) if _is_path(each) else each for each in changed]
    rest = "".join(f",{option}={value}" for option, value in zip(options, changed[1:], strict=True))
    return f"{name}:{changed[0]}{rest}"


def _is_path(text: str) -> bool:
    """Whether a text is a path on this machine, where it could be a name, too."""
    return text.startswith((os.sep, f".{os.sep}", f"..{os.sep}")) or (bool(text) and os.path.lexists(text))


def shown_decoder(spec: str) -> str:
    """The spec as a manifest has it: of a path its last name only.

    >>> shown_decoder("torch:/home/somebody/decoder.pt")
    'torch:decoder.pt'
    """
    return with_paths(spec, lambda path: os.path.basename(path.rstrip(os.sep)))


def split(argument: str) -> tuple[str, dict[str, str]]:
    """What an argument begins with, and the options that follow it.

    >>> split("folder,a,guidance=4,steps=25")
    ('folder,a', {'guidance': '4', 'steps': '25'})
    """
    found = re.fullmatch(r"(.*?)((?:,[a-z_]+=[^,]*)*)", argument, re.DOTALL)
    assert found is not None
    options = (each.partition("=") for each in found[2].split(",")[1:])
    return found[1], {name: value for name, _, value in options}


def load_decoder(spec: str, origin: Origin) -> Decoder:
    """Loads the decoder of a spec; slow (seconds).

    Raises:
      ConfigError: see `check_decoder`.
    """
    check_decoder(spec, origin.encoder, origin.pictures is not None)
    registration, argument = _find(spec)
    decoder = registration.load(argument, origin)
    decoder.spec = shown_decoder(spec)
    return decoder


def _find(spec: str) -> tuple[Registration, str]:
    with _lock:
        return plugins.find("decoder", spec, _REGISTRY, ENTRY_POINTS)


def _lazily(module: str, function: str) -> Callable[..., Any]:
    """A function of one of this package's modules, imported at its first call: torch takes seconds."""

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"dpgmm_beam.decoders.{module}"), function)(*arguments)

    return call


register_decoder(
    "dct",
    _lazily("inverse", "load"),
    _lazily("inverse", "encoders"),
    piece_images=2048,
)
register_decoder(
    "private_linear",
    _lazily("linear", "load"),
    _lazily("linear", "encoders"),
    piece_images=2048,
    released=True,
)
register_decoder(
    "torch",
    _lazily("convolution", "load"),
    _lazily("convolution", "encoders"),
    _lazily("convolution", "fingerprint"),
    path=True,
    piece_images=2048,
)
register_decoder(
    "retrieval",
    _lazily("retrieval", "load"),
    _lazily("retrieval", "encoders"),
    _lazily("retrieval", "fingerprint"),
    path=True,
    also_reads=_lazily("retrieval", "also_reads"),
)
register_decoder(
    "kandinsky22",
    _lazily("diffusion", "load_kandinsky"),
    _lazily("diffusion", "kandinsky_encoders"),
    _lazily("diffusion", "kandinsky_fingerprint"),
    path=True,
    piece_images=32,
)
register_decoder(
    "unclip",
    _lazily("diffusion", "load_unclip"),
    _lazily("diffusion", "unclip_encoders"),
    _lazily("diffusion", "unclip_fingerprint"),
    path=True,
    piece_images=32,
)
