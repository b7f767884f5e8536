import dataclasses
import json
import math

import pytest

from dpgmm_beam.config import (
    MAX_CLASSES,
    MAX_COMPONENTS,
    MAX_LABEL,
    MAX_ROUNDS,
    MAX_SAMPLES,
    Method,
    ReleaseConfig,
    check_classes,
)
from dpgmm_beam.data.rows import RowFormat
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.allocation import SHARES, with_shares

GOOD = ReleaseConfig("precomputed", ("a", "b"), 8, 1.0, 1e-5)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        *[({"epsilon": value}, "epsilon") for value in (0, -1, math.nan, math.inf)],
        *[({"delta": value}, "delta") for value in (0, 1, -0.1, math.nan)],
        ({"classes": ()}, "classes"),
        ({"classes": ("a", "b", "a")}, "classes"),
        ({"classes": ("a", "")}, "classes"),
        ({"labelled": False}, "classes"),
        ({"dimension": 0}, "dimension"),
        ({"dimension": 10**6}, "dimension"),
        *[({"clip_norm": value}, "clip_norm") for value in (0.0, -1.0, math.nan, math.inf, 1e300)],
        ({"samples_per_class": 0}, "samples_per_class"),
        ({"components": 0}, "components"),
        ({"rounds": 0}, "rounds"),
        ({"shares": (("means/count", -1.0),)}, "shares"),
        ({"shares": (("means/count", math.inf),)}, "shares"),
        *[({"shares": (("means/count", value),)}, "shares") for value in (1e-320, 9e-7, 1.1e6, 1e308)],
        ({"classes": tuple(map(str, range(MAX_CLASSES + 1)))}, "classes"),
        ({"classes": ("a", "x" * (MAX_LABEL + 1))}, "classes"),
        ({"classes": ("a", "\udcff")}, "classes"),
        ({"classes": tuple(map(str, range(8000))), "dimension": 2100}, "classes"),
        *[({"samples_per_class": value}, "samples_per_class") for value in (MAX_SAMPLES // 2 + 1, 10**12)],
        *[({"components": value}, "components") for value in (MAX_COMPONENTS + 1, 10**7)],
        # One more than the bound on covariances, and on values of means.
        ({"classes": tuple("abcde"), "components": 3277}, "components"),
        ({"components": 1025, "dimension": 8192}, "components"),
        *[({"components": 2, "rounds": value}, "rounds") for value in (MAX_ROUNDS + 1, 10**9)],
    ],
)
def test_what_is_refused_names_the_argument(changes, argument):
    with pytest.raises(ConfigError) as refused:
        dataclasses.replace(GOOD, **changes)
    assert refused.value.argument == argument
    assert str(refused.value).startswith(f"{argument}=")


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": tuple(map(str, range(MAX_CLASSES))), "dimension": 2048, "samples_per_class": 1},
        {
            "classes": ("a" * MAX_LABEL,),
            "samples_per_class": MAX_SAMPLES,
            "components": MAX_COMPONENTS,
            "rounds": 200,
        },
        {"components": 1024, "dimension": 8192},
        {"clip_norm": 1e17, "shares": (("means/count", 1e-6), ("means/sum", 1e6))},
    ],
    ids=range(4),
)
def test_the_ends_of_the_ranges_are_taken(changes):
    dataclasses.replace(GOOD, **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"classes": ("a", *map(str, range(8000)), "a\n", "a\n")},
            r"must be distinct, and 'a\n' is there twice.",
        ),
        (
            {"clip_norm": 1e300},
            "clip_norm=1e+300 is refused: it must be a number above 1e-18 and below 1e+18.",
        ),
        ({"components": 9999}, "components=9999 is refused: it must be a whole number from 1 to 1024."),
        (
            {"components": 800, "dimension": 8192, "classes": ("a", "b", "c")},
            "from 1 to 682 with 3 classes of embeddings of length 8192.",
        ),
    ],
)
def test_sentences_say_the_range_and_are_short(changes, sentence):
    with pytest.raises(ConfigError) as refused:
        dataclasses.replace(GOOD, **changes)
    assert str(refused.value).endswith(sentence)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "config",
    [
        GOOD,
        dataclasses.replace(GOOD, clip_norm=2.5, components=3, method=Method(teacher_steps=4)),
        dataclasses.replace(GOOD, labelled=False, classes=("all",), shares=with_shares(["means/sum=.5"])),
    ],
)
def test_configurations_survive_json(config):
    assert ReleaseConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    # As the manifest writes them, with sorted keys: another order of the shares, the same release.
    again = ReleaseConfig.from_dict(json.loads(json.dumps(config.to_dict(), sort_keys=True)))
    assert again.digest == config.digest


def test_the_default_rounds_are_a_number():
    one = dataclasses.replace(GOOD, components=1, rounds=None)
    assert one.to_dict()["rounds"] == 4
    assert one.clustering_stages == 0
    assert GOOD.to_dict()["rounds"] == GOOD.clustering_stages == 8
    assert GOOD.to_dict()["components"] is None
    assert ReleaseConfig.from_dict(GOOD.to_dict()) == GOOD
    several = ReleaseConfig("precomputed", ("a",), 8, 1.0, 1e-5, components=2)
    assert several.to_dict()["rounds"] == several.clustering_stages == 8
    assert ReleaseConfig.from_dict(several.to_dict()) == several


def test_the_digest_changes_with_every_field():
    changes = {
        "encoder": "efficientnet_lite0",
        "classes": ("b", "a"),
        "dimension": 9,
        "epsilon": 1.5,
        "delta": 1e-6,
        "clip_norm": 1.0,
        "samples_per_class": 10,
        "components": 2,
        "rounds": 5,
        "shares": with_shares(["means/sum=.08"]),
        "method": Method(damping=0.2),
        "max_rows_per_unit": 3,
        "adjacency": "replace_one",
        "slice": "1/2",
        "bound_found": True,
        "decodable": "28",
    }
    # A slice is of units.
    needed = {"slice": {"max_rows_per_unit": 4}, "bound_found": {"max_rows_per_unit": 5}}
    digests = {dataclasses.replace(GOOD, **{k: v}, **needed.get(k, {})).digest for k, v in changes.items()}
    digests.add(GOOD.digest)
    digests.add(dataclasses.replace(GOOD, classes=("a",)).digest)
    digests.add(dataclasses.replace(GOOD, classes=("a",), labelled=False).digest)
    assert len(digests) == len(changes) + 3
    assert set(changes) | {"labelled"} == {field.name for field in dataclasses.fields(ReleaseConfig)}


def test_shares_are_changed_by_name():
    changed = dict(with_shares(["rounds/sum=0.5", "means/count=2"]))
    assert changed == {**dict(SHARES), "rounds/sum": 0.5, "means/count": 2.0}
    wrong = ("unknown=1", "rounds/sum", "rounds/sum=", "rounds/sum=x", "rounds/sum=nan", "=1", "")
    for text in (*wrong, "rounds/sum=inf", "rounds/sum=1e308", "rounds/sum=0", "rounds/sum=1e-320"):
        with pytest.raises(ConfigError, match="shares"):
            with_shares([text])


def test_default_shares_are_a_whole():
    assert math.isclose(sum(share for _, share in SHARES), 1.0)


def test_classes_and_row_format():
    check_classes(["a"])
    check_classes([str(i) for i in range(1000)])
    assert GOOD.row_format == RowFormat(("a", "b"), 8, None, True)


def test_the_fit_does_not_depend_on_how_many_rows_are_drawn_from_it():
    more = dataclasses.replace(GOOD, samples_per_class=GOOD.samples_per_class + 1)
    assert more.fit_digest == GOOD.fit_digest
    assert more.digest != GOOD.digest
    assert dataclasses.replace(GOOD, epsilon=2 * GOOD.epsilon).fit_digest != GOOD.fit_digest


def test_classes_that_are_one_in_two_ways_of_writing_it():
    check_classes(("e", "é", "E", "e ", "É"))
    with pytest.raises(ConfigError, match="is there in two ways of writing it in Unicode"):
        check_classes(("\u00e9", "e\u0301"))


def test_pictures_bring_their_norm_and_form():
    """So that both are in the digest and in the manifest; other releases say what they always said."""
    config = ReleaseConfig("dct:28", ("a", "b"), 784, 1.0, 1e-5)
    assert (config.clip_norm, config.method.picture_side) == (14.0, 28)
    assert (config.components, config.component_room, config.method.subspace_dim) == (None, 40, 256)
    assert ReleaseConfig("dct:28", ("a", "b"), 784, 1.0, 1e-5, components=3).components == 3
    assert ReleaseConfig("dct:28", ("a", "b"), 784, 1.0, 1e-5, clip_norm=9.0).clip_norm == 9.0
    assert ReleaseConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.to_dict()["method"]["picture_side"] == 28
    assert "picture_side" not in GOOD.to_dict()["method"]
    assert ReleaseConfig("dct:16:rgb", ("a",), 768, 1.0, 1e-5).method.picture_side == 16
    with pytest.raises(ConfigError, match="dimension=8 is refused: it must be 784 with dct:28"):
        ReleaseConfig("dct:28", ("a", "b"), 8, 1.0, 1e-5)
    with pytest.raises(ConfigError, match="be dct:SIDE"):
        ReleaseConfig("dct:7", ("a", "b"), 49, 1.0, 1e-5)
