import io
import json
import re
import subprocess
import sys

import pytest
from PIL import Image

from pipelines import cli, plan
from tests.small import REPOSITORY

ASKED = [
    "plan",
    "--rows",
    "20000",
    "--classes",
    "10",
    "--dimension",
    "64",
    "--epsilon",
    "1",
    "--delta",
    "1e-6",
]


def said(capsys, *more):
    assert cli.main([*ASKED, *more]) == 0
    return capsys.readouterr()


def without_budget(*more):
    return [*ASKED[:-4], *more]


def test_a_plan_says_noise_accuracy_needs_and_risk(capsys):
    out, err = said(capsys)
    assert not err
    assert "20,000 rows, 10 classes of one size, dimension 64, epsilon 1, delta 1e-06" in out
    for mechanism in ("means/count", "means/sum", "moment/moment", "teacher/gradient, 19 times"):
        assert re.search(rf"^{mechanism} +0\.\d+ +[\d.]+ ", out, re.MULTILINE)
    for name in ("Fashion-MNIST", "MNIST-5k", "digits"):
        assert re.search(rf"0\.\d+ to 0\.\d+ on {name} \(", out)
    assert "no data was read" in out
    assert re.search(
        r"class counts are 10 times their noise: [\d,]+ rows at epsilon 1, or epsilon [\d.]+ with", out
    )
    assert "nobody guesses right more than 54.8 times in 100" in out
    assert max(map(len, out.splitlines())) < 200


def test_json_has_the_same(capsys):
    out, err = said(capsys, "--json", "--components", "4")
    found = json.loads(out)
    assert not err
    assert (found["exit_status"], found["rows"], found["noise_multiplier"]) == (
        0,
        20000,
        pytest.approx(4.2247, rel=1e-3),
    )
    assert {"sketch/sum", "late/count"} <= {step["mechanism"] for step in found["steps"]}
    for step in found["steps"]:
        assert step["ratio"] == pytest.approx(step["signal"] / step["noise"])
    assert found["loss"]["low"] < found["loss"]["middle"] < found["loss"]["high"]
    assert set(found["errors"]) == {"counts", "means", "covariance", "logit", "logit_size"}
    assert found["operational"]["mu"] == pytest.approx(1 / found["noise_multiplier"], rel=1e-5)
    assert found["needs"][0]["rows"] > 0
    assert found["warnings"] == []


def test_a_decodable_release_is_planned(capsys):
    out, _ = said(capsys, "--decodable", "28", "--share", "pictures/sum=.04")
    for mechanism in ("pictures/sum", "pictures/cross", "pictures/square"):
        assert re.search(rf"^{mechanism} +0\.\d+ +[\d.]+ ", out, re.MULTILINE)
    assert "pictures/" not in said(capsys)[0]


def test_the_same_question_has_the_same_answer(capsys):
    assert said(capsys, "--json") == said(capsys, "--json")


def test_what_is_needed_with_more_noise_is_more(capsys):
    one, other = (
        json.loads(said(capsys, "--json", *more)[0])["needs"] for more in ((), ("--epsilon", "0.25"))
    )
    assert all(less["rows"] < more["rows"] for less, more in zip(one, other, strict=True))
    assert [need["epsilon"] for need in one] == [need["epsilon"] for need in other]


def test_a_delta_that_is_too_large_is_warned_of(capsys):
    out, err = said(capsys, "--delta", "1e-4")
    assert err.startswith("warning: delta 0.0001 is not below one over 20,000 rows")
    assert "Take 5e-06 or less" in err
    assert "warning" not in out


@pytest.mark.parametrize(("budget", "mu"), [("--mu=0.25", 0.25), ("--max-advantage=0.1", 0.251322)])
def test_a_budget_in_what_an_attacker_gains(capsys, budget, mu):
    assert cli.main(without_budget(budget, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["operational"]["mu"] == mu
    assert found["delta"] == 1e-9


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--rows", "9"], "--rows=9 is refused: it must be a whole number from 10 (one for each class)"),
        (["--rows", "3000000000"], "--rows=3000000000 is refused"),
        (["--classes", "0"], "--classes=0 is refused: it must be a whole number from 1 to 8192."),
        (["--classes", "1000000000"], "--classes=1000000000 is refused"),
        (["--dimension", "0"], "--dimension=0 is refused: it must be from 1 to 8192."),
        (["--epsilon", "0"], "--epsilon=0.0 is refused"),
        (["--mu", ".5"], "--mu=0.5 is refused: it must come without --epsilon and --delta"),
        (["--components", "0"], "--components=0 is refused"),
        (["--share", "means=1"], "--share=means=1 is refused"),
        (["--like", "imagenet"], "--like=imagenet is refused: it must be one of Fashion-MNIST, digits."),
        (["--within", "0"], "--within=0.0 is refused: it must be a number from 0.0001 and below 1."),
        (["--within", "nan"], "--within=nan is refused"),
        (["--png", "plan.pdf"], "--png=plan.pdf is refused: it must be the name of a .png file."),
        (["--png", "/proc/plan.png"], "--png=/proc/plan.png is refused"),
        (["--input", "photos"], "--input=photos is refused: it must be an option of this verb"),
    ],
)
def test_refusals(capsys, more, sentence):
    assert cli.main([*ASKED, *more]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert sentence in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("more", [(), ("--classes", "1", "--components", "3")])
def test_the_picture(capsys, tmp_path, more):
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "plan.png"
    out, _ = said(capsys, "--png", str(path), *more)
    assert f"drawn to {path}" in out
    first = path.read_bytes()
    image = Image.open(io.BytesIO(first)).convert("RGB")
    assert image.width > image.height > 500
    # It is drawn over, whole, and is the same.
    said(capsys, "--png", str(path), *more)
    assert path.read_bytes() == first
    # Bars, band and marks.
    colours = {colour for count, colour in image.getcolors(10**6) if count > 100}
    assert {(0x1F, 0x4E, 0x79), (255, 255, 255), (0xC5, 0x5A, 0x11)} <= colours
    assert list(path.parent.iterdir()) == [path]


def test_without_matplotlib_the_extra_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    assert cli.main([*ASKED, "--png", str(tmp_path / "plan.png")]) == 2
    assert 'it must come with matplotlib: pip install "dpgmm-beam[plot]".' in capsys.readouterr().err


def test_a_plan_starts_without_beam_and_torch():
    """What takes seconds to import is not, and neither is it for the help."""
    program = (
        "import sys\nfrom pipelines import cli\nstatus = cli.main(sys.argv[1:])\n"
        "heavy = {'apache_beam', 'torch', 'matplotlib', 'dp_accounting'} & set(sys.modules)\n"
        "assert not heavy, heavy\nraise SystemExit(status)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *ASKED], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
