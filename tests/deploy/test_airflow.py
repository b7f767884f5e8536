"""deploy/airflow: its commands against the program's own parsers; the DAG, run by a real Airflow."""

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bad_ground
from pipelines.arguments import parser_of
from pipelines.ledger.book import Book
from tests import small
from tests.deploy.manifests import DEPLOY, load

FOLDER = DEPLOY / "airflow"
SETTINGS = {
    "DPGMM_INPUT": "/srv/photos of 2026",
    "DPGMM_ENCODER": "efficientnet_lite0",
    "DPGMM_CLASSES": "/etc/dpgmm/classes",
    "DPGMM_TEST": "/srv/test",
    "DPGMM_EPSILON": "1",
    "DPGMM_DELTA": "1e-6",
    "DPGMM_LEDGER": "postgresql://ledger/dpgmm",
    "DPGMM_DATASET": "photos",
    "DPGMM_RELEASE_KEY_STORE": "vault:secret/dpgmm",
    "DPGMM_PRIVATE_DIR": "/var/lib/dpgmm",
    "DPGMM_RELEASES": "/srv/releases",
    "DPGMM_OPTIONS": "--threads 2 --runner FlinkRunner",
}


def airflow() -> str:
    """A Python that has Airflow, which can't share this one's packages; "" for none."""
    python = os.environ.get("DPGMM_AIRFLOW_PYTHON", "")
    found = python and subprocess.run([python, "-c", "import airflow.sdk"], capture_output=True, check=False)
    return python if found and not found.returncode else ""


def test_each_command_is_one_that_its_verb_takes():
    commands = load(FOLDER / "dpgmm_commands.py")
    made = commands.commands("2026-11", SETTINGS)
    assert tuple(made) == commands.STEPS == ("embed", "release", "train", "report")
    known = {}
    for step, (verb, *arguments) in made.items():
        assert verb == step
        known[step], rest = parser_of(verb).parse_known_args(arguments)
        assert rest == (["--runner", "FlinkRunner"] if step == "release" else [])
    assert known["release"].release_id == "2026-11"
    assert known["release"].input == known["embed"].output
    assert known["release"].dataset == "photos"
    assert known["train"].synthetic == known["release"].output == known["report"].release
    assert known["report"].network == known["train"].output
    # All but the release is exact.
    private = SETTINGS["DPGMM_PRIVATE_DIR"]
    assert all(
        known[step].output.startswith(private) == (step != "release")
        for step in ("embed", "release", "train", "report")
    )
    assert commands.NEVER_AGAIN == (2, 3)
    assert commands.program({}) == ["dpgmm"]
    assert commands.program({"DPGMM_COMMAND": "/opt/a\\ b/dpgmm"}) == ["/opt/a b/dpgmm"]


def test_the_dag_is_python_and_holds_no_shell():
    text = (FOLDER / "dpgmm_release.py").read_text()
    compile(text, "dpgmm_release.py", "exec")
    assert "shell=True" not in text
    assert "BashOperator" not in text


@pytest.fixture
def environment(tmp_path):
    """Of an Airflow of its own, with a small data set and room for one release."""
    bad_ground.ground(tmp_path / "ground")
    Book(str(tmp_path / "ledger.sqlite"), "photos").create(1.2, 1e-5)
    alert = tmp_path / "alert.sh"
    alert.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" >> {tmp_path}/alerts\n')
    alert.chmod(alert.stat().st_mode | stat.S_IXUSR)
    python = Path(airflow())
    return {
        **{name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ},
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(FOLDER),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "DPGMM_COMMAND": shlex.join(
            ["env", f"PYTHONPATH={small.REPOSITORY}", sys.executable, "-m", "dpgmm_beam"]
        ),
        "DPGMM_INPUT": str(tmp_path / "ground" / "images"),
        "DPGMM_ENCODER": "efficientnet_lite0:32",
        "DPGMM_CLASSES": "a,b",
        "DPGMM_TEST": str(tmp_path / "private" / "embedded"),
        "DPGMM_EPSILON": "1",
        "DPGMM_DELTA": "1e-5",
        "DPGMM_LEDGER": str(tmp_path / "ledger.sqlite"),
        "DPGMM_DATASET": "photos",
        "DPGMM_RELEASE_KEY_STORE": str(tmp_path / "keys"),
        "DPGMM_PRIVATE_DIR": str(tmp_path / "private"),
        "DPGMM_RELEASES": str(tmp_path / "releases"),
        "DPGMM_OPTIONS": "--components 1 --samples-per-class 20",
        "DPGMM_ALERT": str(alert),
    }


@pytest.mark.skipif(not airflow(), reason="needs DPGMM_AIRFLOW_PYTHON, a Python that has Airflow 3")
def test_a_real_airflow_runs_it_and_the_budget_ends_it(tmp_path, environment):
    def run(*arguments):
        command = [airflow(), "-m", "airflow", *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    assert run("db", "migrate").returncode == 0
    first = run("dags", "test", "dpgmm_release", "2026-11-01")
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert (tmp_path / "releases" / "2026-11" / "manifest.json").exists()
    assert (tmp_path / "private" / "pages" / "2026-11.html").exists()
    assert os.listdir(tmp_path / "releases") == ["2026-11"]
    second = run("dags", "test", "dpgmm_release", "2026-12-01")
    assert second.returncode != 0
    (sentence,) = (tmp_path / "alerts").read_text().splitlines()
    assert "release failed: exit status 3: dpgmm: --epsilon=1.0 is refused" in sentence
    states = [charge.state for charge in Book(environment["DPGMM_LEDGER"], "photos").account().counted()]
    assert states == ["committed"]
    assert os.listdir(tmp_path / "releases") == ["2026-11"]
