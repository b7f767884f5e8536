"""A release of pictures, from pixels to pixels: scikit-learn's digits, 8 x 8."""

import numpy as np
import pytest
from PIL import Image

from dpgmm_beam import Release
from dpgmm_beam.decoders.rectified import Rectifier
from dpgmm_beam.encoders import dct
from dpgmm_beam.encoders.registry import load_encoder

digits = pytest.importorskip("sklearn.datasets").load_digits()
FORM = dct.PictureForm(8, 1)
CLASSES = tuple(map(str, range(10)))


@pytest.fixture(scope="module")
def release():
    encoder = load_encoder("dct:8")
    pictures = [Image.fromarray(np.uint8(255 / 16 * image)) for image in digits.images]
    embeddings = encoder.embed(encoder.prepare(pictures))
    return Release.fit(
        embeddings,
        digits.target,
        classes=CLASSES,
        epsilon=8.0,
        delta=1e-5,
        key=bytes(range(32)),
        release_id="digits",
        encoder="dct:8",
        shares={"teacher/gradient": 1e-6},
    )


@pytest.fixture(scope="module")
def drawn(release):
    rows = release.sample(2000, seed=1)
    classes = np.array([CLASSES.index(label) for label in rows.component_class])
    return Rectifier(release.mixture, FORM).pixels(rows.embeddings, classes, rows.component), classes


def test_the_release_says_what_it_is_of(release):
    assert (release.config.clip_norm, release.config.components, release.n_components) == (4.0, None, 2)
    assert release.manifest["config"]["method"]["picture_side"] == 8


def test_drawn_pictures_tell_real_ones_apart(drawn):
    """Real digits by the nearest mean of drawn ones; chance is .1, and means of real ones have .90."""
    pictures, classes = drawn
    means = np.stack([pictures[classes == label].mean(axis=0).ravel() for label in range(10)])
    real = digits.data / 16
    nearest = ((real[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == digits.target).mean() > 0.8


def test_drawn_pictures_are_as_bright_and_as_different_as_real_ones(drawn):
    pictures, real = drawn[0][..., 0], digits.images / 16
    assert abs(pictures.mean() - real.mean()) < 0.05
    assert 0.6 < pictures.std(axis=0).mean() / real.std(axis=0).mean() < 1.2
