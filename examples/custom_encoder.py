"""An encoder of your own, used by `dpgmm embed` in this process.

    python examples/custom_encoder.py IMAGES OUTPUT

Workers are other processes: there, name the encoder as an entry point (docs/encoders.md).
"""

import sys

import numpy as np

from dpgmm_beam import Encoder, register_encoder
from pipelines import cli


class MeanColours(Encoder):
    """Mean colours of the quarters of a picture: twelve numbers."""

    dimension, batch_size = 12, 64

    def prepare(self, images):
        return np.stack([np.asarray(image.convert("RGB").resize((2, 2))) for image in images])

    def embed(self, prepared):
        return prepared.reshape(len(prepared), 12).astype(np.float32) + 1


def main(images: str, output: str) -> int:
    register_encoder("mean_colours", lambda argument, batch_size: MeanColours())
    return cli.main(["embed", "--input", images, "--encoder", "mean_colours", "--output", output])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
