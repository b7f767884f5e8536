"""What a release lets an attacker do: its exact trade-off curve, in figures and in words.

A release is one Gaussian mechanism (`accounting`), so it is mu-GDP with mu = 1/z, and
no statement about one unit is sharper: who tells a release with the unit from
one without it at false-positive rate a finds at most Phi(Phi^-1(a) + mu) of those that
were in (Dong, Roth and Su, *Gaussian differential privacy*, 2022, section 2.2).
From that curve follow:

- the largest advantage, true- less false-positive rate, 2 Phi(mu / 2) - 1 (as in the
  package riskcal: Kulynych, Gomez, Kaissis, Calmon and Troncoso 2024);
- the bound on reconstruction: who would come near enough to a record with probability k
  without the release, whatever near enough means, does so with it with at most
  Phi(Phi^-1(k) + mu) (Hayes, Mahloujifar and Balle 2023; in this form
  Kaissis, Hayes, Ziller and Rueckert 2023).

Figures are computed in multiple precision and rounded up to a few digits: never below
the true one, and the same on every machine, for they are bytes of a release.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING, Any

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy import accounting
from dpgmm_beam.privacy.neighbours import IMAGES, REPLACE_ONE, Neighbours

if TYPE_CHECKING:
    import mpmath

FALSE_POSITIVE_RATES = (0.01, 0.001)
"""At which the true-positive rate is stated."""

BASELINES = (1e-3, 1e-6)
"""Chances of a right guess without the release, at which reconstruction is bounded."""

MIN_MU, MAX_MU = 0.0003, 39.0
MIN_ADVANTAGE, MAX_ADVANTAGE = 0.0002, 0.9999
"""What may be asked for; the epsilons that follow are those that may be given."""

DELTA_OF_MU = 1e-9
"""The delta at which a release that was asked for by its mu states an epsilon: one of the curve's
points, under a tenth of one over the rows of all data of up to a hundred million."""

_MU_DIGITS, _RATE_DIGITS, _EPSILON_DIGITS = 6, 4, 8
_PRECISION = 50


@dataclasses.dataclass(frozen=True)
class Operational:
    """The most that an attacker gets out of a release about one privacy unit, rounded up.

    Whoever it is may know all other units, the code and the configuration, and anything
    else but the noise key.

    Attributes:
      mu: of Gaussian differential privacy, one over the noise multiplier of the whole.
      advantage: largest true- less false-positive rate of a guess whether the unit was in.
      tpr_at_fpr: largest true-positive rate at each of FALSE_POSITIVE_RATES.
      reconstruction: largest probability of reconstructing a unit, for one who would have
        done it with each of BASELINES without the release.
    """

    mu: float
    advantage: float
    tpr_at_fpr: Mapping[float, float]
    reconstruction: Mapping[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the manifest."""
        return {
            "mu": self.mu,
            "advantage": self.advantage,
            "tpr_at_fpr": {f"{rate:g}": value for rate, value in self.tpr_at_fpr.items()},
            "reconstruction": {f"{rate:g}": value for rate, value in self.reconstruction.items()},
        }


def operational(noise_multiplier: float, units: int = 1) -> Operational:
    """What a release of this noise multiplier lets an attacker do.

    Args:
      noise_multiplier: of the whole release.
      units: about so many units together, e.g. all images of one person (group
        privacy: theorem 2.14 of Dong, Roth and Su).

    >>> found = operational(3.7306)
    >>> found.mu, found.advantage, found.tpr_at_fpr[0.01]
    (0.268054, 0.1067, 0.01979)

    Raises:
      ConfigError: the noise multiplier is not a finite number above 0, or there is no unit.
    """
    # Here, because most processes that import this state no figure.
    import mpmath

    if not 0 < noise_multiplier < math.inf:
        raise ConfigError("noise multiplier", noise_multiplier, "be a finite number above 0")
    if units < 1:
        raise ConfigError("units", units, "be at least 1")
    with mpmath.workdps(_PRECISION):
        mu = _rounded_up(units / mpmath.mpf(noise_multiplier), _MU_DIGITS)
        # Of the stated mu, so that a reader comes to the same figures.
        exact = mpmath.mpf(str(mu))
        return Operational(
            mu=float(mu),
            advantage=_rate(mpmath.erf(exact / mpmath.sqrt(8))),
            tpr_at_fpr={rate: _largest(rate, exact) for rate in FALSE_POSITIVE_RATES},
            reconstruction={rate: _largest(rate, exact) for rate in BASELINES},
        )


def _largest(rate: float, mu: "mpmath.mpf") -> float:
    """Phi(Phi^-1(rate) + mu), rounded up."""
    import mpmath

    quantile = mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(repr(rate)) - 1)
    return _rate(mpmath.ncdf(quantile + mu))


def _rate(value: "mpmath.mpf") -> float:
    return min(1.0, float(_rounded_up(value, _RATE_DIGITS)))


def _rounded_up(value: "mpmath.mpf", digits: int) -> Decimal:
    """The least decimal number of so many digits that is not below the value."""
    import mpmath

    # More digits than any value here is off by.
    return _cut(Decimal(mpmath.nstr(value, _PRECISION - 10, strip_zeros=False)), digits, ROUND_CEILING)


def _cut(value: Decimal, digits: int, rounding: str) -> Decimal:
    return value.quantize(Decimal(1).scaleb(value.adjusted() - digits + 1), rounding)


def budget_of_mu(mu: float) -> tuple[float, float]:
    """The (epsilon, delta) whose calibrated noise gives at most this mu, and just below it.

    Delta is DELTA_OF_MU, and epsilon has eight digits: the configuration of a release is in
    these terms, whatever it was asked for in.

    >>> budget_of_mu(0.5)
    (2.9097364, 1e-09)

    Raises:
      ConfigError: mu is not from 0.0003 to 39.
    """
    if not (isinstance(mu, int | float) and MIN_MU <= mu <= MAX_MU):
        raise ConfigError("mu", mu, f"be a number from {MIN_MU:g} to {MAX_MU:g}")
    # What will be stated is rounded up to so many digits, and must not be above what was asked for.
    wanted = 1 / float(_cut(Decimal(repr(float(mu))), _MU_DIGITS, ROUND_FLOOR))
    low, high = accounting.MIN_EPSILON, float(accounting.MAX_EPSILON)
    while high - low > 1e-11 * low:
        middle = (low + high) / 2
        if accounting.calibrated(middle, DELTA_OF_MU) >= wanted:
            low = middle
        else:
            high = middle
    # More epsilon is less noise: rounded down.
    return float(_cut(Decimal(repr(low)), _EPSILON_DIGITS, ROUND_FLOOR)), DELTA_OF_MU


def mu_of_advantage(advantage: float) -> float:
    """The largest mu, of six digits, at which the stated advantage is at most this one.

    >>> mu_of_advantage(0.1)
    0.251322

    Raises:
      ConfigError: the advantage is not from 0.0002 to 0.9999.
    """
    import mpmath

    if not (isinstance(advantage, int | float) and MIN_ADVANTAGE <= advantage <= MAX_ADVANTAGE):
        raise ConfigError(
            "max_advantage", advantage, f"be a number from {MIN_ADVANTAGE:g} to {MAX_ADVANTAGE:g}"
        )
    stated = _cut(Decimal(repr(float(advantage))), _RATE_DIGITS, ROUND_FLOOR)
    with mpmath.workdps(_PRECISION):
        mu = mpmath.sqrt(8) * mpmath.erfinv(mpmath.mpf(str(stated)))
        return float(_cut(Decimal(mpmath.nstr(mu, _PRECISION - 10)), _MU_DIGITS, ROUND_FLOOR))


def in_words(figures: Operational, neighbours: Neighbours = IMAGES) -> tuple[str, ...]:
    """The figures in plain sentences.

    Args:
      neighbours: whom they are about.

    >>> for sentence in in_words(operational(3.7306)):
    ...     print(sentence)
    Told that one given image was in the data or was not, with even odds, nobody guesses right more than 55.4 times in 100; a coin does so 50 times.
    Whoever accuses wrongly 1 in 100 of the images that were not in finds at most 1.98 in 100 of those that were; with 1 in 1,000 wrongly, at most 2.39 in 1,000.
    Whoever would reconstruct an image from other knowledge 1 time in 1,000 does so with the release at most 2.39 times in 1,000; if 1 time in 1,000,000, at most 3.64 times in 1,000,000.
    This holds against all who lack the noise key, even if they know every other image. For a person with m images, mu is m times as large.
    """  # noqa: E501
    right = (1 + Decimal(repr(figures.advantage))) / 2
    found, made = (
        [(f"{round(1 / rate):,}", _times(value, round(1 / rate))) for rate, value in pairs.items()]
        for pairs in (figures.tpr_at_fpr, figures.reconstruction)
    )
    image = neighbours.noun
    told = f"one given {image} was in the data or was not"
    if neighbours.adjacency == REPLACE_ONE:
        told = f"one given {image} was in the data or another one in its place"
    return (
        f"Told that {told}, with even odds, nobody guesses right more"
        f" than {_times(right, 100)} times in 100; a coin does so 50 times.",
        _sentence(
            found,
            f"Whoever accuses wrongly 1 in {{of}} of the {neighbours.nouns} that were not in finds at most"
            " {most} in {of} of those that were",
            "with 1 in {of} wrongly, at most {most} in {of}",
        ),
        _sentence(
            made,
            f"Whoever would reconstruct {neighbours.a_noun} from other knowledge 1 time in {{of}} does so"
            " with the release at most {most} times in {of}",
            "if 1 time in {of}, at most {most} times in {of}",
        ),
        f"This holds against all who lack the noise key, even if they know every other {image}."
        f" {neighbours.whom}",
    )


def _sentence(rates: Sequence[tuple[str, str]], first: str, others: str) -> str:
    """The rates (of, most) one after the other: the first in whole words, the others in few."""
    words = [(others if index else first).format(of=of, most=most) for index, (of, most) in enumerate(rates)]
    return "; ".join(words) + "."


def _times(value: float | Decimal, of: int) -> str:
    """How many of so many that is, to three digits, rounded up."""
    times = _cut(Decimal(str(value)) * of, 3, ROUND_CEILING)
    return f"{times.normalize():,f}"
