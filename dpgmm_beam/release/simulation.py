"""What noise will do to a release, by the fit's own steps on a few thousand rows that nobody has.

They are drawn with a stated geometry, in fewer dimensions, and the noise is scaled so that it
stands to the signal as it will stand.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import teacher
from dpgmm_beam.fit.covariance import BASIS_BITS
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.fit.state import Covariance, FitState
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.allocation import PICTURE_SHARES
from dpgmm_beam.release.geometry import Geometry, moments

DRAWN_ROWS, DRAWN_DIRECTIONS, DRAWS = 4000, 256, 4
"""Of a simulation: rows and directions at most, and how often the noise is drawn."""

MAX_DRAWN_CLASSES = 100
"""With more classes nothing is simulated: it would take seconds, and was held against no real fit."""

_TEST_ROWS = 1000

_GROWTH = {"counts": 0.0, "means": 0.5, "moment": 1.5, "whitened": 1.5, "start": 0.0, "teacher": 1.0}
"""By which power of d / k the noise of each stage grows, of d dimensions when only k are drawn."""


@dataclasses.dataclass(frozen=True)
class Errors:
    """What noise will do to what is released: root mean square over classes, rows and keys.

    Attributes:
      counts: of a class's released count, in rows.
      means: distance of a released class mean from the exact one.
      covariance: Frobenius norm of the error, over that of the covariance within classes.
      logit: of a teacher's logit (centred over the classes), the median over pairs of keys:
        with few rows one key in many gives a far other teacher; None with one class.
      logit_size: of such a logit itself.
    """

    counts: float
    means: float
    covariance: float
    logit: float | None = None
    logit_size: float | None = None


def simulate(plan: Plan, rows: int, geometry: Geometry, draws: int = DRAWS) -> Errors | None:
    """The errors of a release, from the fit's own steps on rows of this geometry.

    Each of fewer directions k has the variance of d / k of them. The noise is scaled so that
    what matters stays as it is: that of a mean's coordinates by (d / k)^.5, for the whole
    mean's to be the same; the moments' by (d / k)^1.5, for its radius to grow as the
    variances do; a gradient's by d / k, for features share one norm; that of logits as a
    whole not at all; and all of it by the drawn rows over the rows.

    Returns:
      None where there are too many classes, or too few rows for them.
    """
    classes, drawn = plan.shape.classes, min(rows, DRAWN_ROWS)
    directions = min(plan.shape.dimension, DRAWN_DIRECTIONS, (drawn - classes) // 2)
    if classes > MAX_DRAWN_CLASSES or directions < 1:
        return None
    # Neither depends on pictures.
    changes: dict[str, Any] = {"dimension": directions, "components": 1, "decodable": None}
    shares = {name: share for name, share in plan.config.shares if name not in dict(PICTURE_SHARES)}
    small = Plan(dataclasses.replace(plan.config, **changes, shares=tuple(shares.items())), plan.release_id)
    more = plan.shape.dimension / directions
    # With more threads a product of this size is slower, on a machine that does other things.
    with one_thread():
        train, test = _rows_like(geometry, classes, directions, drawn)
        exact = moments(train, classes)
        found = [
            _fit(small, plan, train, drawn / rows, more, np.random.default_rng([1, draw]))
            for draw in range(draws)
        ]
    return errors_of(found, exact, test, count_error(plan, rows))


def errors_of(
    found: Iterable[tuple[FitState, Covariance]],
    exact: tuple[np.ndarray, np.ndarray],
    test: Rows,
    counts: float,
) -> Errors:
    """The errors of fits by several keys.

    Args:
      found: state and covariance after each.
      exact: means of the classes and the covariance within them, of `geometry.moments`.
      test: rows whose labels are looked at.
      counts: error of a class's count.
    """
    means, covariances, logits = [], [], []
    for state, covariance in found:
        assert state.class_means is not None
        difference = state.class_means.means / lattice.UNIT - exact[0]
        means.append((difference**2).sum(axis=1).mean())
        basis = covariance.basis * 2.0**-BASIS_BITS
        covariances.append(((basis @ basis.T - exact[1]) ** 2).sum() / (exact[1] ** 2).sum())
        if len(exact[0]) > 1:
            logits.append(_logits(state, test))
    errors = Errors(counts, math.sqrt(np.mean(means)), math.sqrt(np.mean(covariances)))
    if not logits:
        return errors
    return dataclasses.replace(
        errors,
        logit=between_keys(logits),
        logit_size=math.sqrt((np.mean(logits, axis=0) ** 2).mean()),
    )


def count_error(plan: Plan, rows: int) -> float:
    """Root mean square error of a class's count: its noise, but no count is below its noise (`fit.means`)."""
    of_class = rows / plan.shape.classes
    stddev = plan.row_multipliers["means/count"]
    floor = (max(stddev, 0.01 * of_class) - of_class) / stddev
    # The mean square of a normal deviate that is raised to the floor.
    density = math.exp(-floor * floor / 2) / math.sqrt(2 * math.pi)
    above, below = (math.erfc(sign * floor / math.sqrt(2)) / 2 for sign in (1, -1))
    return stddev * math.sqrt(above + floor * density + floor * floor * below)


def between_keys(logits: Sequence[np.ndarray]) -> float:
    """Standard deviation of what keys give, from the median of the squared differences of pairs."""
    pairs = [((one - other) ** 2).mean() / 2 for one, other in itertools.combinations(logits, 2)]
    return math.sqrt(np.median(pairs))


def _rows_like(geometry: Geometry, classes: int, directions: int, count: int) -> tuple[Rows, Rows]:
    """Rows of this geometry to fit and others to look at, from a public generator.

    Those to fit have exactly its covariance: the data's own has no error of sampling to it.
    """
    generator = np.random.default_rng(0)
    within, between, centre = geometry.along(directions)
    labels = np.arange(count + _TEST_ROWS) % classes
    means = generator.standard_normal((classes, directions))
    means -= means.mean(axis=0)
    means *= np.sqrt(between / np.maximum((means**2).mean(axis=0), np.finfo(float).tiny))
    means += np.sqrt(centre) * generator.choice([-1.0, 1.0], directions)
    residuals = generator.standard_normal((len(labels), directions))
    first, first_labels = residuals[:count], labels[:count]
    sums = np.zeros((classes, directions))
    np.add.at(sums, first_labels, first)
    first -= (sums / np.bincount(first_labels, minlength=classes)[:, None])[first_labels]
    values, vectors = np.linalg.eigh(first.T @ first / count)
    residuals = residuals @ (vectors / np.sqrt(np.maximum(values, 1e-9))) @ vectors.T
    # Turned at random: along the axes, the variances of coordinates would tell the whole covariance.
    turned, _ = np.linalg.qr(generator.standard_normal((directions, directions)))
    drawn = (means[labels] + residuals * np.sqrt(within)) @ turned
    on_lattice, kept = lattice.quantise_rows(drawn)
    every = Rows(on_lattice.astype(np.int16), labels[kept].astype(np.int32))
    return (
        Rows(every.values[:-_TEST_ROWS], every.classes[:-_TEST_ROWS]),
        Rows(every.values[-_TEST_ROWS:], every.classes[-_TEST_ROWS:]),
    )


def _fit(
    small: Plan, plan: Plan, rows: Rows, fewer: float, more: float, generator: np.random.Generator
) -> tuple[FitState, Covariance]:
    """State and covariance after the stages of `small`, with the noise of `plan` scaled to it."""
    state, covariance, view, viewed = FitState(), None, None, rows
    for stage in small.stages:
        if stage.KIND == "scatter":
            # Nothing that is looked at here depends on the shapes of classes.
            continue
        scale = more ** _GROWTH[stage.KIND]
        multipliers = {
            query.name: plan.row_multipliers[f"{stage.mechanism}/{query.name}"]
            * fewer
            * (1.0 if query.name == "count" else scale)
            for query in stage.queries
        }
        if stage.view is not None and stage.view != view:
            view, viewed = stage.view, stage.view.of(state).bind()(rows)
        sums = stage.begin()
        stage.adder(state)(rows if stage.view is None else viewed, sums)
        exact = stage.finish(sums)
        noisy = {
            query.name: exact[query.name]
            + generator.standard_normal(query.size) * query.noise_stddevs(multipliers[query.name])
            for query in stage.queries
        }
        advanced = stage.advance(state, noisy, multipliers)
        state, covariance = advanced.state, advanced.covariance or covariance
    assert covariance is not None
    return state, covariance


def _logits(state: FitState, rows: Rows) -> np.ndarray:
    found = state.teacher
    assert found is not None
    weights = found.weights if found.average is None else found.average
    return centred_logits(teacher.FEATURES.of(state).bind()(rows), weights, found.norm)


def centred_logits(features: Rows, weights: np.ndarray, norm: float) -> np.ndarray:
    """A teacher's logits (n, C) less their mean over the classes, which no probability depends on."""
    logits = teacher.logits(features.values.astype(np.float64), teacher.logit_weights(weights, norm))
    return logits - logits.mean(axis=1, keepdims=True)
