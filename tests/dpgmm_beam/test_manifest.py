import copy
import hashlib
import json
import re

import pytest

from dpgmm_beam import manifest
from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.plan import Plan

FILES = {"synthetic/part-0.parquet": b"rows", "mixture/basis.parquet": b"basis"}


def entry(path, data):
    return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "rows": 1}


@pytest.fixture(scope="module")
def plan():
    return Plan(ReleaseConfig("precomputed", ("a", "b"), 4, 1.0, 1e-5), "first")


@pytest.fixture(scope="module")
def data(plan):
    return manifest.build(
        plan.config.to_dict(), plan.budget, plan.release_id, [entry(*item) for item in FILES.items()]
    )


def problems(data, edit=lambda content: None, files=FILES):
    content = copy.deepcopy(manifest.parse(data, "DIR"))
    edit(content)

    def read(path):
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    return manifest.check(content, read)


def test_a_whole_release_has_no_problem(data):
    assert problems(data) == []


def test_files_that_were_changed_or_lost(data):
    path = "synthetic/part-0.parquet"
    for changed in (b"Rows", b"rows ", b""):
        assert problems(data, files={**FILES, path: changed}) == [
            f"{path} does not have the digest that the manifest states"
        ]
    assert problems(data, files={"mixture/basis.parquet": b"basis"}) == [f"{path} is missing"]


def privacy(**changes):
    return lambda content: content["privacy"].update(changes)


def first_event(content):
    return content["privacy"]["dp_event"]["ComposedDpEvent"]["events"][0]["SelfComposedDpEvent"]


def edit_everywhere(epsilon):
    def edit(content):
        content["privacy"]["epsilon"] = content["config"]["epsilon"] = epsilon
        content["config_digest"] = manifest.config_digest(content["config"])

    return edit


def edit_multiplier(factor):
    return lambda c: c["privacy"]["mechanisms"][1].update(
        noise_multiplier=c["privacy"]["mechanisms"][1]["noise_multiplier"] * factor
    )


def edit_event(factor):
    def edit(content):
        event = first_event(content)["event"]["GaussianDpEvent"]
        event["noise_multiplier"] *= factor

    return edit


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (privacy(epsilon=0.9), "composes to epsilon"),
        (privacy(epsilon=2.0), "does not agree"),
        (privacy(delta=1e-6), "composes to epsilon"),
        (privacy(delta=1e-4), "does not agree"),
        (edit_everywhere(0.5), "composes to epsilon"),
        (edit_everywhere(2.0), "does not agree"),
        (edit_multiplier(1.0001), "does not agree"),
        (edit_multiplier(0.5), "does not agree"),
        (privacy(noise_multiplier=9.0), "noise multiplier is not that of epsilon and delta"),
        (edit_event(0.5), "composes to epsilon"),
        (edit_event(2.0), "does not agree"),
        (lambda c: c["config"].update(samples_per_class=1), "configuration does not have the digest"),
        (lambda c: c["config"].update(epsilon=0.1), "epsilon of the configuration"),
        (lambda c: c.update(config_digest="0" * 64), "configuration does not have the digest"),
        (lambda c: c["privacy"]["mechanisms"].pop(), "malformed|does not agree"),
        (lambda c: c.pop("privacy"), "malformed"),
        (lambda c: c.update(files=[{"path": "x"}]), "malformed|missing"),
        (lambda c: c.update(config=[]), "malformed"),
        (privacy(delta=2.0), "malformed|composes"),
        (privacy(epsilon="1"), "malformed"),
        (edit_event(-1.0), "malformed"),
        (edit_event(0.0), "composes to epsilon inf"),
        (lambda c: first_event(c).update(count=-1), "malformed"),
        (lambda c: first_event(c).update(count=0), "malformed|does not agree"),
    ],
)
def test_edits_are_found(data, edit, found):
    assert re.search(found, " / ".join(problems(data, edit)))


def test_the_same_release_has_the_same_manifest(plan, data):
    reordered = [entry(*item) for item in reversed(FILES.items())]
    again = Plan(ReleaseConfig.from_dict(json.loads(data)["config"]), "first")
    assert manifest.build(again.config.to_dict(), again.budget, "first", reordered) == data
    assert manifest.build(plan.config.to_dict(), plan.budget, "second", reordered) != data


def test_it_holds_what_the_release_promises_and_no_time(data):
    content = json.loads(data)
    assert set(content) == {
        "schema_version",
        "release_id",
        "config",
        "config_digest",
        "privacy",
        "versions",
        "files",
    }
    assert content["privacy"]["adjacency"] == "add or remove one privacy unit"
    assert {m["name"] for m in content["privacy"]["mechanisms"]} == {
        "means/count",
        "means/sum",
        "moment/moment",
        "teacher/gradient",
    }
    assert {"numpy", "scipy", "apache-beam", "dpgmm-beam", "python"} <= set(content["versions"])
    assert not re.search(rb"20\d\d-\d\d|\d\d:\d\d:\d\d|time|date\b|host|/tmp|/home", data)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"{}", b'{"schema_version": 99}', b"\xff"])
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(ConfigError, match="--release=DIR is refused"):
        manifest.parse(text, "DIR")
