"""The map that a release holds, and pictures by it."""

import dataclasses

import numpy as np
import pytest

from dpgmm_beam.decoders import registry
from dpgmm_beam.decoders.decoder import Drawn, Origin, pictures
from dpgmm_beam.decoders.linear import LinearDecoder
from dpgmm_beam.decoders.picture_map import PictureMap
from dpgmm_beam.encoders import dct
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.mixture import Mixture, Sampler

SIDE, DIMENSION, CLASSES = 12, 5, 2


def map_of(channels=1, residual=0.0, seed=0, **changes):
    """Two classes of smooth pictures, and three directions along which they change."""
    generator, form = np.random.default_rng(seed), dct.PictureForm(SIDE, channels)
    smooth = 1 / (1 + form.frequencies) ** 2
    return PictureMap(
        **{
            "form": form,
            "classes": ("a", "b"),
            "means": 1.5 * smooth * generator.normal(size=(CLASSES, form.dimension))
            + 3 * (form.frequencies == 0),
            "centres": 0.3 * generator.normal(size=(CLASSES, DIMENSION)),
            "directions": generator.normal(size=(3, DIMENSION)),
            "slopes": 0.2 * smooth * generator.normal(size=(3, form.dimension)),
            "residuals": residual * smooth**2,
            **changes,
        }
    )


def mixture_of(found, spread=1e-6, components=2, clip_norm=3.0):
    """Rows round the centres, a little apart by component."""
    means = np.repeat(found.centres[:, None], components, axis=1)
    means = means + 0.1 * np.arange(components)[:, None]
    weights = np.full((CLASSES, components), 1 / components)
    covariances = np.broadcast_to(np.eye(2), (CLASSES, components, 2, 2)).copy()
    basis = spread * np.eye(DIMENSION)
    return Mixture(found.classes, np.full(2, 0.5), weights, means, covariances, basis, False, clip_norm)


def drawn_of(mixture, count, seed=0):
    classes = np.arange(count) % CLASSES
    rows, components = Sampler(mixture).draw_with_components(classes, np.random.default_rng(seed))
    return Drawn(rows, classes, components)


def generators(count):
    return [np.random.default_rng([3, row]) for row in range(count)]


@pytest.mark.parametrize("channels", [1, 3])
def test_embeddings_that_hardly_vary_give_the_pictures_that_the_map_says(channels):
    found = map_of(channels)
    mixture = mixture_of(found)
    decoder = registry.load_decoder("private_linear", Origin("any", 3.0, mixture, found))
    rows = drawn_of(mixture, 8)
    with decoder.session():
        made = pictures(decoder, rows, generators(8)) / 255
    numbers = (rows.embeddings - found.centres[rows.classes]) @ found.directions.T
    exact = dct.pixels_of(found.means[rows.classes] + numbers @ found.slopes, found.form)
    # A few pixels are put between their neighbours, and what is dark is black.
    difference = np.abs(made - exact)[exact > 0.05]
    assert np.quantile(difference, 0.85) < 0.006
    assert difference.max() < 0.1


def test_pictures_have_the_moments_that_follow():
    """Mean and variance of pixels over draws are those of the Gaussian, where neither end is near."""
    found = map_of(residual=0.02, slopes=map_of().slopes * 0.5)
    mixture = mixture_of(found, spread=0.15, components=1)
    rows = drawn_of(mixture, 4000)
    decoder = LinearDecoder(mixture, found, residual=1.0)
    made = pictures(decoder, rows, generators(4000))[..., 0] / 255
    for label in range(CLASSES):
        own = rows.classes == label
        mean = dct.unclamped_pixels(found.means[label][None], found.form)[0, ..., 0]
        columns = dct.unclamped_pixels(found.slopes, found.form)[..., 0] - dct.OFFSET
        across = np.einsum("rd,rhw->dhw", found.directions, columns) * 0.15
        variance = (across**2).sum(axis=0)
        middle = (mean > 0.3) & (mean < 0.7)
        assert middle.sum() > 5
        difference = np.abs(made[own].mean(axis=0) - mean)[middle]
        assert np.quantile(difference, 0.9) < 0.01
        # What embeddings do not explain adds to it.
        assert np.median(made[own].var(axis=0)[middle] / variance[middle]) > 0.8


def test_a_picture_is_the_same_whatever_stands_beside_it():
    found = map_of(residual=0.05)
    mixture = mixture_of(found, spread=0.3)
    rows, decoder = drawn_of(mixture, 600), LinearDecoder(mixture, found)
    whole = pictures(decoder, rows, generators(600))
    some = np.array([599, 3, 300, 257])
    few = pictures(decoder, rows.take(some), [generators(600)[row] for row in some])
    np.testing.assert_array_equal(few, whole[some])


def test_a_map_is_what_was_saved():
    found, files = map_of(3), {}
    found.save(lambda name, data, rows: files.update({name: (data, rows)}))
    assert {name: rows for name, (_, rows) in files.items()} == {
        "picture_means.parquet": 2,
        "picture_directions.parquet": 3,
        "picture_residuals.parquet": 3 * SIDE**2,
    }
    again = PictureMap.load(lambda name: files[name][0])
    for field in dataclasses.fields(PictureMap):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))
    assert again.fits(found.form, ("a", "b"), DIMENSION)


def test_a_map_without_directions_gives_means():
    found = map_of(directions=np.zeros((0, DIMENSION)), slopes=np.zeros((0, SIDE**2)))
    mixture = mixture_of(found)
    made = pictures(LinearDecoder(mixture, found), drawn_of(mixture, 2), generators(2))
    assert made.shape == (2, SIDE, SIDE, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"means": np.zeros((2, 5))},
        {"means": np.full((2, SIDE**2), np.nan)},
        {"centres": np.zeros((2, 4))},
        {"directions": np.zeros((2, DIMENSION))},
        {"residuals": -np.ones(SIDE**2)},
        {"classes": ("b", "a")},
        {"form": dct.PictureForm(8, 1)},
    ],
)
def test_what_is_no_map_of_a_release(changes):
    found = map_of(**changes)
    assert not found.fits(dct.PictureForm(SIDE, 1), ("a", "b"), DIMENSION)


def test_only_a_decodable_release_is_decoded():
    found = map_of()
    with pytest.raises(ConfigError, match="made with --decodable"):
        registry.load_decoder("private_linear", Origin("any", None, mixture_of(found)))
    registry.check_decoder("private_linear", "whatever:1", decodable=True)
