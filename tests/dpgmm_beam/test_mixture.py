import dataclasses

import numpy as np
import pytest
import threadpoolctl
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.mixture import Mixture, Sampler


def example(dimension=6, r=3, components=2, normalized=False, seed=0, scale=0.1):
    generator = np.random.default_rng(seed)
    factors = 0.4 * generator.standard_normal((3, components, r, r))
    weights = generator.random((3, components)) + 0.2
    return Mixture(
        classes=("a", "b", "ü"),
        class_weights=np.array([0.5, 0.3, 0.2]),
        weights=weights / weights.sum(axis=1, keepdims=True),
        means=0.3 * generator.standard_normal((3, components, dimension)),
        covariances=factors @ factors.transpose(0, 1, 3, 2) + 0.3 * np.eye(r),
        basis=scale * (np.eye(dimension) + 0.2 * generator.standard_normal((dimension, dimension))),
        normalized=normalized,
        clip_norm=1.0 if normalized else 5.0,
    )


def covariance_of(mixture, c, k):
    """The documented B blockdiag(S_ck, I) B^T."""
    block = np.eye(mixture.dimension)
    r = mixture.covariances.shape[2]
    block[:r, :r] = mixture.covariances[c, k]
    return mixture.basis @ block @ mixture.basis.T


def saved(mixture):
    files = {}
    mixture.save(lambda name, data, rows: files.update({name: data}))
    return files


def test_save_and_load():
    mixture = example()
    files = saved(mixture)
    again = Mixture.load(files.__getitem__)
    for name in ("class_weights", "weights", "means", "covariances", "basis"):
        np.testing.assert_array_equal(getattr(again, name), getattr(mixture, name))
    assert (again.classes, again.normalized, again.clip_norm) == (mixture.classes, False, 5.0)
    assert saved(again) == files == saved(example())
    np.testing.assert_array_equal(again.sample(5, seed=3), mixture.sample(5, seed=3))


def test_components_that_a_class_does_not_have_take_no_room():
    mixture = example(components=4)
    weights = mixture.weights * (np.arange(4) < np.array([[4], [1], [2]]))
    weights /= weights.sum(axis=1, keepdims=True)
    mixture = dataclasses.replace(mixture, weights=weights)
    files, counts = saved(mixture), {}
    mixture.save(lambda name, data, rows: counts.update({name: rows}))
    assert counts["components.parquet"] == 7
    again = Mixture.load(files.__getitem__)
    np.testing.assert_array_equal(again.weights, weights)
    np.testing.assert_array_equal(again.means[weights > 0], mixture.means[weights > 0])
    np.testing.assert_array_equal(again.covariances[1], np.repeat(again.covariances[1, :1], 4, axis=0))
    assert saved(again) == files
    np.testing.assert_array_equal(again.sample(50, seed=3), mixture.sample(50, seed=3))
    np.testing.assert_allclose(again.log_prob(again.means[0]), mixture.log_prob(mixture.means[0]))


def test_rows_are_counted_when_saved():
    counts = {}
    example().save(lambda name, data, rows: counts.update({name: rows}))
    assert counts == {"components.parquet": 6, "basis.parquet": 6}


def test_log_prob_is_that_of_the_documented_gaussians():
    mixture = example()
    x = 0.5 * np.random.default_rng(1).standard_normal((50, 6))
    by_class = np.empty((50, 3))
    for c in range(3):
        terms = [
            np.log(mixture.weights[c, k])
            + multivariate_normal(mixture.means[c, k], covariance_of(mixture, c, k)).logpdf(x)
            for k in range(2)
        ]
        by_class[:, c] = logsumexp(terms, axis=0)
    np.testing.assert_allclose(mixture.log_prob_by_class(x), by_class, rtol=1e-9)
    np.testing.assert_allclose(
        mixture.log_prob(x), logsumexp(by_class + np.log(mixture.class_weights), axis=1), rtol=1e-9
    )
    np.testing.assert_allclose(mixture["b"].log_prob(x), by_class[:, 1], rtol=1e-9)
    for wrong in (x[0], x[:, :3]):
        with pytest.raises(ConfigError, match=r"have shape \(n, 6\)"):
            mixture.log_prob(wrong)


def test_one_class():
    one = example()["ü"]
    assert one.classes == ("ü",)
    assert one.means.shape == (1, 2, 6)
    assert one.sample(7, seed=0).embeddings.shape == (7, 6)
    assert set(one.sample(7, seed=0).component_class) == {"ü"}
    assert one.class_rows is None
    counted = dataclasses.replace(example(), class_rows=np.array([5.0, -1.0, 7.0]), class_rows_stddev=3.0)
    assert counted["b"].class_rows.tolist() == [-1]
    assert counted["b"].class_rows_stddev == 3
    with pytest.raises(ValueError, match="tuple"):
        example()["z"]


def test_samples_have_the_moments_of_the_model():
    mixture = example(scale=0.05)  # rows stay far inside the clipping norm
    n = 40_000
    for c in range(3):
        drawn = Sampler(mixture).draw(np.full(n, c), np.random.default_rng(c)).astype(float)
        mean = mixture.weights[c] @ mixture.means[c]
        second = sum(
            mixture.weights[c, k]
            * (covariance_of(mixture, c, k) + np.outer(mixture.means[c, k], mixture.means[c, k]))
            for k in range(2)
        )
        covariance = second - np.outer(mean, mean)
        # Seven standard errors: 3e-12 by chance for each of the 126 figures (normal by n).
        assert (np.abs(drawn.mean(axis=0) - mean) < 7 * np.sqrt(np.diag(covariance) / n)).all()
        products = np.einsum("ni,nj->nij", drawn - mean, drawn - mean)
        error = products.std(axis=0) / np.sqrt(n)
        assert (np.abs(products.mean(axis=0) - covariance) < 7 * error).all()


def test_classes_come_by_their_weights():
    drawn = example().sample(50_000, seed=0)
    shares = np.array([(drawn.component_class == label).mean() for label in ("a", "b", "ü")])
    # Six standard errors: 2e-9 by chance.
    assert (np.abs(shares - [0.5, 0.3, 0.2]) < 6 * np.sqrt(0.25 / 50_000)).all()


class ByTheLargest:
    """A teacher that goes by the largest of the first four coordinates."""

    classes = ("a", "b", "c", "d")

    def probabilities(self, embeddings):
        powers = np.exp(10 * embeddings[:, :4])
        return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def test_a_sample_says_what_its_rows_are():
    mixture = dataclasses.replace(example(), labeller=ByTheLargest())
    for one, classes in ((mixture, {"a", "b", "ü"}), (mixture["b"], {"b"})):
        drawn = one.sample(500, seed=1)
        assert len(drawn) == 500
        assert drawn.label_probabilities.shape == (500, 4)
        assert drawn.label_probabilities.dtype == np.float32
        largest = drawn.embeddings[:, :4].argmax(axis=1)
        assert drawn.labels.tolist() == [ByTheLargest.classes[index] for index in largest]
        assert set(drawn.component_class) == classes
        assert set(drawn.component.tolist()) == {0, 1}
    without = example().sample(500, seed=1)
    assert without.labels is without.label_probabilities is None
    np.testing.assert_array_equal(without.embeddings, mixture.sample(500, seed=1).embeddings)


def test_components_are_those_that_rows_were_drawn_in():
    """Far apart, so that the nearest mean tells which."""
    mixture = dataclasses.replace(example(scale=0.001), means=np.eye(6).reshape(3, 2, 6))
    drawn = mixture.sample(2000, seed=0)
    nearest = drawn.embeddings.argmax(axis=1)
    positions = np.array([("a", "b", "ü").index(label) for label in drawn.component_class])
    assert (nearest == 2 * positions + drawn.component).all()
    shares = np.bincount(drawn.component[positions == 0]) / (positions == 0).sum()
    # Some 1000 rows; six standard errors: 2e-9 by chance.
    np.testing.assert_allclose(shares, mixture.weights[0], atol=6 * np.sqrt(0.25 / 900))


def test_a_sample_stands_for_its_embeddings():
    drawn = example().sample(9, seed=1)
    np.testing.assert_array_equal(np.asarray(drawn), drawn.embeddings)
    np.testing.assert_array_equal(example().log_prob(drawn), example().log_prob(drawn.embeddings))
    assert np.asarray(drawn, np.float64).dtype == np.float64
    assert np.isfinite(drawn).all()


def test_norms_of_samples():
    rows = example(normalized=True).sample(3000, seed=0).embeddings
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-6)
    wide = example(scale=2.0).sample(3000, seed=0).embeddings
    norms = np.linalg.norm(wide, axis=1)
    assert norms.max() <= 5.0 * (1 + 1e-6)
    assert norms.min() < 4.9


def test_draws_do_not_depend_on_threads():
    mixture = example(dimension=200, r=64, components=3, normalized=True)
    classes = np.arange(2500) % 3
    draws = []
    for threads in (1, 2):
        with threadpoolctl.threadpool_limits(threads, user_api="blas"):
            draws.append(Sampler(mixture).draw(classes, np.random.default_rng(0)))
    np.testing.assert_array_equal(draws[0], draws[1])
    assert Sampler(mixture).draw(classes[:0], np.random.default_rng(0)).shape == (0, 200)


def test_samples_repeat_with_the_seed():
    mixture = example()
    np.testing.assert_array_equal(mixture.sample(20, seed=1), mixture.sample(20, seed=1))
    assert not np.array_equal(mixture.sample(20, seed=1), mixture.sample(20, seed=2))


def test_a_mixture_too_stretched_for_exact_sampling_is_refused():
    with pytest.raises(ConfigError, match="summed exactly"):
        Sampler(example(scale=1e8))
