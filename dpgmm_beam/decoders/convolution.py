"""A small convolutional decoder, trained in minutes on public pictures; see `train_decoder`.

It gives what pictures with such an embedding look like on average (the squared error's best
answer), so its pictures are soft: what an embedding does not say is not made up.
"""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import math
import os
import pickle
import stat
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from dpgmm_beam.decoders.decoder import Decoder, Drawn, Origin
from dpgmm_beam.encoders.torch_threads import one_thread_per_operator
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.recipe import DecoderConfig

VERSION = 1
MAX_FILE_BYTES = 2**29

HELD_OUT = 10
"""One picture in so many is held out, and at least one."""

_HIDDEN, _CHANNELS = 256, (64, 32, 16)
_ROWS_AT_ONCE = 512


class Pictures(torch.nn.Module):
    """Linear layers to a few pixels, then convolutions, each of which doubles the side at its end.

    Doublings by sub-pixels (Shi et al. 2016): all is computed at half of what comes out.

    Args:
      dimension: length of an embedding.
      side: of the pictures, in pixels.
      channels: 1 or 3.
    """

    centre: torch.Tensor
    scale: torch.Tensor

    def __init__(self, dimension: int, side: int, channels: int):
        super().__init__()
        doublings = 2 if side <= 32 else 3
        self.small = side >> doublings
        self.register_buffer("centre", torch.zeros(dimension))
        self.register_buffer("scale", torch.ones(()))
        self.first = torch.nn.Sequential(
            torch.nn.Linear(dimension, _HIDDEN),
            torch.nn.SiLU(),
            torch.nn.Linear(_HIDDEN, _CHANNELS[0] * self.small**2),
            torch.nn.SiLU(),
        )
        layers: list[torch.nn.Module] = []
        for before, after in itertools.pairwise(_CHANNELS[:doublings]):
            layers += [
                torch.nn.Conv2d(before, before, 3, padding=1),
                torch.nn.SiLU(),
                torch.nn.Conv2d(before, 4 * after, 3, padding=1),
                torch.nn.PixelShuffle(2),
                torch.nn.SiLU(),
            ]
        last = _CHANNELS[doublings - 1]
        layers += [
            torch.nn.Conv2d(last, last, 3, padding=1),
            torch.nn.SiLU(),
            torch.nn.Conv2d(last, 4 * channels, 3, padding=1),
            torch.nn.PixelShuffle(2),
        ]
        self.rest = torch.nn.Sequential(*layers)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Pixels of rows of norm 1, (n, d) -> (n, channels, side, side); 0 is black and 1 white."""
        hidden = self.first((rows - self.centre) / self.scale)
        return self.rest(hidden.view(len(rows), -1, self.small, self.small)) + 0.5


def to_norm_1(rows: np.ndarray) -> np.ndarray:
    """Rows brought to norm 1, float32; a row of zeros stays one."""
    rows = np.asarray(rows, np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(norms, np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A decoder's weights, and what was measured of them.

    Attributes:
      module: the network, on the CPU.
      encoder: spec of the encoder whose embeddings it decodes.
      side, channels: of its pictures.
      config: how it was trained.
      pictures: how many it was trained on.
      error: root mean square error of a pixel (0 is black, 1 white) on the pictures held out.
      mean_error: that of the training pictures' mean, which knows nothing of an embedding.
    """

    module: Pictures
    encoder: str
    side: int
    channels: int
    config: DecoderConfig
    pictures: int
    error: float
    mean_error: float

    def to_bytes(self) -> bytes:
        """The file that `load_trained` reads: torch's format, weights and plain data only."""
        about: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("module", "config")
        }
        about |= {"version": VERSION, "dimension": len(self.module.centre)}
        about["training"] = dataclasses.asdict(self.config)
        file = io.BytesIO()
        torch.save({"state_dict": self.module.state_dict(), "about": about}, file)
        return file.getvalue()


def trained_from_bytes(data: bytes, name: str) -> Trained:
    """The inverse of `Trained.to_bytes`; nothing in the bytes is run.

    Raises:
      ConfigError: these are not the bytes of a decoder.
    """
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        about = dict(content["about"])
        if about.pop("version") != VERSION:
            raise ValueError("of another version")
        config, dimension = DecoderConfig(**about.pop("training")), about.pop("dimension")
        module = Pictures(dimension, about["side"], about["channels"])
        module.load_state_dict(content["state_dict"])
        return Trained(module.eval(), config=config, **about)
    except (
        *(AttributeError, EOFError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError),
        pickle.UnpicklingError,
    ):
        raise ConfigError("decoder", f"torch:{name}", "name a file that dpgmm train-decoder wrote") from None


class ConvolutionalDecoder(Decoder):
    """Pictures of a trained network, on the CPU.

    Args:
      trained: its weights.
    """

    batch_size = 64

    def __init__(self, trained: Trained):
        self._module = trained.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def decode(self, drawn: Drawn, generators: Sequence[np.random.Generator]) -> np.ndarray:
        with torch.inference_mode():
            made = self._module(torch.from_numpy(to_norm_1(drawn.embeddings)))
            return made.permute(0, 2, 3, 1).numpy()

    def session(self) -> contextlib.AbstractContextManager:
        return one_thread_per_operator()


def train_decoder(
    embeddings: np.ndarray,
    pictures: np.ndarray,
    encoder: str,
    config: DecoderConfig | None = None,
    progress: Callable[[float], None] | None = None,
) -> Trained:
    """Trains a decoder on public pictures and their embeddings.

    The same arguments give the same decoder, bit for bit, by one thread.  Every tenth picture
    is held out and measured.  The global generators are left as they were.

    Args:
      embeddings: (n, d) floats, n at least 2, of any length.
      pictures: (n, side, side, 1 or 3) uint8.
      encoder: spec of what made the embeddings.
      config: hyper-parameters; None: the defaults.
      progress: called after each step with its loss.

    >>> rows = np.eye(4, dtype=np.float32).repeat(5, axis=0)
    >>> shades = np.broadcast_to((60 * rows.argmax(1)).astype(np.uint8)[:, None, None, None], (20, 28, 28, 1))
    >>> config = DecoderConfig(side=28, steps=60, batch_size=16)
    >>> trained = train_decoder(rows, shades, "mine", config)
    >>> trained.error < trained.mean_error / 2
    True
    """
    config = config or DecoderConfig()
    count, side, _, channels = pictures.shape
    rows = to_norm_1(embeddings)
    held_out = np.arange(count) % HELD_OUT == HELD_OUT - 1
    held_out[-1] |= not held_out.any()
    (kept,) = np.nonzero(~held_out)
    with torch.random.fork_rng(devices=[]), one_thread_per_operator():
        torch.manual_seed(config.seed)
        module = Pictures(rows.shape[1], side, channels).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        mean = _standardise(module, rows, pictures, kept)
        optimizer = torch.optim.Adam(module.parameters(), lr=config.learning_rate)
        for step in range(config.steps):
            falling = (1 + math.cos(math.pi * step / config.steps)) / 2
            optimizer.param_groups[0]["lr"] = config.learning_rate * falling
            chosen = kept[torch.randint(len(kept), (config.batch_size,)).numpy()]
            inputs = torch.from_numpy(rows[chosen])
            noise = torch.randn(inputs.shape) / math.sqrt(inputs.shape[1])
            inputs = inputs + config.noise * torch.rand(len(inputs), 1) * noise
            inputs = torch.nn.functional.normalize(inputs, dim=1)
            loss = torch.nn.functional.mse_loss(module(inputs), _pixels(pictures[chosen]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if progress is not None:
                progress(float(loss.detach()))
    module.eval()
    error, mean_error = _errors(module, rows, pictures, np.nonzero(held_out)[0], mean)
    return Trained(module, encoder, side, channels, config, len(kept), error, mean_error)


def _pixels(pictures: np.ndarray) -> torch.Tensor:
    """(n, h, w, c) uint8 -> (n, c, h, w) from 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255


def _standardise(module: Pictures, rows: np.ndarray, pictures: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Sets centre and scale to those of the rows; returns the mean picture."""
    total, mean, squares = np.zeros(rows.shape[1]), np.zeros(pictures.shape[1:]), 0.0
    for start in range(0, len(kept), _ROWS_AT_ONCE):
        block = kept[start : start + _ROWS_AT_ONCE]
        total += rows[block].sum(axis=0, dtype=np.float64)
        squares += float((rows[block].astype(np.float64) ** 2).sum())
        mean += pictures[block].sum(axis=0, dtype=np.float64)
    centre = total / len(kept)
    variance = squares / (len(kept) * rows.shape[1]) - float((centre**2).mean())
    module.centre.copy_(torch.from_numpy(centre))
    # Rows that are all alike have nothing to scale.
    module.scale.fill_(math.sqrt(variance) if variance > 1e-12 else 1.0)
    return mean / len(kept)


def _errors(
    module: Pictures, rows: np.ndarray, pictures: np.ndarray, held_out: np.ndarray, mean: np.ndarray
) -> tuple[float, float]:
    """Root mean square errors of a pixel: of the network, clamped, and of the mean picture."""
    squares = np.zeros(2)
    with torch.inference_mode():
        for start in range(0, len(held_out), _ROWS_AT_ONCE):
            block = held_out[start : start + _ROWS_AT_ONCE]
            real = pictures[block] / 255.0
            made = module(torch.from_numpy(rows[block])).clamp(0, 1).permute(0, 2, 3, 1).double().numpy()
            squares += ((made - real) ** 2).sum(), ((mean / 255.0 - real) ** 2).sum()
    error, mean_error = np.sqrt(squares / pictures[held_out].size)
    return float(error), float(mean_error)


def _read(path: str) -> bytes:
    """The bytes of a decoder's file.

    Raises:
      ConfigError: it is no regular file, or can't be read.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE_BYTES:
            raise OSError
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError):
        raise ConfigError("decoder", f"torch:{path}", "name a file that dpgmm train-decoder wrote") from None


def encoders(path: str) -> tuple[str, ...]:
    """The encoder that the decoder in a file was trained for."""
    return (trained_from_bytes(_read(path), path).encoder,)


def fingerprint(path: str) -> str:
    """SHA-256 of the file."""
    return hashlib.sha256(_read(path)).hexdigest()


def load(path: str, origin: Origin) -> ConvolutionalDecoder:
    """The decoder in a file."""
    trained = trained_from_bytes(_read(path), path)
    if len(trained.module.centre) != origin.mixture.dimension:
        raise ConfigError(
            "decoder",
            f"torch:{path}",
            f"take embeddings of length {origin.mixture.dimension}, as the release's are",
        )
    return ConvolutionalDecoder(trained)
