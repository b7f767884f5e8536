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
        '0.14285714285714285, "reduced": 4, "residual_radius": 0.7, "teacher_clip": 0.25, '
        '"teacher_momentum": 0.9, "teacher_noise_cap": 0.05, "teacher_rate": 3.0, "teacher_steps": 3}, '
        '"rounds": 4, "samples_per_class": 6000, "shares": {"means/count": 0.01, "means/square": 0.01, '
        '"means/sum": 0.07, "moment/moment": 0.15, "rounds/count": 0.015, "rounds/sum": 0.06, '
        '"scales/moment": 0.03, "scales/square": 0.01, "scatter/moment": 0.08, "scatter/square": 0.01, '
        '"teacher/gradient": 0.555}}'
    )
    assert config().digest == "b688e296147ed96a0b7be5ab852f4c9fff8a321834012ccc78700e19ea2523d8"
    assert config().fit_digest == "3b1292f79fd2bba19ddbfd198eacacb997acb930e4fda92160a30aedcdecdd12"


def test_the_words_of_the_noise():
    assert noise.SCHEME == 3
    key = KEY.within("id", "stage 0", "channel", 3, b"\x00\xff")
    assert key.context == (b"id", b"stage 0", b"channel", b"3", b"\x00\xff")
    assert key.stream(16).hex() == "3758eafb8c96aedd718986a6f1894dbd"
    assert rounded_gaussian(key, 1000.0, 6).tolist() == [-343, -708, 1116, 10, 1236, 1366]
    assert generator_of_key(key, 7).integers(0, 2**32, 3).tolist() == [4191944913, 2966840174, 3427047996]


QUERIES = {
    (3, 1): [
        ("means 0", "count", 3, 0, "0x1.0000000000000p+0", 36.552612),
        ("means 0", "sum", 18, 0, "0x1.0000000000000p+15", 13.815589),
        ("means 0", "square", 6, 0, "0x1.0000000000000p+20", 36.552612),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 9.437844),
        ("teacher 0", "gradient", 21, 0, "0x1.0000000001000p+28", 7.976434),
        ("teacher 1", "gradient", 21, 0, "0x1.0000000001000p+28", 7.976434),
        ("teacher 2", "gradient", 21, 0, "0x1.0000000001000p+28", 7.976434),
        ("scatter 0", "moment", 30, 4, "0x1.0000000000000p+24", 12.9233),
        ("scatter 0", "square", 3, 0, "0x1.0000000000000p+12", 36.552612),
    ],
    (3, 2): [
        ("means 0", "count", 3, 0, "0x1.0000000000000p+0", 37.306354),
        ("means 0", "sum", 18, 0, "0x1.0000000000000p+15", 14.100476),
        ("means 0", "square", 6, 0, "0x1.0000000000000p+20", 37.306354),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 9.632459),
        ("teacher 0", "gradient", 21, 0, "0x1.0000000001000p+28", 8.673551),
        ("teacher 1", "gradient", 21, 0, "0x1.0000000001000p+28", 8.673551),
        ("teacher 2", "gradient", 21, 0, "0x1.0000000001000p+28", 8.673551),
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
        ("teacher 0", "gradient", 21, 0, "0x1.0000000001000p+28", 8.673551),
        ("teacher 1", "gradient", 21, 0, "0x1.0000000001000p+28", 8.673551),
        ("teacher 2", "gradient", 21, 0, "0x1.0000000001000p+28", 8.673551),
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
    "id/<64>/<64>/teacher 0/gradient/0x1.0000000001000p+28/0x1.158dbaec7853ep+3/0/<32>/<32>",
    "id/<64>/<64>/teacher 1/gradient/0x1.0000000001000p+28/0x1.158dbaec7853ep+3/0/<32>/<32>",
    "id/<64>/<64>/teacher 2/gradient/0x1.0000000001000p+28/0x1.158dbaec7853ep+3/0/<32>/<32>",
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
]


def test_the_contexts_of_the_noise_in_their_order(monkeypatch):
    plan = Plan(config(3, 2), "id")
    seen, _ = contexts_of(plan, rows(3), monkeypatch)
    assert ["/".join(map(shown, context)) for context, _ in seen] == CONTEXTS


RELEASES = {
    (3, 1): {
        "contexts": "29e3c02d4fe7906bb9f4cc84",
        "components.parquet": "32563bbdb34200d97378d91f",
        "basis.parquet": "d96e904727a24849aa9213a2",
        "classes.parquet": "7ab64468278124c820630195",
        "teacher.parquet": "1982a414536003424bc4f101",
        "features.parquet": "72fac4310bbb6cf843f9066a",
        "part": "604378b1177226fa13db13f4",
    },
    (3, 2): {
        "contexts": "b773685909588233fabf6f30",
        "components.parquet": "c3e8e03a16ee68a8f1568121",
        "basis.parquet": "06d872a0363708f66aa73f01",
        "classes.parquet": "731a270caa8a919c58124bf8",
        "teacher.parquet": "7548b644be299e9a6641327b",
        "features.parquet": "be1de59d5a0bcedeeb9d4279",
        "part": "931a8c0039105c43ad7b1511",
    },
    (1, 3): {
        "contexts": "f972bebf58f071c8990e3ada",
        "components.parquet": "50b049b56969026f2e57acdb",
        "basis.parquet": "775b3e56c072a0a08601c499",
        "classes.parquet": "f271895f2818358d2f49dc29",
        "teacher.parquet": "9c02ed2955e7b227a43b3cc6",
        "features.parquet": "2230047eca13f54f2b5f0f3d",
        "part": "f9fd4bce590798361a533a58",
    },
    (1, 1): {
        "contexts": "cf5f5626d425099bb54d9b65",
        "components.parquet": "70ea46dd61268aada1ed7958",
        "basis.parquet": "40b4f4ba556887847392a7b7",
        "classes.parquet": "36405e7c4559c0e9d47353bc",
        "teacher.parquet": "3eb73376e9992aab9b574684",
        "features.parquet": "b103a198c29a9cefdf9c1610",
        "part": "98e6957e0466a89a5ab9ec7e",
    },
    (40, 1): {
        "contexts": "af239efd3ba3dbcf49027c9a",
        "components.parquet": "7f4a176917e43eef468a14a6",
        "basis.parquet": "35813a93b516b09f8aeec71b",
        "classes.parquet": "545c1fee85b5623193c69dc0",
        "teacher.parquet": "7d76c2547677f341b1a258a0",
        "features.parquet": "eec008ee62cb984c3a7e015e",
        "part": "50dc51c8877869e114da4c2e",
    },
    (1000, 1): {
        "contexts": "ab8f0b44a6809a4ebe701a48",
        "components.parquet": "3f65f1c4d8b751f9b75e9865",
        "basis.parquet": "9239f626c29a0aebc681b3d5",
        "classes.parquet": "54b63d9be31af73ecd58b897",
        "teacher.parquet": "76cd20f5103fa23822462126",
        "features.parquet": "17055dc8d473cb15ebc7e738",
        "part": "4240d45670dcb746ea3d44d3",
    },
    (3, None): {
        "contexts": "80cc66f59b88aed5fd17864d",
        "components.parquet": "d58443aac6c625954ff66a3c",
        "basis.parquet": "fdae00b319a5391232f555b5",
        "classes.parquet": "288afd0a17998c9cb9b30e94",
        "teacher.parquet": "e15029c56e7b9e2c4e04f4b3",
        "features.parquet": "9ee31437d2e1210626b1d08d",
        "part": "09f1c420373e8d3b5957ff51",
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
    assert digests == ("ece316e8a9fbeb70201ab49e", "52416bafe4027bcbc80d6189")
