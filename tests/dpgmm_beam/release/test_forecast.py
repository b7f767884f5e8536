import dataclasses
import math

import numpy as np
import pytest

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.data.rows import rows_of
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit import chain, teacher
from dpgmm_beam.fit.covariance import BASIS_BITS
from dpgmm_beam.fit.means import Means
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.fit.sketch import DIRECTIONS_PER_ROW, SKETCH_BOUND, SKETCH_REACH
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.accounting import calibrated
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release import forecast
from dpgmm_beam.release.geometry import measured, moments
from dpgmm_beam.release.references import REFERENCES, curve

LIKE = REFERENCES["Fashion-MNIST"].geometry
CLASSES, DIMENSION, ROWS = 4, 24, 3000


def plan_of(classes=10, dimension=64, epsilon=1.0, delta=1e-6, **more):
    return Plan(
        ReleaseConfig("e", tuple(map(str, range(classes))), dimension, epsilon, delta, **more),
        "f",
        counted=ROWS,
    )


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
        logits.append(forecast.centred_logits(features, state.teacher.average, state.teacher.norm))
    predicted = forecast.simulate(plan, ROWS, measured(train, CLASSES), draws=6)
    assert predicted.means == pytest.approx(math.sqrt(np.mean(means)), rel=0.25)
    assert predicted.covariance == pytest.approx(math.sqrt(np.mean(covariances)), rel=0.25)
    assert predicted.logit == pytest.approx(forecast.between_keys(logits), rel=0.25)


@pytest.mark.parametrize("rows", [40, 300, 1400, 20_000, 10**6])
def test_the_error_of_a_count_is_that_of_noise_above_its_floor(rows):
    plan = plan_of()
    stddev, of_class = plan.budget.multiplier("means/count"), rows / 10
    counts = of_class + stddev * np.random.default_rng(0).normal(size=10**6)
    held = np.maximum(counts, max(stddev, 0.01 * of_class))
    # A root of a mean square of a million deviates is within a hundredth, far beyond five standard errors.
    assert forecast.count_error(plan, rows) == pytest.approx(
        math.sqrt(((held - of_class) ** 2).mean()), rel=0.01
    )


def test_a_simulation_is_the_same_each_time():
    plan = plan_of(dimension=32)
    assert forecast.simulate(plan, 2000, LIKE) == forecast.simulate(plan, 2000, LIKE)


def test_errors_fall_with_rows_and_with_epsilon():
    few, more, most = (
        forecast.simulate(plan_of(dimension=32, epsilon=epsilon), rows, LIKE)
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
    assert forecast.simulate(plan, rows, LIKE) is None
    assert all(step.noise > 0 for step in forecast.steps(plan, rows, LIKE, None))


@pytest.mark.parametrize(
    ("classes", "dimension", "rows"), [(1, 1, 4), (1, 64, 1000), (100, 8, 10**6), (2, 8192, 2**31)]
)
def test_odd_sizes_are_simulated(classes, dimension, rows):
    found = forecast.simulate(plan_of(classes, dimension), rows, LIKE)
    assert found.means > 0
    assert found.covariance > 0
    assert (found.logit is None) == (classes == 1)


def units(plan, geometry):
    """Real units of a lattice step of each query."""
    rms, moment = math.sqrt(geometry.within[-1]), forecast.moment_noise(plan, geometry, 1)
    whitened = forecast.whitened_noise(plan, geometry, 1)
    return {
        "means/count": 1,
        "means/sum": 1 / lattice.UNIT,
        "means/square": 2.0**-Means.SQUARE_BITS,
        # Clipped at a share of the root mean square, and scaled back to the trace of all.
        "moment/moment": moment / plan.budget.multiplier("moment/moment") / 2**24,
        "whitened/moment": whitened / plan.budget.multiplier("whitened/moment") / 2**24,
        "sketch/count": 1,
        "sketch/sum": SKETCH_REACH * rms / SKETCH_BOUND,
    }


@pytest.mark.parametrize("components", [1, 6])
def test_noise_is_that_of_the_stages_queries(components):
    plan, rows = plan_of(components=components), 20_000
    found = {step.mechanism: step for step in forecast.steps(plan, rows, LIKE, None)}
    assert list(found) == [mechanism.name for mechanism in plan.budget.mechanisms]
    of_class = rows / 10
    cells = of_class / found["sketch/count"].signal if components > 1 else None
    used = (DIRECTIONS_PER_ROW * of_class / plan.budget.multiplier("whitened/moment")) ** (2 / 3)
    sizes = {
        "means/count": 1,
        "means/sum": math.sqrt(64) / of_class,
        # The largest eigenvalue of the symmetric noise, twice the root of d stddev^2 / 2.
        "moment/moment": math.sqrt(2 * 64) / rows,
        "whitened/moment": math.sqrt(2 * 64) / rows,
        "sketch/count": 1,
        "means/square": 1 / rows,
        "sketch/sum": cells and math.sqrt(min(used, plan.shape.subspace_dim)) * cells / of_class,
    }
    known = units(plan, LIKE)
    for stage in plan.stages:
        for query in stage.queries:
            name = f"{stage.mechanism}/{query.name}"
            if name in known:
                drawn = plan.multipliers(stage)[query.name] * query.l2_sensitivity
                assert found[name].noise == pytest.approx(drawn * known[name] * sizes[name], rel=1e-9)
                assert found[name].noise_multiplier == plan.multipliers(stage)[query.name]


def test_noise_of_rounds_shrinks_with_their_budget():
    steps = {s.mechanism: s for s in forecast.steps(plan_of(components=6), 20_000, LIKE, None)}
    # Three times the budget for each: docs/privacy.md.
    for what in ("count", "sum"):
        assert steps[f"rounds/{what}"].noise == pytest.approx(
            math.sqrt(3) * steps[f"late/{what}"].noise, rel=1e-9
        )
    count = steps["rounds/count"]
    # A count and a square are one vector of sensitivity sqrt 2.
    assert count.noise == pytest.approx(math.sqrt(2) * count.noise_multiplier)
    assert count.signal == pytest.approx(20_000 / 60)


def test_what_is_needed_is_enough_and_not_much_more():
    plan, rows, within = plan_of(dimension=256), 20_000, 0.02
    counts, means, accuracy = forecast.needs(plan, rows, LIKE, within)

    def reached(plan, rows):
        steps = {step.mechanism: step for step in forecast.steps(plan, rows, LIKE, None)}
        return (
            steps["means/count"].ratio >= 10,
            steps["means/sum"].ratio >= 2,
            curve().loss(forecast.strength(plan, rows))[1] <= within,
        )

    for index, need in enumerate((counts, means, accuracy)):
        for asked, holds in ((need.rows, True), (int(need.rows * 0.89), False)):
            assert reached(dataclasses.replace(plan, counted=asked), asked)[index] == holds
        for epsilon, holds in ((need.epsilon, True), (need.epsilon * 0.98, False)):
            other = Plan(dataclasses.replace(plan.config, epsilon=epsilon), "f", counted=rows)
            assert reached(other, rows)[index] == holds


def test_what_cannot_be_reached():
    plan = plan_of(classes=5000, dimension=8, epsilon=0.01)
    counts, means, accuracy = forecast.needs(plan, 5000, LIKE, 1e-4)
    assert (accuracy.rows, counts.epsilon) == (None, None)
    assert counts.rows > 10**8
    assert means.rows
    assert len(forecast.needs(plan_of(classes=1), 100, LIKE, 0.02)) == 2


@pytest.mark.parametrize("delta", [1e-12, 1e-6, 0.1])
@pytest.mark.parametrize("mu", [0.002, 0.3, 5.0])
def test_the_epsilon_of_a_mu(mu, delta):
    epsilon = forecast.epsilon_of(mu, delta)
    assert 1 / calibrated(epsilon, delta) >= mu
    assert epsilon <= 0.001 or 1 / calibrated(max(epsilon * 0.98, 0.001), delta) < mu
    assert forecast.epsilon_of(1e3, delta) is None


def test_directions_that_are_seen():
    few, more = (forecast.directions_seen(plan_of(dimension=1280), rows, LIKE) for rows in (3 * 10**4, 10**6))
    assert 0 < few < more < 1280
    # One direction among many: it comes out of the semicircle of the rough moment's noise, or does not.
    # Rows are so few that the whitened one says nothing.
    plan, rows, d = plan_of(dimension=300), 100, 300
    alike = dataclasses.replace(LIKE, ranks=(0, 1 / d, 1), between=(0, 0.1, 0.1), centre=(0, 0.1, 0.1))
    stddev = forecast.moment_noise(plan, alike, rows)
    noise = np.random.default_rng(1).normal(size=(d, d)) * stddev / math.sqrt(2)
    noise = np.triu(noise, 1) + np.triu(noise, 1).T + np.diag(np.diag(noise)) * math.sqrt(2)
    edge = math.sqrt(2 * d) * stddev
    for variance, seen in ((edge, True), (0.3 * edge, False)):
        values = np.linalg.eigvalsh(noise + np.diag([variance] + [0.0] * (d - 1)))
        assert (values[-1] > 1.1 * edge) == seen
        shape = dataclasses.replace(alike, within=(0, variance, variance))
        assert forecast.directions_seen(plan, rows, shape) == seen
    # With more rows it is the whitened one that sees directions of middling variance.
    wide = dataclasses.replace(alike, ranks=(0, 0.05, 0.5, 1), within=(0, 0.8, 0.98, 1.0))
    wide = dataclasses.replace(wide, between=(0, 0.1, 0.1, 0.1), centre=(0, 0.1, 0.1, 0.1))
    many = 200_000
    edge = math.sqrt(2 * d) * forecast.moment_noise(plan, wide, many)
    assert forecast.directions_seen(plan, many, wide) > (wide.along(d)[0] > edge / 2).sum() == 15


@pytest.mark.parametrize(
    ("rows", "delta", "said"),
    [
        (20_000, 1e-4, "delta 0.0001 is not below one over 20,000 rows.*one row in 10,000.*5e-06 or less"),
        (10_000, 1e-4, "is not below one over 10,000 rows"),
        (20_000, 1e-5, "delta 1e-05 is above a tenth of one over 20,000 rows: 5e-06 or less is usual"),
        (100, 1e-9, r"a class of 10 rows is less than the noise of its count \(5\d\)"),
        (20_000, 5e-6, ""),
    ],
)
def test_warnings(rows, delta, said):
    import re

    found = forecast.warnings(plan_of(delta=delta), rows)
    assert re.search(said, " ".join(found)) if said else not found


@pytest.mark.parametrize("rows", [0, -5, 9, 2**31 + 1])
def test_rows_that_are_refused(rows):
    with pytest.raises(
        ConfigError, match=rf"rows={rows} is refused: it must be a whole number from 10 \(one for"
    ):
        forecast.check_rows(rows, plan_of().config)
