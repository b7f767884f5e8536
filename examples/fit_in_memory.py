"""A release of arrays in memory, without Beam: fit, write, sample, label.

python examples/fit_in_memory.py FOLDER
"""

import secrets
import sys
from pathlib import Path

import numpy as np

from dpgmm_beam import NoiseKey, Plan, ReleaseConfig, load_mixture, release_in_memory, rows_of


def main(folder: str) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 5000)
    embeddings = generator.standard_normal((5000, 16)) + 2 * np.eye(2, 16)[labels]

    config = ReleaseConfig("precomputed", ("cat", "dog"), 16, epsilon=1.0, delta=1e-6, samples_per_class=1000)
    rows = rows_of(embeddings, labels)
    # A key that is drawn and dropped: nobody can derive this release again.
    key = NoiseKey(secrets.token_bytes(32))
    files = release_in_memory(Plan(config, secrets.token_hex(16)), lambda: rows.blocks(512), key)
    for path, data in files.items():
        (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
        (Path(folder) / path).write_bytes(data)

    drawn = load_mixture(folder).sample(1000, seed=1)
    agreement = (drawn.labels == drawn.component_class).mean()
    print(f"{len(files)} files; the teacher agrees with the drawn class on {agreement:.0%}")


if __name__ == "__main__":
    main(sys.argv[1])
