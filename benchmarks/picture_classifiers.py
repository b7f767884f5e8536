"""Small classifiers of small pictures, gray or in colour, in the forms that DPImageBench trains.

Two residual blocks each, so that a training run is a minute of two cores; widths, steps and rates were
fixed before any test row was read.  Where there is a GPU they are trained on it, by the same recipe.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

KINDS = ("ResNet", "WideResNet", "ResNeXt")
_WIDTHS = {"ResNet": (16, 32, 64), "WideResNet": (16, 64, 128), "ResNeXt": (16, 48, 96)}
EPOCHS = {"ResNet": 1.0, "WideResNet": 0.4, "ResNeXt": 0.5}
"""Of those asked for, so that each kind takes about as long."""
_CARDINALITY = {"ResNet": 1, "WideResNet": 1, "ResNeXt": 12}
SHARPENING, GAMMA, CONTRAST, NOISY, NOISE = (-0.7, 1.5), (0.6, 1.6), (0.7, 1.3), 0.4, 0.06
BATCH, RATE, MOMENTUM, DECAY, CELLS = 128, 0.1, 0.9, 5e-4, 4


class _Block(nn.Module):
    """Two 3 x 3 convolutions, or a grouped one between two 1 x 1, beside a way past them."""

    def __init__(self, before: int, after: int, stride: int, groups: int):
        super().__init__()
        kernels, strides, parts = (
            ((3, 3), (stride, 1), (1, 1)) if groups == 1 else ((1, 3, 1), (1, stride, 1), (1, groups, 1))
        )
        layers: list[nn.Module] = []
        width = before
        for kernel, step, part in zip(kernels, strides, parts, strict=True):
            layers += [
                nn.Conv2d(width, after, kernel, step, kernel // 2, groups=part, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
            width = after
        self.layers = nn.Sequential(*layers[:-1])
        self.past = nn.Sequential(
            nn.AvgPool2d(stride), nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after)
        )

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layers(planes) + self.past(planes))


def network(kind: str, classes: int, channels: int = 1) -> nn.Module:
    """A network of pictures (n, channels, side, side) in [0, 1] to logits."""
    first, second, third = _WIDTHS[kind]
    groups = _CARDINALITY[kind]
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.MaxPool2d(2),
        _Block(first, second, 1, groups),
        _Block(second, third, 2, groups),
        # Where something is tells as much as what it is: with one mean for all, 5 points less.
        nn.AdaptiveAvgPool2d(CELLS),
        nn.Flatten(),
        nn.Linear(third * CELLS**2, classes),
    )


def varied(pictures: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
    """Pictures as another camera might show them, (n, side, side[, 3]) uint8 -> (n, channels, side, side).

    Moved by up to a pixel; blurred or sharpened; other gamma and contrast; some with noise.  What
    a mixture draws is smoother than real pictures and of other contrasts: whatever a
    classifier could make of that it must not learn.
    """
    count = len(pictures)
    planes = _planes(np.roll(pictures, tuple(generator.integers(-1, 2, 2)), axis=(1, 2)))

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.from_numpy(generator.uniform(low, high, (count, 1, 1, 1)).astype(np.float32))

    blurred = nn.functional.conv2d(planes.reshape(-1, 1, *planes.shape[2:]), _BLUR, padding=2)
    blurred = blurred.reshape(planes.shape)
    planes = (planes + uniform(*SHARPENING) * (planes - blurred)).clamp(0, 1)
    planes = (planes ** uniform(*GAMMA) * uniform(*CONTRAST)).clamp(0, 1)
    noise = torch.from_numpy(generator.standard_normal(planes.shape, np.float32))
    noise *= (uniform(0, 1) < NOISY) * (planes > 0.02) * NOISE
    return (planes + noise).clamp(0, 1).contiguous(memory_format=torch.channels_last)


def moved(pictures: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
    """Pictures moved by up to a pixel, of the shapes of `varied`, which soft labels do not gain from."""
    return _planes(np.roll(pictures, tuple(generator.integers(-1, 2, 2)), axis=(1, 2)))


def _blur() -> torch.Tensor:
    bell = np.exp(-(np.arange(-2, 3) ** 2) / 2)
    return torch.from_numpy((np.outer(bell, bell) / bell.sum() ** 2).astype(np.float32))[None, None]


_BLUR = _blur()


Changed = Callable[[np.ndarray, np.random.Generator], torch.Tensor]


def usual(targets: np.ndarray) -> Changed:
    """`varied` for hard labels, `moved` for soft ones of a teacher that sees pictures as they are drawn."""
    return varied if hard(targets) else moved


def train(
    kind: str, pictures: np.ndarray, targets: np.ndarray, epochs: int, seed: int, changed: Changed
) -> nn.Module:
    """Trains a network on pictures that are changed on every visit.

    Args:
      pictures: (n, side, side) or (n, side, side, 3) uint8.
      targets: (n, classes) probabilities.
      changed: `varied` or `moved`.
    """
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    channels = 1 if pictures.ndim == 3 else pictures.shape[3]
    module = network(kind, targets.shape[1], channels)
    device = _device()
    module = module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(module.parameters(), RATE, MOMENTUM, weight_decay=DECAY, nesterov=True)
    batches = len(pictures) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, batches * epochs, pct_start=0.2)
    goals = torch.from_numpy(targets.astype(np.float32)).to(device)
    for _ in range(epochs):
        order = generator.permutation(len(pictures))[: batches * BATCH].reshape(batches, BATCH)
        for rows in order:
            with torch.autocast(device, torch.bfloat16):
                found = module(changed(pictures[rows], generator).to(device))
            loss = nn.functional.cross_entropy(found.float(), goals[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return module.eval()


def hard(targets: np.ndarray) -> bool:
    """Whether targets are classes."""
    return bool((targets.max(axis=1) == 1).all())


@torch.inference_mode()
def classified(module: nn.Module, pictures: np.ndarray) -> np.ndarray:
    """The likeliest class of each picture, (n,)."""
    found = [
        module(_planes(pictures[start : start + 1000]).to(_device())).argmax(dim=1).cpu().numpy()
        for start in range(0, len(pictures), 1000)
    ]
    return np.concatenate(found)


def accuracy(module: nn.Module, pictures: np.ndarray, labels: np.ndarray) -> float:
    """Share of pictures whose likeliest class is theirs."""
    return float((classified(module, pictures) == labels).mean())


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _planes(pictures: np.ndarray) -> torch.Tensor:
    planes = torch.from_numpy(pictures.astype(np.float32) / 255)
    planes = planes[:, None] if planes.ndim == 3 else planes.permute(0, 3, 1, 2)
    return planes.contiguous(memory_format=torch.channels_last)
