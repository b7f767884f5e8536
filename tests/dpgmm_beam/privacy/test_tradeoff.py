import itertools
import math
from pathlib import Path

import dp_accounting
import mpmath
import numpy as np
import pytest
import riskcal
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.accounting import MAX_EPSILON, MIN_EPSILON, Budget, Mechanism, calibrated
from dpgmm_beam.privacy.accounting import event_from_json as event_of
from dpgmm_beam.privacy.tradeoff import (
    BASELINES,
    DELTA_OF_MU,
    FALSE_POSITIVE_RATES,
    MAX_ADVANTAGE,
    MAX_MU,
    MIN_ADVANTAGE,
    MIN_MU,
    budget_of_mu,
    in_words,
    mu_of_advantage,
    operational,
)

BUDGETS = list(itertools.product((MIN_EPSILON, 0.5, 1.0, 8.0, MAX_EPSILON), (1e-12, 1e-5, 0.4999)))
MECHANISMS = (Mechanism("count", 0.05), Mechanism("sum", 0.25), Mechanism("rounds", 0.7, 20))


def stated(figures):
    return {"mu": figures.mu, "advantage": figures.advantage, **figures.tpr_at_fpr, **figures.reconstruction}


def exact(mu):
    """The same figures to hundreds of digits, by another way to the quantiles."""
    quantile = {
        rate: mpmath.findroot(lambda x, rate=rate: mpmath.ncdf(x) - mpmath.mpf(str(rate)), -3.0)
        for rate in {*FALSE_POSITIVE_RATES, *BASELINES}
    }
    curve = {rate: mpmath.ncdf(found + mu) for rate, found in quantile.items()}
    return {"mu": mu, "advantage": 2 * mpmath.ncdf(mu / 2) - 1, **curve}


@pytest.mark.parametrize(("epsilon", "delta"), BUDGETS)
def test_figures_are_never_below_the_true_ones_and_hardly_above(epsilon, delta):
    multiplier = calibrated(epsilon, delta)
    with mpmath.workdps(400):
        true = exact(1 / mpmath.mpf(multiplier))
        for name, value in stated(operational(multiplier)).items():
            # The decimal number that a manifest shows.
            shown = mpmath.mpf(repr(value))
            assert shown >= true[name], name
            assert shown <= true[name] * 1.0011, name
            if name != "mu":
                assert value <= 1


@pytest.mark.parametrize("multiplier", [0.3, 0.6, 1.1, 3.7306, 10.67, 40.0])
def test_riskcal_says_the_same(multiplier):
    figures = operational(multiplier)
    advantage = riskcal.analysis.get_advantage_from_gdp(1 / multiplier)
    assert figures.advantage == pytest.approx(advantage, rel=2e-3)
    for rate, value in figures.tpr_at_fpr.items():
        beta = riskcal.analysis.get_beta_from_gdp(1 / multiplier, rate)
        assert value == pytest.approx(1 - float(beta), rel=2e-3)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-5), (1.0, 1e-6), (4.0, 1e-5)])
def test_the_accountant_finds_no_more_in_the_whole_composition(epsilon, delta):
    """riskcal's attacks on dp-accounting's privacy loss of all mechanisms: pessimistic by its grid."""
    budget = Budget(epsilon, delta, MECHANISMS)
    accountant = pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-4
    )
    accountant.compose(event_of(budget.event()))
    loss, figures = accountant._pld, operational(budget.noise_multiplier)
    assert figures.advantage == pytest.approx(riskcal.analysis.get_advantage_from_pld(loss), rel=3e-3)
    for rate, value in figures.tpr_at_fpr.items():
        found = 1 - float(np.squeeze(riskcal.analysis.get_beta_from_pld(loss, rate)))
        assert value == pytest.approx(found, rel=5e-3)


def test_no_test_between_two_gaussians_beats_the_figures():
    """The worst neighbours: one unit moves the statistic by the whole sensitivity."""
    multiplier, draws = 1.5, 400_000
    generator = np.random.default_rng(5)
    without, with_unit = generator.normal(0, multiplier, (2, draws)) + np.array([[0.0], [1.0]])
    figures = operational(multiplier)
    grid = np.linspace(-8, 9, 400)
    true_rates, false_rates = ((each[None] > grid[:, None]).mean(axis=1) for each in (with_unit, without))
    # Five and a half standard errors of a difference of two rates: under 1e-6 over all of the grid's gaps.
    margin = 5.5 * math.sqrt(0.5 / draws)
    assert abs((true_rates - false_rates).max() - figures.advantage) < margin
    for rate, value in figures.tpr_at_fpr.items():
        threshold = np.quantile(without, 1 - rate)
        assert abs((with_unit > threshold).mean() - value) < 0.1 * value


def test_a_person_of_many_images():
    one, ten = operational(30.0), operational(30.0, units=10)
    assert ten == operational(3.0)
    assert ten.mu == pytest.approx(10 * one.mu, rel=1e-5)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_no_figures_of_no_noise(wrong):
    with pytest.raises(ConfigError, match="noise multiplier"):
        operational(wrong)
    with pytest.raises(ConfigError, match="units"):
        operational(1.0, units=0)


@settings(max_examples=60)
@given(st.floats(MIN_MU, MAX_MU))
def test_what_was_asked_for_in_mu_is_kept(mu):
    epsilon, delta = budget_of_mu(mu)
    assert (delta, float(f"{epsilon:.8g}")) == (DELTA_OF_MU, epsilon)
    multiplier = calibrated(epsilon, delta)
    assert 1 / multiplier <= mu
    assert operational(multiplier).mu <= mu
    # Little is given away: the sixth digit of mu is rounded down.
    assert 1 / multiplier >= mu * (1 - 2e-5)


@settings(max_examples=60)
@given(st.floats(MIN_ADVANTAGE, MAX_ADVANTAGE))
def test_what_was_asked_for_in_advantage_is_kept(advantage):
    multiplier = calibrated(*budget_of_mu(mu_of_advantage(advantage)))
    assert operational(multiplier).advantage <= advantage
    assert operational(multiplier * 0.9985).advantage >= advantage * 0.998 - 1e-4


@pytest.mark.parametrize("mu", [MIN_MU, 0.01, 0.1, 0.25, 0.5, 1, 1.0, 2.0, 3.0, MAX_MU])
def test_round_figures_are_stated_as_they_were_asked_for(mu):
    assert operational(calibrated(*budget_of_mu(mu))).mu == mu


@pytest.mark.parametrize("mu", [0, -1.0, 0.00029, 39.1, math.nan, math.inf, "1", None])
def test_mu_out_of_range(mu):
    with pytest.raises(ConfigError, match=f"mu={mu} is refused: it must be a number from 0.0003 to 39"):
        budget_of_mu(mu)


@pytest.mark.parametrize("advantage", [0, -0.1, 0.0001, 1, 0.99991, math.nan, math.inf, ".1", None])
def test_advantage_out_of_range(advantage):
    with pytest.raises(ConfigError, match=f"max_advantage={advantage} is refused.*from 0.0002 to 0.9999"):
        mu_of_advantage(advantage)


def test_the_table_of_the_documentation():
    text = (Path(__file__).parents[3] / "docs/privacy.md").read_text()
    table = [line.split(" | ") for line in text.splitlines() if line.startswith(("| `", "| figure"))]
    start = next(index for index, cells in enumerate(table) if cells[0] == "| figure")
    shown = [[cells[3], cells[4].removesuffix(" |")] for cells in table[start : start + 7]]
    assert shown[0] == ["E = 1, D = 10⁻⁶", "E = 8, D = 10⁻⁶"]
    for column, epsilon in enumerate((1.0, 8.0)):
        figures = operational(calibrated(epsilon, 1e-6))
        due = [
            figures.mu,
            figures.advantage,
            *figures.tpr_at_fpr.values(),
            *figures.reconstruction.values(),
        ]
        assert [float(cells[column]) for cells in shown[1:]] == due
    ten = operational(calibrated(1.0, 1e-6), units=10).advantage
    assert f"ten images the advantage is up to .{math.ceil(ten * 1000)}." in text


def test_words_have_the_figures_and_nothing_else():
    figures = operational(2.0)
    right, found, made, unit = in_words(figures)
    assert f"{50 + 50 * figures.advantage:.1f}"[:3] in right
    assert f"at most {math.ceil(figures.tpr_at_fpr[0.01] * 1e4) / 100:.3g} in 100" in found
    assert "in 1,000 wrongly" in found
    assert "1,000,000" in made
    assert "every other image" in unit
    assert "100 times in 100" in in_words(operational(0.02))[0]
