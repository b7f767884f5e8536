import numpy as np

from dpgmm_beam.decoders import registry
from dpgmm_beam.decoders.decoder import Drawn, Origin, pictures
from dpgmm_beam.encoders import dct
from dpgmm_beam.mixture import Mixture


def test_a_mixture_of_a_picture_gives_it_back():
    """With next to no variance what is drawn is the mean, to a level of 255, but for what is black."""
    form = dct.PictureForm(12, 3)
    shades = np.linspace(0.2, 0.8, 12)
    picture = np.broadcast_to(shades[None, :, None, None], (1, 12, 12, 3)) * [1.0, 0.8, 0.6]
    coefficients = dct.coefficients_of(picture, form)
    mixture = Mixture(
        ("a",),
        np.ones(1),
        np.ones((1, 1)),
        coefficients[None],
        np.full((1, 1, 1, 1), 1e-8),
        np.eye(form.dimension),
        normalized=False,
        clip_norm=form.usual_norm,
    )
    decoder = registry.load_decoder("dct:12:rgb", Origin("dct:12:rgb", form.usual_norm, mixture))
    rows = Drawn(coefficients.astype(np.float32), np.zeros(1, int), np.zeros(1, int))
    with decoder.session():
        made = pictures(decoder, rows, [np.random.default_rng(0)])
    # Pixels at the edge may be put between their neighbours.
    np.testing.assert_allclose(made[0, 1:-1, 1:-1] / 255, picture[0, 1:-1, 1:-1], atol=0.5 / 255 + 1e-3)
