"""dpgmm budget: what releases cost together, from their manifests."""

import json
import re
import shutil

import numpy as np
import pytest

from dpgmm_beam import Release
from dpgmm_beam.privacy.composition import allowance, epsilon_within
from pipelines import cli
from tests import small


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases")
    rows, labels = np.random.default_rng(0).normal(size=(60, 4)), ["a", "b"] * 30
    for name, epsilon in (("one", 1.0), ("two", 1.0), ("three", 0.5)):
        options = {"classes": ["a", "b"], "epsilon": epsilon, "delta": 1e-6, "samples_per_class": 5}
        Release.fit(rows, labels, **options).save(folder / name)
    return folder


def budget(capsys, *arguments):
    assert cli.main(["budget", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_releases_compose_exactly(releases, capsys):
    found = budget(capsys, *(releases / name for name in ("one", "two", "three")), "--epsilon", 2)
    assert found["epsilon"] == pytest.approx(found["epsilon_by_pld"], rel=1e-4)
    assert 1.0 < found["epsilon"] < 2.5
    assert found["mu"] ** 2 == pytest.approx(
        sum(
            json.loads((releases / name / "manifest.json").read_text())["privacy"]["noise_multiplier"] ** -2
            for name in ("one", "two", "three")
        )
    )
    # What is said to be left fits beside them, and little more does.
    more = {"classes": ["a", "b"], "epsilon": found["each_epsilon"], "delta": 1e-6, "samples_per_class": 5}
    Release.fit(np.zeros((4, 4)) + 1, ["a", "b"] * 2, **more).save(releases / "rest")
    whole = budget(capsys, *(releases / name for name in ("one", "two", "three", "rest")))
    assert 1.999 < whole["epsilon"] <= 2.0


def test_a_copy_costs_nothing_and_another_draw_of_one_id_does(releases, tmp_path, capsys):
    shutil.copytree(releases / "one", tmp_path / "copy")
    alone = budget(capsys, releases / "one")
    both = budget(capsys, releases / "one", tmp_path / "copy")
    assert (both["epsilon"], both["copies"]) == (alone["epsilon"], 1)
    # The same id and configuration, and other files of the fit: drawn twice.
    manifest = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    for file in manifest["files"]:
        if file["path"].startswith("mixture/"):
            file["sha256"] = "0" * 64
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(manifest))
    assert budget(capsys, releases / "one", tmp_path / "copy")["epsilon"] > 1.4


@pytest.mark.parametrize("name", ["privacy_unit", "adjacency", "dp_event", "noise_multiplier"])
def test_a_manifest_that_states_another_privacy_is_refused(releases, tmp_path, capsys, name):
    shutil.copytree(releases / "one", tmp_path / "forged")
    manifest = json.loads((tmp_path / "forged" / "manifest.json").read_text())
    manifest["privacy"][name] = {"GaussianDpEvent": {"noise_multiplier": 1e9}}
    (tmp_path / "forged" / "manifest.json").write_text(json.dumps(manifest))
    assert cli.main(["budget", str(tmp_path / "forged")]) == 2
    assert "state the privacy that follows from it" in capsys.readouterr().err


def test_releases_of_two_units_are_refused(releases, capsys, monkeypatch):
    """A unit that another version of the manifest states, as far as this verb is concerned."""
    from dpgmm_beam.release import manifest

    stated, seen = manifest.statement, []

    def statement(plan):
        due = stated(plan)
        seen.append(plan)
        if len(seen) > 1:
            due["privacy"]["privacy_unit"] = "a patient"
        return due

    real = json.loads((releases / "two" / "manifest.json").read_text())
    changed = json.loads(json.dumps(real))
    changed["privacy"]["privacy_unit"] = "a patient"
    path = releases / "two" / "manifest.json"
    path.write_text(json.dumps(changed))
    monkeypatch.setattr(manifest, "statement", statement)
    try:
        assert cli.main(["budget", str(releases / "one"), str(releases / "two")]) == 2
    finally:
        path.write_text(json.dumps(real))
    assert "be of one privacy unit and adjacency with" in capsys.readouterr().err


def test_what_each_of_many_may_cost(capsys):
    found = budget(capsys, "--epsilon", 4, "--delta", 1e-6, "--releases", 12)
    assert found["each_epsilon"] == pytest.approx(1.0235, rel=1e-3)
    assert budget(capsys, "--epsilon", 0.002, "--delta", 1e-6, "--releases", 1000)["each_epsilon"] == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "release folder=(none)"),
        (["/nowhere"], "release folder=/nowhere"),
        (["--releases", "0", "--epsilon", "1", "--delta", "1e-6"], "--releases=0"),
        (["--releases", "3", "--delta", "1e-6"], "--epsilon=(not given)"),
        (["--releases", "3", "--epsilon", "1"], "--delta=(not given)"),
        (["--releases", "3", "--epsilon", "nan", "--delta", "1e-6"], "--epsilon=nan"),
        (["--releases", "3", "--epsilon", "1", "--delta", "2"], "--delta=2.0"),
    ],
)
def test_what_is_refused(arguments, named, capsys):
    assert cli.main(["budget", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"dpgmm: {named} is refused"), err


def test_the_table_of_a_years_releases_is_right():
    """docs/budget.md, to its three digits."""
    lines = (small.REPOSITORY / "docs" / "budget.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| total epsilon"))
    counts = [int(re.search("[0-9]+", cell)[0]) for cell in lines[start].split("|")[2:-1]]
    rows = [[float(cell) for cell in line.split("|")[1:-1]] for line in lines[start + 2 : start + 6]]
    assert [row[0] for row in rows] == [1, 2, 4, 8]
    for total, *stated in rows:
        due = [epsilon_within(allowance(total, 1e-6) // count, 1e-6) for count in counts]
        assert stated == [float(f"{each:.3g}") for each in due]
