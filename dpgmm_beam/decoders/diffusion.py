"""Diffusion decoders of CLIP embeddings, run by diffusers: Kandinsky 2.2's and Stable unCLIP's.

Both were trained to make a picture from the raw image embedding of one CLIP model (not from one
of norm 1), so rows of norm 1 are brought to that model's usual length, which follows from
statistics of public pictures that the weights bring with them: per coordinate a mean and a
standard deviation, the root of the sum of whose squares is the root mean square length.

    kandinsky22:DECODER[,prior=PRIOR][,norm=NUMBER]...   embeddings of CLIP ViT-bigG-14
    unclip:MODEL...                                      embeddings of CLIP ViT-H-14

Whose embeddings these are: Kandinsky 2.2's documentation in diffusers names CLIP-ViT-G, and the
configuration of its prior's image encoder (kandinsky-community/kandinsky-2-2-prior: width 1664, 48
layers, 1280 dimensions) is that of open_clip's ViT-bigG-14.  That of stabilityai/stable-diffusion-2-1-unclip
(width 1280, 32 layers, 1024 dimensions) is open_clip's ViT-H-14.  Other weights of these two models, such
as metaclip's, have other embeddings.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpgmm_beam.decoders import registry
from dpgmm_beam.decoders.decoder import Decoder, Drawn, Origin
from dpgmm_beam.errors import ConfigError

EXTRA = "decode"

BIG_G = (
    "open_clip:ViT-bigG-14/laion2b_s39b_b160k",
    "open_clip:hf-hub:laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
)
H = (
    "open_clip:ViT-H-14/laion2b_s32b_b79k",
    "open_clip:hf-hub:laion/CLIP-ViT-H-14-laion2B-s32B-b79k",
)
"""Specs of the encoders; weights of one model under several names."""

KANDINSKY_PRIOR = "kandinsky-community/kandinsky-2-2-prior"

_CPU_BATCH, _CUDA_BATCH = 1, 8


@dataclasses.dataclass(frozen=True)
class _Options:
    """What may follow the name of weights.

    Attributes:
      steps: of the sampler.
      guidance: scale of classifier-free guidance; 1: none.
      size: pixels of a side.
      noise_level: of Stable unCLIP, noise on the embedding: more makes pictures vary more.
      prior: of Kandinsky, folder or name of the weights that belong to the decoder: they have the
        statistics of embeddings, and the image encoder that embeds no picture at all.
      norm: length that a row of norm 1 is brought to; 0: by the statistics.
    """

    steps: int = 25
    guidance: float = 4.0
    size: int = 512
    noise_level: int = 0
    prior: str = KANDINSKY_PRIOR
    norm: float = 0.0


_OF_KANDINSKY = ("steps", "guidance", "size", "prior", "norm")
_OF_UNCLIP = ("steps", "guidance", "size", "noise_level", "norm")
_RANGES = {
    "steps": (1, 1000),
    "guidance": (1, 100),
    "size": (8, 4096),
    "noise_level": (0, 999),
    "norm": (0, 1e6),
}


def _options(name: str, argument: str, allowed: Sequence[str]) -> tuple[str, _Options]:
    """Weights and options of an argument.

    Raises:
      ConfigError: an option is unknown or out of its range.
    """
    weights, given = registry.split(argument)
    spec, kinds = f"{name}:{argument}", {field.name: field.type for field in dataclasses.fields(_Options)}
    values: dict[str, Any] = {}
    for option, text in given.items():
        try:
            if option not in allowed:
                raise ValueError
            values[option] = kinds[option](text)  # type: ignore[operator]
            least, most = _RANGES.get(option, (0, 0))
            if option in _RANGES and not least <= values[option] <= most:
                raise ValueError
        except ValueError:
            known = ", ".join(f"{each}=" for each in allowed)
            raise ConfigError("decoder", spec, f"have options among {known} in their ranges") from None
    if not weights:
        raise ConfigError("decoder", spec, f"be {name}:FOLDER or {name}:ORGANISATION/MODEL")
    return weights, _Options(**values)


def check_installed(spec: str) -> None:
    """Raises ConfigError, naming the extra, where diffusers is not installed."""
    for package in ("diffusers", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                "decoder", spec, f"come with the package {package}: pip install 'dpgmm-beam[{EXTRA}]'"
            )


def _check_weights(name: str, argument: str, weights: str) -> None:
    """A folder must be one of such weights; a name is looked up when it is loaded."""
    if os.path.isdir(weights):
        if not os.path.isfile(os.path.join(weights, "model_index.json")):
            raise ConfigError("decoder", f"{name}:{argument}", "name a folder with a model_index.json")
    elif weights.startswith((os.sep, ".", "~")) or weights.count("/") != 1:
        raise ConfigError(
            "decoder", f"{name}:{argument}", f"be {name}:FOLDER that exists or {name}:ORGANISATION/MODEL"
        )


class _Diffusion(Decoder):
    """What both have in common: one pipeline, used by one thread at a time, with generators by rows.

    Args:
      pipeline: of diffusers, on its device.
      options: of the sampler.
      norm: that a row of norm 1 is brought to; None: rows have their own length.
    """

    def __init__(self, pipeline: Any, options: _Options, norm: float | None):
        self._pipeline, self._options, self._norm = pipeline, options, norm
        self.batch_size = _CUDA_BATCH if pipeline.device.type == "cuda" else _CPU_BATCH
        # A scheduler holds the state of the batch that is under way.
        self._lock = threading.Lock()
        pipeline.set_progress_bar_config(disable=True)

    def decode(self, drawn: Drawn, generators: Sequence[np.random.Generator]) -> np.ndarray:
        import torch

        rows = np.asarray(drawn.embeddings, np.float32)
        if self._norm is not None:
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = rows * (self._norm / np.maximum(lengths, np.finfo(np.float32).tiny))
        seeded = [
            # On the CPU whatever the device: the same noise on each.
            torch.Generator().manual_seed(int(generator.integers(2**63)))
            for generator in generators
        ]
        with self._lock, torch.inference_mode():
            embeds = torch.from_numpy(rows).to(self._pipeline.device, self._pipeline.unet.dtype)
            return np.asarray(self._run(embeds, seeded), np.float32)

    def _run(self, embeds: Any, generators: list) -> np.ndarray:
        """(n, d) embeddings -> (n, height, width, 3) from 0 to 1."""
        raise NotImplementedError

    def _sample(self, embeds: Any, generators: list, **own: Any) -> np.ndarray:
        """As `_run`, with arguments that only this pipeline has."""
        options = self._options
        return self._pipeline(
            image_embeds=embeds,
            height=options.size,
            width=options.size,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            generator=generators,
            output_type="np",
            **own,
        ).images


class Kandinsky(_Diffusion):
    """Kandinsky 2.2's decoder (Apache-2.0).

    Args:
      negative: (1, d) embedding of no picture at all, for guidance; None without guidance.
    """

    def __init__(self, pipeline: Any, options: _Options, norm: float | None, negative: np.ndarray | None):
        super().__init__(pipeline, options, norm)
        self._negative = negative

    def _run(self, embeds: Any, generators: list) -> np.ndarray:
        import torch

        negative = torch.zeros_like(embeds)
        if self._negative is not None:
            negative = torch.from_numpy(self._negative).to(embeds).expand_as(embeds)
        return self._sample(embeds, generators, negative_image_embeds=negative)


class StableUnclip(_Diffusion):
    """Stable unCLIP (OpenRAIL++), without words.

    Args:
      words: (1, tokens, width) what the text encoder makes of no words.
    """

    def __init__(self, pipeline: Any, options: _Options, norm: float | None, words: Any):
        super().__init__(pipeline, options, norm)
        self._words = words

    def _run(self, embeds: Any, generators: list) -> np.ndarray:
        words = self._words.expand(len(embeds), -1, -1).to(embeds)
        return self._sample(
            embeds,
            generators,
            prompt_embeds=words,
            negative_prompt_embeds=words,
            noise_level=self._options.noise_level,
        )


def kandinsky_encoders(argument: str) -> tuple[str, ...]:
    """ViT-bigG-14 of open_clip, raw."""
    weights, _ = _options("kandinsky22", argument, _OF_KANDINSKY)
    check_installed(f"kandinsky22:{argument}")
    _check_weights("kandinsky22", argument, weights)
    return BIG_G


def unclip_encoders(argument: str) -> tuple[str, ...]:
    """ViT-H-14 of open_clip, raw."""
    weights, _ = _options("unclip", argument, _OF_UNCLIP)
    check_installed(f"unclip:{argument}")
    _check_weights("unclip", argument, weights)
    return H


def load_kandinsky(argument: str, origin: Origin) -> Kandinsky:
    """Loads the decoder, and of the prior its statistics and, for guidance, its image encoder."""
    weights, options = _options("kandinsky22", argument, _OF_KANDINSKY)
    diffusers = _diffusers()
    with _named(f"kandinsky22:{argument}"):
        pipeline = diffusers.KandinskyV22Pipeline.from_pretrained(weights, **_how(weights))
        width = pipeline.unet.config.encoder_hid_dim
        _check_dimension(f"kandinsky22:{argument}", width, origin)
        norm = options.norm or _kandinsky_norm(options.prior) if origin.clip_norm is None else None
        negative = _nothing_seen(options.prior) if options.guidance > 1 else None
    return Kandinsky(_on_device(pipeline), options, norm, negative)


def load_unclip(argument: str, origin: Origin) -> StableUnclip:
    """Loads the decoder; its text encoder is asked once for no words, its image encoder is left out."""
    import torch

    weights, options = _options("unclip", argument, _OF_UNCLIP)
    diffusers = _diffusers()
    with _named(f"unclip:{argument}"):
        index = diffusers.StableUnCLIPImg2ImgPipeline.load_config(weights)
        silent = {} if (index.get("text_encoder") or [None])[0] else {"text_encoder": None, "tokenizer": None}
        pipeline = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(
            weights, image_encoder=None, feature_extractor=None, **silent, **_how(weights)
        )
        statistics = pipeline.image_normalizer
        _check_dimension(f"unclip:{argument}", statistics.mean.shape[1], origin)
        norm = None
        if origin.clip_norm is None:
            norm = options.norm or _length(statistics.mean, statistics.std)
    pipeline = _on_device(pipeline)
    # It asks its image encoder for the type of its numbers, and for nothing else: any of its models will do.
    pipeline.image_encoder = pipeline.unet
    with torch.inference_mode():
        if silent:
            words = torch.zeros(1, 1, pipeline.unet.config.cross_attention_dim)
        else:
            words, _ = pipeline.encode_prompt("", pipeline.device, 1, False)
    pipeline.text_encoder = pipeline.tokenizer = None
    return StableUnclip(pipeline, options, norm, words)


def kandinsky_fingerprint(argument: str) -> str:
    """Of local folders, the decoder's and the prior's."""
    weights, options = _options("kandinsky22", argument, _OF_KANDINSKY)
    return "".join(map(_digest, (weights, options.prior)))


def unclip_fingerprint(argument: str) -> str:
    """Of a local folder."""
    return _digest(registry.split(argument)[0])


def _digest(weights: str) -> str:
    """SHA-256 of a folder's weights and configurations; "" for what is downloaded by its name."""
    if not os.path.isdir(weights):
        return ""
    digest = hashlib.sha256()
    for path in sorted(Path(weights).rglob("*")):
        if path.suffix in (".json", ".safetensors", ".txt") and path.is_file():
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(json.dumps([str(path.relative_to(weights)), found]).encode())
    return digest.hexdigest()


def _diffusers() -> Any:
    # open_clip's and diffusers' own imports of torchvision would fail beside some builds of torch.
    from dpgmm_beam.encoders.torchvision_compat import import_torchvision

    import_torchvision()
    import diffusers
    import transformers

    for package in (diffusers, transformers):
        package.utils.logging.set_verbosity_error()
        package.utils.logging.disable_progress_bar()
    return diffusers


def _how(weights: str) -> Mapping[str, Any]:
    """Arguments for loading: no pickles, nothing from the network for a folder."""
    return {"use_safetensors": True, "local_files_only": os.path.isdir(weights), "dtype": _dtype()}


def _dtype() -> Any:
    import torch

    return torch.float16 if torch.cuda.is_available() else torch.float32


def _on_device(pipeline: Any) -> Any:
    import torch

    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def _named(spec: str) -> Iterator[None]:
    """What weights raise becomes a refusal, where they lie on this machine."""
    local = os.path.isdir(registry.split(spec.partition(":")[2])[0])
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        # What is downloaded may be there on another day.
        if not local or isinstance(error, MemoryError):
            raise
        raise ConfigError(
            "decoder", spec, f"name weights that can be read, as safetensors ({type(error).__name__})"
        ) from None


def _check_dimension(spec: str, width: int, origin: Origin) -> None:
    if width != origin.mixture.dimension:
        raise ConfigError(
            "decoder", spec, f"take embeddings of length {origin.mixture.dimension}, as the release's are"
        )


def _length(mean: Any, std: Any) -> float:
    """Root mean square length of embeddings with these statistics."""
    return math.sqrt(sum(float((each.detach().double() ** 2).sum()) for each in (mean, std)))


def _prior_file(prior: str, name: str) -> str:
    """Path of a file of the prior's weights, downloaded where that is a name."""
    if os.path.isdir(prior):
        return os.path.join(prior, *name.split("/"))
    from huggingface_hub import hf_hub_download

    return hf_hub_download(prior, name)


def _kandinsky_norm(prior: str) -> float:
    """By the statistics with which Kandinsky's prior makes embeddings; only these are read."""
    from safetensors import safe_open

    with safe_open(_prior_file(prior, "prior/diffusion_pytorch_model.safetensors"), "pt") as file:
        return _length(file.get_tensor("clip_mean"), file.get_tensor("clip_std"))


def _nothing_seen(prior: str) -> np.ndarray:
    """What the prior's image encoder makes of a picture of zeros, as diffusers' `get_zero_embed`, (1, d)."""
    import torch
    from transformers import CLIPVisionModelWithProjection

    encoder = CLIPVisionModelWithProjection.from_pretrained(
        prior, subfolder="image_encoder", use_safetensors=True, local_files_only=os.path.isdir(prior)
    )
    with torch.inference_mode():
        size = int(encoder.config.image_size)  # type: ignore[arg-type]
        return encoder.float()(torch.zeros(1, 3, size, size)).image_embeds.numpy()
