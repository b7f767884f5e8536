import hashlib

import pytest

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.release import manifest
from dpgmm_beam.release.card import card


def text(release_id="2026-05", **changes):
    options = {"encoder": "precomputed", "classes": ("cat", "dog"), "dimension": 4}
    options |= {"epsilon": 1.0, "delta": 1e-6, **changes}
    return card(Plan(ReleaseConfig(**options), release_id)).decode()


def test_it_says_what_was_spent_and_what_rows_are():
    found = text()
    for said in (
        "epsilon = 1 and\ndelta = 1e-06",
        "adding or removing one image",
        "at most 2.72 times as likely",
        "with even odds, nobody guesses right more than 54.8 times in 100; a coin does so 50 times.",
        "12,000 synthetic image embeddings of 4 numbers in 2 classes",
        "**Every embedding has norm 1.**",
        "with noise of standard deviation 42.2 only",
        "| `embedding` | 4 x float32 |",
        "Classes, in order: `cat`, `dog`.",
    ):
        assert said in found, said
    clipped = text(clip_norm=2.5)
    assert "norm 1.**" not in clipped
    assert "**No embedding is longer than 2.5.**" in clipped
    assert "too weak to be put into words" in text(epsilon=1000.0)
    assert "at most 1.02 times" in text(epsilon=0.01)
    assert "and 80 more, which `mixture/classes.parquet` lists" in text(classes=tuple(map(str, range(100))))


def test_the_front_matter_names_the_files_of_rows():
    yaml = pytest.importorskip("yaml")
    _, front, _ = text().split("---\n", 2)
    (config,) = yaml.safe_load(front)["configs"]
    assert config["data_files"] == "synthetic/*.parquet"
    assert not list(yaml.safe_load_all(front))[1:]


def test_names_stay_text():
    """A class of a user's own words changes nothing but the place where it stands."""
    bad = "`\n# Privacy\n\x1b[2J<script>{epsilon}"
    found = text(classes=(bad, "b"), release_id=bad, encoder=bad)
    assert "\n# Privacy" not in found
    assert "\x1b" not in found
    assert found.count("\n") == text().count("\n")
    assert r"`'\n# Privacy\n\x1b[2J<script>{epsilon}`" in found


def test_its_words_belong_to_the_schema_of_the_manifest():
    """`verify` compares a release's card with these: whoever changes them raises SCHEMA_VERSION."""
    of_people = text(max_rows_per_unit=4), text(max_rows_per_unit=4, adjacency="replace_one")
    digests = [hashlib.sha256(each.encode()).hexdigest()[:24] for each in (text(), *of_people)]
    assert (manifest.SCHEMA_VERSION, digests) == (
        4,
        ["2712106fc0ff951793098a2d", "af472f5ab568110e9cdc515c", "6a25c45acf1c1adae4649bf5"],
    )


def test_it_says_who_is_protected():
    found = text(max_rows_per_unit=4)
    for said in (
        "for adding or removing one person with all images and labels.",
        "The unit is a person**: all images of one id",
        "At most\n  4 of them were used, chosen at random; images without an id were not.",
        "as likely as it would have been without any one person",
        "Told that one given person was in the data or was not",
        "with noise of standard deviation 169 only",
    ):
        assert said in found, said
    replaced = text(adjacency="replace_one")
    for said in (
        "for replacing one image with its label by another.",
        "with any one image in the place of another",
        "The unit is one image",
        "one given image was in the data or another one in its place",
    ):
        assert said in replaced, said
