"""Which encoders there are, and one of each per process.

Nothing here imports a deep learning library or Pillow: checking a configuration
and finding that every embedding is in the cache already must be quick.
"""

import dataclasses
import re
import threading
from collections import OrderedDict
from collections.abc import Callable

from dpgmm_beam import plugins
from dpgmm_beam.encoders.encoder import Encoder
from dpgmm_beam.errors import ConfigError

# Packages may add encoders under this entry point group; see docs/encoders.md.
ENTRY_POINTS = "dpgmm_beam.encoders"

# Two, so that a process that compares encoders does not load them in turns.
_LOADED_AT_MOST = 2


@dataclasses.dataclass(frozen=True)
class Registration:
    """How the encoders of one name are made.

    Attributes:
      load: (argument, batch size or 0 for the encoder's own choice) -> encoder,
        where the argument is what follows ":" in the spec, or "".
      validation_error: argument -> what must be so and is not, or None.  It is called
        before any data is read and loads no weights.
      fingerprint: argument -> what tells two sets of weights of one spec apart,
        e.g. the digest of a local file.
      dimension: argument -> length of an embedding, where it is known without loading anything.
    """

    load: Callable[[str, int], Encoder]
    validation_error: Callable[[str], str | None]
    fingerprint: Callable[[str], str]
    dimension: Callable[[str], int | None]


_REGISTRY: dict[str, Registration] = {}
_loaded: OrderedDict[tuple[str, int], Encoder] = OrderedDict()
_lock = threading.RLock()


def register_encoder(
    name: str,
    load: Callable[[str, int], Encoder],
    validation_error: Callable[[str], str | None] = lambda argument: None,
    fingerprint: Callable[[str], str] = lambda argument: "",
    dimension: Callable[[str], int | None] = lambda argument: None,
) -> None:
    """Makes `name` or `name:argument` an encoder; see `Registration`.

    Registering in a script reaches this process only.  Workers are processes of
    their own: an entry point (docs/encoders.md) reaches those, too.

    >>> register_encoder(
    ...     "levels",
    ...     lambda argument, batch_size: NotImplemented,
    ...     lambda argument: None if argument.isdecimal() else "end in a number, as levels:8 does",
    ... )
    >>> check_encoder("levels:8")
    >>> check_encoder("levels:many")
    Traceback (most recent call last):
    ...
    dpgmm_beam.errors.ConfigError: encoder=levels:many is refused: it must end in a number, as levels:8 does.
    >>> del _REGISTRY["levels"]
    """
    _REGISTRY[name] = Registration(load, validation_error, fingerprint, dimension)


def check_encoder(spec: str) -> None:
    """Checks a spec without loading weights.

    Raises:
      ConfigError: the name is unknown, or its argument is malformed.
    """
    try:
        spec.encode()
    except UnicodeEncodeError:
        raise ConfigError("encoder", spec, "be text in UTF-8") from None
    registration, argument = _find(spec)
    validation_error = registration.validation_error(argument)
    if validation_error:
        raise ConfigError("encoder", spec, validation_error)


def encoder_fingerprint(spec: str) -> str:
    """What `spec` stands for, for cache keys: differs where the embeddings may."""
    registration, argument = _find(spec)
    return f"{spec}\n{registration.fingerprint(argument)}"


def known_dimension(spec: str) -> int | None:
    """Length of an embedding, where the spec alone says it.

    >>> known_dimension("dct:28"), known_dimension("efficientnet_lite0")
    (784, None)

    Raises:
      ConfigError: see `check_encoder`.
    """
    check_encoder(spec)
    registration, argument = _find(spec)
    return registration.dimension(argument)


def load_encoder(spec: str, batch_size: int = 0) -> Encoder:
    """Loads the encoder of a spec; slow (seconds).

    Args:
      spec: e.g. "efficientnet_lite0" or "open_clip:ViT-B-32/laion2b_s34b_b79k".
      batch_size: images per run of the network; 0 leaves it to the encoder.

    Raises:
      ConfigError: see `check_encoder`.
    """
    check_encoder(spec)
    registration, argument = _find(spec)
    encoder = registration.load(argument, batch_size)
    encoder.spec = spec
    return encoder


def encoder_for_process(spec: str, batch_size: int = 0) -> Encoder:
    """As `load_encoder`, but loaded once per process, whichever thread asks."""
    with _lock:
        key = (spec, batch_size)
        if key not in _loaded:
            _loaded[key] = load_encoder(spec, batch_size)
        _loaded.move_to_end(key)
        while len(_loaded) > _LOADED_AT_MOST:
            _loaded.popitem(last=False)
        return _loaded[key]


def _find(spec: str) -> tuple[Registration, str]:
    with _lock:
        return plugins.find("encoder", spec, _REGISTRY, ENTRY_POINTS)


def _load_open_clip(argument: str, batch_size: int) -> Encoder:
    from dpgmm_beam.encoders import open_clip_encoder

    return open_clip_encoder.load_open_clip(argument, batch_size)


def _open_clip_validation_error(argument: str) -> str | None:
    from dpgmm_beam.encoders import open_clip_encoder

    return open_clip_encoder.validation_error(argument)


def _open_clip_fingerprint(argument: str) -> str:
    from dpgmm_beam.encoders import open_clip_encoder

    return open_clip_encoder.fingerprint(argument)


def _load_efficientnet_lite0(argument: str, batch_size: int) -> Encoder:
    from dpgmm_beam.encoders import open_clip_encoder

    return open_clip_encoder.load_efficientnet_lite0(int(argument or 128), batch_size)


def _efficientnet_lite0_validation_error(argument: str) -> str | None:
    # The network has a stride of 32.
    if argument and not (re.fullmatch("[0-9]{1,5}", argument) and 32 <= int(argument) <= 1024):
        return "be efficientnet_lite0 or efficientnet_lite0:SIZE with SIZE from 32 to 1024 pixels"
    return None


def _load_dct(argument: str, batch_size: int) -> Encoder:
    from dpgmm_beam.encoders import dct

    return dct.DctEncoder(argument)


def _dct_validation_error(argument: str) -> str | None:
    from dpgmm_beam.encoders import dct

    return dct.validation_error(argument)


def _dct_dimension(argument: str) -> int:
    from dpgmm_beam.encoders import dct

    return dct.PictureForm.of(argument).dimension


def _load_scattering(argument: str, batch_size: int) -> Encoder:
    from dpgmm_beam.encoders import scattering

    return scattering.ScatteringEncoder(argument)


def _scattering_validation_error(argument: str) -> str | None:
    from dpgmm_beam.encoders import scattering

    return scattering.validation_error(argument)


def _load_precomputed(argument: str, batch_size: int) -> Encoder:
    raise ConfigError("encoder", "precomputed", "name a model where images are to be embedded")


def _precomputed_validation_error(argument: str) -> str | None:
    return "be just 'precomputed', without an argument" if argument else None


register_encoder("open_clip", _load_open_clip, _open_clip_validation_error, _open_clip_fingerprint)
register_encoder("efficientnet_lite0", _load_efficientnet_lite0, _efficientnet_lite0_validation_error)
register_encoder("dct", _load_dct, _dct_validation_error, dimension=_dct_dimension)
register_encoder("scattering", _load_scattering, _scattering_validation_error)
register_encoder("precomputed", _load_precomputed, _precomputed_validation_error)
