import json
from pathlib import Path

import numpy as np
import pytest

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.release import references
from dpgmm_beam.release.references import REFERENCES, curve, geometry_of

CELLS = json.loads((Path(__file__).parents[3] / "benchmarks/results/utility.json").read_text())["cells"]


def accuracy(dataset, method, epsilon):
    cells = [CELLS[f"{dataset} | {method} | epsilon {epsilon} | key {key}"] for key in (1, 2, 3)]
    return np.mean([cell["accuracy"] for cell in cells])


@pytest.mark.parametrize("name", REFERENCES)
def test_accuracies_are_those_of_the_benchmark(name):
    reference, ours = REFERENCES[name], "network on our release"
    for epsilon, stated in reference.accuracy.items():
        assert stated == pytest.approx(accuracy(name, ours, f"{epsilon:g}"), abs=5.1e-5)
    assert reference.without_noise == pytest.approx(accuracy(name, ours, "inf"), abs=5.1e-5)
    assert reference.real == pytest.approx(accuracy(name, "network on real rows", "inf"), abs=5.1e-5)


def test_the_geometry_of_digits_is_that_of_scikit_learns_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    from dpgmm_beam.data.rows import rows_of
    from dpgmm_beam.release.geometry import measured

    pixels, labels = datasets.load_digits(return_X_y=True)
    chosen = np.arange(len(labels)) % 5 != 4
    found = measured(rows_of(pixels[chosen], labels[chosen]), 10)
    reference = REFERENCES["digits"]
    assert chosen.sum() == pytest.approx(reference.rows, abs=1)
    for name in ("ranks", "within", "between", "centre"):
        assert getattr(found, name) == pytest.approx(getattr(reference.geometry, name), rel=2e-3, abs=1e-9)


def test_the_band_holds_every_measurement_and_no_more():
    found = curve()
    ratios = []
    for reference in REFERENCES.values():
        for epsilon in reference.accuracy:
            strength, loss = reference.strength(epsilon), max(reference.loss(epsilon), references.MIN_LOSS)
            low, middle, high = found.loss(strength)
            assert low * (1 - 1e-9) <= loss <= high * (1 + 1e-9)
            assert found.measured(strength)
            ratios.append(max(loss / middle, middle / loss))
    assert max(ratios) == pytest.approx(found.factor)
    assert found.factor < 2.1
    assert found.slope < -0.5
    assert not found.measured(1.0)
    assert not found.measured(1e4)


def test_the_curve_and_its_inverse():
    found = curve()
    for loss in (0.3, 0.05, 0.001):
        assert found.loss(found.strength_for(loss))[1] == pytest.approx(loss)
    assert found.loss(1e-9) == (1.0, 1.0, 1.0)


def test_an_unknown_data_set():
    assert geometry_of("digits") is REFERENCES["digits"].geometry
    for name in ("imagenet", "MNIST-5k"):
        with pytest.raises(
            ConfigError, match=f"like={name} is refused: it must be one of Fashion-MNIST, digits"
        ):
            geometry_of(name)
