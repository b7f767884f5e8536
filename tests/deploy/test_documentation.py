"""What README and docs/ say, against the commands, files and names that there are."""

import re
import shlex

import numpy as np
import pytest

from dpgmm_beam import Release
from pipelines import cli, release
from pipelines.arguments import parser_of
from pipelines.options import beam_pipeline_options
from tests.deploy.manifests import ROOT

PAGES = {
    str(path.relative_to(ROOT)): path.read_text() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
}
TEXT = PAGES["docs/running.md"]
MODULES = [
    path for package in ("dpgmm_beam", "transforms", "pipelines") for path in (ROOT / package).rglob("*.py")
]

_BLOCK = re.compile(r"^ {4,}(?:\.venv/bin/)?dpgmm (.+)$", re.MULTILINE)


def commands(page):
    """The words after `dpgmm` of each indented command of a page, continued lines joined."""
    return [shlex.split(rest, comments=True) for rest in _BLOCK.findall(PAGES[page].replace("\\\n", " "))]


ALL = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), ALL, ids=lambda each: each if isinstance(each, str) else each[0])
def test_commands_have_options_that_exist(page, words):
    verb, *arguments = words
    parser = parser_of(verb)
    known = parser._option_string_actions
    beam, target = [], []
    for word in arguments:
        if word.startswith("--"):
            # What the verb does not know goes to Beam, with the value that follows.
            target = [] if word in known else beam
        target.append(word.strip("[]"))
    if beam:
        assert parser.beam, beam
        beam_pipeline_options(beam)


@pytest.mark.parametrize(("page", "words"), ALL, ids=lambda each: each if isinstance(each, str) else each[0])
def test_commands_are_whole(page, words):
    """A verb has what it must be given, in a form that it takes, unless dots say that more belongs there."""
    verb, *arguments = words
    given = [word.strip("[]") for word in arguments]
    if "..." not in arguments and "…" not in arguments:
        parser_of(verb).parse_known_args(given)


def test_there_are_commands_to_check():
    assert [words[0] for words in commands("docs/running.md")] == ["release", "release", "embed"]
    told = [words[0] for words in commands("README.md")]
    assert told[:4] == ["inspect", "plan", "release", "report"]
    named = set(told) | {"demo", "clean", "completion"}
    assert named == set(cli.VERBS)
    for verb in named:
        assert re.search(rf"(dpgmm|make) {verb}\b", PAGES["README.md"]), verb


def anchors(text):
    """Of a page's headings, as they are made where it is shown."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page):
    """By their path from the root, from one of the packages, or from the page's own subject."""
    text = PAGES[page].replace("VERB", "verify")
    above = [
        ROOT,
        *(ROOT / each for each in ("dpgmm_beam", "transforms", "pipelines", "docs", "deploy/flink")),
    ]
    named = set(re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|sh|yaml|toml|png|txt))`", text))
    named |= set(re.findall(r"\b((?:benchmarks|deploy|docs|examples|tests)/[\w./-]*\w)", text))
    assert not [name for name in named if not any((folder / name).exists() for folder in above)]


def test_each_page_and_example_is_told_of():
    for page in PAGES:
        others = "".join(text for name, text in PAGES.items() if name != page)
        told = re.search(rf"(docs/|\()?{re.escape(page.removeprefix('docs/'))}\b", others)
        assert told or page == "README.md", page
    programs = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert programs == set(re.findall(r"`(\w+\.py)`", PAGES["docs/api.md"].split("## Examples")[1]))


def test_modules_of_the_map_are_there():
    """docs/architecture.md names modules without their folder where the one before has it."""
    text = PAGES["docs/architecture.md"]
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    assert len(named) > 40
    assert not [name for name in named if not any(str(path).endswith("/" + name) for path in MODULES)]


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    classes = ["cat", "dog", "bird"]
    names = {"X": rng.normal(size=(90, 6)), "y": np.repeat(classes, 30)}
    Release.fit(names["X"], names["y"], classes=classes, epsilon=1.0, delta=1e-5).save("release")
    (block,) = re.findall(r"```python\n(.+?)```", PAGES["README.md"], re.DOTALL)
    exec(block, names)
    assert len(names["rows"]) == 1000
    assert (tmp_path / "another" / "manifest.json").exists()


def test_the_file_of_options_is_taken(tmp_path):
    (text,) = re.findall(r"```yaml\n(.+?)```", TEXT, re.DOTALL)
    (tmp_path / "november.yaml").write_text(text)
    words = shlex.split(re.search("# november.yaml: dpgmm release (.+)", text)[1])
    known = release.parser().parse_args(
        [str(tmp_path / word) if word == "november.yaml" else word for word in words]
    )
    assert (known.classes, known.epsilon, known.release_id) == ("cat,dog,bird", 0.5, "2026-11")
    assert known.quiet


def test_gpus_are_asked_for_on_machines_that_have_them():
    (embed,) = (words for words in commands("docs/running.md") if words[0] == "embed")
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
