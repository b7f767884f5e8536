import numpy as np
import pytest
import threadpoolctl

from dpgmm_beam.fit.projection import Projection, pack_projection
from dpgmm_beam.release.labels import Labeller

CLASSES, DIMENSION = 4, 6


def labeller(clip_norm=None, seed=0):
    generator = np.random.default_rng(seed)
    matrix = pack_projection(0.3 * generator.standard_normal((DIMENSION, DIMENSION)))
    centre = np.rint(1000 * generator.standard_normal(DIMENSION))
    weights = (5 * generator.standard_normal((CLASSES, DIMENSION + 1))).astype(np.float32)
    return Labeller(("a", "b", "c", "d"), weights, Projection(centre, matrix), 3.0, clip_norm)


def rows(n=500):
    return np.random.default_rng(1).standard_normal((n, DIMENSION)).astype(np.float32)


@pytest.mark.parametrize("clip_norm", [None, 2.0])
def test_probabilities_are_those_of_the_teacher(clip_norm):
    model, x = labeller(clip_norm), rows()
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / (norms if clip_norm is None else np.maximum(norms, clip_norm))
    features = (unit - model.view.offset / 2**15) @ (model.view.matrix / 2**20).T
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    features = np.column_stack([features / np.maximum(lengths, 1), np.full(len(x), 1 / 3)])
    powers = np.exp(features @ model.weights.T)
    found = model.probabilities(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, powers / powers.sum(axis=1, keepdims=True), atol=2e-3)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_they_do_not_depend_on_batches_and_threads():
    model, x = labeller(), rows()
    whole = model.probabilities(x)
    np.testing.assert_array_equal(
        np.concatenate([model.probabilities(x[s : s + 7]) for s in range(0, 500, 7)]), whole
    )
    for threads in (1, 2):
        with threadpoolctl.threadpool_limits(threads, user_api="blas"):
            np.testing.assert_array_equal(model.probabilities(x), whole)


def test_no_rows_and_zero_rows():
    model = labeller()
    assert model.probabilities(np.zeros((0, DIMENSION), np.float32)).shape == (0, CLASSES)
    assert model.probabilities(np.zeros((3, DIMENSION), np.float32)).shape == (3, CLASSES)


@pytest.mark.parametrize("clip_norm", [None, 2.0])
def test_it_labels_as_before_when_it_was_saved_and_loaded(clip_norm):
    model, files = labeller(clip_norm), {}
    model.save(lambda name, data, count: files.update({name: data}))
    again = Labeller.load(files.__getitem__)
    assert again.classes == model.classes
    np.testing.assert_array_equal(again.probabilities(rows()), model.probabilities(rows()))
    repeated = {}
    again.save(lambda name, data, count: repeated.update({name: data}))
    assert repeated == files
