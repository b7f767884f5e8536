"""The command where another project has packages of the same names."""

import os
import subprocess
import sys

import pytest

from tests import small

SPOILS = 'open("ran", "w").close()\nraise ImportError("mine")\n'


@pytest.fixture
def project(tmp_path):
    """A folder of somebody's own with a transforms.py and a package pipelines."""
    (tmp_path / "transforms.py").write_text(SPOILS)
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "__init__.py").write_text(SPOILS)
    return tmp_path


def run(folder, *options, **environment):
    return subprocess.run(
        [sys.executable, *options, "--help"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(small.REPOSITORY), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("names", [("transforms.py",), ("pipelines",), ("transforms.py", "pipelines")])
def test_another_package_is_named_and_does_not_run(project, tmp_path, names):
    for name in {"transforms.py", "pipelines"} - set(names):
        (project / name).rename(project / f"other-{name}")
    for done in (
        run(project, "-m", "dpgmm_beam"),
        run("/", "-m", "dpgmm_beam", PYTHONPATH=f"{project}{os.pathsep}{small.REPOSITORY}"),
    ):
        assert done.returncode == 2
        assert done.stderr.startswith("dpgmm: ")
        assert str(project) in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.rglob("ran"))


def test_a_working_folder_that_is_not_on_the_path_is_no_matter(project):
    """As in the script that pip installs, whose folder is first on the path."""
    done = run(project, "-P", "-m", "dpgmm_beam")
    assert (done.returncode, done.stderr) == (0, "")
    assert "dpgmm VERB" in done.stdout
    assert not (project / "ran").exists()
