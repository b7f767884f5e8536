import dataclasses

import numpy as np
import pytest
import torch

from dpgmm_beam import network
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.network import TrainConfig, load_network, network_from_bytes, soften, train_network

CLASSES = ("a", "b", "c")
SMALL = TrainConfig(hidden=16, epochs=6, batch_size=32, learning_rate=0.02)


def blobs(rows=600, dimension=10, seed=0, spread=0.25):
    """Rows of norm 1 round three directions, and their classes."""
    generator = np.random.default_rng(seed)
    targets = np.arange(rows) % 3
    embeddings = np.eye(dimension)[targets] + spread * generator.standard_normal((rows, dimension))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings.astype(np.float32), targets


def weights(network):
    return {name: value.numpy() for name, value in network.module.state_dict().items()}


def same(one, two):
    return all(np.array_equal(value, weights(two)[name]) for name, value in weights(one).items())


def test_it_learns_and_its_progress_is_told():
    told = []
    embeddings, targets = blobs()
    network = train_network(embeddings, targets, CLASSES, SMALL, progress=lambda *now: told.append(now))
    held_out, truth = blobs(seed=1)
    assert (network.predict(held_out) == truth).mean() > 0.85
    assert [epoch for epoch, _ in told] == [1, 2, 3, 4, 5, 6]
    assert told[-1][1] < told[0][1]
    np.testing.assert_allclose(network.predict_proba(held_out).sum(axis=1), 1, rtol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_global_generators_are_left_alone():
    embeddings, targets = blobs()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = train_network(embeddings, targets, CLASSES, SMALL)
    assert torch.equal(torch.rand(3), expected)
    assert same(first, train_network(embeddings, targets, CLASSES, SMALL))
    other = dataclasses.replace(SMALL, seed=1)
    assert not same(first, train_network(embeddings, targets, CLASSES, other))


def test_arrays_are_neither_changed_nor_need_be_writable():
    embeddings, targets = blobs()
    before = embeddings.copy()
    embeddings.flags.writeable = targets.flags.writeable = False
    train_network(embeddings, targets, CLASSES, SMALL)
    assert np.array_equal(embeddings, before)


def test_certain_probabilities_are_class_labels():
    embeddings, targets = blobs()
    narrow = dataclasses.replace(SMALL, hidden=5)  # too few units for a start of its own
    hard = train_network(embeddings, targets, CLASSES, narrow)
    soft = train_network(embeddings, np.eye(3, dtype=np.float32)[targets], CLASSES, narrow)
    np.testing.assert_allclose(hard.logits(embeddings), soft.logits(embeddings), atol=1e-3)


def test_probabilities_come_back_as_they_were_before_they_were_softened():
    embeddings, _ = blobs(2000, spread=0.3)
    logits = 6 * embeddings[:, :3]
    probabilities = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    recipe = dataclasses.replace(SMALL, hidden=64, epochs=20)
    network = train_network(embeddings, probabilities, CLASSES, recipe, encoder="some:encoder")
    for each in (network, network_from_bytes(network.to_bytes(), "it")):
        assert (each.soft, each.encoder, each.config) == (True, "some:encoder", recipe)
        error = np.abs(each.predict_proba(embeddings) - probabilities).mean()
        assert error < 0.05
        # Not what the network was trained on, which is much flatter.
        assert np.abs(soften(probabilities, 4.0) - probabilities).mean() > 0.1
    hard = train_network(embeddings, probabilities.argmax(axis=1), CLASSES, recipe)
    assert not hard.soft
    np.testing.assert_allclose(hard.predict_proba(embeddings).sum(axis=1), 1, rtol=1e-5)


def linear_labels(embeddings):
    logits = 6 * embeddings[:, :3]
    return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("hidden", "most"), [(6, 2000), (16, 2000), (16, 300)])
def test_it_starts_as_the_linear_function_that_fits_best(hidden, most, monkeypatch):
    monkeypatch.setattr(network, "_ROWS_AT_ONCE", 100)
    monkeypatch.setattr(network, "_START_ROWS", most)
    embeddings, _ = blobs(2000, spread=0.3)
    still = TrainConfig(hidden=hidden, epochs=1, learning_rate=1e-9)
    started = train_network(embeddings, linear_labels(embeddings), CLASSES, still)
    # Also where no row was.
    for rows in (embeddings, -embeddings):
        np.testing.assert_allclose(started.predict_proba(rows), linear_labels(rows), atol=0.01)
    learnt = train_network(embeddings, linear_labels(embeddings), CLASSES, SMALL)
    assert np.abs(learnt.predict_proba(embeddings) - linear_labels(embeddings)).mean() < 0.01


@pytest.mark.parametrize("rows", [3, 600])
def test_a_class_that_is_nowhere_and_fewer_rows_than_dimensions(rows):
    embeddings, targets = blobs(rows)
    certain = np.eye(3, dtype=np.float32)[np.minimum(targets, 1)]
    network = train_network(embeddings, certain, CLASSES, SMALL)
    assert np.isfinite(network.logits(embeddings)).all()
    assert set(network.predict(embeddings)) == {0, 1}
    alone = train_network(embeddings, np.ones((rows, 1), np.float32), ("all",), SMALL)
    assert (alone.predict_proba(embeddings) == 1).all()


@pytest.mark.parametrize("data", [b"", b"none", b"PK\x03\x04" + bytes(99)])
def test_files_that_are_no_network(tmp_path, data):
    (tmp_path / "model.pt").write_bytes(data)
    for path in (tmp_path, tmp_path / "model.pt", tmp_path / "nowhere.pt"):
        with pytest.raises(
            ConfigError, match=r"network=.* is refused: it must be a network that dpgmm train"
        ):
            load_network(path)


def test_probabilities_are_worth_more_than_one_draw_from_them():
    embeddings, _ = blobs(300, spread=0.5)
    logits = 4 * embeddings[:, :3]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    uniforms = np.random.default_rng(2).random((300, 1))
    drawn = (uniforms > probabilities.cumsum(axis=1)).sum(axis=1)
    held_out, _ = blobs(2000, seed=1, spread=0.5)
    truth = held_out[:, :3].argmax(axis=1)
    accuracy = [
        (train_network(embeddings, labels, CLASSES, SMALL).predict(held_out) == truth).mean()
        for labels in (probabilities, drawn)
    ]
    assert accuracy[0] > accuracy[1] + 0.02


def test_softening_divides_the_logits():
    logits = np.random.default_rng(0).normal(size=(5, 4))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.exp(logits / 4) / np.exp(logits / 4).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(soften(probabilities, 4.0), expected, rtol=1e-5)


@pytest.mark.parametrize("clip_norm", [None, 2.5])
def test_raw_embeddings_are_brought_to_the_norm_of_the_release(clip_norm):
    embeddings, targets = blobs()
    embeddings *= clip_norm or 1
    network = train_network(embeddings, targets, CLASSES, SMALL, clip_norm)
    np.testing.assert_allclose(network.logits(embeddings * 7), network.logits(embeddings), atol=1e-4)
    shorter = network.logits(embeddings / 7)
    assert np.allclose(shorter, network.logits(embeddings), atol=1e-4) == (clip_norm is None)
    assert np.isfinite(network.logits(np.zeros((1, 10), np.float32))).all()


def test_a_file_holds_weights_and_plain_data(tmp_path):
    embeddings, targets = blobs()
    network = train_network(embeddings, targets, CLASSES, SMALL, 0.5)
    (tmp_path / "model.pt").write_bytes(network.to_bytes())
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert set(content) == {"state_dict", "config"}
    for path in (tmp_path, tmp_path / "model.pt"):
        loaded = load_network(path)
        assert (loaded.classes, loaded.config, loaded.module.clip_norm) == (CLASSES, SMALL, 0.5)
        assert np.array_equal(loaded.logits(embeddings), network.logits(embeddings))
    assert network.to_bytes() == network.to_bytes()


@pytest.mark.parametrize("targets", [np.arange(4) % 2, np.full((4, 2), 0.5), np.eye(2)[[0, 1, 1, 1]]])
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_rows_that_are_all_alike(targets, value):
    network = train_network(np.full((4, 3), value, np.float32), targets, ("a", "b"), SMALL)
    assert np.isfinite(network.logits(np.ones((1, 3), np.float32))).all()


@pytest.mark.parametrize(
    ("field", "value", "argument"),
    [
        ("epochs", 0, "epochs"),
        ("hidden", -1, "hidden"),
        ("batch_size", 0, "batch_size"),
        ("learning_rate", float("nan"), "learning_rate"),
        ("label_temperature", 0.0, "label_temperature"),
        ("seed", -1, "seed"),
        ("hidden", 10**12, "hidden"),
        ("epochs", 10**9, "epochs"),
        ("batch_size", 10**9, "batch_size"),
        ("learning_rate", 1e300, "learning_rate"),
        ("label_temperature", 1e-3, "label_temperature"),
    ],
)
def test_refused_hyper_parameters(field, value, argument):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{field: value})
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("embeddings", "targets"),
    [
        (np.ones((0, 3)), np.ones(0, int)),
        (np.ones((4, 3)), np.ones(3, int)),
        (np.ones((4, 3)), np.ones((4, 2))),
        (np.ones((4, 3)), np.array([0, 1, 2, 3])),
        (np.ones((4, 3)), np.array([0, 1, 2, -1])),
    ],
)
def test_shapes_that_do_not_fit(embeddings, targets):
    with pytest.raises(ConfigError):
        train_network(embeddings, targets, CLASSES, SMALL)


def test_prediction_wants_the_length_trained_on():
    embeddings, targets = blobs()
    network = train_network(embeddings, targets, CLASSES, SMALL)
    with pytest.raises(ConfigError, match=r"have shape \(n, 10\)"):
        network.predict(embeddings[:, :4])
