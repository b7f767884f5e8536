"""A network from a release, in Python: draw rows, train on their soft labels, keep it, predict.

python examples/train_and_predict.py RELEASE NETWORK_FILE
"""

import sys
from pathlib import Path

from dpgmm_beam import load_mixture, load_network, train_network


def main(release: str, file: str) -> None:
    mixture = load_mixture(release)
    assert mixture.labeller is not None
    drawn = mixture.sample(3000, seed=1)
    trained = train_network(
        drawn.embeddings,
        drawn.label_probabilities,
        mixture.labeller.classes,
        clip_norm=None if mixture.normalized else mixture.clip_norm,
    )
    Path(file).write_bytes(trained.to_bytes())

    network = load_network(file)
    # In the place of real embeddings, which the network brings to norm 1 itself.
    new = mixture.sample(1000, seed=2)
    predicted = network.predict(5 * new.embeddings)
    named = [network.classes[index] for index in predicted]
    agreement = sum(one == other for one, other in zip(named, new.labels, strict=True)) / len(new)
    print(f"the network agrees with the teacher on {agreement:.0%} of new rows")
    print(
        f"its first row: {named[0]}, with probability {network.predict_proba(new.embeddings[:1]).max():.2f}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
