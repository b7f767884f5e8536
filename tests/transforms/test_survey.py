import pytest

from transforms import survey
from transforms.files.inputs import InputDescription


@pytest.mark.parametrize(("rows", "measured"), [(10**5, 7.1), (10**6, 29.7), (10**7, 235.1)])
def test_the_model_of_cost_is_that_of_the_measurements(rows, measured):
    """docs/scale.md, `ten-million`: rows of 512, ten classes, two cores."""
    found = survey.cost(rows, 512, 10, 2, 6000, embedded=False)
    assert abs(found.seconds / measured - 1) < 0.25
    assert found.disk == rows * (16 + 4 * 512)


def test_sources_are_counted_all_and_named_some():
    named = survey.Named()
    for number in range(7):
        named.add(str(number), "cut" if number % 2 else "empty", most=3)
    assert named.to_json("reason") == {
        "counts": {"cut": 3, "empty": 4},
        "named": [{"source": str(n), "reason": "cut" if n % 2 else "empty"} for n in range(3)],
    }


def test_an_input_that_is_gone_when_its_job_is_done_fails_nothing(tmp_path):
    description = InputDescription("image_folder", str(tmp_path / "gone"), None, True)
    found = survey.left_out_of_images(description, "efficientnet_lite0:32", str(tmp_path))
    assert "gone" in found.get("error", "gone")
    assert set(found) <= {"error", "rejected", "passed_over", "notes"}
