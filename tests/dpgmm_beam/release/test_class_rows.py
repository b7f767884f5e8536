import dataclasses

import numpy as np
import pytest

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.data.rows import rows_of
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release.class_rows import NOISE_STDDEVS, ClassRows, count_stddev

COUNTS = (0, 3, 400)


def config(**changes):
    options = {"epsilon": 1.0, "delta": 1e-5, **changes}
    return ReleaseConfig("precomputed", ("none", "few", "many"), 4, **options)


def counted(key=0, **changes):
    """The counts of data with COUNTS rows a class, as a release would have them."""
    plan = Plan(config(**changes), "id")
    labels = np.repeat(np.arange(3), COUNTS)
    rows = rows_of(np.eye(4)[labels], labels)
    secret = NoiseKey(bytes([key, 1] * 16))
    current = chain.begin(plan, secret, 0)
    summing = chain.Summing(current, secret)
    sums = summing.begin()
    summing.add(rows, sums)
    return ClassRows.of(chain.advance(current, summing.finish(sums), secret))


def test_they_are_exact_counts_with_the_noise_that_is_stated():
    drawn = [counted(key) for key in range(200)]
    errors = np.array([one.rows - COUNTS for one in drawn])
    stddev = count_stddev(Plan(config(), "id"))
    assert {one.stddev for one in drawn} == {stddev}
    # 600 draws of one normal distribution.  Six standard errors of their mean, and of their
    # variance: 4e-9 by chance; a floor below small counts would show in both.
    assert abs(errors.mean()) < 6 * stddev / np.sqrt(600)
    assert abs((errors**2).mean() / stddev**2 - 1) < 6 * np.sqrt(2 / 600)
    assert (errors[:, 0] < 0).any()


def test_with_hardly_any_noise_they_are_the_counts():
    found = counted(epsilon=1000.0, delta=0.4)
    assert found.stddev < 0.5
    assert np.abs(found.rows - COUNTS).max() <= 3


def test_the_stated_noise_is_what_the_budget_states():
    plan = Plan(config(), "id")
    (mechanism,) = (each for each in plan.budget.describe() if each["name"] == "means/count")
    assert count_stddev(plan) == mechanism["noise_multiplier"]


def test_save_and_load():
    found, files = counted(), {}
    found.save(lambda name, data, rows: files.update({name: data}))
    again = ClassRows.load(files.__getitem__)
    assert (again.classes, again.rows.tolist(), again.stddev) == (
        found.classes,
        found.rows.tolist(),
        found.stddev,
    )
    repeated = {}
    again.save(lambda name, data, rows: repeated.update({name: data}))
    assert repeated == files


def test_classes_that_are_no_more_than_noise():
    """The two error rates that are stated, by the normal distribution's own tail."""
    from scipy.stats import norm

    assert norm.sf(NOISE_STDDEVS) == pytest.approx(3.2e-5, rel=0.02)
    at_the_edge = ClassRows(("a", "b", "c"), np.array([39, 40, -70]), 10.0)
    assert at_the_edge.drowned.tolist() == [True, False, True]
    assert "2 of 3 classes are no more than noise (fewer than 40 noisy rows" in at_the_edge.warning()
    assert ": a, c. Are these labels spelt as in the data?" in at_the_edge.warning()
    assert dataclasses.replace(at_the_edge, rows=np.array([40, 40, 40])).warning() == ""


def test_lines_for_few_and_for_many_classes():
    few = ClassRows(tuple(map(str, range(20))), np.arange(20) * 1000, 37.3)
    assert len(few.lines()) == 21
    assert few.lines()[-1] == "     19,000  19"
    many = ClassRows(tuple(map(str, range(300))), np.arange(300) - 5, 37.3)
    (line,) = many.lines()
    assert "each of the 300 classes" in line
    assert "from -5 (0) to 294 (299), 144 in the middle" in line
    assert many.warning().count(", ") < 30
    assert "and 135 more" in many.warning()
