import dataclasses
import math

import numpy as np
import pytest

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit.means import Means
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.fit.sketch import DIRECTIONS_PER_ROW, SKETCH_BOUND, SKETCH_REACH
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.accounting import calibrated
from dpgmm_beam.release import forecast
from dpgmm_beam.release.references import REFERENCES, curve

LIKE = REFERENCES["Fashion-MNIST"].geometry
ROWS = 3000


def plan_of(classes=10, dimension=64, epsilon=1.0, delta=1e-6, **more):
    return Plan(
        ReleaseConfig("e", tuple(map(str, range(classes))), dimension, epsilon, delta, **more),
        "f",
        counted=ROWS,
    )


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
