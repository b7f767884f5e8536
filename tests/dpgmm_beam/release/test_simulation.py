import math

import numpy as np
import pytest

from dpgmm_beam.data.rows import rows_of
from dpgmm_beam.fit import chain, teacher
from dpgmm_beam.fit.covariance import BASIS_BITS
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release import forecast, simulation
from dpgmm_beam.release.geometry import measured, moments
from tests.dpgmm_beam.release.test_forecast import LIKE, ROWS, plan_of

CLASSES, DIMENSION = 4, 24


@pytest.fixture(scope="module")
def public():
    """Rows to fit, and others."""
    generator = np.random.default_rng(3)
    labels = np.arange(2 * ROWS) % CLASSES
    centres = generator.normal(size=(CLASSES, DIMENSION))
    centres *= 0.6 / np.linalg.norm(centres, axis=1)[:, None]
    scales = (1 + np.arange(DIMENSION)) ** -0.5 / 3
    values = centres[labels] + scales * generator.normal(size=(2 * ROWS, DIMENSION))
    values @= np.linalg.qr(generator.normal(size=(DIMENSION, DIMENSION)))[0]
    return rows_of(values[:ROWS], labels[:ROWS]), rows_of(values[ROWS:], labels[ROWS:])


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_predicted_errors_are_those_of_real_fits_within_a_quarter(public, epsilon):
    """The promise of `plan`; benchmarks/forecast.py has more data and larger."""
    train, test = public
    plan = plan_of(CLASSES, DIMENSION, epsilon, 1e-5)
    exact_means, exact_covariance = moments(train, CLASSES)
    means, covariances, logits = [], [], []
    for key in range(6):
        final = chain.fit(plan, lambda: train.blocks(1000), NoiseKey(bytes([key + 1]) * 32))
        state = final.state
        means.append(((state.class_means.means / lattice.UNIT - exact_means) ** 2).sum(axis=1).mean())
        basis = final.covariance.basis * 2.0**-BASIS_BITS
        covariances.append(((basis @ basis.T - exact_covariance) ** 2).sum() / (exact_covariance**2).sum())
        features = teacher.FEATURES.of(state).bind()(test)
        logits.append(simulation.centred_logits(features, state.teacher.average, state.teacher.norm))
    predicted = simulation.simulate(plan, ROWS, measured(train, CLASSES), draws=6)
    assert predicted.means == pytest.approx(math.sqrt(np.mean(means)), rel=0.25)
    assert predicted.covariance == pytest.approx(math.sqrt(np.mean(covariances)), rel=0.25)
    assert predicted.logit == pytest.approx(simulation.between_keys(logits), rel=0.25)


@pytest.mark.parametrize("rows", [40, 300, 1400, 20_000, 10**6])
def test_the_error_of_a_count_is_that_of_noise_above_its_floor(rows):
    plan = plan_of()
    stddev, of_class = plan.budget.multiplier("means/count"), rows / 10
    counts = of_class + stddev * np.random.default_rng(0).normal(size=10**6)
    held = np.maximum(counts, max(stddev, 0.01 * of_class))
    # A root of a mean square of a million deviates is within a hundredth, far beyond five standard errors.
    assert simulation.count_error(plan, rows) == pytest.approx(
        math.sqrt(((held - of_class) ** 2).mean()), rel=0.01
    )


def test_a_simulation_is_the_same_each_time():
    plan = plan_of(dimension=32)
    assert simulation.simulate(plan, 2000, LIKE) == simulation.simulate(plan, 2000, LIKE)


def test_errors_fall_with_rows_and_with_epsilon():
    few, more, most = (
        simulation.simulate(plan_of(dimension=32, epsilon=epsilon), rows, LIKE)
        for epsilon, rows in ((1.0, 2000), (1.0, 50_000), (8.0, 50_000))
    )
    for name in ("means", "logit"):
        assert getattr(few, name) > 1.5 * getattr(more, name) > 1.5 * getattr(most, name)
    # With hardly any noise what clipping takes of the longest rows is left.
    assert few.covariance > 1.5 * more.covariance
    assert few.counts == pytest.approx(more.counts, rel=1e-3)
    assert more.counts > most.counts


@pytest.mark.parametrize(
    ("classes", "dimension", "rows"), [(101, 64, 10**6), (10, 64, 11), (100, 8, 100), (1, 64, 2)]
)
def test_nothing_is_simulated_of_too_many_classes_or_too_few_rows(classes, dimension, rows):
    plan = plan_of(classes, dimension)
    assert simulation.simulate(plan, rows, LIKE) is None
    assert all(step.noise > 0 for step in forecast.steps(plan, rows, LIKE, None))


@pytest.mark.parametrize(
    ("classes", "dimension", "rows"), [(1, 1, 4), (1, 64, 1000), (100, 8, 10**6), (2, 8192, 2**31)]
)
def test_odd_sizes_are_simulated(classes, dimension, rows):
    found = simulation.simulate(plan_of(classes, dimension), rows, LIKE)
    assert found.means > 0
    assert found.covariance > 0
    assert (found.logit is None) == (classes == 1)
