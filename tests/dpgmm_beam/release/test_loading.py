import numpy as np
import pytest

from dpgmm_beam import load_labeller, load_mixture
from dpgmm_beam.release.class_rows import ClassRows
from dpgmm_beam.release.labels import Labeller
from dpgmm_beam.release.loading import with_labels
from tests import small


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loading")
    source = small.write_rows(folder / "in", small.table(300))
    for path, data in small.in_memory(source).items():
        (folder / "release" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "release" / path).write_bytes(data)
    return folder / "release"


@pytest.mark.parametrize("place", ["", "mixture"])
def test_a_mixture_with_all_that_its_release_says(release, place):
    mixture = load_mixture(str(release / place))
    counts = ClassRows.load(lambda name: (release / "mixture" / name).read_bytes())
    np.testing.assert_array_equal(mixture.class_rows, counts.rows)
    assert mixture.class_rows.dtype == np.float64
    assert mixture.class_rows_stddev == counts.stddev
    assert abs(mixture.class_rows.sum() - 300) < 6 * np.sqrt(3) * counts.stddev
    drawn = mixture["b"].sample(400, seed=3)
    teacher = load_labeller(str(release))
    np.testing.assert_array_equal(drawn.label_probabilities, teacher.probabilities(drawn.embeddings))
    likeliest = drawn.label_probabilities.argmax(axis=1)
    assert drawn.labels.tolist() == [small.CLASSES[index] for index in likeliest]
    assert set(drawn.component_class) == {"b"}


def test_files_of_different_releases(release):
    mixture = load_mixture(str(release))
    labeller = mixture.labeller
    assert isinstance(labeller, Labeller)
    other = ClassRows(("a", "b"), np.zeros(2, np.int64), 1.0)
    with pytest.raises(ValueError, match="of different classes"):
        with_labels(mixture, other, labeller)
