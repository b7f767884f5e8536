"""How the two-layer network is trained; apart from it, so that `dpgmm train --help` needs no torch."""

import dataclasses

from dpgmm_beam.errors import ConfigError

MODEL_FILE, METRICS_FILE = "model.pt", "metrics.json"
"""What a training writes."""

RANGES: dict[str, tuple[float, float]] = {
    "hidden": (1, 16384),
    "epochs": (1, 10000),
    "batch_size": (1, 65536),
    "learning_rate": (1e-9, 10.0),
    "label_temperature": (0.2, 1000.0),
}
"""What `TrainConfig` takes: beyond, memory or single precision ends."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters of the training.

    Attributes:
      hidden: units of the hidden layer.
      epochs: passes over the rows.
      batch_size: rows of a step.
      learning_rate: Adam's at the start; it falls to 0 along a half cosine.
      label_temperature: probabilities p are trained on as p^(1/T), renormalised,
        which for a softmax divides the logits by T.  A teacher that is nearly
        sure of most rows then still tells how the other classes compare
        (Hinton, Vinyals and Dean 2015).  Class labels are not affected.
      seed: of the first weights and of the order of the rows.

    Raises:
      ConfigError: naming the option of `dpgmm train`.
    """

    hidden: int = 256
    epochs: int = 8
    batch_size: int = 256
    learning_rate: float = 1e-3
    label_temperature: float = 4.0
    seed: int = 0

    def __post_init__(self):
        for name, (least, most) in RANGES.items():
            if not least <= getattr(self, name) <= most:
                kind = "a number" if isinstance(least, float) else "a whole number"
                raise ConfigError(
                    name,
                    getattr(self, name),
                    f"be {kind} from {least:.6g} to {most:.6g}",
                )
        if not 0 <= self.seed < 2**63:
            raise ConfigError("seed", self.seed, "be from 0 to 2**63 - 1")


DECODER_SIDES = (28, 32, 48, 64)
"""Pixels of a side that a trained decoder may make."""


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Hyper-parameters of a decoder's training.

    Attributes:
      side: pixels of a side of its pictures, one of `DECODER_SIDES`.
      steps: batches that are trained on.
      batch_size: pictures of a batch.
      learning_rate: Adam's at the start; it falls to 0 along a half cosine.
      noise: length of the noise that is added to an embedding of norm 1, at most: synthetic
        embeddings are never quite where real ones are.
      seed: of the first weights, the order of pictures and the noise.

    Raises:
      ConfigError: naming the option of `dpgmm train-decoder`.
    """

    side: int = 32
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 2e-3
    noise: float = 0.3
    seed: int = 0

    def __post_init__(self):
        if self.side not in DECODER_SIDES:
            raise ConfigError("side", self.side, f"be one of {', '.join(map(str, DECODER_SIDES))}")
        for name, most in (("steps", 10**6), ("batch_size", 4096)):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(name, getattr(self, name), f"be a whole number from 1 to {most}")
        if not 1e-9 <= self.learning_rate <= 1:
            raise ConfigError("learning_rate", self.learning_rate, "be a number from 1e-09 to 1")
        if not 0 <= self.noise <= 10:
            raise ConfigError("noise", self.noise, "be a number from 0 to 10")
        if not 0 <= self.seed < 2**63:
            raise ConfigError("seed", self.seed, "be from 0 to 2**63 - 1")
