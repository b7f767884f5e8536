"""Several releases together, as exact as one: whole numbers of cost, composed over slices of the data.

Each release is a composition of Gaussian mechanisms, and so is any number of them: with
noise multipliers z_i, all together are one Gaussian mechanism of 1/z^2 = sum 1/z_i^2
(Dong, Roth and Su, *Gaussian differential privacy*, 2022, corollary 3.3), also where a
release was chosen by what earlier ones told.  Nothing is lost, as it is when
epsilons are added.  The cost of a release is its 1/z^2 in steps of 2^-64, rounded up, so
that sums of costs, in any order and on any machine, are the same.

Releases of disjoint slices of the data compose in parallel: a unit is charged for the slices that it
is in and for releases of the whole. A slice K/N has the places from (K - 1)/N up to K/N of all, so
that what is charged at any place is known, also where slices of different N overlap (McSherry,
*Privacy integrated queries*, 2009, theorem 4, whose argument is the same for a trade-off curve).
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction
from typing import Any

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy import accounting

STEPS = 2**64
"""Of cost, in a 1/z^2 of 1.  The least budget has some 10^12 of them."""

_MOST_DEEP = 64


def cost_of(event: Mapping[str, Any]) -> int:
    """The cost of a privacy event in plain data, as `Budget.event` has it, in steps.

    Raises:
      ConfigError: the event is not a composition of Gaussian events with noise.

    >>> cost_of({"GaussianDpEvent": {"noise_multiplier": 2.0}}) == STEPS // 4
    True
    """
    return math.ceil(_precision(event, 0) * STEPS)


def _precision(event: Any, depth: int) -> Fraction:
    """1/z^2, exactly."""
    try:
        ((kind, fields),) = event.items()
        if kind == "ComposedDpEvent" and depth < _MOST_DEEP:
            return sum((_precision(inner, depth + 1) for inner in fields["events"]), Fraction(0))
        if kind == "SelfComposedDpEvent" and depth < _MOST_DEEP:
            count = fields["count"]
            if type(count) is int and count >= 0:
                return count * _precision(fields["event"], depth + 1)
        if kind == "GaussianDpEvent":
            multiplier = fields["noise_multiplier"]
            if type(multiplier) in (int, float) and 0 < multiplier < math.inf:
                return 1 / Fraction(multiplier) ** 2
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        pass
    # Not shown: it may be of any size and depth.
    raise ConfigError("dp_event", "(an event)", "be a composition of Gaussian events with noise")


def plain(event: Mapping[str, Any], relation: str) -> dict[str, Any]:
    """A privacy event in plain data as what an attacker sees of it: to be composed with any other.

    For the relation REPLACE_ONE dp-accounting takes a Gaussian event's multiplier over half of
    what it hides, and doubles it itself; `cost_of` and add-or-remove accountants take it as it is.

    >>> plain({"GaussianDpEvent": {"noise_multiplier": 2.0}}, "REPLACE_ONE")
    {'GaussianDpEvent': {'noise_multiplier': 1.0}}
    """
    if relation != "REPLACE_ONE":
        return dict(event)
    cost_of(event)
    return _halved(event)


def _halved(event: Mapping[str, Any]) -> dict[str, Any]:
    ((kind, fields),) = event.items()
    if kind == "ComposedDpEvent":
        return {kind: {"events": [_halved(inner) for inner in fields["events"]]}}
    if kind == "SelfComposedDpEvent":
        return {kind: {**fields, "event": _halved(fields["event"])}}
    return {kind: {"noise_multiplier": fields["noise_multiplier"] / 2}}


def together(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All of the events as one, in plain data; an accountant composes equal ones at once.

    >>> once = {"GaussianDpEvent": {"noise_multiplier": 2.0}}
    >>> cost_of(together([once, once, once])) == 3 * STEPS // 4
    True
    """
    counts = Counter(json.dumps(event, sort_keys=True) for event in events)
    return {
        "ComposedDpEvent": {
            "events": [
                {"SelfComposedDpEvent": {"event": json.loads(event), "count": count}}
                for event, count in counts.items()
            ]
        }
    }


def allowance(epsilon: float, delta: float) -> int:
    """The most that releases may cost together to be (epsilon, delta)-private, in steps.

    By the exact curve of the Gaussian mechanism, rounded down: whatever is calibrated for this
    epsilon and delta fits.

    Raises:
      ConfigError: epsilon or delta is out of range.

    >>> budget = accounting.Budget(1.0, 1e-5, (accounting.Mechanism("all", 1.0, 3),))
    >>> cost_of(budget.event()) <= allowance(1.0, 1e-5) < 1.00001 * cost_of(budget.event())
    True
    """
    accounting.check_privacy_parameters(epsilon, delta)
    multiplier = Fraction(accounting.gaussian_multiplier(epsilon, delta))
    return math.floor(STEPS / multiplier**2)


def epsilon_of(cost: int, delta: float) -> float:
    """The epsilon at delta of what cost so much: exact, and rounded up in the eighth digit.

    >>> epsilon_of(allowance(1.0, 1e-5), 1e-5)
    1.0
    >>> epsilon_of(4 * allowance(1.0, 1e-5), 1e-5)  # four such releases: less than 4
    2.1546767
    >>> epsilon_of(0, 1e-5)
    0.0
    """
    return _epsilon(cost, delta, 8, ROUND_CEILING)


def epsilon_within(cost: int, delta: float) -> float:
    """The epsilon at delta that a release may have, to cost no more than that; 0 if none may.

    Rounded down to six digits.

    >>> epsilon_within(allowance(1.0, 1e-5), 1e-5)
    1.0
    """
    found = _epsilon(cost, delta, 6, ROUND_FLOOR)
    return min(found, accounting.MAX_EPSILON) if found >= accounting.MIN_EPSILON else 0.0


def _epsilon(cost: int, delta: float, digits: int, rounding: str) -> float:
    if cost <= 0:
        return 0.0
    mu, target = math.sqrt(Fraction(cost, STEPS)), math.log(delta)
    if accounting._log_delta(mu, 0.0) <= target:
        return 0.0
    low, high = 0.0, 1.0
    while accounting._log_delta(mu, high) > target:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if accounting._log_delta(mu, middle) <= target:
            high = middle
        else:
            low = middle
    # Twelve digits are right, and what is 1 is not to be 1.0000001.
    exact = Decimal(f"{high:.11e}")
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding))


@dataclasses.dataclass(frozen=True)
class Spending:
    """What was charged to a data set, in steps of cost.

    Attributes:
      whole: for releases of the whole data set.
      slices: for those of each slice K/N of it.

    >>> spent = Spending().plus(3).plus(5, "1/2").plus(4, "2/2")
    >>> spent.most, spent.of("2/2"), spent.plus(2, "1/4").of("1/2")
    (8, 7, 10)
    >>> spent.plus(1).most, spent.worst
    (9, Fraction(0, 1))
    """

    whole: int = 0
    slices: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def most(self) -> int:
        """What the units were charged that were charged most."""
        return self._at(self.worst)

    @property
    def worst(self) -> Fraction:
        """A place where that is."""
        return self._worst_within("1/1")

    def of(self, slice_name: str | None) -> int:
        """What any unit that a release of this slice (None: of the whole) reaches may have been charged."""
        return self._at(self._worst_within(slice_name or "1/1"))

    def plus(self, cost: int, slice_name: str | None = None) -> "Spending":
        """With one more release."""
        if slice_name is None:
            return Spending(self.whole + cost, self.slices)
        return Spending(self.whole, {**self.slices, slice_name: self.slices.get(slice_name, 0) + cost})

    def _worst_within(self, slice_name: str) -> Fraction:
        first, end = _places(slice_name)
        # Charges rise at the first places of slices only.
        starts = {first, *(_places(each)[0] for each in self.slices)}
        return max(sorted(at for at in starts if first <= at < end), key=self._at)

    def _at(self, place: Fraction) -> int:
        return self.whole + sum(cost for name, cost in self.slices.items() if has_place(name, place))


def has_place(slice_name: str | None, place: Fraction) -> bool:
    """Whether a slice (None: the whole) has a place of all ids, from 0 to below 1."""
    if slice_name is None:
        return True
    first, end = _places(slice_name)
    return first <= place < end


def _places(slice_name: str) -> tuple[Fraction, Fraction]:
    number, count = map(int, slice_name.split("/"))
    return Fraction(number - 1, count), Fraction(number, count)
