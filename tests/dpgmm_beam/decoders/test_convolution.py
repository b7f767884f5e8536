import io
import pickle

import numpy as np
import pytest
import torch

from dpgmm_beam.decoders import convolution, registry
from dpgmm_beam.decoders.convolution import train_decoder, trained_from_bytes
from dpgmm_beam.decoders.decoder import Drawn, Origin, pictures
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.mixture import Mixture
from dpgmm_beam.recipe import DecoderConfig

CONFIG = DecoderConfig(side=28, steps=80, batch_size=16)


def mixture(dimension):
    return Mixture(
        ("a",),
        np.ones(1),
        np.ones((1, 1)),
        np.zeros((1, 1, dimension)),
        np.ones((1, 1, 1, 1)),
        np.eye(dimension),
    )


def bars(count=120):
    """Pictures of one bar, and embeddings that say where it is: of any length, for decoders bring it to 1."""
    generator = np.random.default_rng(0)
    places = generator.integers(4, 24, count)
    made = np.zeros((count, 28, 28, 1), np.uint8)
    for picture, place in zip(made, places, strict=True):
        picture[:, place - 3 : place + 3] = 255
    angles = places / 24 * np.pi
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ generator.normal(size=(2, 6))
    return (rows * generator.uniform(0.1, 10, (count, 1))).astype(np.float32), made


@pytest.fixture(scope="module")
def trained():
    return train_decoder(*bars(), "mine", CONFIG)


def test_it_learns_what_embeddings_say(trained):
    assert trained.pictures == 108
    assert trained.error < 0.6 * trained.mean_error


def test_the_same_again_bit_for_bit_and_the_generators_stay(trained):
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    again = train_decoder(*bars(), "mine", CONFIG)
    assert torch.rand(1) == first
    assert again.to_bytes() == trained.to_bytes()


def test_saved_loaded_and_used(trained, tmp_path):
    path = tmp_path / "decoder.pt"
    path.write_bytes(trained.to_bytes())
    spec = f"torch:{path}"
    registry.check_decoder(spec, "mine")
    with pytest.raises(ConfigError, match="it decodes embeddings of mine"):
        registry.check_decoder(spec, "yours")
    decoder = registry.load_decoder(spec, Origin("mine", None, mixture(6)))
    rows, real = bars()
    drawn = Drawn(rows, np.zeros(120, int), np.zeros(120, int))
    generators = [np.random.default_rng(0)] * 120
    with decoder.session():
        made = pictures(decoder, drawn, generators)
        few = pictures(decoder, drawn.take(np.array([70, 3])), generators)
    np.testing.assert_array_equal(few, made[[70, 3]])
    assert np.sqrt(((made / 255.0 - real / 255.0) ** 2).mean()) < 0.6 * trained.mean_error
    with pytest.raises(ConfigError, match="take embeddings of length 7"):
        registry.load_decoder(spec, Origin("mine", None, mixture(7)))


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no torch",
        pickle.dumps(Evil()),
        torch.save({"about": {"version": 1}, "state_dict": {}}, file := io.BytesIO()) or file.getvalue(),
    ],
    ids=["empty", "text", "pickle", "hollow"],
)
def test_what_is_none_is_refused_and_not_run(data, capsys):
    with pytest.raises(ConfigError, match="dpgmm train-decoder wrote"):
        trained_from_bytes(data, "file")
    assert capsys.readouterr().out == ""


def test_alike_rows_have_nothing_to_scale():
    found = train_decoder(np.ones((12, 3)), np.full((12, 28, 28, 3), 99, np.uint8), "mine", CONFIG)
    assert found.mean_error < 1e-6
    assert np.isfinite(found.error)


@pytest.mark.parametrize("side", [28, 32, 48, 64])
def test_sides(side):
    module = convolution.Pictures(4, side, 3)
    assert module(torch.zeros(2, 4)).shape == (2, 3, side, side)
