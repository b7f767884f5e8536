"""Stages of small fits, states before them, and their sums."""

import numpy as np

from dpgmm_beam.config import Method
from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit.counts import Counts
from dpgmm_beam.fit.covariance import PooledMoment
from dpgmm_beam.fit.means import Means
from dpgmm_beam.fit.projection import VIEW_UNIT
from dpgmm_beam.fit.sharpness import TeacherStart
from dpgmm_beam.fit.stage import Shape
from dpgmm_beam.fit.state import ClassCounts, ClassMeans, FitState, Teacher
from dpgmm_beam.fit.teacher import TeacherStep
from dpgmm_beam.fit.whitened import WhitenedMoment
from dpgmm_beam.privacy import lattice
from tests.strategies import lattice_rows

CLASSES = 3
NOTHING = FitState()

NONE = {"count": 0.0, "sum": 0.0, "square": 0.0, "moment": 1e-6}
"""Next to no noise."""


def shape(dimension, components=1):
    return Shape(CLASSES, dimension, components, dimension, dimension)


def counts_stage(dimension):
    return Counts(shape(dimension), Method())


def counted(rows, noise_multiplier=0.0):
    """The state before `Means`: rows as they are counted, their noise aside."""
    stage = counts_stage(rows.values.shape[1])
    return stage.advance(NOTHING, sums_of(stage, rows, NOTHING), {"count": noise_multiplier}).state


def counts_state(noisy, noise_multiplier):
    """The state before `Means`, of these noisy counts."""
    return (
        Counts(shape(2), Method())
        .advance(NOTHING, {"count": np.asarray(noisy)}, {"count": noise_multiplier})
        .state
    )


def means_stage(dimension):
    return Means(shape(dimension), Method())


def with_means(rows):
    """The state after `Means` of these rows without noise."""
    stage = means_stage(rows.values.shape[1])
    return stage.advance(counted(rows), sums_of(stage, rows, NOTHING), NONE).state


def moment_stage(dimension, components=1):
    return PooledMoment(shape(dimension, components), Method())


def whitened_stage(dimension, components=1):
    return WhitenedMoment(shape(dimension, components), Method())


def teacher_stage(dimension, clip=0.25, step=0, steps=4):
    return TeacherStep(shape(dimension), Method(teacher_clip=clip, teacher_steps=steps), step)


def start_stage(dimension):
    return TeacherStart(shape(dimension), Method())


def moment_state(dimension, seed, radius):
    """Class means of any length up to the bound, and a clipping radius."""
    generator = np.random.default_rng(seed)
    means = lattice_rows(generator.standard_normal((CLASSES, dimension)), np.zeros(CLASSES)).values
    lengths = generator.choice([0.0, 0.3, 1.0], CLASSES)[:, None]
    return means_state(np.trunc(means * lengths), radius)


def means_state(means, radius=0.7):
    """Class means, and residuals whose clipping radius is as given by the default method."""
    means = np.asarray(means, np.int32)
    counts, centre = np.full(len(means), 100.0), np.zeros(means.shape[1])
    square = (radius / Method().residual_radius) ** 2
    variances = np.full(means.shape[1], square / means.shape[1], np.float32)
    before = ClassCounts(counts.astype(np.int64), counts)
    return FitState(before, ClassMeans(counts, means, centre, square, variances))


def teacher_state(dimension, seed, scale, norm=2.0):
    """A teacher whose logits reach `scale`."""
    generator = np.random.default_rng(seed)
    weights = scale * generator.standard_normal((CLASSES, dimension + 1))
    teacher = Teacher(np.eye(dimension, dtype=np.int32), norm, weights, np.zeros_like(weights))
    of_classes = means_state(np.zeros((CLASSES, dimension))).class_means
    return FitState(class_means=of_classes, teacher=teacher)


def viewed(real, classes):
    """Rows as a view gives them: norm up to VIEW_UNIT."""
    rows = lattice_rows(real, classes)
    return Rows(lattice.clip_rows(rows.values.astype(float), VIEW_UNIT).astype(np.int16), rows.classes)


def sums_of(stage, rows, before):
    """The queries' exact vectors over blocks of rows."""
    sums, add = stage.begin(), stage.adder(before)
    for block in rows if isinstance(rows, list) else [rows]:
        add(block, sums)
    return stage.finish(sums)


def moved(stage, rows, before, out):
    """By how much each query moves when row `out` is removed: its norm's square, exact."""
    whole = sums_of(stage, rows, before)
    kept = np.delete(np.arange(len(rows)), out)
    rest = sums_of(stage, Rows(rows.values[kept], rows.classes[kept]), before)
    for query in stage.queries:
        difference = [int(v) for v in whole[query.name] - rest[query.name]]
        if query.symmetric_order:
            full = lattice.unpack_triangle(np.array(difference, dtype=object))
            yield query, sum(v * v for v in full.ravel())
        else:
            yield query, sum(v * v for v in difference)
