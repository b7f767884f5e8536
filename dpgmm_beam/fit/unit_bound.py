"""How many rows of a privacy unit count, where data is to say so: a noisy histogram, before all other steps.

Each unit adds 1 to one of the numbers of units with 1, 2, 3 to 4, 5 to 8, ... rows; that is one Gaussian
mechanism, which the budget pays like any other.  The bound is the least power of 2 that few units are
beyond.  Sensitivities of all that follows are multiples of it: noise that depends on what was released
before composes as ever, for each mechanism's noise over its sensitivity is fixed beforehand.
"""

import numpy as np

from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy import queries
from dpgmm_beam.privacy.allocation import UNITS_ROWS
from dpgmm_beam.privacy.neighbours import MAX_FOUND
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.privacy.queries import SumQuery

BINS = MAX_FOUND.bit_length()
"""Units of 1, 2, 3 to 4, ... rows; the last is of 33 and more."""

QUERY = SumQuery("rows", BINS, 1, one_sided=True)

FEW = 0.05
"""Of the units, that may have more rows than the bound."""

SURE = 2.0
"""Noisy numbers of units are no more than noise up to so many standard deviations."""


def histogram(units: np.ndarray) -> np.ndarray:
    """Numbers of units by their rows, (BINS,) int64.

    Args:
      units: (n, 2) hashes of the units of rows, those of a unit side by side, MAX_FOUND of
        each at most.

    >>> histogram(np.array([[1, 1], [2, 1], [2, 1], [3, 0], [3, 0], [3, 0]], np.uint64))[:4].tolist()
    [1, 1, 1, 0]
    """
    if not len(units):
        return np.zeros(BINS, np.int64)
    new = np.append(True, (units[1:] != units[:-1]).any(axis=1))
    rows = np.diff(np.append(np.flatnonzero(new), len(units)))
    # Exact: the logarithm of a power of 2 is a whole number in double precision, too.
    return np.bincount(np.ceil(np.log2(rows)).astype(np.int64), minlength=BINS)


def noisy(plan: Plan, counts: np.ndarray, data_digest: bytes, secret: NoiseKey) -> np.ndarray:
    """The released histogram, (BINS,) int64: a function of key, release id, configuration and data."""
    key = secret.within(plan.release_id, plan.fit_digest, data_digest).within(UNITS_ROWS)
    multipliers = {QUERY.name: plan.row_multipliers[UNITS_ROWS]}
    return queries.add_noise((QUERY,), {QUERY.name: counts}, multipliers, key)[QUERY.name]


def chosen(released: np.ndarray, stddev: float) -> int:
    """The least power of 2 that no more than 5% of units, and what noise could make up, are beyond.

    >>> chosen(np.array([900, 600, 300, 20, 5, 0, 0]), 1.0), chosen(np.zeros(7), 40.0)
    (4, 1)
    """
    total = max(float(released.sum()), 0.0)
    for power in range(BINS - 1):
        beyond, bins = float(released[power + 1 :].sum()), BINS - 1 - power
        if beyond <= FEW * total + SURE * stddev * np.sqrt(bins):
            return int(2**power)
    return MAX_FOUND


def find(plan: Plan, counts: np.ndarray, data_digest: bytes, secret: NoiseKey) -> int:
    """The bound: `chosen` of the `noisy` histogram."""
    return chosen(noisy(plan, counts, data_digest, secret), plan.row_multipliers[UNITS_ROWS])
