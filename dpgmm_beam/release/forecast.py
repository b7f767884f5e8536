"""What a release will be like, before anybody has looked at the data.

Each step's noise is known beforehand; what it must be held against is not.  So a
forecast supposes data of a stated geometry, that of a public data set, and so many
rows, of classes of one size.  Where formulas end (shrinkage, whitening, twenty steps
of a teacher) the fit's own steps are run, on rows drawn with that geometry
(`release.simulation`).  Nothing here reads a row of anybody's.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.encoders.dct import PictureForm
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit import centres, lloyd, means, scales, scatter, sharpness, shrinkage, sketch, teacher
from dpgmm_beam.fit.pictures import RADIUS
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.fit.whitened import WHITENED_RADIUS
from dpgmm_beam.privacy import accounting, lattice
from dpgmm_beam.release import references
from dpgmm_beam.release.geometry import Geometry
from dpgmm_beam.release.simulation import Errors

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
      errors: of `simulation.simulate`, for the teacher; None: its noise is that of one step.
    """
    shape, method, found = plan.shape, plan.config.method, []
    classes, d = shape.classes, shape.dimension
    of_class = rows / classes
    spread = math.sqrt(geometry.within[-1])
    z = plan.row_multipliers
    whitened = whitened_noise(plan, geometry, rows)
    of_noise = of_class / z["whitened/moment"]
    components = int(sketch.components_of(shape, of_noise))
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
            "start/slope": (
                z[name] * sharpness.SLOPES_NORM / rows,
                1.0,
                "slope",
                "of how sharp the teacher should start",
                "a slope of 1",
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
