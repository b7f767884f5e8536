"""Hypothesis strategies and small data that several tests draw on."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit.stage import Stage
from dpgmm_beam.fit.state import FitState
from dpgmm_beam.privacy import lattice

quick = settings(max_examples=40)
"""Where each example takes a while."""

ROW_KINDS = ("normal", "one-hot", "equal", "signs", "halves", "sparse", "tiny", "big", "opposite")


DIMENSIONS = st.integers(1, 40)


def real_row(kind: str, dimension: int, generator: np.random.Generator) -> np.ndarray:
    """One real row of a kind that has broken somebody's rounding."""
    row = generator.standard_normal(dimension)
    match kind:
        case "one-hot":
            row = np.zeros(dimension)
            row[generator.integers(dimension)] = generator.choice([-1.0, 1.0])
        case "equal":
            row = np.ones(dimension)
        case "opposite":
            row = -np.ones(dimension)
        case "signs":
            row = np.sign(row + 1e-9)
        case "halves":
            row = (generator.integers(-3, 3, dimension) + 0.5) / lattice.UNIT
        case "sparse":
            row = np.where(generator.random(dimension) < 0.8, 0.0, row)
            row[0] = 1.0
        case "tiny":
            row = row * 1e-12
        case "big":
            row = row * 1e12
    return row


@st.composite
def real_rows(draw, dimension=DIMENSIONS, kinds=ROW_KINDS):
    """A matrix of rows of mixed kinds, (n, d) float64."""
    d = draw(dimension)
    chosen = draw(st.lists(st.sampled_from(kinds), max_size=12))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return np.array([real_row(kind, d, generator) for kind in chosen]).reshape(-1, d)


@st.composite
def splits(draw, count: int):
    """A permutation of `count` rows cut into consecutive pieces, some of them empty."""
    order = np.array(draw(st.permutations(range(count))), dtype=np.int64)
    cuts = sorted(draw(st.lists(st.integers(0, count), max_size=4)))
    return np.split(order, cuts)


def lattice_rows(real: np.ndarray, classes: np.ndarray) -> Rows:
    """Rows on the lattice, normalised."""
    values, keep = lattice.quantise_rows(real)
    return Rows(values.astype(np.int16), np.asarray(classes, np.int32)[keep])


def take(rows: Rows, where: np.ndarray) -> Rows:
    """Some of the rows, in the given order."""
    return Rows(rows.values[where], rows.classes[where])


def blobs(rows: int, dimension: int, classes: int, seed: int = 0, spread: float = 0.5) -> Rows:
    """Rows round one random direction for each class."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((classes, dimension))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    labels = generator.integers(0, classes, rows)
    noise = generator.standard_normal((rows, dimension)) * (spread / np.sqrt(dimension))
    return lattice_rows(centres[labels] + noise, labels)


def in_view(stage: Stage, rows: Rows, current: FitState) -> Rows:
    """Rows in the coordinates that a stage wants."""
    return rows if stage.view is None else stage.view.of(current).apply(rows)
