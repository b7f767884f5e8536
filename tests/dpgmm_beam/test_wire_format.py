"""What a release depends on to the last bit, as literal values.

A renamed field, channel or stage would change the noise of every release, and so be
a second draw for whoever makes one again.  Whoever must change a value here raises
`noise.SCHEME`, too, and says so in the changelog.
"""

import dataclasses
import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.data.rows import Rows
from dpgmm_beam.data.units import IdHasher, UnitKeys, bounded
from dpgmm_beam.fit import chain, unit_bound
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.mixture import Sampler
from dpgmm_beam.privacy import lattice, noise
from dpgmm_beam.privacy.noise import NoiseKey, rounded_gaussian
from dpgmm_beam.release import manifest
from dpgmm_beam.release.class_rows import ClassRows
from dpgmm_beam.release.labels import Labeller
from dpgmm_beam.release.row_statement import RowStatement
from dpgmm_beam.release.synthesis import draw_part, generator_of_key

KEY = NoiseKey(bytes(range(32)))


def config(classes=3, components=1, **changes):
    method = Method(teacher_steps=3, subspace_dim=4, teacher_ridges=5)
    names = tuple(f"class {number}" for number in range(classes))
    return ReleaseConfig(
        "precomputed", names, 6, 1.0, 1e-5, components=components, rounds=4, method=method, **changes
    )


def digest_of(value) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:24]


def rows(classes):
    """Integers of a hash: no generator's stream is relied on."""
    count, dimension = 60 * classes, 6
    words = np.frombuffer(hashlib.shake_256(b"wire format").digest(2 * count * dimension), "<u2")
    values = words.astype(np.int64).reshape(count, dimension) % 16001 - 8000
    labels = np.arange(count, dtype=np.int32) % classes
    values[:, 0] += 3000 * labels
    return Rows(lattice.clip_rows(values.astype(np.float64), lattice.UNIT).astype(np.int16), labels)


def test_the_canonical_form_of_a_configuration():
    assert json.dumps(config().to_dict(), sort_keys=True) == (
        '{"classes": ["class 0", "class 1", "class 2"], "clip_norm": null, "components": 1, "delta": '
        '1e-05, "dimension": 6, "encoder": "precomputed", "epsilon": 1.0, "labelled": true, "method": '
        '{"damping": 0.14285714285714285, "reduced": 4, "residual_radius": 0.7, "teacher_clip": 0.25, '
        '"teacher_momentum": 0.9, "teacher_noise_cap": 0.05, "teacher_rate": 3.0, "teacher_ridges": '
        '5, "teacher_steps": 3}, "rounds": 4, "samples_per_class": 6000, "shares": {"means/count": '
        '0.01, "means/square": 0.01, "means/sum": 0.07, "moment/moment": 0.15, "rounds/count": 0.015, '
        '"rounds/sum": 0.06, "scales/moment": 0.03, "scales/square": 0.01, "scatter/moment": 0.08, '
        '"scatter/square": 0.01, "teacher/gradient": 0.555}}'
    )
    assert config().digest == "b0ceca282debe58d80733e700d90b4e88963dd1ade7b341df8e65335f1cbc26f"
    assert config().fit_digest == "0fa0a2e8d428e4437e595e4630b2f9452c73b7dfe03c4d6a569340a1875ad0e5"


def test_the_words_of_the_noise():
    assert noise.SCHEME == 6
    key = KEY.within("id", "stage 0", "channel", 3, b"\x00\xff")
    assert key.context == (b"id", b"stage 0", b"channel", b"3", b"\x00\xff")
    assert key.stream(16).hex() == "55b61fa20635cc7bc654a5bb71e0eccf"
    assert rounded_gaussian(key, 1000.0, 6).tolist() == [41, -490, 703, -245, -720, -1024]
    assert generator_of_key(key, 7).integers(0, 2**32, 3).tolist() == [185518401, 2559769743, 619268315]


QUERIES = {
    (3, 1): [
        ("counts 0", "count", 3, 0, "0x1.0000000000000p+0", 36.552612),
        ("means 0", "sum", 18, 0, "0x1.0000000000000p+15", 13.815589),
        ("means 0", "square", 6, 0, "0x1.0000000000000p+20", 36.552612),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 9.437844),
        ("scatter 0", "moment", 30, 4, "0x1.0000000000000p+24", 12.9233),
        ("scatter 0", "square", 3, 0, "0x1.0000000000000p+12", 36.552612),
        ("teacher 0", "gradient", 21, 0, "0x1.0000000001000p+28", 7.976434),
        ("teacher 1", "gradient", 21, 0, "0x1.0000000001000p+28", 7.976434),
        ("teacher 2", "gradient", 21, 0, "0x1.0000000001000p+28", 7.976434),
    ],
    (3, 2): [
        ("counts 0", "count", 3, 0, "0x1.0000000000000p+0", 37.306354),
        ("means 0", "sum", 18, 0, "0x1.0000000000000p+15", 14.100476),
        ("means 0", "square", 6, 0, "0x1.0000000000000p+20", 37.306354),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 9.632459),
        ("sketch 0", "count", 120, 0, "0x1.0000000000000p+0", 86.155333),
        ("sketch 0", "sum", 480, 0, "0x1.3330000000000p+13", 43.077667),
        ("sketch 1", "count", 120, 0, "0x1.0000000000000p+0", 86.155333),
        ("sketch 1", "sum", 480, 0, "0x1.3330000000000p+13", 43.077667),
        ("rounds 2", "count", 12, 0, "0x1.6a10000000000p+12", 70.345535),
        ("rounds 2", "sum", 24, 0, "0x1.0000000000000p+14", 35.172768),
        ("rounds 3", "count", 12, 0, "0x1.6a10000000000p+12", 40.614014),
        ("rounds 3", "sum", 24, 0, "0x1.0000000000000p+14", 20.307007),
        ("scatter 0", "moment", 30, 4, "0x1.0000000000000p+24", 13.189788),
        ("scatter 0", "square", 3, 0, "0x1.0000000000000p+12", 37.306354),
        ("scales 0", "square", 6, 0, "0x1.0000000000000p+12", 37.306354),
        ("scales 0", "moment", 60, 4, "0x1.0000000000000p+24", 21.538833),
        ("teacher 0", "gradient", 36, 0, "0x1.0000000001000p+28", 8.673551),
        ("teacher 1", "gradient", 36, 0, "0x1.0000000001000p+28", 8.673551),
        ("teacher 2", "gradient", 36, 0, "0x1.0000000001000p+28", 8.673551),
    ],
    (1, 3): [
        ("counts 0", "count", 1, 0, "0x1.0000000000000p+0", 37.306354),
        ("means 0", "sum", 6, 0, "0x1.0000000000000p+15", 14.100476),
        ("means 0", "square", 6, 0, "0x1.0000000000000p+20", 37.306354),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 7.724528),
        ("sketch 0", "count", 60, 0, "0x1.0000000000000p+0", 51.034015),
        ("sketch 0", "sum", 240, 0, "0x1.3330000000000p+13", 18.959293),
        ("sketch 1", "count", 60, 0, "0x1.0000000000000p+0", 51.034015),
        ("sketch 1", "sum", 240, 0, "0x1.3330000000000p+13", 18.959293),
        ("rounds 2", "count", 6, 0, "0x1.6a10000000000p+12", 41.669099),
        ("rounds 2", "sum", 12, 0, "0x1.0000000000000p+14", 15.480198),
        ("rounds 3", "count", 6, 0, "0x1.6a10000000000p+12", 24.057665),
        ("rounds 3", "sum", 12, 0, "0x1.0000000000000p+14", 8.937496),
        ("scatter 0", "moment", 10, 4, "0x1.0000000000000p+24", 7.976434),
        ("scatter 0", "square", 1, 0, "0x1.0000000000000p+12", 37.306354),
        ("scales 0", "square", 3, 0, "0x1.0000000000000p+12", 37.306354),
        ("scales 0", "moment", 30, 4, "0x1.0000000000000p+24", 12.758504),
    ],
    (1, 1): [
        ("counts 0", "count", 1, 0, "0x1.0000000000000p+0", 21.430869),
        ("means 0", "sum", 6, 0, "0x1.0000000000000p+15", 8.100107),
        ("means 0", "square", 6, 0, "0x1.0000000000000p+20", 21.430869),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 5.533426),
        ("scatter 0", "moment", 10, 4, "0x1.0000000000000p+24", 7.576956),
        ("scatter 0", "square", 1, 0, "0x1.0000000000000p+12", 21.430869),
    ],
    (3, None): [
        ("counts 0", "count", 3, 0, "0x1.0000000000000p+0", 37.306354),
        ("means 0", "sum", 18, 0, "0x1.0000000000000p+15", 14.100476),
        ("means 0", "square", 6, 0, "0x1.0000000000000p+20", 37.306354),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 9.632459),
        ("sketch 0", "count", 1536, 0, "0x1.0000000000000p+0", 86.155333),
        ("sketch 0", "sum", 6144, 0, "0x1.3330000000000p+13", 43.077667),
        ("sketch 1", "count", 1536, 0, "0x1.0000000000000p+0", 86.155333),
        ("sketch 1", "sum", 6144, 0, "0x1.3330000000000p+13", 43.077667),
        ("rounds 2", "count", 240, 0, "0x1.6a10000000000p+12", 70.345535),
        ("rounds 2", "sum", 480, 0, "0x1.0000000000000p+14", 35.172768),
        ("rounds 3", "count", 240, 0, "0x1.6a10000000000p+12", 40.614014),
        ("rounds 3", "sum", 480, 0, "0x1.0000000000000p+14", 20.307007),
        ("scatter 0", "moment", 30, 4, "0x1.0000000000000p+24", 13.189788),
        ("scatter 0", "square", 3, 0, "0x1.0000000000000p+12", 37.306354),
        ("scales 0", "square", 120, 0, "0x1.0000000000000p+12", 37.306354),
        ("scales 0", "moment", 1200, 4, "0x1.0000000000000p+24", 21.538833),
        ("teacher 0", "gradient", 36, 0, "0x1.0000000001000p+28", 8.673551),
        ("teacher 1", "gradient", 36, 0, "0x1.0000000001000p+28", 8.673551),
        ("teacher 2", "gradient", 36, 0, "0x1.0000000001000p+28", 8.673551),
    ],
}


@pytest.mark.parametrize("shape", list(QUERIES))
def test_names_sizes_sensitivities_and_multipliers_of_every_query(shape):
    plan = Plan(config(*shape), "id")
    assert [
        (
            stage.name,
            query.name,
            query.size,
            query.symmetric_order,
            float(query.l2_sensitivity).hex(),
            round(plan.multipliers(stage)[query.name], 6),
        )
        for stage in plan.stages
        for query in stage.queries
    ] == QUERIES[shape]


def contexts_of(plan, blocks, monkeypatch):
    """The contexts from which noise was drawn, in order, and the state at the end."""
    seen, stream = [], NoiseKey.stream

    def watched(key, length, purpose=b""):
        seen.append((key.context, purpose))
        return stream(key, length, purpose)

    monkeypatch.setattr(NoiseKey, "stream", watched)
    final = chain.fit(plan, lambda: blocks.blocks(64), KEY)
    monkeypatch.undo()
    others = {context for context, _ in seen if context[0] != b"id"}
    assert others <= {(b"row hash",), (b"key commitment",)}
    return [each for each in seen if each[0][0] == b"id"], final


def shown(part: bytes) -> str:
    """A part of a context, or how long it is."""
    return part.decode() if len(part) < 32 else f"<{len(part)}>"


CONTEXTS = [
    "id/<64>/<64>/counts 0/count/0x1.0000000000000p+0/0x1.2a73698c35adep+5/0/<32>/<32>",
    "id/<64>/<64>/means 0/sum/0x1.0000000000000p+15/0x1.fd0a190dda232p+2/0/<32>/<32>",
    "id/<64>/<64>/means 0/square/0x1.0000000000000p+20/0x1.2a73698c35adep+5/0/<32>/<32>",
    "id/<64>/<64>/moment 0/moment/0x1.0000000000000p+24/0x1.0af14a18e639fp+4/0/<32>/<32>",
    "id/<64>/<64>/sketch 0/count/0x1.0000000000000p+0/0x1.2a73698c35adep+7/0/<32>/<32>",
    "id/<64>/<64>/sketch 0/sum/0x1.3330000000000p+13/0x1.2a73698c35adep+6/0/<32>/<32>",
    "id/<64>/<64>/sketch 1/count/0x1.0000000000000p+0/0x1.2a73698c35adep+7/0/<32>/<32>",
    "id/<64>/<64>/sketch 1/sum/0x1.3330000000000p+13/0x1.2a73698c35adep+6/0/<32>/<32>",
    "id/<64>/<64>/rounds 2/count/0x1.6a10000000000p+12/0x1.e75e3ff44960dp+6/0/<32>/<32>",
    "id/<64>/<64>/rounds 2/sum/0x1.0000000000000p+14/0x1.e75e3ff44960dp+5/0/<32>/<32>",
    "id/<64>/<64>/rounds 3/count/0x1.6a10000000000p+12/0x1.1961d3f2922b4p+6/0/<32>/<32>",
    "id/<64>/<64>/rounds 3/sum/0x1.0000000000000p+14/0x1.1961d3f2922b4p+5/0/<32>/<32>",
    "id/<64>/<64>/scatter 0/moment/0x1.0000000000000p+24/0x1.a612bdebdb40ep+4/0/<32>/<32>",
    "id/<64>/<64>/scatter 0/square/0x1.0000000000000p+12/0x1.a612bdebdb40ep+5/0/<32>/<32>",
    "id/<64>/<64>/scales 0/square/0x1.0000000000000p+12/0x1.a612bdebdb40ep+5/0/<32>/<32>",
    "id/<64>/<64>/scales 0/moment/0x1.0000000000000p+24/0x1.a612bdebdb40ep+5/0/<32>/<32>",
    "id/<64>/<64>/teacher 0/gradient/0x1.0000000001000p+28/0x1.0078580e34b46p+3/0/<32>/<32>",
    "id/<64>/<64>/teacher 1/gradient/0x1.0000000001000p+28/0x1.0078580e34b46p+3/0/<32>/<32>",
    "id/<64>/<64>/teacher 2/gradient/0x1.0000000001000p+28/0x1.0078580e34b46p+3/0/<32>/<32>",
]


def test_the_contexts_of_the_noise_in_their_order(monkeypatch):
    plan = Plan(config(3, 2), "id")
    seen, _ = contexts_of(plan, rows(3), monkeypatch)
    assert ["/".join(map(shown, context)) for context, _ in seen] == CONTEXTS


RELEASES = {
    (3, 1): {
        "contexts": "cdd0ac3acb85e1eda6b72d11",
        "components.parquet": "9e927236a2e8f61e7ac2b46c",
        "basis.parquet": "ee704ad1694357294f7c0a56",
        "classes.parquet": "be47709f14025124f3abdcea",
        "teacher.parquet": "acbda1cd3c14635bdbfeaa0d",
        "features.parquet": "8adc5308825617ad24f3646d",
        "part": "8aa7e103db4c20886a906e18",
    },
    (3, 2): {
        "contexts": "a4e628d54ec10e24dd34be51",
        "components.parquet": "e7c3153bf4a468e273be1479",
        "basis.parquet": "2d32d1883bb108465f026b05",
        "classes.parquet": "fe74382bf47ecf2256e5a441",
        "teacher.parquet": "043e9de61cda992f6f04c12c",
        "features.parquet": "15faf336d61d8d8025ba183a",
        "ridges.parquet": "b64ce52872bd42fc002460e0",
        "part": "15e01b175ac4aebe9946c10d",
    },
    (1, 3): {
        "contexts": "acdd77dee35d32acdb087e1d",
        "components.parquet": "0d1a1a42f275b0fcde85bbb8",
        "basis.parquet": "40b4f4ba556887847392a7b7",
        "classes.parquet": "919781117e77aaf22cab1c99",
        "teacher.parquet": "3eb73376e9992aab9b574684",
        "features.parquet": "b103a198c29a9cefdf9c1610",
        "part": "fae9686ca95b6a3c0f47d000",
    },
    (1, 1): {
        "contexts": "133efb6e1718bafd8731d611",
        "components.parquet": "33ba997d1305c1f0a3dfdd9e",
        "basis.parquet": "cf27a4936800b41e24b51584",
        "classes.parquet": "1a6f1557efee2ed2442f0559",
        "teacher.parquet": "3eb73376e9992aab9b574684",
        "features.parquet": "0c7d6d85709c022604203e42",
        "part": "b6104b0fb5acbbf1a2b1b28e",
    },
    (40, 1): {
        "contexts": "6a13bc40ebe18eed7a75e812",
        "components.parquet": "66beac1f1630b3b2a7b7ed8d",
        "basis.parquet": "7609242c95a3537745ec1d8f",
        "classes.parquet": "6303e2222d55e4a19fd999c2",
        "teacher.parquet": "43ac40c02482567ac89d0d31",
        "features.parquet": "751fb3ef8e13a2222b187d6f",
        "part": "29b37c326e0b917a1b3eeb98",
    },
    (1000, 1): {
        "contexts": "153ddf7b7d919dc32b3c24c7",
        "components.parquet": "bdeef2dec26f93e1a622406d",
        "basis.parquet": "36a5840b9e5c80049f7658d6",
        "classes.parquet": "d6736894f438a869a11fb1be",
        "teacher.parquet": "56ec93b6ce0f913adcced959",
        "features.parquet": "1c198599ab70aa497c579ab7",
        "part": "ebafb23830b06f43a7a88d0a",
    },
    (3, None): {
        "contexts": "44f8f99ae36d5381f68d956b",
        "components.parquet": "484231c268f04fa11f7e2da3",
        "basis.parquet": "c06917f5b6e3ba4c243701c7",
        "classes.parquet": "8151ae3ece6d84c6c0417b0d",
        "teacher.parquet": "f98f72eb49d2c6c441e683e1",
        "features.parquet": "5552f224ff36af686a8ebe3b",
        "ridges.parquet": "b64ce52872bd42fc002460e0",
        "part": "e3bdded65d3a891e8473c4d8",
    },
}


@pytest.mark.parametrize("shape", list(RELEASES))
def test_releases_to_the_last_bit(shape, monkeypatch):
    """The contexts with all their digests, and every file but the manifest."""
    plan = Plan(config(*shape, samples_per_class=7), "id")
    seen, final = contexts_of(plan, rows(shape[0]), monkeypatch)
    files = {}

    def keep(name, data, count=0):
        # What a file says, not its bytes: those name the version of pyarrow.
        files[name] = digest_of(pq.read_table(io.BytesIO(data)).to_pydict())

    mixture, labeller = chain.released_mixture(final), Labeller.of(final)
    for each in (mixture, ClassRows.of(final), labeller):
        each.save(keep)
    key = chain.release_key(final, KEY)
    parts = manifest.parts_of(plan.config)
    statement = RowStatement.of(plan.config, "id", mixture)
    keep("part", draw_part(parts, 0, Sampler(mixture), labeller, generator_of_key(key, 0), statement))
    assert {"contexts": digest_of(seen), **files} == RELEASES[shape]


def test_which_rows_of_a_unit_count_and_the_bound_that_is_found():
    """Other hashes, and other rows would count: a second draw of the same id."""
    keys = UnitKeys.of(KEY)
    found = rows(2)
    hashes = IdHasher(keys)(pa.array([f"patient {number % 7}" for number in range(len(found))]))[0]
    kept = bounded([dataclasses.replace(found, units=hashes)], 3, keys)
    units = config(classes=2, max_rows_per_unit=64, bound_found=True, slice="1/2", adjacency="replace_one")
    assert json.dumps(units.to_dict(), sort_keys=True).startswith(
        '{"adjacency": "replace_one", "bound_found": true, "classes": ["class 0", "class 1"], '
    )
    noisy = unit_bound.noisy(Plan(units, "id"), np.arange(unit_bound.BINS), bytes(64), KEY)
    digests = digest_of(kept[0].records().tobytes()), digest_of(noisy.tolist())
    assert digests == ("35b4ece1b85dea02ed67e387", "f999150bcba4aeae27df9a6c")


def test_a_decodable_release_pays_for_two_stages_more():
    decodable = config(decodable="8")
    assert decodable.to_dict() == {**config().to_dict(), "decodable": "8"}
    assert decodable.fit_digest == "ba88ed86d8fb9c179483890ac9aa2aeadaa3818d3ed1090abeca214497eac0ac"
    stages = Plan(decodable, "id").stages
    assert [stage.name for stage in stages[2:6]] == ["moment 0", "pictures 0", "slopes 0", "scatter 0"]
    assert [
        (query.name, query.size, query.one_sided, float(query.l2_sensitivity).hex())
        for stage in stages[3:5]
        for query in stage.queries
    ] == [
        ("sum", 192, False, "0x1.0000000000000p+15"),
        ("cross", 256, False, "0x1.3330000000000p+25"),
        ("square", 11, True, "0x1.0000000000000p+24"),
    ]
