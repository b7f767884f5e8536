"""What the teacher sees beside a row."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.data.rows import rows_of
from dpgmm_beam.fit import chain, ridges, teacher
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.fit.projection import VIEW_UNIT
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release.labels import Labeller

KEY = NoiseKey(bytes(range(32)))


def between(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes of one mean: one lies between the two halves of the other."""
    generator = np.random.default_rng(5)
    place = generator.integers(0, 4, count)
    rows = np.zeros((count, 6))
    rows[:, 0] = np.array([0.0, 1.0, 0.0, -1.0])[place]
    # On either side, or rows of norm 1 would tell by their second coordinate.
    rows[:, 1] = np.where(generator.random(count) < 0.5, 2.0, -2.0)
    return rows + generator.normal(0, 0.2, (count, 6)), place % 2


def fitted(components: int | None, epsilon: float = 20.0, **method):
    rows, labels = between(4000)
    config = ReleaseConfig(
        "precomputed", ("even", "odd"), 6, epsilon, 1e-5, components=components, method=Method(**method)
    )
    accepted = rows_of(rows, labels)
    return chain.fit(Plan(config, "id"), lambda: accepted.blocks(512), KEY)


def accuracy(final) -> float:
    rows, labels = between(2000)
    return float((Labeller.of(final).probabilities(rows).argmax(axis=1) == labels).mean())


def test_a_teacher_with_ridges_tells_apart_what_no_line_does():
    """Noise has a fixed key, so the figures are the same at each run."""
    assert accuracy(fitted(1)) < 0.65
    assert accuracy(fitted(4)) > 0.9


def test_ridges_are_centred_and_of_bounded_size_over_the_mixture():
    state = fitted(4, teacher_ridges=12, teacher_steps=0).state
    assert state.teacher is not None
    assert state.teacher.ridges is not None
    drawn = ridges._draws(state, np.random.default_rng(8))
    values = ridges.ridge_values(state.teacher.ridges)(drawn) @ state.teacher.ridges.mix.astype(float)
    values *= 2.0**-12
    variances, one = np.linalg.eigvalsh(np.cov(values.T)), VIEW_UNIT * state.teacher.ridges.kept
    one /= state.teacher.norm * state.teacher.ridges.kept**2
    assert np.abs(values.mean(axis=0)).max() < 0.1 * one
    # Damped whitening leaves no direction with more than a whitened coordinate has.
    assert variances.max() < 1.1 * one**2
    assert variances.max() > 0.5 * one**2


def test_a_class_of_one_component_has_no_ridges():
    few, labels = between(40)
    config = ReleaseConfig("precomputed", ("even", "odd"), 6, 0.1, 1e-5)
    rows = rows_of(few, labels)
    final = chain.fit(Plan(config, "id"), lambda: rows.blocks(512), KEY)
    assert final.state.components is not None
    assert final.state.components.centres.shape[1] == 1
    found = final.state.teacher
    assert found is not None
    assert found.ridges is not None
    assert not found.ridges.mix.any()
    features = teacher.FEATURES.of(final.state).bind()(rows)
    assert features.values.shape == (40, 6 + 256)
    assert not features.values[:, 6:].any()


@pytest.mark.parametrize("components", [4, None])
def test_a_view_with_ridges_is_of_bounded_norm_in_any_blocks(components):
    state = fitted(components, teacher_ridges=9, teacher_steps=0).state
    rows = rows_of(*between(300))
    view = teacher.FEATURES.of(state).bind()
    whole = view(rows)
    assert whole.values.shape == (300, 15)
    assert np.sqrt(whole.square_norms()).max() <= VIEW_UNIT
    with ThreadPoolExecutor(2) as workers:
        parts = list(workers.map(view, rows.blocks(7)))
    assert np.array_equal(whole.values, np.concatenate([part.values for part in parts]))


def test_few_bits_are_few():
    values = ridges._few_bits(np.array([1 / 3, 1000.0, 1e-5]))
    assert np.allclose(values, [1 / 3, 1000.0, 1e-5], rtol=2.0**-8)
    assert all(float(value * 2.0**40).is_integer() for value in values)
