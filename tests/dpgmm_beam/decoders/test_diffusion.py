"""Real pipelines of diffusers with tiny random weights, saved and loaded as the real ones are."""

import numpy as np
import pytest

from dpgmm_beam.decoders import diffusion, registry
from dpgmm_beam.decoders.decoder import Drawn, Origin, pictures
from dpgmm_beam.encoders.torchvision_compat import import_torchvision
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.mixture import Mixture

import_torchvision()
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.dpgmm_beam.decoders import tiny_diffusion  # noqa: E402

DIMENSION = tiny_diffusion.DIMENSION
BIG_G, H = diffusion.BIG_G[0], diffusion.H[0]


def origin(encoder, clip_norm=None, dimension=DIMENSION):
    means = np.zeros((1, 1, dimension))
    mixture = Mixture(("a",), np.ones(1), np.ones((1, 1)), means, np.ones((1, 1, 1, 1)), np.eye(dimension))
    return Origin(encoder, clip_norm, mixture)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tiny_diffusion.kandinsky(folder)
    tiny_diffusion.kandinsky_prior(folder, mean=0.5, std=1.0)
    tiny_diffusion.unclip(folder, mean=1.0, std=2.0, words=True)
    return folder


SPECS = {
    "kandinsky": ("kandinsky22:{}/decoder,prior={}/prior,steps=2,size=16", BIG_G),
    "kandinsky without guidance": ("kandinsky22:{}/decoder,prior={}/prior,steps=2,size=16,guidance=1", BIG_G),
    "unclip": ("unclip:{}/unclip,steps=2,size=8", H),
    "unclip without guidance": ("unclip:{}/unclip,steps=2,size=8,guidance=1,noise_level=5", H),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_picture_is_its_row_s_and_its_generator_s_alone(weights, name):
    form, encoder = SPECS[name]
    decoder = registry.load_decoder(form.format(weights, weights), origin(encoder))
    assert str(weights) not in decoder.spec
    rows = np.random.default_rng(0).normal(size=(3, DIMENSION)).astype(np.float32)
    # The same embedding with other noise is another picture, and is no other with the same noise.
    drawn = Drawn(np.concatenate([rows, rows[:1]]), np.zeros(4, int), np.zeros(4, int))

    def generators(*numbers):
        return [np.random.default_rng(number) for number in numbers]

    decoder.batch_size = 2
    made = pictures(decoder, drawn, generators(0, 1, 2, 9))
    side = 16 if "kandinsky" in name else 8
    assert made.shape == (4, side, side, 3)
    assert made.std() > 1
    few = pictures(decoder, drawn.take(np.array([2, 3, 0])), generators(2, 9, 0))
    # Batches of one shape, in which a row may stand anywhere.
    np.testing.assert_array_equal(few, made[[2, 3, 0]])
    assert (made[0] != made[3]).any()
    other = pictures(decoder, Drawn(-rows, np.zeros(3, int), np.zeros(3, int)), generators(0, 1, 2))
    assert (other != made[:3]).any()


def test_rows_of_norm_1_get_the_length_of_public_embeddings(weights):
    kandinsky, unclip = (form.format(weights, weights) for form, _ in (SPECS["kandinsky"], SPECS["unclip"]))
    # The root of the sum over coordinates of mean and deviation, squared.
    assert registry.load_decoder(kandinsky, origin(BIG_G))._norm == pytest.approx(np.sqrt(DIMENSION * 1.25))
    assert registry.load_decoder(unclip, origin(H))._norm == pytest.approx(np.sqrt(DIMENSION * 5.0))
    assert registry.load_decoder(f"{kandinsky},norm=7", origin(BIG_G))._norm == 7
    # Rows that were clipped, not normalised, have a length of their own.
    assert registry.load_decoder(kandinsky, origin(BIG_G, clip_norm=30.0))._norm is None
    assert registry.load_decoder(unclip, origin(H, clip_norm=30.0))._norm is None


def test_a_folder_without_words_is_told_none(tmp_path):
    spec = f"unclip:{tiny_diffusion.unclip(tmp_path, 0.0, 1.0)},steps=1,size=8"
    decoder = registry.load_decoder(spec, origin(H))
    rows = Drawn(np.ones((1, DIMENSION), np.float32), np.zeros(1, int), np.zeros(1, int))
    assert pictures(decoder, rows, [np.random.default_rng(0)]).shape == (1, 8, 8, 3)


def test_the_fingerprint_is_the_weights_(weights, tmp_path):
    spec = SPECS["kandinsky"][0].format(weights, weights)
    before = registry.decoder_fingerprint(spec)
    assert before == registry.decoder_fingerprint(spec)
    tiny_diffusion.kandinsky_prior(tmp_path, mean=0.4, std=1.0)
    assert registry.decoder_fingerprint(SPECS["kandinsky"][0].format(weights, tmp_path)) != before
    assert registry.decoder_fingerprint("unclip:somebody/model") == ""


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("kandinsky22:", "be kandinsky22:FOLDER"),
        ("kandinsky22:/nowhere", "FOLDER that exists"),
        ("kandinsky22:{}", "with a model_index.json"),
        ("kandinsky22:somebody/model,steps=0", "have options among steps="),
        ("kandinsky22:somebody/model,noise_level=1", "have options among steps="),
        ("unclip:somebody/model,guidance=x", "have options among steps="),
        ("unclip:somebody/model,size=nan", "have options among steps="),
        ("unclip:model", "ORGANISATION/MODEL"),
    ],
)
def test_refusals(spec, said, tmp_path):
    with pytest.raises(ConfigError) as error:
        registry.check_decoder(spec.format(tmp_path), BIG_G)
    assert said in str(error.value)


def test_weights_that_are_damaged_or_of_another_length(weights, tmp_path):
    form = SPECS["kandinsky"][0]
    with pytest.raises(ConfigError, match="take embeddings of length 17"):
        registry.load_decoder(form.format(weights, weights), origin(BIG_G, dimension=17))
    folder = tiny_diffusion.kandinsky(tmp_path)
    (folder / "movq" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="name weights that can be read"):
        registry.load_decoder(form.format(tmp_path, weights), origin(BIG_G))
