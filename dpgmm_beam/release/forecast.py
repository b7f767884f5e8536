"""What a release will be like, before anybody has looked at the data.

Each step's noise is known beforehand; what it must be held against is not.  So a
forecast supposes data of a stated geometry, that of a public data set, and so many
rows, of classes of one size.  Where formulas end (shrinkage, whitening, twenty steps
of a teacher) the fit's own steps are run: on a few thousand rows drawn with that
geometry, in fewer dimensions, with noise scaled so that it stands to the signal as it
will stand (`simulate`).  Nothing here reads a row of anybody's.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.data.rows import Rows
from dpgmm_beam.encoders.dct import PictureForm
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit import centres, lloyd, means, scales, scatter, shrinkage, sketch, teacher
from dpgmm_beam.fit.covariance import BASIS_BITS
from dpgmm_beam.fit.pictures import RADIUS
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.fit.state import Covariance, FitState
from dpgmm_beam.fit.whitened import WHITENED_RADIUS
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.privacy import accounting, lattice
from dpgmm_beam.privacy.allocation import PICTURE_SHARES
from dpgmm_beam.release import references
from dpgmm_beam.release.geometry import Geometry, moments

DRAWN_ROWS, DRAWN_DIRECTIONS, DRAWS = 4000, 256, 4
"""Of a simulation: rows and directions at most, and how often the noise is drawn."""

MAX_DRAWN_CLASSES = 100
"""With more classes nothing is simulated: it would take seconds, and was held against no real fit."""

_TEST_ROWS = 1000

CLEAR = 10.0
"""So many times its noise a class's count should be."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One mechanism: its noise beside what it is to show.

    Attributes:
      mechanism: its name in a manifest.
      repetitions, share: as in a manifest.
      noise_multiplier: noise over what one row may add.
      noise: size of the noise, in `unit`.
      signal: what it is held against, in `unit`.
      unit: of both.
      noise_is, signal_is: what they are, in a few words.
    """

    mechanism: str
    repetitions: int
    share: float
    noise_multiplier: float
    noise: float
    signal: float
    unit: str
    noise_is: str
    signal_is: str

    @property
    def ratio(self) -> float:
        """Signal over noise."""
        return self.signal / self.noise


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


@dataclasses.dataclass(frozen=True)
class Need:
    """What it would take to reach a state.

    Attributes:
      state: in words.
      rows: at the epsilon asked about, two digits, rounded up; None: more than a job takes.
      epsilon: with the rows asked about, three digits, rounded up; None: above 1000.
    """

    state: str
    rows: int | None
    epsilon: float | None


def check_rows(rows: int, config: ReleaseConfig) -> None:
    """Raises ConfigError unless it is a number of rows that a release may have, one a class at least."""
    classes = len(config.classes)
    if not classes <= rows <= lattice.MAX_ROWS:
        raise ConfigError(
            "rows",
            rows,
            f"be a whole number from {classes} (one for each class) to {lattice.MAX_ROWS}",
        )


def steps(plan: Plan, rows: int, geometry: Geometry, errors: Errors | None) -> tuple[Step, ...]:
    """Noise and signal of every mechanism, in the order of the fit.

    Args:
      rows: expected, in classes of one size.
      errors: of `simulate`, for the teacher; None: its noise is that of one step.
    """
    shape, method, found = plan.shape, plan.config.method, []
    classes, d = shape.classes, shape.dimension
    of_class = rows / classes
    spread = math.sqrt(geometry.within[-1])
    z = plan.row_multipliers
    whitened = whitened_noise(plan, geometry, rows)
    of_noise = of_class / z["whitened/moment"]
    components = sketch.components_of(shape, of_noise)
    of_component = of_class / components
    used = min((sketch.DIRECTIONS_PER_ROW * of_noise) ** (2 / 3), shape.subspace_dim)
    r = max(min(used, shape.shaped_dim), 1.0)
    of_cell = of_class / sketch.search_of(shape).cells(of_noise, components, sketch.room_of(shape))
    move = lloyd.ROUND_RADIUS * spread
    squares = means.Means(shape, method).square_bound * 2.0**-means.Means.SQUARE_BITS
    # A row adds its count and a square to one vector.
    both = math.sqrt(2.0)
    for mechanism in plan.budget.mechanisms:
        name = mechanism.name
        step = {
            "means/count": (z[name], of_class, "rows", "of a class's count", "rows of a class"),
            "means/sum": (
                math.sqrt(d) * z[name] / of_class,
                geometry.class_distance,
                "norm",
                "of a class's mean",
                "its distance from the centre",
            ),
            "moment/moment": (
                shrinkage.noise_radius(d, moment_noise(plan, geometry, rows)),
                float(geometry.along(d)[0].max()),
                "variance",
                "of the rough covariance's largest eigenvalue",
                "the largest variance of a direction",
            ),
            "whitened/moment": (
                shrinkage.noise_radius(d, whitened),
                float(_whitened(plan, geometry)[0].max()),
                "variance",
                "of the whitened covariance's largest eigenvalue",
                "the largest whitened variance of a direction",
            ),
            "sketch/count": (z[name], of_cell, "rows", "of a cell's count", "rows of a cell"),
            "sketch/sum": (
                math.sqrt(used) * z[name] * sketch.SKETCH_REACH * spread / of_cell,
                spread,
                "norm",
                "of a cell's mean",
                "the spread of a class",
            ),
            "means/square": (
                z[name] * squares / rows,
                geometry.within[-1] / d,
                "variance",
                "of a coordinate's variance",
                "the mean variance of a coordinate",
            ),
            "centres/sum": (
                math.sqrt(d) * z[name] * centres.CENTRE_RADIUS * spread / of_component,
                spread,
                "norm",
                "of a component's centre in all directions, before it is shrunk",
                "the spread of a class",
            ),
            "centres/square": (
                z[name] * centres.WholeCentres.REACH * centres.CENTRE_RADIUS**2 / rows,
                1.0,
                "variance",
                "of what centres leave of the variance",
                "the variance of a class",
            ),
            "scatter/moment": (
                shrinkage.noise_radius(int(r), z[name] * r / of_class),
                1.0,
                "variance",
                "of a class's shape, over the pooled one",
                "the pooled shape",
            ),
            "scatter/square": (
                z[name] * scatter.ClassScatter.REACH / of_class,
                1.0,
                "variance",
                "of a class's size, over the pooled one",
                "the pooled size",
            ),
            "scales/square": (
                z[name] * scales.ComponentScales.REACH / of_component,
                1.0,
                "variance",
                "of a component's size, over its class's",
                "its class's size",
            ),
            "scales/moment": (
                shrinkage.noise_radius(2, z[name] * 2 / of_component),
                1.0,
                "variance",
                "of a component's shape in two directions",
                "its class's shape",
            ),
        }.get(name)
        if step is None and shape.pictures is not None:
            step = _picture_step(name, z[name], shape.pictures, of_class, rows, used)
        if name == "teacher/gradient":
            stddev = z[name] * method.teacher_clip / rows
            uncapped = method.teacher_rate * _feature_norm(plan, geometry, whitened) ** 2 * stddev
            one = min(uncapped, method.teacher_noise_cap)
            if errors and errors.logit and errors.logit_size:
                step = errors.logit, errors.logit_size, "logit", "of a label's logit", "size of a logit"
            else:
                step = one, 1.0, "logit", "of a logit, of one step", "a logit of 1"
        elif name.endswith("/count") and step is None:
            step = both * z[name], of_component, "rows", "of a component's count", "rows of a component"
        elif step is None:
            step = (
                math.sqrt(used) * z[name] * move / of_component,
                spread,
                "norm",
                "of a component's move",
                "the spread of a class",
            )
        noise, signal, *words = step
        found.append(Step(name, mechanism.repetitions, mechanism.share, z[name], noise, signal, *words))
    return tuple(found)


def _picture_step(
    name: str, z: float, form: PictureForm, of_class: float, rows: float, used: float
) -> tuple[float, float, str, str, str] | None:
    """Noise and signal of what makes a release decodable, before it is shrunk; None of anything else.

    Args:
      used: in how many directions embeddings are told apart.
    """
    radius = RADIUS * math.sqrt(form.dimension)
    reach = sketch.SKETCH_REACH * math.sqrt(used)
    # Of a whole picture: noise of each slope, times the length of an embedding whose numbers have variance 1.
    of_slopes = z * reach * radius * math.sqrt(form.dimension * used) / rows
    against = "how far pictures lie from their class's"
    return {
        "pictures/sum": (
            math.sqrt(form.dimension) * z * form.usual_norm / of_class,
            radius,
            "norm",
            "of a class's mean picture",
            against,
        ),
        "pictures/cross": (of_slopes, radius, "norm", "of an embedding's picture", against),
        "pictures/square": (
            z * radius**2 / rows,
            radius**2 / len(np.unique(form.rings)),
            "variance",
            "of a frequency's variance",
            "the mean variance of a frequency",
        ),
    }.get(name)


def moment_noise(plan: Plan, geometry: Geometry, rows: int) -> float:
    """Noise of a diagonal entry of the rough covariance, as `fit.covariance` will find it.

    Residuals that are longer than the clipping radius are scaled to it, and their moment is scaled
    back to the trace of all: rows of like length lose by the one what the other gives.
    """
    explained = geometry.between[-1] + geometry.centre[-1]
    square = min(max(1.0 - explained, 0.01), 1.0)
    multiplier = plan.row_multipliers["moment/moment"]
    return multiplier * square * max(plan.config.method.residual_radius, 1.0) ** 2 / rows


def whitened_noise(plan: Plan, geometry: Geometry, rows: int) -> float:
    """The same of the whitened moment, as `fit.whitened` will find it."""
    square = float(_whitened(plan, geometry)[0].sum())
    multiplier = plan.row_multipliers["whitened/moment"]
    return multiplier * square * max(WHITENED_RADIUS, 1.0) ** 2 / rows


def _whitened(plan: Plan, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Variances of whitened rows in their directions, (d,), and those that they are divided by."""
    within = geometry.along(plan.shape.dimension)[0]
    damped = within + within.mean()
    return within / damped, damped


def _feature_norm(plan: Plan, geometry: Geometry, stddev: float) -> float:
    """Root mean square norm of a whitened row, as `fit.whitened` will find it, from `whitened_noise`."""
    within, between, _ = geometry.along(plan.shape.dimension)
    total = within + between
    noise = shrinkage.noise_radius(plan.shape.dimension, stddev) * float(_whitened(plan, geometry)[1].mean())
    damping = plan.config.method.damping * noise
    damping = max(damping, teacher.DAMPING_FLOOR * total.mean())
    return math.sqrt((total / (total + damping)).sum())


def directions_seen(plan: Plan, rows: int, geometry: Geometry) -> int:
    """Directions whose variance stands out of the noise of one of the two moments.

    An eigenvalue does where it is above half of the noise's radius (Baik, Ben Arous and
    Peche 2005; for this noise Benaych-Georges and Nadakuditi 2011).
    """
    d = plan.shape.dimension
    rough = shrinkage.noise_radius(d, moment_noise(plan, geometry, rows))
    whitened = shrinkage.noise_radius(d, whitened_noise(plan, geometry, rows))
    seen = geometry.along(d)[0] > rough / 2, _whitened(plan, geometry)[0] > whitened / 2
    return int(np.logical_or(*seen).sum())


def simulate(plan: Plan, rows: int, geometry: Geometry, draws: int = DRAWS) -> Errors | None:
    """The errors of a release, from the fit's own steps on rows of this geometry.

    Each of fewer directions k has the variance of d / k of them. The noise is scaled so that
    what matters stays as it is: that of a mean's coordinates by (d / k)^.5, for the whole
    mean's to be the same; the moments' by (d / k)^1.5, for its radius to grow as the
    variances do; a gradient's by d / k, for features share one norm; and all of it by the
    drawn rows over the rows.

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
    means, covariances, logits = [], [], []
    for state, covariance in found:
        assert state.class_means is not None
        difference = state.class_means.means / lattice.UNIT - exact[0]
        means.append((difference**2).sum(axis=1).mean())
        basis = covariance.basis * 2.0**-BASIS_BITS
        covariances.append(((basis @ basis.T - exact[1]) ** 2).sum() / (exact[1] ** 2).sum())
        if classes > 1:
            logits.append(_logits(state, test))
    errors = Errors(count_error(plan, rows), math.sqrt(np.mean(means)), math.sqrt(np.mean(covariances)))
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
        scale = (
            more ** {"counts": 0.0, "means": 0.5, "moment": 1.5, "whitened": 1.5, "teacher": 1.0}[stage.KIND]
        )
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
    on_lattice = teacher.logit_weights(weights, norm)
    logits = features.values.astype(np.float64) @ on_lattice[:, :-1].T + on_lattice[:, -1]
    return logits - logits.mean(axis=1, keepdims=True)


def needs(plan: Plan, rows: int, geometry: Geometry, within: float) -> tuple[Need, ...]:
    """Rows or epsilon for: counts that are clear of noise, means that are, an accuracy.

    Every state is a least product of mu and rows of a class, so each has both answers.

    Args:
      within: of the accuracy above chance, the part that may be lost to noise.
    """
    config, d = plan.config, plan.shape.dimension
    # Noise at a noise multiplier of 1 for the whole.
    counts = plan.row_multipliers["means/count"] / plan.budget.noise_multiplier
    states = {
        f"class counts are {CLEAR:g} times their noise": CLEAR * counts,
        "a class mean's noise is half of its distance from the centre": _clear_means(
            plan, 2 * math.sqrt(d) / geometry.class_distance
        ),
    }
    if plan.shape.classes > 1:
        strength = references.curve().strength_for(within)
        states[f"{within:.1%} of the accuracy above chance is lost to noise (middle of the band)"] = (
            strength * math.sqrt(d) * config.neighbours.of_vectors
        )
    mu = 1 / plan.budget.noise_multiplier
    return tuple(
        Need(
            state,
            _rounded_up_rows(product / mu * plan.shape.classes),
            epsilon_of(product * plan.shape.classes / rows, config.delta),
        )
        for state, product in states.items()
    )


def _clear_means(plan: Plan, factor: float) -> float:
    """The least product x of mu and rows of a class that is `factor` times the sums' noise.

    The sums' share follows from x itself (`allocation.following`), and falls slower than x grows.
    """
    noise, classes = plan.budget.noise_multiplier, plan.shape.classes

    def due(x: float) -> float:
        counted = dataclasses.replace(plan, noise_multiplier=noise, counted=round(x * noise * classes))
        return factor * counted.row_multipliers["means/sum"] / noise

    low, high = due(0.0), due(1e12)
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        if middle >= due(middle):
            high = middle
        else:
            low = middle
    return high


def _rounded_up_rows(rows: float) -> int | None:
    unit = 10 ** max(0, math.floor(math.log10(rows)) - 1)
    rounded = math.ceil(rows / unit) * unit
    return rounded if rounded <= lattice.MAX_ROWS else None


def epsilon_of(mu: float, delta: float) -> float | None:
    """The least epsilon, of three digits, rounded up, whose noise gives this mu; None: above 1000."""
    low, high = accounting.MIN_EPSILON, float(accounting.MAX_EPSILON)
    if 1 / accounting.calibrated(high, delta) < mu:
        return None
    if 1 / accounting.calibrated(low, delta) >= mu:
        return low
    while high - low > 1e-6 * low:
        middle = math.sqrt(low * high)
        if 1 / accounting.calibrated(middle, delta) >= mu:
            high = middle
        else:
            low = middle
    unit = 10.0 ** (math.floor(math.log10(high)) - 2)
    return float(f"{min(math.ceil(high / unit) * unit, accounting.MAX_EPSILON):.3g}")


def strength(plan: Plan, rows: int) -> float:
    """Rows of a class times the mu of a row over sqrt(d): what losses of accuracy were measured against."""
    shape, noise = plan.shape, plan.budget.noise_multiplier * plan.config.neighbours.of_vectors
    return rows / shape.classes / noise / math.sqrt(shape.dimension)


def warnings(plan: Plan, rows: int) -> tuple[str, ...]:
    """What is wrong with a plan for so many rows, in sentences."""
    delta, found = plan.config.delta, []
    most = f"{0.1 / rows:.0e}"
    if delta >= 1 / rows:
        found.append(
            f"delta {delta:g} is not below one over {rows:,} rows: a mechanism that hands out one row in"
            f" {1 / delta:,.0f} as it is would keep it. Take {most} or less"
        )
    elif delta > 0.1 / rows:
        found.append(f"delta {delta:g} is above a tenth of one over {rows:,} rows: {most} or less is usual")
    if rows / plan.shape.classes < plan.row_multipliers["means/count"]:
        found.append(
            f"a class of {rows / plan.shape.classes:,.0f} rows is less than the noise of its count"
            f" ({plan.row_multipliers['means/count']:,.0f}): such a release is a guess"
        )
    return tuple(found)


def to_dict(step: Step) -> dict[str, Any]:
    """Plain data, for JSON."""
    return {**dataclasses.asdict(step), "ratio": step.ratio}
