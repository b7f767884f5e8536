"""How the budget is split: the only place that knows.

Shares are of 1/z^2, by mechanism, and relative: what a release does not use is
spread over the others.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from dpgmm_beam.defaults import LABELS, ROWS
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.accounting import Mechanism

SHARES = (
    ("means/count", 0.01),
    ("means/sum", 0.07),
    ("means/square", 0.01),
    ("moment/moment", 0.14),
    ("teacher/gradient", 0.555),
    ("rounds/count", 0.015),
    ("rounds/sum", 0.05),
    ("centres/sum", 0.017),
    ("centres/square", 0.003),
    ("scatter/moment", 0.08),
    ("scatter/square", 0.01),
    ("scales/square", 0.01),
    ("scales/moment", 0.03),
)
"""Shares of 1/z^2, by mechanism, until rows are counted; what a release does not use is spread over
the others."""

FEW_SHARES = (
    ("means/count", 0.01),
    ("means/sum", 0.21),
    ("means/square", 0.01),
    ("moment/moment", 0.05),
    ("teacher/gradient", 0.65),
    ("rounds/count", 0.005),
    ("rounds/sum", 0.02),
    ("centres/sum", 0.008),
    ("centres/square", 0.002),
    ("scatter/moment", 0.02),
    ("scatter/square", 0.005),
    ("scales/square", 0.005),
    ("scales/moment", 0.005),
)
"""The same where there are few rows for the noise: what shapes would cost goes to means and
teacher, which drown last."""

MANY_SHARES = (
    ("means/count", 0.01),
    ("means/sum", 0.035),
    ("means/square", 0.01),
    ("moment/moment", 0.22),
    ("teacher/gradient", 0.46),
    ("rounds/count", 0.015),
    ("rounds/sum", 0.057),
    ("centres/sum", 0.075),
    ("centres/square", 0.003),
    ("scatter/moment", 0.095),
    ("scatter/square", 0.01),
    ("scales/square", 0.009),
    ("scales/moment", 0.001),
)
"""The same with many rows: means are known, and what keeps synthetic rows too narrow is the
pooled covariance, whose middling directions are about as strong as its noise."""

PLENTY_SHARES = (
    ("means/count", 0.01),
    ("means/sum", 0.055),
    ("means/square", 0.01),
    ("moment/moment", 0.085),
    ("teacher/gradient", 0.3),
    ("rounds/count", 0.025),
    ("rounds/sum", 0.205),
    ("centres/sum", 0.132),
    ("centres/square", 0.003),
    ("scatter/moment", 0.12),
    ("scatter/square", 0.01),
    ("scales/square", 0.01),
    ("scales/moment", 0.035),
)
"""The same with more rows than the covariance needs: what is left of the noise is that of centres, and the
teacher has as much as it can use."""

ROWS_SHARES = (
    ("means/count", 0.01),
    ("means/sum", 0.08),
    ("means/square", 0.01),
    ("moment/moment", 0.22),
    ("teacher/gradient", 0.28),
    ("rounds/count", 0.03),
    ("rounds/sum", 0.11),
    ("centres/sum", 0.057),
    ("centres/square", 0.003),
    ("scatter/moment", 0.12),
    ("scatter/square", 0.01),
    ("scales/square", 0.02),
    ("scales/moment", 0.05),
)
"""`SHARES` where rows are favoured: half of the teacher's share is the others'."""

FAVORED = {ROWS: ROWS_SHARES, LABELS: SHARES}
"""What shares are until rows are counted, by what the user says that the budget is for;
docs/clustering.md has what they give."""


def _with_half_the_teacher(shares: tuple[tuple[str, float], ...]) -> tuple[tuple[str, float], ...]:
    """Half of the teacher's share to all others but the count, in proportion; shares sum to 1."""
    known = dict(shares)
    fixed = {"means/count": known["means/count"], "teacher/gradient": known["teacher/gradient"] / 2}
    left = (1 - sum(fixed.values())) / sum(share for name, share in shares if name not in fixed)
    return tuple((name, fixed.get(name, share * left)) for name, share in shares)


FOLLOWING = {
    LABELS: (
        (200.0, FEW_SHARES),
        (600.0, SHARES),
        (1400.0, MANY_SHARES),
        (4000.0, MANY_SHARES),
        (10_000.0, PLENTY_SHARES),
    ),
    ROWS: (
        (600.0, ROWS_SHARES),
        (1400.0, _with_half_the_teacher(MANY_SHARES)),
        (4000.0, _with_half_the_teacher(MANY_SHARES)),
        (10_000.0, _with_half_the_teacher(PLENTY_SHARES)),
    ),
}
"""Shares by rows of a class for each unit of the whole's noise multiplier; between two of these they
move evenly with the logarithm, and beyond the first and the last they stay."""

UNITS_ROWS, UNITS_ROWS_SHARE = "units/rows", 0.01
"""The mechanism that finds how many rows of a privacy unit count, and its share where that is wanted."""

PICTURE_SHARES = (("pictures/sum", 0.03), ("pictures/cross", 0.08), ("pictures/square", 0.005))
"""Those of what makes a release decodable, beside the shares of all others: where that is wanted."""

MIN_SHARE, MAX_SHARE = 1e-6, 1e6

CLUSTERING_HEIRS = (
    ("moment/moment", 0.15),
    ("rounds/count", 0.05),
    ("rounds/sum", 0.4),
    ("centres/sum", 0.15),
    ("scatter/moment", 0.15),
    ("scales/moment", 0.1),
)
"""What becomes of the teacher's share in a release of several components without a teacher."""

UNUSED_BY_ONE = ("rounds/count", "rounds/sum", "centres/sum", "centres/square")
"""What a release of one component a class leaves to its teacher."""

ROUGH_SHARE = 0.25
"""Of the share of the moment, for the rough one before the whitened one."""

START_SHARE = 0.02
"""Of the share of the teacher, for how sharp it starts."""

PARTS = (
    ("whitened/moment", "moment/moment", 1 - ROUGH_SHARE),
    ("start/slope", "teacher/gradient", START_SHARE),
)
"""Mechanisms that have a part of what another one is given, where they are used."""

SKETCH_SHARE = 0.25
"""Of the shares of the rounds, for all sketches together."""

LATE_WEIGHT = 3
"""Budget of a round of the second half, over one of the first."""


def following(
    repetitions: Mapping[str, int], shares: Mapping[str, float], single: bool, rows: float
) -> tuple[Mechanism, ...]:
    """`allocate` with what follows from a noisy number of rows, where no share was asked for.

    The first count costs the same whatever it will say, so that what comes after may depend on
    it: Gaussian mechanisms of a fixed sum of 1/z^2 compose exactly, however each z was chosen from
    what earlier ones told (Smith and Thakurta, *Fully adaptive composition for Gaussian
    differential privacy*, 2022).

    Args:
      repetitions, shares, single: see `allocate`.
      rows: of a class, over the noise multiplier of the whole.
    """
    usual = allocate(repetitions, shares, single)
    anchors = _anchors(shares)
    if not anchors or "teacher/gradient" not in repetitions:
        return usual
    mixed = _between(anchors, rows)
    found = allocate(repetitions, mixed, single)
    # What has run already has its share; the others have the rest.
    fixed = {each.name: each.share for each in usual if each.name in ("means/count", UNITS_ROWS)}
    left = (1 - sum(fixed.values())) / sum(each.share for each in found if each.name not in fixed)
    return tuple(dataclasses.replace(each, share=fixed.get(each.name, each.share * left)) for each in found)


def turning_points(shares: Mapping[str, float]) -> tuple[float, ...]:
    """The `rows` of `following` between which every share moves one way; none where nothing follows.

    >>> turning_points(dict(SHARES))
    (200.0, 600.0, 1400.0, 4000.0, 10000.0)
    """
    return tuple(rows for rows, _ in _anchors(shares))


def _anchors(shares: Mapping[str, float]) -> Sequence[tuple[float, tuple[tuple[str, float], ...]]]:
    return next((FOLLOWING[name] for name, asked in FAVORED.items() if dict(asked) == dict(shares)), ())


def _between(anchors: Sequence[tuple[float, tuple[tuple[str, float], ...]]], rows: float) -> dict[str, float]:
    """Shares at so many rows, from those at some."""
    for (fewer, of_fewer), (more, of_more) in itertools.pairwise(anchors):
        if rows < more:
            weight = math.log(max(rows, fewer) / fewer) / math.log(more / fewer)
            upper = dict(of_more)
            return {name: (1 - weight) * share + weight * upper[name] for name, share in of_fewer}
    return dict(anchors[-1][1])


def allocate(
    repetitions: Mapping[str, int], shares: Mapping[str, float], single: bool
) -> tuple[Mechanism, ...]:
    """The mechanisms of a release with their shares, which sum to 1.

    Args:
      repetitions: how often each mechanism runs, in the order of the stages.
      shares: what the user wants, for the mechanisms that one may choose.
      single: whether classes are of one component.
    """
    given = {UNITS_ROWS: UNITS_ROWS_SHARE, **dict(PICTURE_SHARES), **shares}
    if "teacher/gradient" not in repetitions and not single:
        # Clustering is all that is wanted.
        for name, part in CLUSTERING_HEIRS:
            given[name] += part * given["teacher/gradient"]
    if "teacher/gradient" in repetitions and single:
        given["teacher/gradient"] += sum(given[name] for name in UNUSED_BY_ONE)
    for name, of, part in PARTS:
        if name in repetitions:
            given[name] = part * given[of]
            given[of] *= 1 - part
    for what in ("count", "sum"):
        if f"rounds/{what}" in repetitions:
            given |= _rounds(repetitions, given[f"rounds/{what}"], what)
    total = sum(given[name] for name in repetitions)
    return tuple(Mechanism(name, given[name] / total, count) for name, count in repetitions.items())


def _rounds(repetitions: Mapping[str, int], whole: float, what: str) -> dict[str, float]:
    """A share of the rounds among sketches, early rounds and late ones, as far as there are any."""
    found = {}
    if f"sketch/{what}" in repetitions:
        found[f"sketch/{what}"] = SKETCH_SHARE * whole
        whole *= 1 - SKETCH_SHARE
    found[f"rounds/{what}"] = whole
    if f"late/{what}" in repetitions:
        early, late = repetitions[f"rounds/{what}"], LATE_WEIGHT * repetitions[f"late/{what}"]
        found[f"rounds/{what}"] = whole * early / (early + late)
        found[f"late/{what}"] = whole * late / (early + late)
    return found


def with_shares(
    changes: Sequence[str], favor: str = LABELS, decodable: bool = False
) -> tuple[tuple[str, float], ...]:
    """The shares that favour labels or rows with some changed, each by a text NAME=VALUE.

    Args:
      decodable: whether there are `PICTURE_SHARES` to change.

    Raises:
      ConfigError: the text is not of that form, or names no mechanism; nothing is favoured by that name.
    """
    if favor not in FAVORED:
        raise ConfigError("favor", favor, f"be {' or '.join(FAVORED)}")
    shares = dict(FAVORED[favor])
    names = [*shares, *(dict(PICTURE_SHARES) if decodable else ())]
    for text in changes:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if name not in names or math.isnan(number):
            raise ConfigError("shares", text, f"be NAME=NUMBER with NAME one of {', '.join(names)}")
        check_share(name, number)
        shares[name] = number
    return tuple(shares.items())


def check_share(mechanism: str, share: float) -> None:
    """Raises ConfigError unless the share is from 1e-6 to 1e6."""
    if not MIN_SHARE <= share <= MAX_SHARE:
        raise ConfigError(
            "shares", f"{mechanism}={share}", f"be a number from {MIN_SHARE:g} to {MAX_SHARE:,.0f}"
        )
