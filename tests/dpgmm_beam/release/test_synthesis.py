import dataclasses
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.fit.projection import Projection, pack_projection
from dpgmm_beam.mixture import Mixture, Sampler
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release.labels import Labeller
from dpgmm_beam.release.row_statement import RowStatement, stated
from dpgmm_beam.release.synthesis import Parts, draw_part, generator_of_key, generator_of_seed

KEY = NoiseKey(bytes(range(32))).within("release")


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 10, 1000, 8192, 10_000])
@pytest.mark.parametrize("samples", [1, 7, 819, 820, 6000, 8191, 8193])
def test_parts_cover_every_class_exactly(classes, samples):
    if classes * samples > 9_000_000:
        samples = 13
    parts = Parts(classes, classes * samples)
    counts = np.zeros(classes, dtype=int)
    for part in range(len(parts)):
        indices = parts.class_indices(part)
        assert len(indices) == parts.rows_of(part)
        assert 0 < len(indices) <= max(8192, classes)
        # Classes take turns, so that any prefix is balanced.
        np.testing.assert_array_equal(indices[:classes], np.arange(classes))
        counts += np.bincount(indices, minlength=classes)
    assert (counts == samples).all()
    assert len({parts.name(part) for part in range(len(parts))}) == len(parts)


@pytest.mark.parametrize(("classes", "rows"), [(3, 1), (3, 2), (3, 8), (10, 8191), (10, 20_001), (1, 9000)])
def test_rows_that_the_classes_do_not_divide(classes, rows):
    parts = Parts(classes, rows)
    indices = [parts.class_indices(part) for part in range(len(parts))]
    counts = np.bincount(np.concatenate(indices), minlength=classes)
    assert counts.sum() == rows
    assert counts.max() - counts.min() <= 1
    assert all(len(found) == parts.rows_of(part) > 0 for part, found in enumerate(indices))


def test_seeds_and_parts_have_generators_of_their_own():
    draws = {generator_of_seed(seed, part).random() for seed in (0, 1, 2**63) for part in range(3)}
    assert len(draws) == 9
    assert generator_of_seed(1, 2).random() in draws


def test_names_tell_how_many_there_are():
    assert Parts(10, 60_000).name(3) == "part-00003-of-00008.parquet"


def release(dimension=3, classes=3):
    mixture = Mixture(
        classes=("x", "y", "z")[:classes],
        class_weights=np.full(classes, 1 / classes),
        weights=np.ones((classes, 1)),
        means=0.8 * np.eye(classes, dimension)[:, None],
        covariances=np.broadcast_to(np.eye(dimension), (classes, 1, dimension, dimension)),
        basis=0.1 * np.eye(dimension),
    )
    weights = np.column_stack([20.0 * np.eye(classes, dimension), np.zeros(classes)])
    view = Projection(np.zeros(dimension), pack_projection(0.5 * np.eye(dimension)))
    return mixture, Labeller(mixture.classes, weights, view, 2.0, None)


def drawn(part, key=KEY, samples=5000, **shape):
    mixture, labeller = release(**shape)
    parts = Parts(len(mixture.classes), samples * len(mixture.classes))
    return draw_part(parts, part, Sampler(mixture), labeller, generator_of_key(key, part), statement(mixture))


def statement(mixture):
    config = ReleaseConfig("precomputed", mixture.classes, mixture.dimension, 1.0, 1e-5)
    return RowStatement.of(config, "id", mixture)


def test_a_part_drawn_again_is_the_same_bytes_and_others_are_not():
    assert drawn(0) == drawn(0)
    other = NoiseKey(bytes(32)).within("release")
    assert len({drawn(0), drawn(1), drawn(0, other), drawn(0, KEY.within("x"))}) == 4


def test_what_a_part_holds():
    table = pq.read_table(io.BytesIO(drawn(1)))
    floats = pa.list_(pa.float32(), 3)
    assert table.schema.types == [pa.string(), floats, floats, pa.string(), pa.int32()]
    assert table.column_names == [
        "label",
        "embedding",
        "label_probabilities",
        "component_class",
        "component",
    ]
    assert table.column("component_class").to_pylist()[:4] == ["x", "y", "z", "x"]
    assert len(table) == 3 * (5000 - 2730)
    embeddings = np.array(table.column("embedding").to_pylist())
    probabilities = np.array(table.column("label_probabilities").to_pylist())
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    # The order of the probabilities is that of the declared classes.
    likeliest = probabilities.argmax(axis=1)
    assert (likeliest == embeddings.argmax(axis=1)).mean() > 0.99
    assert (likeliest == np.tile(np.arange(3), 2270)).mean() > 0.95
    assert table.column("label").to_pylist() == ["xyz"[index] for index in likeliest]
    assert set(table.column("component").to_pylist()) == {0}


def test_the_label_is_the_teachers_where_classes_overlap():
    mixture, labeller = release()
    mixture = dataclasses.replace(mixture, basis=np.eye(3))
    parts, generator = Parts(3, 3000), generator_of_key(KEY, 0)
    part = draw_part(parts, 0, Sampler(mixture), labeller, generator, statement(mixture))
    table = pq.read_table(io.BytesIO(part))
    label, component_class = (np.array(table[name]) for name in ("label", "component_class"))
    likeliest = np.array(table["label_probabilities"].to_pylist()).argmax(axis=1)
    assert (label == np.array(["x", "y", "z"])[likeliest]).all()
    assert (component_class == np.tile(["x", "y", "z"], 1000)).all()
    assert 0.3 < (label == component_class).mean() < 0.9


def test_what_a_part_says_of_itself():
    found = stated(pq.read_schema(io.BytesIO(drawn(1))).metadata)
    assert (found.part, found.parts) == (1, 2)
    assert found.rows == statement(release()[0])


def test_one_class_has_probability_one():
    table = pq.read_table(io.BytesIO(drawn(0, classes=1)))
    assert set(table.column("label_probabilities").combine_chunks().flatten().to_pylist()) == {1.0}


def test_a_drawn_row_that_is_zero_is_released_like_any_other():
    _, labeller = release()
    embeddings = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)
    found = labeller.probabilities(embeddings)
    np.testing.assert_allclose(found[[0, 2]], 1 / 3, rtol=1e-6)
    assert found[1].argmax() == 1
