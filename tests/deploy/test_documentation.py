"""docs/running.md against the commands and files that it names."""

import importlib
import re
import shlex

import pytest

from pipelines import release
from pipelines.options import beam_pipeline_options
from tests.deploy.manifests import ROOT

TEXT = (ROOT / "docs/running.md").read_text()


def commands(name):
    """The words after NAME of each indented command of the page, continued lines joined."""
    joined = TEXT.replace("\\\n", " ")
    return [shlex.split(rest) for rest in re.findall(rf"^ {{4,}}{name} (.+)$", joined, re.MULTILINE)]


@pytest.mark.parametrize("words", commands("dpgmm"), ids=lambda words: words[0])
def test_commands_have_options_that_exist(words):
    verb, *arguments = words
    parser = importlib.import_module(f"pipelines.{verb}").parser()
    known = parser._option_string_actions
    beam, target = [], []
    for word in arguments:
        if word.startswith("--"):
            # What the verb does not know goes to Beam, with the value that follows.
            target = [] if word in known else beam
        target.append(word)
    beam_pipeline_options(beam)


def test_there_are_commands_to_check():
    assert [words[0] for words in commands("dpgmm")] == ["release", "release", "embed"]


def test_the_file_of_options_is_taken(tmp_path):
    (text,) = re.findall(r"```yaml\n(.+?)```", TEXT, re.DOTALL)
    (tmp_path / "november.yaml").write_text(text)
    words = shlex.split(re.search("# november.yaml: dpgmm release (.+)", text)[1])
    known = release.parser().parse_args(
        [str(tmp_path / word) if word == "november.yaml" else word for word in words]
    )
    assert (known.classes, known.epsilon, known.release_id) == ("cat,dog,bird", 0.5, "2026-11")
    assert known.quiet


def test_files_that_the_page_names_are_there():
    named = set(re.findall(r"\bdeploy/[\w/.-]*\w", TEXT))
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]


def test_gpus_are_asked_for_on_machines_that_have_them():
    (embed,) = (words for words in commands("dpgmm") if words[0] == "embed")
    machine = embed[embed.index("--worker_machine_type") + 1]
    assert machine.startswith("g2-")
    assert any("nvidia-l4" in word for word in embed)


@pytest.mark.parametrize("gone", ["--cache-mib", "--direct_num_workers", "cache_mib"])
def test_options_that_are_gone_are_named_nowhere(gone):
    assert gone not in TEXT
    for path in (ROOT / "deploy").rglob("*"):
        # The metadata is what the command says of itself.
        if path.is_file() and path.suffix != ".pyc" and path.name != "metadata.json":
            assert gone not in path.read_text(), path
