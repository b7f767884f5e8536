"""Every seventh of the bad inputs of `benchmarks/bad_inputs.py`, in this process."""

import os
import re
import shutil

import pytest

from benchmarks import bad_cases, bad_ground
from pipelines import cli
from tests import small

# Other users, and what surrounds a process, want one of their own; a few bad inputs take seconds to make.
CASES = [
    case
    for case in bad_cases.cases()
    if not (case.finds or case.user or case.environment)
    and case.verb in ("release", "embed", "train", "sample", "demo")
    and not re.search("weights|a small bomb|40 million|--runner|Dataflow|job server|Flink", case.title)
]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    bad_ground.ground(folder)
    config = small.small_config(dimension=bad_ground.DIMENSION, samples_per_class=5)
    small.run(folder / "in", folder / "release", folder / "key", config=config)
    return folder


def listing(folder):
    return sorted((str(path), path.lstat().st_mode) for path in folder.rglob("*"))


@pytest.mark.parametrize("case", CASES[::7], ids=lambda case: case.name)
def test_it_is_refused_well(case, ground, tmp_path, capsys, monkeypatch):
    at = tmp_path / "at"
    shutil.copytree(ground, at)
    case.prepare(at)
    before = listing(at)
    monkeypatch.chdir(at)
    # What pytest puts in the place of streams takes no surrogates.
    arguments = case.arguments(at)
    try:
        status = cli.main(arguments)
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    assert status == 2, err
    assert not out
    *progress, line = err.splitlines()
    assert case.verb == "demo" or not progress
    assert line.isprintable()
    assert re.match(rf"dpgmm.*: (argument )?({'|'.join(map(re.escape, case.names))})[=: ]", line), line
    assert listing(at) == before
    assert os.getcwd() == str(at)
