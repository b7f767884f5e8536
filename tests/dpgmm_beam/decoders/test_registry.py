import os

import numpy as np
import pytest

from dpgmm_beam.decoders import registry
from dpgmm_beam.decoders.decoder import Decoder, Drawn, pictures
from dpgmm_beam.errors import ConfigError


class Noisy(Decoder):
    """A shade from the embedding, and noise from the generator."""

    def __init__(self, batch_size=4):
        self.spec, self.batch_size = "noisy", batch_size

    def decode(self, drawn, generators):
        assert len(drawn) == len(generators) == self.batch_size
        noise = np.stack([generator.random((3, 5, 1)) for generator in generators])
        return 0.5 * drawn.embeddings[:, :1, None, None] + 0.5 * noise


def drawn(count):
    rows = np.random.default_rng(0).random((count, 2)).astype(np.float32)
    return Drawn(rows, np.zeros(count, int), np.zeros(count, int))


def generators(count):
    return [np.random.default_rng(number) for number in range(count)]


def test_a_picture_is_its_row_s_and_its_generator_s_alone():
    """Whatever the batch, what stands beside it and whatever fills the batch up."""
    whole = pictures(Noisy(), drawn(9), generators(9))
    assert whole.shape == (9, 3, 5, 1)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(whole, pictures(Noisy(5), drawn(9), generators(9)))
    chosen = np.array([7, 2])
    few = pictures(Noisy(), drawn(9).take(chosen), [generators(9)[number] for number in chosen])
    np.testing.assert_array_equal(few, whole[chosen])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (np.full((4, 3, 3, 1), np.nan), "no finite numbers"),
        (np.full((4, 3, 3, 3), np.inf, np.float32), "no finite numbers"),
        (np.zeros((4, 3, 3, 3), np.uint8), "no finite numbers"),
        (np.zeros((3, 3, 3, 3)), "an array of shape"),
        (np.zeros((4, 3, 3)), "an array of shape"),
        (np.zeros((4, 3, 3, 2)), "an array of shape"),
        (np.zeros((4, 0, 3, 1)), "an array of shape"),
    ],
)
def test_what_is_no_picture_is_not_written(made, said):
    class Bad(Noisy):
        def decode(self, drawn, generators):
            return made

    with pytest.raises(RuntimeError, match=said):
        pictures(Bad(), drawn(4), generators(4))


def test_pictures_have_one_size():
    class Growing(Noisy):
        side = 1

        def decode(self, drawn, generators):
            self.side += 1
            return np.zeros((4, self.side, 2, 1))

    with pytest.raises(RuntimeError, match="several sizes"):
        pictures(Growing(), drawn(8), generators(8))


@pytest.mark.parametrize(
    ("spec", "encoder", "said"),
    [
        ("nobody:x", "dct:28", "must be one of dct, kandinsky22, private_linear, retrieval,"),
        ("dct:28", "dct:32", "of the release's encoder, dct:32; it decodes embeddings of dct:28"),
        ("dct:28:rgb", "dct:28", "it decodes embeddings of dct:28:rgb"),
        ("dct:2000", "dct:28", "must be dct:SIDE"),
        ("dct", "dct:28", "must be dct:SIDE"),
        ("private_linear", "efficientnet_lite0", "of a release that was made with --decodable SIDE"),
        ("private_linear:28", "efficientnet_lite0", "be private_linear, without an argument"),
        ("torch:/nowhere", "dct:28", "name a file that dpgmm train-decoder wrote"),
        ("torch:", "dct:28", "name a file that dpgmm train-decoder wrote"),
        ("retrieval:/nowhere", "dct:28", "name a folder that dpgmm embed has written"),
        ("retrieval:/nowhere,side=1", "dct:28", "retrieval:FOLDER,side=PIXELS"),
    ],
)
def test_refusals(spec, encoder, said):
    with pytest.raises(ConfigError, match="decoder=") as error:
        registry.check_decoder(spec, encoder)
    assert said in str(error.value)


def test_fits_by_the_encoder_s_name():
    """efficientnet_lite0 and ViT-bigG-14 have 1,280 numbers both; other weights are other encoders."""
    pytest.importorskip("diffusers")
    spec = "kandinsky22:kandinsky-community/kandinsky-2-2-decoder"
    registry.check_decoder(spec, "open_clip:ViT-bigG-14/laion2b_s39b_b160k")
    for other in ("efficientnet_lite0", "open_clip:ViT-bigG-14/metaclip_fullcc"):
        with pytest.raises(ConfigError, match=f"the release's encoder, {other}"):
            registry.check_decoder(spec, other)


def test_paths_are_found_changed_and_not_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights,v2").mkdir()
    (tmp_path / "prior").mkdir()
    spec = "kandinsky22:weights,v2,prior=prior,steps=3"
    absolute = registry.with_paths(spec, os.path.abspath)
    assert absolute == f"kandinsky22:{tmp_path}/weights,v2,prior={tmp_path}/prior,steps=3"
    assert registry.read_paths(absolute) == (f"{tmp_path}/weights,v2", f"{tmp_path}/prior")
    assert registry.shown_decoder(absolute) == spec
    named = "kandinsky22:somebody/model,prior=somebody/prior"
    assert registry.with_paths(named, os.path.abspath) == named
    assert registry.read_paths(named) == ()


@pytest.mark.parametrize("name", ["kandinsky22", "unclip"])
def test_without_diffusers_the_extra_is_named(name, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda package: None if package == "diffusers" else found(package)
    )
    with pytest.raises(ConfigError, match=r"pip install 'dpgmm-beam\[decode\]'"):
        registry.check_decoder(f"{name}:somebody/model", "dct:28")
