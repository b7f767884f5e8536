import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpgmm_beam.encoders import dct, registry
from dpgmm_beam.errors import ConfigError


def pictures(count, size=(50, 40), mode="RGB"):
    random = np.random.default_rng(3)
    for _ in range(count):
        yield Image.fromarray(random.integers(0, 256, (*size[::-1], 3), np.uint8)).convert(mode)


@pytest.mark.parametrize(("spec", "dimension"), [("dct:28", 784), ("dct:64", 4096), ("dct:32:rgb", 3072)])
def test_the_transform_is_scipys(spec, dimension):
    encoder = registry.load_encoder(spec)
    prepared = encoder.prepare(list(pictures(3)))
    embeddings = encoder.embed(prepared)
    assert encoder.dimension == dimension
    assert (embeddings.shape, embeddings.dtype) == ((3, dimension), np.float32)
    pixels = prepared[..., : encoder.form.channels] / 255 - 0.25
    expected = scipy.fft.dctn(pixels, axes=(1, 2, 3), norm="ortho")
    assert np.allclose(embeddings, np.moveaxis(expected, 3, 1).reshape(3, -1), atol=1e-5)


@given(
    side=st.integers(dct.MIN_SIDE, 20),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=30)
def test_the_inverse_is_exact_and_clamped(side, channels, seed):
    form = dct.PictureForm(side, channels)
    pixels = np.random.default_rng(seed).integers(0, 256, (2, side, side, channels)) / 255
    coefficients = dct.coefficients_of(pixels, form)
    assert np.allclose(dct.unclamped_pixels(coefficients, form), pixels, atol=1e-12)
    lengths = ((pixels - dct.OFFSET) ** 2).sum(axis=(1, 2, 3))
    assert np.allclose((coefficients**2).sum(axis=1), lengths)
    clamped = dct.pixels_of(3 * coefficients, form)
    assert (clamped >= 0).all()
    assert (clamped <= 1).all()


def test_bits_do_not_depend_on_batch_mates():
    encoder = registry.load_encoder("dct:28:rgb")
    prepared = encoder.prepare(list(pictures(300)))
    expected = encoder.embed(prepared)
    order = np.random.default_rng(0).permutation(300)
    assert np.array_equal(encoder.embed(prepared[order]), expected[order])
    for rows in (1, 2, 3, 255, 257):
        assert np.array_equal(encoder.embed(prepared[:rows]), expected[:rows])
    assert encoder.embed(prepared[:0]).shape == (0, encoder.dimension)
    assert np.array_equal(encoder.form.frequencies[[0, 1, 28, 784]], [0, 1, 1, 0])


def test_letterboxing():
    """The picture in the middle at its own proportions, black beside it; squares fill all."""
    wide = Image.new("L", (60, 30), 200)
    found = dct.letterboxed([wide], 28, 1)[0, :, :, 0]
    assert (found[:7] == 0).all()
    assert (found[21:] == 0).all()
    assert (found[7:21] == 200).all()
    square = next(pictures(1, (28, 28), "L"))
    assert np.array_equal(dct.letterboxed([square], 28, 1)[0, :, :, 1], np.asarray(square))


@pytest.mark.parametrize("spec", ["dct", "dct:", "dct:7", "dct:65", "dct:53:rgb", "dct:28:grey", "dct:28.5"])
def test_what_is_refused(spec):
    with pytest.raises(ConfigError, match="be dct:SIDE with SIDE from 8 to 64 pixels"):
        registry.check_encoder(spec)
    registry.check_encoder("dct:52:rgb")
