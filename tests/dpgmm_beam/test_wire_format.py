"""What a release depends on to the last bit, as literal values.

A renamed field, channel or stage would change the noise of every release, and so be
a second draw for whoever makes one again.  Whoever must change a value here raises
`noise.SCHEME`, too, and says so in the changelog.
"""

import hashlib
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import chain
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
    method = Method(teacher_steps=3, subspace_dim=4)
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
        '{"classes": ["class 0", "class 1", "class 2"], "clip_norm": null, "components": 1, "delta": 1e-05, '
        '"dimension": 6, "encoder": "precomputed", "epsilon": 1.0, "labelled": true, "method": {"damping": '
        '0.14285714285714285, "reduced": 4, "residual_radius": 1.2, "teacher_clip": 0.25, '
        '"teacher_momentum": 0.9, "teacher_noise_cap": 0.05, "teacher_rate": 3.0, "teacher_steps": 3}, '
        '"rounds": 4, "samples_per_class": 6000, "shares": {"means/count": 0.01, "means/sum": 0.07, '
        '"moment/moment": 0.12, "rounds/count": 0.02, "rounds/sum": 0.08, "teacher/gradient": 0.7}}'
    )
    assert config().digest == "63549a834ed936cb1cc4a0df5737478ca39cbdcd789977792b54943ac4a54e9f"
    assert config().fit_digest == "0a8d29a6b2b87aebfb54f957a0d97e7944139ada723387072e4665be71e059f8"


def test_the_words_of_the_noise():
    assert noise.SCHEME == 2
    key = KEY.within("id", "stage 0", "channel", 3, b"\x00\xff")
    assert key.context == (b"id", b"stage 0", b"channel", b"3", b"\x00\xff")
    assert key.stream(16).hex() == "78147acfbb7a604d497806c5413c7efc"
    assert rounded_gaussian(key, 1000.0, 6).tolist() == [518, -34, -354, 1057, 282, 1173]
    assert generator_of_key(key, 7).integers(0, 2**32, 3).tolist() == [1610923518, 583185649, 1020966319]


QUERIES = {
    (3, 1): [
        ("means 0", "count", 3, 0, "0x1.0000000000000p+0", 37.306354),
        ("means 0", "sum", 18, 0, "0x1.0000000000000p+15", 14.100476),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 10.769417),
        ("teacher 0", "gradient", 21, 0, "0x1.0000000001000p+28", 7.224344),
        ("teacher 1", "gradient", 21, 0, "0x1.0000000001000p+28", 7.224344),
        ("teacher 2", "gradient", 21, 0, "0x1.0000000001000p+28", 7.224344),
    ],
    (3, 2): [
        ("means 0", "count", 3, 0, "0x1.0000000000000p+0", 37.306354),
        ("means 0", "sum", 18, 0, "0x1.0000000000000p+15", 14.100476),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 10.769417),
        ("teacher 0", "gradient", 21, 0, "0x1.0000000001000p+28", 7.723149),
        ("teacher 1", "gradient", 21, 0, "0x1.0000000001000p+28", 7.723149),
        ("teacher 2", "gradient", 21, 0, "0x1.0000000001000p+28", 7.723149),
        ("sketch 0", "count", 120, 0, "0x1.0000000000000p+0", 74.612707),
        ("sketch 0", "sum", 480, 0, "0x1.0000000000000p+14", 37.306354),
        ("sketch 1", "count", 120, 0, "0x1.0000000000000p+0", 74.612707),
        ("sketch 1", "sum", 480, 0, "0x1.0000000000000p+14", 37.306354),
        ("rounds 2", "count", 12, 0, "0x1.6a10000000000p+12", 60.92102),
        ("rounds 2", "sum", 36, 0, "0x1.0000000000000p+14", 30.46051),
        ("rounds 3", "count", 12, 0, "0x1.6a10000000000p+12", 35.172768),
        ("rounds 3", "sum", 36, 0, "0x1.0000000000000p+14", 17.586384),
    ],
    (1, 3): [
        ("means 0", "count", 1, 0, "0x1.0000000000000p+0", 37.306354),
        ("means 0", "sum", 6, 0, "0x1.0000000000000p+15", 14.100476),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 8.558665),
        ("sketch 0", "count", 60, 0, "0x1.0000000000000p+0", 42.37717),
        ("sketch 0", "sum", 240, 0, "0x1.0000000000000p+14", 12.910396),
        ("sketch 1", "count", 60, 0, "0x1.0000000000000p+0", 42.37717),
        ("sketch 1", "sum", 240, 0, "0x1.0000000000000p+14", 12.910396),
        ("rounds 2", "count", 6, 0, "0x1.6a10000000000p+12", 34.600815),
        ("rounds 2", "sum", 18, 0, "0x1.0000000000000p+14", 10.541294),
        ("rounds 3", "count", 6, 0, "0x1.6a10000000000p+12", 19.97679),
        ("rounds 3", "sum", 18, 0, "0x1.0000000000000p+14", 6.086019),
    ],
    (1, 1): [
        ("means 0", "count", 1, 0, "0x1.0000000000000p+0", 16.683909),
        ("means 0", "sum", 6, 0, "0x1.0000000000000p+15", 6.305925),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 4.81623),
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
    "id/<64>/<64>/means 0/count/0x1.0000000000000p+0/0x1.2a73698c35adep+5/0/<32>/<32>",
    "id/<64>/<64>/means 0/sum/0x1.0000000000000p+15/0x1.c3371a1359de8p+3/0/<32>/<32>",
    "id/<64>/<64>/moment 0/moment/0x1.0000000000000p+24/0x1.589f0fb221e05p+3/0/<32>/<32>",
    "id/<64>/<64>/teacher 0/gradient/0x1.0000000001000p+28/0x1.ee48127f9a3adp+2/0/<32>/<32>",
    "id/<64>/<64>/teacher 1/gradient/0x1.0000000001000p+28/0x1.ee48127f9a3adp+2/0/<32>/<32>",
    "id/<64>/<64>/teacher 2/gradient/0x1.0000000001000p+28/0x1.ee48127f9a3adp+2/0/<32>/<32>",
    "id/<64>/<64>/sketch 0/count/0x1.0000000000000p+0/0x1.2a73698c35adep+6/0/<32>/<32>",
    "id/<64>/<64>/sketch 0/sum/0x1.0000000000000p+14/0x1.2a73698c35adep+5/0/<32>/<32>",
    "id/<64>/<64>/sketch 1/count/0x1.0000000000000p+0/0x1.2a73698c35adep+6/0/<32>/<32>",
    "id/<64>/<64>/sketch 1/sum/0x1.0000000000000p+14/0x1.2a73698c35adep+5/0/<32>/<32>",
    "id/<64>/<64>/rounds 2/count/0x1.6a10000000000p+12/0x1.e75e3ff44960dp+5/0/<32>/<32>",
    "id/<64>/<64>/rounds 2/sum/0x1.0000000000000p+14/0x1.e75e3ff44960dp+4/0/<32>/<32>",
    "id/<64>/<64>/rounds 3/count/0x1.6a10000000000p+12/0x1.1961d3f2922b4p+5/0/<32>/<32>",
    "id/<64>/<64>/rounds 3/sum/0x1.0000000000000p+14/0x1.1961d3f2922b4p+4/0/<32>/<32>",
]


def test_the_contexts_of_the_noise_in_their_order(monkeypatch):
    plan = Plan(config(3, 2), "id")
    seen, _ = contexts_of(plan, rows(3), monkeypatch)
    assert ["/".join(map(shown, context)) for context, _ in seen] == CONTEXTS


RELEASES = {
    (3, 1): {
        "contexts": "f0fc81d333021b15717faa9b",
        "components.parquet": "deba97e2b642a6555c928e10",
        "basis.parquet": "170d48f26a53590b6318ef3c",
        "teacher.parquet": "40e91510a4c750d291cdf3d3",
        "features.parquet": "8c834353a491f041dfe57676",
        "rows": "f618391dc327a5d7b88e6dff",
        "classes.parquet": "ce23cf78c8f9212f5da88659",
        "part": "f44cabf70e2c016f8df62fa3",
    },
    (3, 2): {
        "contexts": "58834e5b73f528f82f6876c4",
        "components.parquet": "c1f40632bcecf1bf7a2ae933",
        "basis.parquet": "f31c0ada53d301f28a764143",
        "teacher.parquet": "c4c0cf549e3803a4b79ddb65",
        "features.parquet": "b8adbf519f226006bfe0a63f",
        "rows": "9d86a5dda4c298cc197940d6",
        "classes.parquet": "cb5b156c99bc79bc26c9d7fa",
        "part": "b497182c350772db2b0fb899",
    },
    (1, 3): {
        "contexts": "637048f265f0263989241899",
        "components.parquet": "0a45949388bc68a854a912a4",
        "basis.parquet": "cfd1fb08d879b547a16a6f4d",
        "teacher.parquet": "3eb73376e9992aab9b574684",
        "features.parquet": "2c04c2bb750e7ec926cf0b0e",
        "rows": "6be6eb54e87f1604dd410fcc",
        "classes.parquet": "35a336c8ea6f294ff5081517",
        "part": "2883f0bfaed8fe33a0baffb6",
    },
    (1, 1): {
        "contexts": "7ed32793aa51541cb9fba502",
        "components.parquet": "bfc2dfc29295846a277fc9c4",
        "basis.parquet": "4536c862d7c697a4122bf7b7",
        "teacher.parquet": "3eb73376e9992aab9b574684",
        "features.parquet": "0dfdcd9397dce517421d418d",
        "rows": "b96d28be429733cb2509c561",
        "classes.parquet": "9a7eb7a36996e678659a52c8",
        "part": "39a955399b6d019a445856ca",
    },
    (40, 1): {
        "contexts": "f397e62d89e91fee4d8e9343",
        "components.parquet": "e21850116e52b63e45d9a2a3",
        "basis.parquet": "5008d6c46eeba423011b2577",
        "teacher.parquet": "9c80833145c3aec9000c071e",
        "features.parquet": "77471624e10cee80646b676b",
        "rows": "bf25facf04d9473fb6802442",
        "classes.parquet": "eaa2c464a8f4ccb114e48493",
        "part": "4a246bef087eab3178b10095",
    },
    (1000, 1): {
        "contexts": "225d8830d80ec4e119e745cf",
        "components.parquet": "e8cf453924646c026f131185",
        "basis.parquet": "1423e37e60205db579287a26",
        "teacher.parquet": "3037391ea367f20b02eb32dc",
        "features.parquet": "0cb2185192cd94d3a95808a1",
        "rows": "19ab789597d555fb758ec28a",
        "classes.parquet": "d3982bc74a7ce367166c3e0b",
        "part": "0577f1b0c1ceaa6ab1cb17c8",
    },
}


DRAWN = ("embedding", "label_probabilities")


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
    part = draw_part(parts, 0, Sampler(mixture), labeller, generator_of_key(key, 0), statement)
    keep("part", part)
    # The rows as they were before `label` became the teacher's: the same draws.
    columns = pq.read_table(io.BytesIO(part)).to_pydict()
    drawn = {"label": columns["component_class"], **{name: columns[name] for name in DRAWN}}
    files["rows"] = digest_of(drawn)
    assert {"contexts": digest_of(seen), **files} == RELEASES[shape]
