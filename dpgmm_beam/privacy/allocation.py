"""How the budget is split: the only place that knows.

Shares are of 1/z^2, by mechanism, and relative: what a release does not use is
spread over the others.
"""

import math
from collections.abc import Mapping, Sequence

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.accounting import Mechanism

SHARES = (
    ("means/count", 0.01),
    ("means/sum", 0.07),
    ("means/square", 0.01),
    ("moment/moment", 0.15),
    ("teacher/gradient", 0.555),
    ("rounds/count", 0.015),
    ("rounds/sum", 0.06),
    ("scatter/moment", 0.08),
    ("scatter/square", 0.01),
    ("scales/square", 0.01),
    ("scales/moment", 0.03),
)
"""Shares of 1/z^2, by mechanism; what a release does not use is spread over the others."""

UNITS_ROWS, UNITS_ROWS_SHARE = "units/rows", 0.01
"""The mechanism that finds how many rows of a privacy unit count, and its share where that is wanted."""

MIN_SHARE, MAX_SHARE = 1e-6, 1e6

CLUSTERING_HEIRS = (
    ("moment/moment", 0.15),
    ("rounds/count", 0.05),
    ("rounds/sum", 0.45),
    ("scatter/moment", 0.25),
    ("scales/moment", 0.1),
)
"""What becomes of the teacher's share in a release of several components without a teacher."""

SKETCH_SHARE = 0.25
"""Of the shares of the rounds, for all sketches together."""

LATE_WEIGHT = 3
"""Budget of a round of the second half, over one of the first."""


def allocate(
    repetitions: Mapping[str, int], shares: Mapping[str, float], single: bool
) -> tuple[Mechanism, ...]:
    """The mechanisms of a release with their shares, which sum to 1.

    Args:
      repetitions: how often each mechanism runs, in the order of the stages.
      shares: what the user wants, for the mechanisms that one may choose.
      single: whether classes are of one component.
    """
    given = {UNITS_ROWS: UNITS_ROWS_SHARE, **shares}
    if "teacher/gradient" not in repetitions and not single:
        # Clustering is all that is wanted.
        for name, part in CLUSTERING_HEIRS:
            given[name] += part * given["teacher/gradient"]
    for what in ("count", "sum"):
        if f"sketch/{what}" in repetitions:
            whole = given[f"rounds/{what}"]
            given[f"sketch/{what}"] = SKETCH_SHARE * whole
            given[f"rounds/{what}"] = (1 - SKETCH_SHARE) * whole
        if f"late/{what}" in repetitions:
            early, late = repetitions[f"rounds/{what}"], LATE_WEIGHT * repetitions[f"late/{what}"]
            whole = given[f"rounds/{what}"]
            given[f"rounds/{what}"] = whole * early / (early + late)
            given[f"late/{what}"] = whole * late / (early + late)
    if "teacher/gradient" in repetitions and single:
        given["teacher/gradient"] += given["rounds/count"] + given["rounds/sum"]
    total = sum(given[name] for name in repetitions)
    return tuple(Mechanism(name, given[name] / total, count) for name, count in repetitions.items())


def with_shares(changes: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """The default shares with some changed, each by a text NAME=VALUE.

    Raises:
      ConfigError: the text is not of that form, or names no mechanism.
    """
    shares = dict(SHARES)
    for text in changes:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if name not in shares or math.isnan(number):
            raise ConfigError("shares", text, f"be NAME=NUMBER with NAME one of {', '.join(shares)}")
        check_share(name, number)
        shares[name] = number
    return tuple(shares.items())


def check_share(mechanism: str, share: float) -> None:
    """Raises ConfigError unless the share is from 1e-6 to 1e6."""
    if not MIN_SHARE <= share <= MAX_SHARE:
        raise ConfigError(
            "shares", f"{mechanism}={share}", f"be a number from {MIN_SHARE:g} to {MAX_SHARE:,.0f}"
        )
