import numpy as np
import pytest
import scipy.fft
from PIL import Image

from dpgmm_beam.encoders import registry, scattering
from dpgmm_beam.errors import ConfigError

FIRST, SECOND = slice(1, 9), slice(9, 17)


def pictures(count, size=(28, 28)):
    random = np.random.default_rng(5)
    for _ in range(count):
        yield Image.fromarray(random.integers(0, 256, (*size[::-1], 3), np.uint8))


def wave(side, octave, angle, amplitude=0.2):
    down, right = np.mgrid[:side, :side].astype(np.float32)
    frequency = 0.75 * np.pi / 2**octave
    return (0.5 + amplitude * np.cos(frequency * (down * np.cos(angle) + right * np.sin(angle)))).astype(
        np.float32
    )


def test_a_plain_picture_has_a_mean_and_no_waves():
    planes = scattering.scattering(np.full((28, 28), 0.3, np.float32))
    assert planes.shape == (81, 4, 4)
    assert np.allclose(planes[0], 0.3, atol=1e-6)
    assert np.abs(planes[1:]).max() < 1e-6


@pytest.mark.parametrize("octave", [0, 1])
@pytest.mark.parametrize("direction", range(8))
def test_a_wave_is_seen_by_its_own_wavelet(octave, direction):
    """Far from borders |x * psi| is half the amplitude times psi's spectrum there, which is about 1."""
    angle = direction * np.pi / 8
    planes = scattering.scattering(wave(64, octave, angle))
    inner = planes[:, 1:3, 1:3].mean(axis=(1, 2))
    own = inner[FIRST if octave == 0 else SECOND]
    assert own.argmax() == direction
    assert np.argmax(inner[1:17]) == 8 * octave + direction
    assert 0.08 < own[direction] < 0.12
    assert np.isclose(inner[0], 0.5, atol=0.01)


def test_wavelets_have_no_mean_and_unit_gain():
    """Bernardino and Santos-Victor 2005: mean 0; the spectrum peaks by 1 at the wave's frequency."""
    for octave in (0, 1):
        for angle in (0.0, 0.4, np.pi / 2):
            spectrum = scipy.fft.fft2(scattering.morlet(64, octave, angle))
            assert np.abs(spectrum.imag).max() < 1e-9
            assert abs(spectrum[0, 0]) < 1e-12
            assert 0.9 < spectrum.real.max() < 1.05


def test_every_other_pixel_of_a_plane_from_its_folded_spectrum():
    plane = np.random.default_rng(0).standard_normal((2, 12, 12))
    half = scipy.fft.ifft2(scattering._halved(scipy.fft.fft2(plane)))
    assert np.allclose(half, plane[:, ::2, ::2])


def test_cells_are_means():
    for side, step in ((28, 1), (28, 2), (30, 2), (64, 1)):
        pool = scattering._pool(side, side + 8, step)
        assert pool.shape == (4, (side + 8) // step)
        assert np.allclose(pool.sum(axis=1), 1, atol=1e-6)
        centres = pool @ np.arange(0, side + 8, step)
        assert np.allclose(centres, 4 - 0.5 + side / 8 + side / 4 * np.arange(4), atol=0.3)


def test_a_shift_by_a_pixel_changes_little():
    """What scattering is for (Mallat 2012): nearer than another picture, by far."""
    base = next(pictures(1, (40, 40))).convert("L").resize((34, 34), Image.Resampling.BICUBIC)
    encoder = registry.load_encoder("scattering:32")
    shifted = [base.crop((left, 0, left + 32, 32)) for left in (0, 1)]
    other = list(pictures(2, (40, 40)))[1].convert("L").resize((32, 32), Image.Resampling.BICUBIC)
    a, b, c = encoder.embed(encoder.prepare([*shifted, other]))
    assert np.linalg.norm(a - b) < 0.5 * np.linalg.norm(a - c)


def test_bits_do_not_depend_on_batch_mates():
    encoder = registry.load_encoder("scattering:28:rgb")
    assert encoder.dimension == 3 * 1296
    prepared = encoder.prepare(list(pictures(9)))
    expected = encoder.embed(prepared)
    assert (expected.shape, expected.dtype) == ((9, 3888), np.float32)
    assert np.isfinite(expected).all()
    assert np.array_equal(encoder.embed(prepared[::-1]), expected[::-1])
    assert np.array_equal(encoder.embed(prepared[4:5]), expected[4:5])
    assert encoder.embed(prepared[:0]).shape == (0, 3888)


@pytest.mark.parametrize(
    "spec", ["scattering", "scattering:15", "scattering:29", "scattering:66", "scattering:28:grey"]
)
def test_what_is_refused(spec):
    with pytest.raises(ConfigError, match="with an even SIDE from 16 to 64"):
        registry.check_encoder(spec)
