import copy
import hashlib
import json
import re

import pytest

from dpgmm_beam.config import ReleaseConfig, digest_of
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.release import manifest
from dpgmm_beam.release.card import card

CONFIG = ReleaseConfig("precomputed", ("a", "b"), 4, 1.0, 1e-5)
FILES = {path: path.encode() for path in manifest.files_of(CONFIG)}
FILES["README.md"] = card(Plan(CONFIG, "first", counted=1000))
PART = "synthetic/part-00000-of-00002.parquet"


def entry(path, data):
    rows = manifest.files_of(CONFIG)[path]
    return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "rows": rows}


@pytest.fixture(scope="module")
def plan():
    return Plan(CONFIG, "first", counted=1000)


@pytest.fixture(scope="module")
def data(plan):
    return manifest.build(plan, [entry(*item) for item in FILES.items()])


def problems(data, edit=lambda content: None, files=FILES):
    content = copy.deepcopy(manifest.parse(data, "DIR"))
    edit(content)

    def measure(path, most):
        if path not in files:
            raise FileNotFoundError(path)
        return len(files[path]), hashlib.sha256(files[path]).hexdigest()

    return manifest.check(content, files, measure)


def test_a_whole_release_has_no_problem(data):
    assert problems(data) == []


def test_what_a_release_is_made_of():
    assert manifest.files_of(CONFIG) == {
        "mixture/components.parquet": None,
        "README.md": 0,
        "mixture/basis.parquet": 4,
        "mixture/classes.parquet": 2,
        "mixture/teacher.parquet": 2,
        "mixture/features.parquet": 4,
        "mixture/ridges.parquet": 256,
        PART: 8192,
        "synthetic/part-00001-of-00002.parquet": 3808,
    }


def test_files_that_were_changed_or_lost_or_added(data):
    for changed in (b"Rows", b"rows ", b""):
        assert problems(data, files={**FILES, PART: changed}) == [
            f"{PART} does not have the digest that the manifest states"
        ]
    without = {path: content for path, content in FILES.items() if path != PART}
    assert problems(data, files=without) == [f"{PART} is missing or cannot be read"]
    extra = "synthetic/part-zzz.parquet"
    assert problems(data, files={**FILES, extra: b""}) == [f"{extra} is there and not of the release"]


def test_a_card_that_says_something_else(data):
    """Also where the manifest has its digest."""
    other = FILES["README.md"].replace(b"epsilon = 1 ", b"epsilon = .1 ")
    assert other != FILES["README.md"]

    def edit(content):
        (stated,) = (file for file in content["files"] if file["path"] == "README.md")
        stated.update(entry("README.md", other))

    files = {**FILES, "README.md": other}
    assert problems(data, edit, files) == ["README.md is not what follows from the configuration"]


def privacy(**changes):
    return lambda content: content["privacy"].update(changes)


def first_event(content):
    return content["privacy"]["dp_event"]["ComposedDpEvent"]["events"][0]["SelfComposedDpEvent"]


def edit_config(**changes):
    """As a forger would: with the digest that follows."""

    def edit(content):
        content["config"].update(changes)
        content["config_digest"] = digest_of(content["config"])

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


def edit_file(**changes):
    return lambda content: content["files"][-1].update(changes)


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        *[
            (privacy(**{name: value}), f"^{name} of the privacy statement is not what follows")
            for name, value in {
                "epsilon": 0.9,
                "delta": 1e-6,
                "adjacency": "replace one \x1b[2J unit",
                "neighboring_relation": "REPLACE_ONE",
                "privacy_unit": "one user",
                "noise_multiplier": 9.0,
                "operational": {"mu": 0.1},
                "mechanisms": [],
                "dp_event": {"GaussianDpEvent": {"noise_multiplier": 1e9}},
                "note": "certified",
            }.items()
        ],
        (privacy(epsilon="1"), "epsilon of the privacy statement"),
        (privacy(epsilon=True), "epsilon of the privacy statement"),
        (
            lambda c: c["privacy"]["operational"].update(advantage=0.05),
            "operational of the privacy statement",
        ),
        (lambda c: c["privacy"].pop("operational"), "operational of the privacy statement"),
        (edit_multiplier(1.0001), "mechanisms of the privacy statement"),
        (edit_event(0.5), "dp_event of the privacy statement"),
        (edit_event(-1.0), "dp_event of the privacy statement"),
        (lambda c: c["privacy"]["mechanisms"].pop(), "mechanisms of the privacy statement"),
        (lambda c: c.pop("privacy"), "privacy statement"),
        (lambda c: c.update(privacy=[]), "privacy statement"),
        (edit_config(epsilon=0.5), "epsilon of the privacy statement.*fit_digest|fit_digest"),
        (edit_config(components=2), "not what follows"),
        (edit_config(samples_per_class=1), "no file of such a release"),
        (edit_config(dimension=-4), "hold a configuration"),
        (edit_config(dimension="4"), "hold a configuration"),
        (edit_config(more=1), "hold a configuration"),
        (edit_config(method={"reduced": 7}), "config is not what follows"),
        (edit_config(method={"depth": 1}), "hold a configuration"),
        (lambda c: c["config"].update(samples_per_class=5999), "config"),
        (lambda c: c.update(config=[]), "hold a configuration"),
        (lambda c: c.pop("config"), "hold a configuration"),
        (lambda c: c.update(config_digest="0" * 64), "config_digest is not what follows"),
        (lambda c: c.update(fit_digest="0" * 64), "fit_digest is not what follows"),
        (lambda c: c.update(audited_by="someone"), "entries of no known meaning: audited_by"),
        (lambda c: c.update(files=[]), f"{PART} is not in the manifest"),
        (lambda c: c["files"].pop(), "is not in the manifest"),
        (lambda c: c["files"].append(c["files"][0]), "names a file twice"),
        (lambda c: c.update(files=[{"path": "x"}]), "list of files is malformed"),
        (lambda c: c.update(files=3), "list of files is malformed"),
        (lambda c: c.pop("files"), "list of files is malformed"),
        (edit_file(path="../secret.txt"), r"\.\./secret.txt is in the manifest and is no file"),
        (edit_file(rows=765), "another number of rows"),
        (edit_file(size="8"), "no size that a file"),
        (edit_file(size=True), "no size that a file"),
        (edit_file(size=2**33), "no size that a file"),
        (lambda c: c.update(release_id="x\x1b[2J"), "release_id is not one"),
        (lambda c: c.update(release_id=""), "release_id is not one"),
        (lambda c: c.pop("versions"), "does not state the versions"),
        (lambda c: c.update(versions={"numpy": 3}), "does not state the versions"),
    ],
)
def test_edits_are_found(data, edit, found):
    assert re.search(found, " / ".join(problems(data, edit)))


def test_the_same_release_has_the_same_manifest(plan, data):
    reordered = [entry(*item) for item in reversed(FILES.items())]
    again = manifest.plan_of(json.loads(data))
    assert manifest.build(again, reordered) == data
    assert manifest.build(Plan(CONFIG, "second", counted=1000), reordered) != data


def test_it_holds_what_the_release_promises_and_no_time(data):
    content = json.loads(data)
    assert set(content) == {
        "schema_version",
        "release_id",
        "config",
        "config_digest",
        "fit_digest",
        "privacy",
        "versions",
        "files",
    }
    assert content["privacy"]["adjacency"] == "add or remove one privacy unit"
    assert {m["name"] for m in content["privacy"]["mechanisms"]} == {
        "means/count",
        "means/sum",
        "means/square",
        "moment/moment",
        "whitened/moment",
        "start/slope",
        "teacher/gradient",
        *(f"{stage}/{query}" for stage in ("sketch", "rounds", "late") for query in ("count", "sum")),
        *(f"{stage}/{query}" for stage in ("scatter", "scales") for query in ("moment", "square")),
        *(f"centres/{query}" for query in ("sum", "square")),
    }
    operational = content["privacy"]["operational"]
    assert operational["mu"] == pytest.approx(1 / content["privacy"]["noise_multiplier"], rel=1e-5)
    assert set(operational["tpr_at_fpr"]) == {"0.01", "0.001"}
    assert set(operational["reconstruction"]) == {"0.001", "1e-06"}
    assert {"numpy", "scipy", "apache-beam", "dpgmm-beam", "python"} <= set(content["versions"])
    assert not re.search(rb"20\d\d-\d\d|\d\d:\d\d:\d\d|time|date\b|host|/tmp|/home", data)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"3", b"{}", b'{"schema_version": 99}', b"\xff", b"[" * 10**5]
)
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(ConfigError, match="release=DIR is refused"):
        manifest.parse(text, "DIR")
