"""The privacy budget: one Gaussian mechanism, shared out over the stages.

With sensitivity s_i and noise s_i z_i, mechanisms i together are one Gaussian
mechanism with 1/z^2 = sum_i 1/z_i^2 (Dong, Roth and Su, *Gaussian differential
privacy*, 2022, corollary 3.3).  z is calibrated by the analytic Gaussian
mechanism (Balle and Wang 2018), whose curve is exact, and then raised by
`_slack`, so that dp-accounting's PLD accountant, whose bound on a composition
is slightly pessimistic, confirms what a manifest states.  s_i is the most by which
neighbouring data sets differ (`privacy.neighbours`).

dp-accounting takes seconds to import and is for checking only: a release is
calibrated, drawn and described without it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from scipy.special import erfcx

from dpgmm_beam.errors import ConfigError

if TYPE_CHECKING:
    from dp_accounting import DpEvent

REPLACED = 2.0
"""dp-accounting takes noise over the norm of one unit's sums, of which a replacement moves two."""

# Where closed form and PLD accountant were compared; tests go through the corners.
MIN_EPSILON, MAX_EPSILON = 0.001, 1000
MIN_DELTA, DELTA_BOUND = 1e-12, 0.5

# The PLD accountant needs e^epsilon, which leaves double precision at 709.
_MAX_PLD_EPSILON = 500
# Its grid of privacy losses, over their standard deviation.  With the default of
# 1e-4 whatever the deviation, epsilon .001 comes out 20% too large and epsilon
# 1e6 takes 13 GB; with this one it is within _slack and takes about a second.
_PLD_GRID = 3e-4


def check_privacy_parameters(epsilon: float, delta: float) -> None:
    """Raises ConfigError unless epsilon is in [0.001, 1000] and delta in [1e-12, 0.5)."""
    if not (isinstance(epsilon, int | float) and MIN_EPSILON <= epsilon <= MAX_EPSILON):
        raise ConfigError("epsilon", epsilon, f"be a number from {MIN_EPSILON} to {MAX_EPSILON}")
    if not (isinstance(delta, int | float) and MIN_DELTA <= delta < DELTA_BOUND):
        raise ConfigError("delta", delta, f"be a number of at least {MIN_DELTA:g} and below {DELTA_BOUND}")


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

    The multiplier of each mechanism and the privacy event are derived from the
    multiplier of the whole, so the noise and the event cannot disagree.

    Attributes:
      epsilon, delta: what the whole may cost.
      mechanisms: all that is done to the data.
      noise_multiplier: of the whole; calibrated here unless given, and used as
        it is if given (a worker has it from the driver).

    >>> budget = Budget(1.0, 1e-5, (Mechanism("count", .2), Mechanism("rounds", .8, 4)))
    >>> round(budget.noise_multiplier, 4)
    3.7306
    >>> round(budget.multiplier("rounds"), 3)
    8.342

    Raises:
      ConfigError: the parameters are out of range, a share is not positive,
        a name is repeated, the shares do not sum to 1, or the noise multiplier
        given is not a finite number above 0.
    """

    epsilon: float
    delta: float
    mechanisms: tuple[Mechanism, ...]
    noise_multiplier: float = None  # type: ignore[assignment]

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
        if self.noise_multiplier is None:
            object.__setattr__(self, "noise_multiplier", calibrated(self.epsilon, self.delta))
        elif not 0 < self.noise_multiplier < math.inf:
            raise ConfigError("noise multiplier", self.noise_multiplier, "be a finite number above 0")

    def multiplier(self, name: str) -> float:
        """The noise multiplier of one repetition of the named mechanism."""
        return self._multiplier(self._find(name))

    def _multiplier(self, mechanism: Mechanism) -> float:
        return self.noise_multiplier * math.sqrt(mechanism.repetitions / mechanism.share)

    def _find(self, name: str) -> Mechanism:
        for mechanism in self.mechanisms:
            if mechanism.name == name:
                return mechanism
        raise KeyError(name)

    def event(self, relation: str = "ADD_OR_REMOVE_ONE") -> dict:
        """What was done to the data, as plain data: `event_from_json` makes it a DpEvent.

        Args:
          relation: for which dp-accounting is to compose it.
        """
        scale = REPLACED if relation == "REPLACE_ONE" else 1.0
        return {
            "ComposedDpEvent": {
                "events": [
                    {
                        "SelfComposedDpEvent": {
                            "event": {
                                "GaussianDpEvent": {"noise_multiplier": scale * self._multiplier(mechanism)}
                            },
                            "count": mechanism.repetitions,
                        }
                    }
                    for mechanism in self.mechanisms
                ]
            }
        }

    def describe(self) -> list[dict]:
        """Name, share, repetitions and noise multiplier of each mechanism, for the manifest."""
        return [
            {**dataclasses.asdict(mechanism), "noise_multiplier": self._multiplier(mechanism)}
            for mechanism in self.mechanisms
        ]


def calibrated(epsilon: float, delta: float) -> float:
    """The noise multiplier of the whole: the exact one, with the slack, to ten digits.

    In ten digits the last bits of scipy's functions, which differ between
    machines, do not show; the rounding is far less than the slack.
    """
    return float(f"{gaussian_multiplier(epsilon, delta) * (1 + _slack(delta)):.10g}")


def epsilon_of_part(epsilon: float, delta: float, share: float) -> float:
    """The epsilon at delta of a release that has a part of a budget, to be composed with others.

    Releases of the same rows that are given parts whose shares sum to 1 are (epsilon, delta)-private
    together: each is one Gaussian mechanism, and their 1/z^2 add up to the budget's.  Rounded down, to
    seven digits.

    Args:
      epsilon, delta: of all releases together.
      share: of 1/z^2, above 0 and at most 1.

    >>> epsilon_of_part(1.0, 1e-5, 0.4), epsilon_of_part(1.0, 1e-5, 0.6)
    (0.6056576, 0.7558532)

    Raises:
      ConfigError: an argument is out of its range, or the part is under epsilon 0.001.
    """
    check_privacy_parameters(epsilon, delta)
    if not 0 < share <= 1:
        raise ConfigError("share", share, "be above 0 and at most 1")
    if share == 1:
        return float(epsilon)
    wanted = calibrated(epsilon, delta) / math.sqrt(share)
    low, high = MIN_EPSILON, float(epsilon)
    if calibrated(low, delta) < wanted:
        raise ConfigError("share", share, f"leave a part of epsilon {MIN_EPSILON} or more")
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if calibrated(middle, delta) < wanted else (middle, high)
    digits = 6 - math.floor(math.log10(low))
    return math.floor(low * 10**digits) / 10**digits


def _slack(delta: float) -> float:
    """By how much more noise, relatively, the PLD accountant confirms a composition.

    Its grid costs under 4e-7 for a dozen mechanisms and its rounding errors,
    some 1e-16 of probability each, under 2e-16 / delta.
    """
    return 1e-6 + 3e-16 / delta


def gaussian_multiplier(epsilon: float, delta: float) -> float:
    """The least noise over sensitivity with which a Gaussian mechanism is (epsilon, delta)-private.

    Balle and Wang, *Improving the Gaussian mechanism for differential privacy*,
    2018, theorem 8, to a part in 10**12; of the two numbers that bisection ends at,
    the larger.

    Args:
      epsilon, delta: in the range of `check_privacy_parameters`.
    """
    target = math.log(delta)
    low = high = 1e-6
    while _log_delta(high, epsilon) <= target:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        if _log_delta(middle, epsilon) <= target:
            low = middle
        else:
            high = middle
    return 1 / low


def _log_delta(mu: float, epsilon: float) -> float:
    """log delta at epsilon of a Gaussian mechanism of noise 1/mu.

    With a, b = epsilon / mu -+ mu / 2, delta is Phi(-a) - e^epsilon Phi(-b).  As
    e^epsilon is phi(a) / phi(b), that is phi(a) times a difference of Mills
    ratios, in which nothing overflows where delta is below one half.
    """
    a, b = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    difference = float(erfcx(a / math.sqrt(2)) - erfcx(b / math.sqrt(2)))
    return math.log(difference / 2) - a * a / 2 if difference > 0 else -math.inf


def epsilon_by_pld(event: "DpEvent", delta: float, relation: str = "ADD_OR_REMOVE_ONE") -> float:
    """The epsilon that dp-accounting's PLD accountant gives a composition of Gaussians at delta.

    Above epsilon 500, where the accountant leaves double precision, it is
    dp-accounting's exact epsilon of the one Gaussian that the composition is.

    Raises:
      ValueError: a noise multiplier or a count is negative, or delta is not in [0, 1].
    """
    import dp_accounting
    from dp_accounting import pld

    neighbours = dp_accounting.NeighboringRelation[relation]
    replaced = REPLACED if neighbours is dp_accounting.NeighboringRelation.REPLACE_ONE else 1.0
    precision = _precision(event) * replaced**2
    if not 0 < precision < math.inf:
        # Nothing was done, or something without noise.
        return precision
    mu = math.sqrt(precision)
    exact = dp_accounting.get_epsilon_gaussian(1 / mu, delta)
    if exact > _MAX_PLD_EPSILON:
        return exact
    accountant = pld.PLDAccountant(neighbours, value_discretization_interval=_PLD_GRID * mu)
    accountant.compose(event)
    return accountant.get_epsilon(delta)


def _precision(event: "DpEvent") -> float:
    """1/z^2 of the one Gaussian mechanism that a composition of Gaussians is."""
    from dp_accounting import ComposedDpEvent, GaussianDpEvent, SelfComposedDpEvent

    if isinstance(event, ComposedDpEvent):
        return math.fsum(_precision(inner) for inner in event.events)
    if isinstance(event, SelfComposedDpEvent) and event.count >= 0:
        return event.count * _precision(event.event)
    if isinstance(event, GaussianDpEvent) and event.noise_multiplier >= 0:
        return event.noise_multiplier**-2 if event.noise_multiplier else math.inf
    raise ValueError(f"{event} is not a composition of Gaussian events")


def event_from_json(data: Mapping) -> "DpEvent":
    """The event that `Budget.event` describes, for any accountant of dp-accounting.

    Raises:
      ConfigError: the data is not a composition of Gaussian events.
    """
    from dp_accounting import ComposedDpEvent, GaussianDpEvent, SelfComposedDpEvent

    try:
        ((kind, fields),) = data.items()
        if kind == "GaussianDpEvent":
            return GaussianDpEvent(float(fields["noise_multiplier"]))
        if kind == "SelfComposedDpEvent":
            return SelfComposedDpEvent(event_from_json(fields["event"]), int(fields["count"]))
        if kind == "ComposedDpEvent":
            return ComposedDpEvent([event_from_json(inner) for inner in fields["events"]])
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise ConfigError("dp_event", data, "be a composition of Gaussian events")
