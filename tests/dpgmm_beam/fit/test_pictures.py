"""Pictures beside embeddings: what one row can change, and what is found of the two."""

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.data.rows import Rows, rows_of
from dpgmm_beam.encoders.dct import PictureForm
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit import chain, pictures
from dpgmm_beam.fit.pictures import PictureMeans, PictureSlopes, picture_map_of
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy import lattice
from dpgmm_beam.privacy.neighbours import ADD_REMOVE, REPLACE_ONE
from dpgmm_beam.privacy.noise import NoiseKey
from tests.dpgmm_beam.fit.steps import sums_of
from tests.strategies import quick, real_row, splits

SECRET = NoiseKey(bytes(range(32)))
FORM = PictureForm(8, 1)
CLASSES, DIMENSION = 3, 24
KINDS = ("normal", "one-hot", "equal", "signs", "opposite", "sparse", "big")


class WithoutNoise(Plan):
    """A plan that adds next to no noise: not private."""

    def multipliers(self, stage):
        return dict.fromkeys(super().multipliers(stage), 1e-6)


def config_of(epsilon=8.0, **changes):
    options = {
        "components": 1,
        "method": Method(teacher_steps=2, subspace_dim=4),
        "decodable": "8",
        **changes,
    }
    return ReleaseConfig("test", tuple("abc"), DIMENSION, epsilon, 1e-5, **options)


def jointly_gaussian(n, seed=0):
    """Embeddings of unit norm and pictures that are a linear function of them, but for some noise."""
    generator = np.random.default_rng(seed)
    classes = np.arange(n) % CLASSES
    centres, means = generator.normal(size=(CLASSES, DIMENSION)), 0.3 * generator.normal(size=(CLASSES, 64))
    drawn = centres[classes] + generator.normal(size=(n, DIMENSION))
    values = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    slopes = 0.4 * generator.normal(size=(DIMENSION, 64)) / (1 + FORM.frequencies)
    seen = means[classes] + values @ slopes + 0.02 * generator.normal(size=(n, 64))
    return values, seen, classes


def rows_with(values, seen, classes):
    return rows_of(values, classes, pictures=seen, picture_norm=FORM.usual_norm)


def some_rows(seed, kinds):
    generator = np.random.default_rng(seed)
    values = np.array([real_row(kind, DIMENSION, generator) for kind in kinds])
    seen = np.array([real_row(kinds[-1 - i], FORM.dimension, generator) for i in range(len(kinds))])
    seen *= generator.choice([0.1, 1.0, 30.0], len(kinds))[:, None]
    return rows_with(values, seen, generator.integers(0, CLASSES, len(kinds)))


@functools.cache
def checkpoints(adjacency=ADD_REMOVE, most=None):
    """Before each of the two stages; any state would do, since whoever attacks may know what was released."""
    config = config_of(adjacency=adjacency, max_rows_per_unit=most)
    rows = rows_with(*jointly_gaussian(200))
    current, found = chain.begin(Plan(config, "id"), SECRET, 1), []
    while len(found) < 2:
        if isinstance(current.stage, PictureMeans | PictureSlopes):
            found.append(current)
        summing = chain.Summing(current, SECRET)
        sums = summing.begin()
        summing.add(rows, sums)
        current = chain.advance(current, summing.finish(sums), SECRET)
    return found


def exact_sums(before, rows):
    return sums_of(before.stage, rows, before.state)


data = st.tuples(st.integers(0, 2**32), st.lists(st.sampled_from(KINDS), min_size=1, max_size=8))


@quick
@given(data, st.data())
def test_removing_one_row_moves_no_query_by_more_than_its_sensitivity(drawn, draw):
    rows = some_rows(*drawn)
    out = draw.draw(st.integers(0, len(rows) - 1))
    for before in checkpoints():
        whole = exact_sums(before, rows)
        rest = exact_sums(before, rows.kept(np.delete(np.arange(len(rows)), out)))
        for query in before.stage.queries:
            square = sum(int(value) ** 2 for value in whole[query.name] - rest[query.name])
            assert square <= query.l2_sensitivity**2


@quick
@given(data, data, st.sampled_from([ADD_REMOVE, REPLACE_ONE]), st.integers(1, 3))
def test_whatever_unit_comes_or_goes_sums_differ_by_no_more_than_is_charged(one, other, adjacency, most):
    """A unit of up to L rows leaves, and with `replace_one` another comes."""
    leaving, coming = some_rows(*one), some_rows(*other)
    leaving, coming = (each.kept(np.arange(min(most, len(each)))) for each in (leaving, coming))
    for before in checkpoints(adjacency, most):
        differences = exact_sums(before, leaving)
        if adjacency == REPLACE_ONE:
            new = exact_sums(before, coming)
            differences = {name: value - new[name] for name, value in differences.items()}
        multipliers = before.plan.multipliers(before.stage)
        for query in before.stage.queries:
            budget = before.plan.budget.multiplier(f"pictures/{query.name}")
            charged = multipliers[query.name] * query.l2_sensitivity / budget
            assert np.linalg.norm(differences[query.name].astype(float)) <= charged * (1 + 1e-12)


def test_the_sensitivities_are_reached():
    """A bound that no row comes near would waste the budget."""
    first, second = checkpoints()
    # Of classes whose mean picture is nothing, along the first direction of the view.
    nothing = dataclasses.replace(second.state.pictures, means=np.zeros((CLASSES, 64), np.int32))
    second = dataclasses.replace(second, state=dataclasses.replace(second.state, pictures=nothing))
    values = second.state.subspace.matrix[:1].astype(float)
    # All of a picture's energy in one ring.
    seen = np.zeros((1, 64))
    seen[0, 0] = 1e3
    row = rows_with(values, seen, [0])
    found = {
        query.name: np.linalg.norm(exact_sums(before, row)[query.name].astype(float)) / query.l2_sensitivity
        for before in (first, second)
        for query in before.stage.queries
    }
    assert found["sum"] == pytest.approx(1, rel=1e-4)
    assert found["square"] == pytest.approx(1, rel=1e-3)
    assert found["cross"] == pytest.approx(1, rel=0.05)


@quick
@given(data, st.data())
def test_any_partition_and_order_gives_the_same_statistics(drawn, draw):
    rows = some_rows(*drawn)
    pieces = draw.draw(splits(len(rows)))
    for before in checkpoints():
        whole = exact_sums(before, rows)
        for name, values in exact_sums(before, [rows.kept(piece) for piece in pieces]).items():
            np.testing.assert_array_equal(values, whole[name])
            assert values.dtype == np.int64


@pytest.mark.parametrize("components", [1, 2])
def test_a_fit_is_the_same_for_all_blocks_and_threads(components):
    plan = Plan(config_of(components=components, rounds=2), "id")
    rows = rows_with(*jointly_gaussian(600))
    mixed = rows.kept(np.random.default_rng(1).permutation(len(rows)))
    expected = chain.fit(plan, lambda: [rows], SECRET).digest()
    assert chain.fit(plan, lambda: rows.blocks(37), SECRET).digest() == expected
    assert chain.fit(plan, lambda: mixed.blocks(100), SECRET, threads=3).digest() == expected
    # Data with other pictures is other data, whose noise is fresh everywhere.
    other = dataclasses.replace(rows, pictures=rows.pictures.copy())
    other.pictures[5, 3] += 1
    one, two = (chain.fit(plan, lambda each=each: [each], SECRET) for each in (rows, other))
    assert one.data_digest != two.data_digest


def test_without_noise_the_map_is_the_regression_of_pictures_on_embeddings():
    values, seen, classes = jointly_gaussian(30_000)
    config = config_of(method=Method(teacher_steps=1, subspace_dim=DIMENSION), components=1)
    rows = rows_with(values, seen, classes)
    final = chain.fit(WithoutNoise(config, "id"), lambda: rows.blocks(4096), SECRET)
    found = picture_map_of(config, final.state)
    assert found.fits(FORM, config.classes, DIMENSION)
    for label in range(CLASSES):
        own = classes == label
        np.testing.assert_allclose(found.means[label], seen[own].mean(axis=0), atol=0.003)
    offsets = values - found.centres[classes]
    # As numbers of variance 1.
    numbers = offsets @ found.directions.T
    assert (numbers**2).mean() == pytest.approx(1, rel=0.05)
    made = found.means[classes] + numbers @ found.slopes
    within = seen - np.stack([seen[classes == label].mean(axis=0) for label in range(CLASSES)])[classes]
    best = np.linalg.lstsq(offsets, within, rcond=None)[0]
    left, least = ((seen - made) ** 2).mean(), ((within - offsets @ best) ** 2).mean()
    assert left < 1.1 * least
    assert left < 0.4 * (within**2).mean()
    np.testing.assert_allclose(found.residuals.sum(), ((seen - made) ** 2).sum(axis=1).mean(), rtol=0.2)


def test_noise_shrinks_the_map():
    """At small budgets pictures are the mean of all, rather than noise."""
    rows, sizes = rows_with(*jointly_gaussian(3000)), []
    for epsilon in (0.02, 2.0, 500.0):
        config = config_of(epsilon)
        found = picture_map_of(config, chain.fit(Plan(config, "id"), lambda: [rows], SECRET).state)
        sizes.append(np.linalg.norm(found.slopes))
        assert np.isfinite(found.slopes).all()
        assert (found.residuals >= 0).all()
        assert np.linalg.norm(found.means, axis=1).max() <= FORM.usual_norm
    assert sizes[0] < 0.5 * sizes[2]


def test_of_noise_alone_next_to_nothing_is_kept():
    """Seeds are fixed; of new ones 1 in 700 would show more than three deviations."""
    rings, used = FORM.rings, np.arange(12) < 9
    for seed in range(40):
        noise = np.random.default_rng(seed).standard_normal((FORM.dimension, 9))
        assert pictures._kept(noise, 1.0, rings, used).sum() == 0.0


def test_overwhelming_noise_gives_a_map_all_the_same():
    first, second = checkpoints()
    generator = np.random.default_rng(0)
    for before in (first, second):
        noisy = {
            query.name: np.rint(generator.normal(size=query.size) * 1e12).astype(np.int64)
            for query in before.stage.queries
        }
        after = before.stage.advance(before.state, noisy, dict.fromkeys(noisy, 1e9)).state.pictures
        assert np.abs(after.means).max() <= lattice.UNIT
        if after.slopes is not None:
            assert np.isfinite(after.slopes).all()
            assert np.isfinite(after.residuals).all()


def test_data_without_a_row_and_with_one_is_released_like_any_other():
    config = config_of(1.0)
    for count in (0, 1):
        rows = rows_with(*jointly_gaussian(3)).kept(np.arange(count))
        found = picture_map_of(config, chain.fit(Plan(config, "id"), lambda rows=rows: [rows], SECRET).state)
        assert found.fits(FORM, config.classes, DIMENSION)


def test_colour():
    form = PictureForm(8, 3)
    values, _, classes = jointly_gaussian(300)
    seen = np.random.default_rng(0).normal(size=(300, form.dimension)) * 0.1
    rows = rows_of(values, classes, pictures=seen, picture_norm=form.usual_norm)
    config = config_of(decodable="8:rgb")
    found = picture_map_of(config, chain.fit(Plan(config, "id"), lambda: [rows], SECRET).state)
    assert found.fits(form, config.classes, DIMENSION)


def test_the_budget_pays_for_it_and_only_where_it_is_wanted():
    usual, decodable = (Plan(config_of(decodable=each), "id") for each in (None, "8"))
    names = [each.name for each in decodable.budget.mechanisms if each.name.startswith("pictures/")]
    assert names == ["pictures/sum", "pictures/cross", "pictures/square"]
    assert not [each for each in usual.budget.mechanisms if each.name.startswith("pictures/")]
    for plan in (usual, decodable):
        assert sum(each.share for each in plan.budget.mechanisms) == pytest.approx(1)
    # Each of the others has as much less.
    before = {each.name: each.share for each in usual.budget.mechanisms}
    after = {each.name: each.share for each in decodable.budget.mechanisms}
    ratios = [after[name] / share for name, share in before.items()]
    np.testing.assert_allclose(ratios, ratios[0])
    assert usual.config.fit_digest != decodable.config.fit_digest


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"decodable": "7"}, "decodable=7 is refused: it must be SIDE from 8 to 64 pixels"),
        ({"decodable": "28:gray"}, "decodable=28:gray is refused"),
        ({"decodable": "60:rgb"}, "decodable=60:rgb is refused"),
        ({"decodable": ""}, "decodable= is refused"),
    ],
)
def test_refusals(changes, sentence):
    with pytest.raises(ConfigError) as error:
        config_of(**changes)
    assert sentence in str(error.value)


def test_pictures_of_pictures_are_refused():
    with pytest.raises(ConfigError, match="decodable=8 is refused: it must be left out with dct:8"):
        ReleaseConfig("dct:8", ("a",), 64, 1.0, 1e-5, decodable="8")


def test_the_radius_is_what_public_pictures_have():
    """scikit-learn's digits, less their class's mean: nine of ten are within it."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    seen = digits.data / 16
    means = np.stack([seen[digits.target == label].mean(axis=0) for label in range(10)])
    lengths = np.linalg.norm(seen - means[digits.target], axis=1)
    assert (lengths <= pictures.RADIUS * 8).mean() > 0.9


def test_rows_of_another_length_of_pictures_do_not_add_up():
    row = Rows(np.zeros((1, DIMENSION), np.int16), np.zeros(1, np.int32), pictures=np.zeros((1, 5), np.int16))
    with pytest.raises(ValueError, match="shape"):
        exact_sums(checkpoints()[1], row)
