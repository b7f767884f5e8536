"""deploy/Dockerfile against the repository; no image is built."""

import re

import pytest

from tests.deploy.manifests import DEPLOY, ROOT, containers, driver_arguments, kind, load


@pytest.fixture(scope="module")
def image():
    return load(DEPLOY / "check_image_steps.py"), (DEPLOY / "Dockerfile").read_text()


def test_image_copies_what_exists_and_what_the_builder_gets(image):
    steps, text = image
    allowed = [
        line[1:].removesuffix("/**")
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    sources = [source for sources, _ in steps.copies(text) for source in sources]
    assert sorted(sources) == sorted(allowed)
    for source in sources:
        assert (ROOT / source).exists(), source


def test_image_installs_with_the_constraints_and_declares_its_arguments(image):
    steps, text = image
    instructions = steps.instructions(text)
    installs = [rest for word, rest in instructions if word == "RUN" and rest.startswith("pip install")]
    assert installs
    assert all("-c constraints.txt" in rest for rest in installs)
    declared = {rest.partition("=")[0] for word, rest in instructions if word == "ARG"}
    used = set(re.findall(r"\$\{?([A-Z_]+)", text))
    assert used <= declared
    for script in DEPLOY.rglob("*.sh"):
        assert set(re.findall(r"--build-arg (\w+)=", script.read_text())) <= declared


def test_image_runs_beam_of_the_constraints_as_an_ordinary_user(image):
    steps, text = image
    instructions = steps.instructions(text)
    version = re.search(r"^apache-beam==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(1)
    assert ("ARG", f"BEAM_VERSION={version}") in instructions
    assert instructions[-1] == ("ENTRYPOINT", '["/opt/apache/beam/boot"]')
    assert ("USER", "${RUN_AS}") in instructions
    python = {
        re.search(r"3\.\d+|3\d+", rest).group().replace(".", "")
        for word, rest in instructions
        if word == "FROM"
    }
    assert python == {"311"}


@pytest.mark.parametrize("where", ["cronjob", "compose"])
def test_image_has_the_jar_that_drivers_name(image, where):
    _, text = image
    jar = next(a.partition("=")[2] for a in driver_arguments(where) if a.startswith("--flink_job_server_jar"))
    assert jar in text


def test_image_has_the_command_of_the_schedule(image):
    _, text = image
    command = containers(kind("CronJob", "dpgmm-release"))["driver"]["command"][0]
    assert f"/usr/local/bin/{command}" in text
