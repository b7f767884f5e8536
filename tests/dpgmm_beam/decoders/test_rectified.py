import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpgmm_beam.decoders.rectified import (
    MOST_SPREAD,
    Rectifier,
    clamped_moments,
    rectified,
    without_specks,
)
from dpgmm_beam.encoders import dct
from dpgmm_beam.mixture import Mixture

FORM = dct.PictureForm(8, 1)


@given(mean=st.floats(0.02, 0.98), share=st.floats(0.001, 0.85))
@settings(max_examples=100)
def test_the_clamped_gaussian_has_the_moments_that_it_should(mean, share):
    variance = share * mean * (1 - mean)
    centre, deviation = rectified(np.array([mean]), np.array([variance]))
    found_mean, found_variance = clamped_moments(centre, deviation)
    assert abs(found_mean[0] - mean) < 0.01
    assert abs(found_variance[0] - variance) < 0.03 * variance + 1e-4


def test_moments_of_a_clamped_gaussian_are_those_of_draws():
    """Five standard errors of a million draws: a false alarm in two million."""
    draws = np.random.default_rng(0).standard_normal(10**6)
    for centre, deviation in ((0.5, 0.1), (0.0, 0.3), (-0.4, 0.5), (0.9, 1.0)):
        clamped = np.clip(centre + deviation * draws, 0, 1)
        mean, variance = clamped_moments(np.array(centre), np.array(deviation))
        assert abs(clamped.mean() - mean) < 5 * clamped.std() / 1000
        assert abs(clamped.var() - variance) < 0.005


def test_more_spread_than_there_can_be():
    centre, deviation = rectified(np.array([0.2, 0.0, 1.0]), np.array([5.0, 1.0, 0.0]))
    assert np.isfinite(centre).all()
    assert (deviation <= 10).all()
    assert clamped_moments(centre, deviation)[1][0] <= MOST_SPREAD * 0.16 + 1e-3


def mixture_of_pictures(mean, deviation, shaped=64):
    """One class and component with independent pixels."""
    coefficients = dct.coefficients_of(mean[None, :, :, None], FORM)
    inverse = dct.unclamped_pixels(np.eye(64), FORM).reshape(64, 64) - dct.OFFSET
    basis = inverse * deviation.ravel()
    covariances = np.eye(shaped)[None, None]
    return Mixture(("a",), np.ones(1), np.ones((1, 1)), coefficients[None], covariances, basis, False, 8.0)


def drawn(mixture, count=4000, **options):
    rows = mixture.sample(count, seed=0)
    return Rectifier(mixture, FORM, **options).pixels(rows.embeddings, np.zeros(count, int), rows.component)


def test_pictures_have_the_mixtures_means_and_deviations():
    """Clamped as they are, dark pixels come out at .31 instead of .1."""
    mean, deviation = np.full((8, 8), 0.5), np.full((8, 8), 0.1)
    mean[:, :4], deviation[:, :4] = 0.1, 0.2
    mixture = mixture_of_pictures(mean, deviation)
    rows = mixture.sample(4000, seed=0)
    rectifier = Rectifier(mixture, FORM)
    # Without the last step, which takes noise from pixels that know nothing of each other.
    offsets = dct.unclamped_pixels(rows.embeddings, FORM)[..., 0] - mean
    centre, slope = (each.reshape(8, 8) for each in rectifier._solve(0, 0))
    pixels = np.clip(centre + slope * offsets, 0, 1)
    assert np.allclose(pixels.mean(axis=0), mean, atol=0.02)
    assert np.allclose(pixels.std(axis=0)[:, 4:], 0.1, atol=0.01)
    assert np.allclose(pixels.std(axis=0)[:, :4], 0.2, atol=0.02)
    plain = dct.pixels_of(rows.embeddings, FORM)[..., 0].mean(axis=0)
    assert plain[:, :4].mean() > 1.3 * 0.1


def test_where_the_mean_is_black_the_picture_is():
    mean = np.full((8, 8), 0.5)
    mean[:4] = 0.01
    pixels = drawn(mixture_of_pictures(mean, np.full((8, 8), 0.1)), 50)
    assert (pixels[:, :3] == 0).all()
    assert pixels[:, 4:].min() > 0


@pytest.mark.parametrize(("residual", "moves"), [(0.0, False), (1.0, True)])
def test_directions_without_shapes(residual, moves):
    mixture = mixture_of_pictures(np.full((8, 8), 0.5), np.full((8, 8), 0.1), shaped=1)
    pixels = drawn(mixture, 200, residual=residual)
    assert (pixels.std(axis=0).mean() > 0.02) == moves


def test_a_picture_does_not_depend_on_its_batch():
    mixture = mixture_of_pictures(np.full((8, 8), 0.4), np.full((8, 8), 0.2))
    rows = mixture.sample(20, seed=0)
    rectifier, none = Rectifier(mixture, FORM), np.zeros(20, int)
    whole = rectifier.pixels(rows.embeddings, none, rows.component)
    part = rectifier.pixels(rows.embeddings[5:7], none[5:7], rows.component[5:7])
    assert np.array_equal(whole[5:7], part)


def test_specks_are_put_back_between_their_neighbours():
    picture = np.zeros((1, 8, 8, 1))
    picture[0, 4, 4] = 1.0
    assert not without_specks(picture).any()
    line = np.zeros((1, 8, 8, 1))
    line[0, 4] = 1.0
    assert np.array_equal(without_specks(line)[0, :, 1:7], line[0, :, 1:7])
