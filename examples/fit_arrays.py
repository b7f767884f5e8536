"""A release of arrays, without a command line: fit, look, sample, save, load.

python examples/fit_arrays.py FOLDER
"""

import sys

import numpy as np

from dpgmm_beam import Release, load_release


def main(folder: str) -> None:
    generator = np.random.default_rng(0)
    y = np.array(["cat", "dog"])[generator.integers(0, 2, 5000)]
    X = generator.standard_normal((5000, 16)) + 2 * (y == "cat")[:, None]

    # Classes are declared; the key is drawn and dropped, so that nobody can derive this release again.
    Release.fit(X, y, classes=["cat", "dog"], epsilon=1.0, delta=1e-6, samples_per_class=1000).save(folder)

    release = load_release(folder)
    stated = release.privacy
    print(f"{release}, noise multiplier {stated['noise_multiplier']:.2f} for one {stated['privacy_unit']}")
    rows = release.sample(1000, seed=1)
    right = (release.predict(X) == y).mean()
    print(f"{rows.embeddings.shape} synthetic rows; the teacher is right on {right:.0%} of the real ones")


if __name__ == "__main__":
    main(sys.argv[1])
