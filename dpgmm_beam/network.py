"""The two-layer network that is trained on a release, by one fixed recipe.

The recipe is not tuned on any release: one hidden layer of 256 rectified units
on centred inputs of one global scale, Adam with a cosine to zero, eight passes.
It is the same for synthetic and for real rows, so that the two can be compared.
From probabilities it starts as the linear function that fits them best.
"""

import dataclasses
import io
import math
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.recipe import MODEL_FILE, TrainConfig

_ROWS_AT_ONCE = 4096
_RIDGE = 1e-3
"""Of the mean square of an input, for the linear function that the network starts as."""

_START_ROWS = 2**17
"""As many rows tell that function: of more, blocks from all over are taken."""

_LEAST = 1e-3
"""Softened probabilities below count as that: the logarithm of 0 has no end."""


class TwoLayers(torch.nn.Module):
    """Linear, ReLU, linear, on rows brought to the release's norm, centred and scaled.

    The norm, the centre and the scale are part of the network, so it takes an
    encoder's raw output.

    Args:
      dimension: length of an embedding.
      hidden: units of the hidden layer.
      classes: number of outputs.
      clip_norm: rows longer than it are shortened to it; None: every row is
        brought to norm 1.
    """

    centre: torch.Tensor
    scale: torch.Tensor

    def __init__(self, dimension: int, hidden: int, classes: int, clip_norm: float | None):
        super().__init__()
        self.clip_norm = clip_norm
        self.register_buffer("centre", torch.zeros(dimension))
        self.register_buffer("scale", torch.ones(()))
        self.first = torch.nn.Linear(dimension, hidden)
        self.second = torch.nn.Linear(hidden, classes)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits, (n, d) -> (n, C)."""
        return self.second(torch.relu(self.first(self.inputs(rows))))

    def inputs(self, rows: torch.Tensor) -> torch.Tensor:
        """What the first layer sees, (n, d) -> (n, d)."""
        return (self.to_norm(rows) - self.centre) / self.scale

    def to_norm(self, rows: torch.Tensor) -> torch.Tensor:
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        if self.clip_norm is None:
            return rows / norms.clamp_min(torch.finfo(rows.dtype).tiny)
        return rows * (self.clip_norm / norms.clamp_min(self.clip_norm))


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network.

    Attributes:
      classes: C labels, in the order of the outputs.
      module: the weights.
      config: how it was trained.
      soft: whether on probabilities, softened by the config's temperature.
      encoder: spec of the encoder whose embeddings it takes; None: not known.

    >>> rows = np.eye(4, dtype=np.float32).repeat(50, axis=0)
    >>> network = train_network(rows[:100], np.arange(100) // 50, ("cat", "dog"), TrainConfig(epochs=30))
    >>> network.predict(rows[[0, 99]]).tolist()
    [0, 1]
    >>> [network.classes[index] for index in network.predict(3 * rows[[0, 99]])]
    ['cat', 'dog']
    >>> network.predict_proba(rows[:1]).round().tolist()
    [[1.0, 0.0]]
    """

    classes: tuple[str, ...]
    module: TwoLayers
    config: TrainConfig
    soft: bool = False
    encoder: str | None = None

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """Logits of raw embeddings, (n, d) floats -> (n, C) float32.

        Raises:
          ConfigError: the embeddings are not of this network's length.
        """
        dimension = len(self.module.centre)
        if embeddings.ndim != 2 or embeddings.shape[1] != dimension:
            raise ConfigError(
                "embeddings", f"an array of shape {embeddings.shape}", f"have shape (n, {dimension})"
            )
        result = np.empty((len(embeddings), len(self.classes)), np.float32)
        device = self.module.centre.device
        with torch.no_grad():
            for start in range(0, len(embeddings), _ROWS_AT_ONCE):
                block = slice(start, start + _ROWS_AT_ONCE)
                result[block] = self.module(_batch(embeddings[block], device)).cpu().numpy()
        return result

    def predict_proba(self, embeddings: np.ndarray) -> np.ndarray:
        """Class probabilities of raw embeddings, (n, d) floats -> (n, C) float32.

        They estimate the probabilities that the network was trained on as they were
        before they were softened: logits are multiplied by the temperature again.
        """
        temperature = self.config.label_temperature if self.soft else 1.0
        return torch.softmax(torch.from_numpy(self.logits(embeddings)) * temperature, dim=1).numpy()

    def predict(self, embeddings: np.ndarray) -> np.ndarray:
        """Indices among `classes` of raw embeddings, (n, d) floats -> (n,) int64."""
        return self.logits(embeddings).argmax(axis=1)

    def to_bytes(self) -> bytes:
        """The file that `load_network` reads: torch's format, weights and plain data only."""
        config: dict[str, Any] = {
            "classes": list(self.classes),
            "dimension": len(self.module.centre),
            "clip_norm": self.module.clip_norm,
            "training": dataclasses.asdict(self.config),
            "soft": self.soft,
            "encoder": self.encoder,
        }
        weights = {name: value.cpu() for name, value in self.module.state_dict().items()}
        file = io.BytesIO()
        torch.save({"state_dict": weights, "config": config}, file)
        return file.getvalue()


def load_network(path: str | os.PathLike) -> Network:
    """Loads a network on the CPU.

    Args:
      path: a `model.pt`, or the folder in which `dpgmm train` wrote it, on a
        local file system.

    Raises:
      ConfigError: there is none, or it is none.

    >>> import tempfile
    >>> rows = np.eye(2, dtype=np.float32)
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(train_network(rows, np.array([0, 1]), ("cat", "dog")).to_bytes())
    ...     file.flush()
    ...     load_network(file.name).classes
    ('cat', 'dog')
    """
    file = os.path.join(path, MODEL_FILE) if os.path.isdir(path) else path
    try:
        with open(file, "rb") as opened:
            data = opened.read()
    except OSError as error:
        reason = error.strerror
        raise ConfigError("network", path, f"be a network that dpgmm train wrote ({reason})") from None
    return network_from_bytes(data, str(path))


def network_from_bytes(data: bytes, name: str) -> Network:
    """The inverse of `Network.to_bytes`, on the CPU; nothing in the bytes is run.

    Args:
      name: of the file, for a refusal.

    Raises:
      ConfigError: these are not the bytes of a network.
    """
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        config = content["config"]
        training, classes = TrainConfig(**config["training"]), tuple(config["classes"])
        module = TwoLayers(config["dimension"], training.hidden, len(classes), config["clip_norm"])
        module.load_state_dict(content["state_dict"])
        return Network(classes, module.eval(), training, config["soft"], config["encoder"])
    except (
        *(AttributeError, EOFError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError),
        pickle.UnpicklingError,
    ):
        raise ConfigError("network", name, "be a network that dpgmm train wrote") from None


def train_network(
    embeddings: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    config: TrainConfig | None = None,
    clip_norm: float | None = None,
    progress: Callable[[int, float], None] | None = None,
    encoder: str | None = None,
) -> Network:
    """Trains the network; on the GPU if there is one.

    On a CPU, the same arguments and the same number of threads give the same
    network, bit for bit.  The global generators are left as they were.  Rows
    are gathered a batch at a time: there is no second copy of `embeddings`.

    Args:
      embeddings: (n, d) floats, n > 0.
      targets: (n,) class indices, or (n, C) probabilities.
      classes: C labels.
      config: hyper-parameters; None: the defaults.
      clip_norm: of the release, as in `TwoLayers`.
      progress: called after each epoch with its number, from 1, and its mean loss.
      encoder: spec of what made the embeddings, which the network keeps.

    Raises:
      ConfigError: shapes that do not fit, or class indices out of range.

    >>> rows, probabilities = np.eye(2, dtype=np.float32), np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    >>> train_network(rows, probabilities, ("cat", "dog")).predict_proba(rows).shape
    (2, 2)
    """
    config = config or TrainConfig()
    _check(embeddings, targets, len(classes))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        module = TwoLayers(embeddings.shape[1], config.hidden, len(classes), clip_norm)
    order = torch.Generator().manual_seed(config.seed)
    module.to(device)
    _standardise(module, embeddings)
    if targets.ndim == 2:
        _start_linear(module, embeddings, targets, config)
    optimizer = torch.optim.Adam(module.parameters(), lr=config.learning_rate)
    rows = len(embeddings)
    batches = -(-rows // config.batch_size)
    for epoch in range(config.epochs):
        permutation = torch.randperm(rows, generator=order).numpy()
        total = torch.zeros((), device=device)
        for index in range(batches):
            done = (epoch * batches + index) / (config.epochs * batches)
            optimizer.param_groups[0]["lr"] = config.learning_rate * (1 + math.cos(math.pi * done)) / 2
            chosen = permutation[index * config.batch_size : (index + 1) * config.batch_size]
            logits = module(_batch(embeddings[chosen], device))
            loss = torch.nn.functional.cross_entropy(logits, _targets(targets[chosen], config, device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(chosen)
        if progress is not None:
            progress(epoch + 1, float(total) / rows)
    return Network(tuple(classes), module.eval(), config, targets.ndim == 2, encoder)


def soften(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """p^(1/T), renormalised, (n, C) -> (n, C) float32.

    >>> soften(np.array([[0.8, 0.2]]), 2.0).round(3).tolist()
    [[0.6669999957084656, 0.3330000042915344]]
    """
    powers = np.asarray(probabilities, np.float32) ** np.float32(1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def _check(embeddings: np.ndarray, targets: np.ndarray, classes: int) -> None:
    if embeddings.ndim != 2 or not len(embeddings):
        raise ConfigError(
            "embeddings", f"an array of shape {embeddings.shape}", "have shape (n, d) with n > 0"
        )
    if targets.shape not in ((len(embeddings),), (len(embeddings), classes)):
        raise ConfigError(
            "targets",
            f"an array of shape {targets.shape}",
            f"have shape ({len(embeddings)},) or ({len(embeddings)}, {classes})",
        )
    if targets.ndim == 1 and (targets.min() < 0 or targets.max() >= classes):
        raise ConfigError("targets", f"{targets.min()} to {targets.max()}", f"be from 0 to {classes - 1}")


def _batch(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    # A copy, for arrays that Parquet gives are read-only and torch wants to write.
    return torch.from_numpy(np.array(rows, np.float32)).to(device)


def _targets(targets: np.ndarray, config: TrainConfig, device: torch.device) -> torch.Tensor:
    if targets.ndim == 1:
        return torch.from_numpy(targets.astype(np.int64)).to(device)
    return torch.from_numpy(soften(targets, config.label_temperature)).to(device)


@torch.no_grad()
def _start_linear(
    module: TwoLayers, embeddings: np.ndarray, probabilities: np.ndarray, config: TrainConfig
) -> None:
    """Lets the network start as the linear function that fits its targets' logits best.

    A pair of hidden units for each class carries it, for u = relu(u) - relu(-u);
    the weights behind the others are 0 at first.  A release's teacher is mostly linear, and
    a network that had to find that by its steps would bend where no synthetic row is
    and real ones are.  (Real rows' labels are no linear function: a network of class labels
    starts anywhere.)  With fewer than two units a class nothing is changed.
    """
    classes, hidden = module.second.out_features, module.first.out_features
    if hidden < 2 * classes:
        return
    constant, weights = _best_linear(module, embeddings, probabilities, config)
    lengths = torch.linalg.vector_norm(weights, dim=0)
    # Half of a function's size in either layer; a class whose logit is the same everywhere has none.
    halves = lengths.sqrt()
    directions = torch.where(lengths > 0, weights / halves, 0.0).T
    module.second.weight.zero_()
    module.second.bias.copy_(constant)
    for sign, units in ((1, slice(0, classes)), (-1, slice(classes, 2 * classes))):
        module.first.weight[units] = sign * directions
        module.first.bias[units] = 0
        module.second.weight[:, units] = torch.diag(sign * halves)


def _best_linear(
    module: TwoLayers, embeddings: np.ndarray, probabilities: np.ndarray, config: TrainConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ridge regression of the targets' logits on the network's inputs.

    Returns:
      (C,) float64, the logits of an input of 0, and (d, C) float64 weights.
    """
    device, dimension, classes = module.centre.device, len(module.centre), module.second.out_features

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    squares, products = zeros(dimension, dimension), zeros(dimension, classes)
    inputs_mean, logits_mean, rows = zeros(dimension), zeros(classes), 0
    for start in range(0, len(embeddings), _ROWS_AT_ONCE * -(-len(embeddings) // _START_ROWS)):
        block = slice(start, start + _ROWS_AT_ONCE)
        inputs = module.inputs(_batch(embeddings[block], device))
        logits = _targets(probabilities[block], config, device).clamp_min(_LEAST).log()
        logits -= logits.mean(dim=1, keepdim=True)
        rows += len(inputs)
        squares += inputs.T @ inputs
        products += inputs.T @ logits
        inputs_mean += inputs.sum(dim=0)
        logits_mean += logits.sum(dim=0)
    ridge = _RIDGE * squares.trace() / dimension + torch.finfo(torch.float64).tiny
    inputs_mean /= rows
    logits_mean /= rows
    squares -= rows * torch.outer(inputs_mean, inputs_mean)
    products -= rows * torch.outer(inputs_mean, logits_mean)
    squares.diagonal().add_(ridge)
    weights = torch.linalg.solve(squares, products)
    return logits_mean - inputs_mean @ weights, weights


def _standardise(module: TwoLayers, embeddings: np.ndarray) -> None:
    """Sets the centre to the rows' mean and the scale to their deviation over all coordinates."""
    total = np.zeros(embeddings.shape[1])
    squares = 0.0
    for start in range(0, len(embeddings), _ROWS_AT_ONCE):
        block = torch.from_numpy(np.array(embeddings[start : start + _ROWS_AT_ONCE], np.float64))
        rows = module.to_norm(block).numpy()
        total += rows.sum(axis=0)
        squares += float((rows**2).sum())
    centre = total / len(embeddings)
    variance = squares / embeddings.size - float((centre**2).mean())
    module.centre.copy_(torch.from_numpy(centre))
    # Rows that are all alike have nothing to scale.
    module.scale.fill_(math.sqrt(variance) if variance > 0 else 1.0)
