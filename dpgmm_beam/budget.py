"""The privacy budget: one Gaussian mechanism, shared out over the stages.

With sensitivity s_i and noise s_i z_i, mechanisms i together are one Gaussian
mechanism with 1/z^2 = sum_i 1/z_i^2 (Dong, Roth and Su, *Gaussian differential
privacy*, 2022, corollary 3.3).  z is calibrated by the analytic Gaussian
mechanism (Balle and Wang 2018) and the composition is re-checked by
dp-accounting's PLD accountant.  Everything is for adding or removing one
privacy unit.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import dp_accounting
from dp_accounting import pld

from dpgmm_beam.errors import ConfigError

ADJACENCY = "add or remove one privacy unit"
PRIVACY_UNIT = "one row (one labelled image)"


def check_privacy_parameters(epsilon: float, delta: float) -> None:
    """Raises ConfigError unless epsilon is finite and above 0 and delta is in (0, 1)."""
    if not (isinstance(epsilon, int | float) and math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError("--epsilon", epsilon, "be a finite number above 0")
    if not (isinstance(delta, int | float) and 0 < delta < 1):
        raise ConfigError("--delta", delta, "be a number between 0 and 1, both excluded")


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """One Gaussian mechanism of the release, used `repetitions` times.

    Attributes:
      name: the stage and channel, e.g. "means/sum".
      share: its share of 1/z^2, over all repetitions together.
      repetitions: how often it runs (rounds).
    """

    name: str
    share: float
    repetitions: int = 1


@dataclasses.dataclass(frozen=True)
class Budget:
    """An (epsilon, delta) budget over a tuple of mechanisms whose shares sum to 1.

    `noise_multiplier` of the whole and of each mechanism are derived, so the
    noise and the privacy event cannot disagree.

    >>> budget = Budget(1.0, 1e-5, (Mechanism("count", .2), Mechanism("rounds", .8, 4)))
    >>> round(budget.noise_multiplier, 4)
    3.7306
    >>> round(budget.multiplier("rounds"), 4)
    8.3419

    Raises:
      ConfigError: the parameters are out of range, a share is not positive,
        a name is repeated, or the shares do not sum to 1.
    """

    epsilon: float
    delta: float
    mechanisms: tuple[Mechanism, ...]
    noise_multiplier: float = dataclasses.field(init=False)

    def __post_init__(self):
        check_privacy_parameters(self.epsilon, self.delta)
        names = [mechanism.name for mechanism in self.mechanisms]
        if len(set(names)) != len(names):
            raise ConfigError("mechanisms", names, "be distinct")
        for mechanism in self.mechanisms:
            if not (mechanism.share > 0 and mechanism.repetitions >= 1):
                raise ConfigError(f"share of {mechanism.name}", mechanism.share, "be above 0")
        total = math.fsum(mechanism.share for mechanism in self.mechanisms)
        if abs(total - 1) > 1e-9:
            raise ConfigError("shares", f"{total} in all", "sum to 1")
        object.__setattr__(self, "noise_multiplier", _calibrated(self.epsilon, self.delta, self.mechanisms))

    def multiplier(self, name: str) -> float:
        """The noise multiplier of one repetition of the named mechanism."""
        return _multiplier(self._find(name), self.noise_multiplier)

    def _find(self, name: str) -> Mechanism:
        for mechanism in self.mechanisms:
            if mechanism.name == name:
                return mechanism
        raise KeyError(name)

    @property
    def event(self) -> dp_accounting.DpEvent:
        """What was done to the data, for any accountant of dp-accounting."""
        return _event(self.mechanisms, self.noise_multiplier)

    def describe(self) -> list[dict]:
        """Name, share, repetitions and noise multiplier of each mechanism, for the manifest."""
        return [
            {**dataclasses.asdict(mechanism), "noise_multiplier": self.multiplier(mechanism.name)}
            for mechanism in self.mechanisms
        ]


def _multiplier(mechanism: Mechanism, noise_multiplier: float) -> float:
    return noise_multiplier * math.sqrt(mechanism.repetitions / mechanism.share)


def _event(mechanisms: tuple[Mechanism, ...], noise_multiplier: float) -> dp_accounting.DpEvent:
    return dp_accounting.ComposedDpEvent(
        [
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.GaussianDpEvent(_multiplier(mechanism, noise_multiplier)), mechanism.repetitions
            )
            for mechanism in mechanisms
        ]
    )


# The accountant takes up to seconds, and every central step of a release asks.
@functools.lru_cache(maxsize=64)
def _calibrated(epsilon: float, delta: float, mechanisms: tuple[Mechanism, ...]) -> float:
    """The noise multiplier of the whole."""
    noise_multiplier = dp_accounting.get_sigma_gaussian(epsilon, delta)
    # The PLD accountant's bound on a composition is pessimistic by under a part
    # in a million.  What we publish must pass that accountant too, so the noise
    # grows by as much, no more.
    step = 1e-7
    while epsilon_by_pld(_event(mechanisms, noise_multiplier), delta) > epsilon:
        noise_multiplier *= 1 + step
        step *= 2
    return noise_multiplier


def epsilon_by_pld(event: dp_accounting.DpEvent, delta: float) -> float:
    """The epsilon that dp-accounting's PLD accountant gives an event at delta."""
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(event)
    return accountant.get_epsilon(delta)


def event_to_json(event: dp_accounting.DpEvent) -> dict:
    """A Gaussian composition as plain data."""
    if isinstance(event, dp_accounting.GaussianDpEvent):
        return {"GaussianDpEvent": {"noise_multiplier": event.noise_multiplier}}
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        return {"SelfComposedDpEvent": {"event": event_to_json(event.event), "count": event.count}}
    if isinstance(event, dp_accounting.ComposedDpEvent):
        return {"ComposedDpEvent": {"events": [event_to_json(inner) for inner in event.events]}}
    raise TypeError(f"{type(event).__name__} is not a composition of Gaussian events")


def event_from_json(data: Mapping) -> dp_accounting.DpEvent:
    """The inverse of `event_to_json`.

    Raises:
      ConfigError: the data is not such a composition.
    """
    try:
        ((kind, fields),) = data.items()
        if kind == "GaussianDpEvent":
            return dp_accounting.GaussianDpEvent(float(fields["noise_multiplier"]))
        if kind == "SelfComposedDpEvent":
            return dp_accounting.SelfComposedDpEvent(event_from_json(fields["event"]), int(fields["count"]))
        if kind == "ComposedDpEvent":
            return dp_accounting.ComposedDpEvent([event_from_json(inner) for inner in fields["events"]])
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise ConfigError("dp_event", data, "be a composition of Gaussian events")
