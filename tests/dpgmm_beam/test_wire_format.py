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
    assert noise.SCHEME == 4
    key = KEY.within("id", "stage 0", "channel", 3, b"\x00\xff")
    assert key.context == (b"id", b"stage 0", b"channel", b"3", b"\x00\xff")
    assert key.stream(16).hex() == "2d175a1213738c611786eac4125ac9f1"
    assert rounded_gaussian(key, 1000.0, 6).tolist() == [303, -140, -1030, 8, 379, -893]
    assert generator_of_key(key, 7).integers(0, 2**32, 3).tolist() == [72928404, 1600467980, 3518080275]


QUERIES = {
    (3, 1): [
        ("means 0", "count", 3, 0, "0x1.0000000000000p+0", 36.552612),
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
        ("means 0", "count", 3, 0, "0x1.0000000000000p+0", 37.306354),
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
        ("means 0", "count", 1, 0, "0x1.0000000000000p+0", 37.306354),
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
        ("means 0", "count", 1, 0, "0x1.0000000000000p+0", 21.430869),
        ("means 0", "sum", 6, 0, "0x1.0000000000000p+15", 8.100107),
        ("means 0", "square", 6, 0, "0x1.0000000000000p+20", 21.430869),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 5.533426),
        ("scatter 0", "moment", 10, 4, "0x1.0000000000000p+24", 7.576956),
        ("scatter 0", "square", 1, 0, "0x1.0000000000000p+12", 21.430869),
    ],
    (3, None): [
        ("means 0", "count", 3, 0, "0x1.0000000000000p+0", 37.306354),
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
    "id/<64>/<64>/means 0/count/0x1.0000000000000p+0/0x1.2a73698c35adep+5/0/<32>/<32>",
    "id/<64>/<64>/means 0/sum/0x1.0000000000000p+15/0x1.c3371a1359de8p+3/0/<32>/<32>",
    "id/<64>/<64>/means 0/square/0x1.0000000000000p+20/0x1.2a73698c35adep+5/0/<32>/<32>",
    "id/<64>/<64>/moment 0/moment/0x1.0000000000000p+24/0x1.343d1adb6b120p+3/0/<32>/<32>",
    "id/<64>/<64>/sketch 0/count/0x1.0000000000000p+0/0x1.589f0fb221e05p+6/0/<32>/<32>",
    "id/<64>/<64>/sketch 0/sum/0x1.3330000000000p+13/0x1.589f0fb221e05p+5/0/<32>/<32>",
    "id/<64>/<64>/sketch 1/count/0x1.0000000000000p+0/0x1.589f0fb221e05p+6/0/<32>/<32>",
    "id/<64>/<64>/sketch 1/sum/0x1.3330000000000p+13/0x1.589f0fb221e05p+5/0/<32>/<32>",
    "id/<64>/<64>/rounds 2/count/0x1.6a10000000000p+12/0x1.1961d3f2922b4p+6/0/<32>/<32>",
    "id/<64>/<64>/rounds 2/sum/0x1.0000000000000p+14/0x1.1961d3f2922b4p+5/0/<32>/<32>",
    "id/<64>/<64>/rounds 3/count/0x1.6a10000000000p+12/0x1.44e97ff830eb3p+5/0/<32>/<32>",
    "id/<64>/<64>/rounds 3/sum/0x1.0000000000000p+14/0x1.44e97ff830eb3p+4/0/<32>/<32>",
    "id/<64>/<64>/scatter 0/moment/0x1.0000000000000p+24/0x1.a612bdebdb40ep+3/0/<32>/<32>",
    "id/<64>/<64>/scatter 0/square/0x1.0000000000000p+12/0x1.2a73698c35adep+5/0/<32>/<32>",
    "id/<64>/<64>/scales 0/square/0x1.0000000000000p+12/0x1.2a73698c35adep+5/0/<32>/<32>",
    "id/<64>/<64>/scales 0/moment/0x1.0000000000000p+24/0x1.589f0fb221e05p+4/0/<32>/<32>",
    "id/<64>/<64>/teacher 0/gradient/0x1.0000000001000p+28/0x1.158dbaec7853ep+3/0/<32>/<32>",
    "id/<64>/<64>/teacher 1/gradient/0x1.0000000001000p+28/0x1.158dbaec7853ep+3/0/<32>/<32>",
    "id/<64>/<64>/teacher 2/gradient/0x1.0000000001000p+28/0x1.158dbaec7853ep+3/0/<32>/<32>",
]


def test_the_contexts_of_the_noise_in_their_order(monkeypatch):
    plan = Plan(config(3, 2), "id")
    seen, _ = contexts_of(plan, rows(3), monkeypatch)
    assert ["/".join(map(shown, context)) for context, _ in seen] == CONTEXTS


RELEASES = {
    (3, 1): {
        "contexts": "78a5019755a323ae403d8c2e",
        "components.parquet": "e023e4c894d72701c5e5b25c",
        "basis.parquet": "2d91738008c8a1cd545e51da",
        "classes.parquet": "446770c89d34290177f3ad2e",
        "teacher.parquet": "a2ecd0f14a35e844f1711410",
        "features.parquet": "a8201f36fcade97608bb7349",
        "part": "658eb1867015929810566911",
    },
    (3, 2): {
        "contexts": "9afe3df7cce59badf1d5e2e2",
        "components.parquet": "4bcce368900be68d1250c30a",
        "basis.parquet": "10d5c27087386b5d329246e1",
        "classes.parquet": "ed9e8f006d24ab8afaf5103b",
        "teacher.parquet": "68d9d6344879a5076a5f1980",
        "features.parquet": "0734c43d99c7f411a16f22e8",
        "ridges.parquet": "b64ce52872bd42fc002460e0",
        "part": "e86ef37dbe4e3ed0fb0e1cc0",
    },
    (1, 3): {
        "contexts": "a9f3d1d1ab64161c1041f794",
        "components.parquet": "6fe1844d4e661e06a2212d91",
        "basis.parquet": "73880b0d18141651d3bdbc10",
        "classes.parquet": "5ad4002be5ae42f8ba1da312",
        "teacher.parquet": "3eb73376e9992aab9b574684",
        "features.parquet": "be4c0d9a324cf2867f950021",
        "part": "8c4f2b8adc4651d5869b0c1b",
    },
    (1, 1): {
        "contexts": "b4356bad460536b35866da40",
        "components.parquet": "8197185155e1c5faad6519d4",
        "basis.parquet": "40b4f4ba556887847392a7b7",
        "classes.parquet": "2cf982effdc868135bab3787",
        "teacher.parquet": "3eb73376e9992aab9b574684",
        "features.parquet": "b103a198c29a9cefdf9c1610",
        "part": "8a00ebe5db4fb6ba852db8f3",
    },
    (40, 1): {
        "contexts": "2d5fcf266badccd8d94cdcbe",
        "components.parquet": "c642a0c1b6f1e649c8868557",
        "basis.parquet": "23f00a34a7c2d3c4729ef81d",
        "classes.parquet": "9879acb662a965b1bed02fe1",
        "teacher.parquet": "1529eb5c7dde565c6ed92ac7",
        "features.parquet": "4dcd97159d045206e5804759",
        "part": "bcfe7a652a663eb73b609133",
    },
    (1000, 1): {
        "contexts": "a4a66511f72e0eeb3104eab5",
        "components.parquet": "ef87987d42903c1176b0d15e",
        "basis.parquet": "7807db5c6e308bc831c48042",
        "classes.parquet": "62e195e701328e1a7c92f922",
        "teacher.parquet": "3ee413fbc9e0d49e8659643b",
        "features.parquet": "5011e750df1430c638f0760f",
        "part": "2b3e058b3144b3d581b9f464",
    },
    (3, None): {
        "contexts": "285ed5784aa297f9eca0d683",
        "components.parquet": "c84b0b9c1f84129432c85265",
        "basis.parquet": "7740d0c9be9f27d8956bf5a2",
        "classes.parquet": "189a0f89e6393c8ef6fb0edb",
        "teacher.parquet": "8f60493a5c33e46b9492408d",
        "features.parquet": "fb8e9d53930f1c64012fb8d1",
        "ridges.parquet": "b64ce52872bd42fc002460e0",
        "part": "cae711f7a27a1c5b92d4c415",
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
    assert digests == ("05e50c6eefd2bc0d22978906", "d4d5e68baae07992398dd0c9")
