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
        '{"damping": 0.3, "reduced": 4, "residual_radius": 0.7, "teacher_clip": 0.25, '
        '"teacher_momentum": 0.9, "teacher_noise_cap": 0.05, "teacher_rate": 3.0, "teacher_ridges": '
        '5, "teacher_steps": 3}, "rounds": 4, "samples_per_class": 6000, "shares": {"centres/square": '
        '0.003, "centres/sum": 0.017, "means/count": 0.01, "means/square": 0.01, "means/sum": 0.07, '
        '"moment/moment": 0.14, "rounds/count": 0.015, "rounds/sum": 0.05, "scales/moment": 0.03, '
        '"scales/square": 0.01, "scatter/moment": 0.08, "scatter/square": 0.01, "teacher/gradient": '
        "0.555}}"
    )
    assert config().digest == "c578ca39ff53d4f6fb212e9e38ebcb374f5585ed6871df0832db89ca2bcb488f"
    assert config().fit_digest == "116198a156b677dc542ffaa5deb137d204d51ddac02d8a1076289acd8fc5f8ac"


def test_the_words_of_the_noise():
    assert noise.SCHEME == 8
    key = KEY.within("id", "stage 0", "channel", 3, b"\x00\xff")
    assert key.context == (b"id", b"stage 0", b"channel", b"3", b"\x00\xff")
    assert key.stream(16).hex() == "6326f80190846383cf4c12daab6cf533"
    assert rounded_gaussian(key, 1000.0, 6).tolist() == [-2219, 831, 1999, -17, -1476, -2030]
    assert generator_of_key(key, 7).integers(0, 2**32, 3).tolist() == [1368911038, 2573452713, 156263189]


QUERIES = {
    (3, 1): [
        ("counts 0", "count", 3, 0, "0x1.0000000000000p+0", 36.552612),
        ("means 0", "sum", 18, 0, "0x1.0000000000000p+15", 13.815589),
        ("means 0", "square", 6, 0, "0x1.0000000000000p+20", 36.552612),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 19.538193),
        ("whitened 0", "moment", 21, 6, "0x1.0000000000000p+24", 11.280381),
        ("scatter 0", "moment", 30, 4, "0x1.0000000000000p+24", 12.9233),
        ("scatter 0", "square", 3, 0, "0x1.0000000000000p+12", 36.552612),
        ("teacher 0", "gradient", 21, 0, "0x1.0000000001000p+28", 7.913873),
        ("teacher 1", "gradient", 21, 0, "0x1.0000000001000p+28", 7.913873),
        ("teacher 2", "gradient", 21, 0, "0x1.0000000001000p+28", 7.913873),
    ],
    (3, 2): [
        ("counts 0", "count", 3, 0, "0x1.0000000000000p+0", 37.306354),
        ("means 0", "sum", 18, 0, "0x1.0000000000000p+15", 14.100476),
        ("means 0", "square", 6, 0, "0x1.0000000000000p+20", 37.306354),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 19.941085),
        ("whitened 0", "moment", 21, 6, "0x1.0000000000000p+24", 11.512991),
        ("sketch 0", "count", 120, 0, "0x1.0000000000000p+0", 86.155333),
        ("sketch 0", "sum", 480, 0, "0x1.3330000000000p+13", 47.18922),
        ("sketch 1", "count", 120, 0, "0x1.0000000000000p+0", 86.155333),
        ("sketch 1", "sum", 480, 0, "0x1.3330000000000p+13", 47.18922),
        ("rounds 2", "count", 12, 0, "0x1.6a10000000000p+12", 70.345535),
        ("rounds 2", "sum", 24, 0, "0x1.0000000000000p+14", 38.529836),
        ("rounds 3", "count", 12, 0, "0x1.6a10000000000p+12", 40.614014),
        ("rounds 3", "sum", 24, 0, "0x1.0000000000000p+14", 22.245211),
        ("centres 0", "sum", 36, 0, "0x1.0000000000000p+14", 28.612667),
        ("centres 0", "square", 1, 0, "0x1.0000000000000p+14", 68.111771),
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
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 15.79127),
        ("whitened 0", "moment", 21, 6, "0x1.0000000000000p+24", 9.117094),
        ("sketch 0", "count", 60, 0, "0x1.0000000000000p+0", 51.034015),
        ("sketch 0", "sum", 240, 0, "0x1.3330000000000p+13", 20.232211),
        ("sketch 1", "count", 60, 0, "0x1.0000000000000p+0", 51.034015),
        ("sketch 1", "sum", 240, 0, "0x1.3330000000000p+13", 20.232211),
        ("rounds 2", "count", 6, 0, "0x1.6a10000000000p+12", 41.669099),
        ("rounds 2", "sum", 12, 0, "0x1.0000000000000p+14", 16.519531),
        ("rounds 3", "count", 6, 0, "0x1.6a10000000000p+12", 24.057665),
        ("rounds 3", "sum", 12, 0, "0x1.0000000000000p+14", 9.537556),
        ("centres 0", "sum", 18, 0, "0x1.0000000000000p+14", 11.782586),
        ("centres 0", "square", 1, 0, "0x1.0000000000000p+14", 68.111771),
        ("scatter 0", "moment", 10, 4, "0x1.0000000000000p+24", 9.233284),
        ("scatter 0", "square", 1, 0, "0x1.0000000000000p+12", 37.306354),
        ("scales 0", "square", 3, 0, "0x1.0000000000000p+12", 37.306354),
        ("scales 0", "moment", 30, 4, "0x1.0000000000000p+24", 12.758504),
    ],
    (1, 1): [
        ("counts 0", "count", 1, 0, "0x1.0000000000000p+0", 21.103661),
        ("means 0", "sum", 6, 0, "0x1.0000000000000p+15", 7.976434),
        ("means 0", "square", 6, 0, "0x1.0000000000000p+20", 21.103661),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 11.280381),
        ("whitened 0", "moment", 21, 6, "0x1.0000000000000p+24", 6.512731),
        ("scatter 0", "moment", 10, 4, "0x1.0000000000000p+24", 7.461271),
        ("scatter 0", "square", 1, 0, "0x1.0000000000000p+12", 21.103661),
    ],
    (3, None): [
        ("counts 0", "count", 3, 0, "0x1.0000000000000p+0", 37.306354),
        ("means 0", "sum", 18, 0, "0x1.0000000000000p+15", 14.100476),
        ("means 0", "square", 6, 0, "0x1.0000000000000p+20", 37.306354),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 19.941085),
        ("whitened 0", "moment", 21, 6, "0x1.0000000000000p+24", 11.512991),
        ("sketch 0", "count", 1536, 0, "0x1.0000000000000p+0", 86.155333),
        ("sketch 0", "sum", 6144, 0, "0x1.3330000000000p+13", 47.18922),
        ("sketch 1", "count", 1536, 0, "0x1.0000000000000p+0", 86.155333),
        ("sketch 1", "sum", 6144, 0, "0x1.3330000000000p+13", 47.18922),
        ("rounds 2", "count", 240, 0, "0x1.6a10000000000p+12", 70.345535),
        ("rounds 2", "sum", 480, 0, "0x1.0000000000000p+14", 38.529836),
        ("rounds 3", "count", 240, 0, "0x1.6a10000000000p+12", 40.614014),
        ("rounds 3", "sum", 480, 0, "0x1.0000000000000p+14", 22.245211),
        ("centres 0", "sum", 720, 0, "0x1.0000000000000p+14", 28.612667),
        ("centres 0", "square", 1, 0, "0x1.0000000000000p+14", 68.111771),
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
    "id/<64>/<64>/means 0/sum/0x1.0000000000000p+15/0x1.04825da1ebe6dp+3/0/<32>/<32>",
    "id/<64>/<64>/means 0/square/0x1.0000000000000p+20/0x1.2a73698c35adep+5/0/<32>/<32>",
    "id/<64>/<64>/moment 0/moment/0x1.0000000000000p+24/0x1.0af14a18e639fp+5/0/<32>/<32>",
    "id/<64>/<64>/whitened 0/moment/0x1.0000000000000p+24/0x1.343d1adb6b120p+4/0/<32>/<32>",
    "id/<64>/<64>/sketch 0/count/0x1.0000000000000p+0/0x1.2a73698c35adep+7/0/<32>/<32>",
    "id/<64>/<64>/sketch 0/sum/0x1.3330000000000p+13/0x1.2a73698c35adep+6/0/<32>/<32>",
    "id/<64>/<64>/sketch 1/count/0x1.0000000000000p+0/0x1.2a73698c35adep+7/0/<32>/<32>",
    "id/<64>/<64>/sketch 1/sum/0x1.3330000000000p+13/0x1.2a73698c35adep+6/0/<32>/<32>",
    "id/<64>/<64>/rounds 2/count/0x1.6a10000000000p+12/0x1.e75e3ff44960dp+6/0/<32>/<32>",
    "id/<64>/<64>/rounds 2/sum/0x1.0000000000000p+14/0x1.e75e3ff44960dp+5/0/<32>/<32>",
    "id/<64>/<64>/rounds 3/count/0x1.6a10000000000p+12/0x1.1961d3f2922b4p+6/0/<32>/<32>",
    "id/<64>/<64>/rounds 3/sum/0x1.0000000000000p+14/0x1.1961d3f2922b4p+5/0/<32>/<32>",
    "id/<64>/<64>/centres 0/sum/0x1.0000000000000p+14/0x1.4dad9c9f1fc87p+5/0/<32>/<32>",
    "id/<64>/<64>/centres 0/square/0x1.0000000000000p+14/0x1.4dad9c9f1fc87p+6/0/<32>/<32>",
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
        "contexts": "4ee869c52b45ae3e2a3b645b",
        "components.parquet": "3fd0969111dc27412aaa4fed",
        "basis.parquet": "7adf44fddaad436c298aa9af",
        "classes.parquet": "88bab8b967b1f9afad62e73d",
        "teacher.parquet": "233d0605945ecdc6ed559804",
        "features.parquet": "92b6d0d32a29712df2359ca3",
        "part": "70cfd6b42c8f8c75c2f7e955",
    },
    (3, 2): {
        "contexts": "a0c0119b1151d48f5078d2c5",
        "components.parquet": "03808b1d07cf7fadc2866b95",
        "basis.parquet": "e7bc4e6d0a90a9e4d398b3ce",
        "classes.parquet": "9695b6cc1ef06f5c96be8dfa",
        "teacher.parquet": "7b7dd887466952e668f517c3",
        "features.parquet": "104b7ce3c4a2f83f7d61e066",
        "ridges.parquet": "b64ce52872bd42fc002460e0",
        "part": "9523324ee8e1a79d547d0f45",
    },
    (1, 3): {
        "contexts": "0851220555dcbdc2ea0c3a3f",
        "components.parquet": "3fb63490616cac7e79d20f45",
        "basis.parquet": "dda020ceb9205785a7a7adab",
        "classes.parquet": "ec5873ea00575e54a3af1261",
        "teacher.parquet": "3eb73376e9992aab9b574684",
        "features.parquet": "b103a198c29a9cefdf9c1610",
        "part": "e3c2f238a2c4998f3ab7993b",
    },
    (1, 1): {
        "contexts": "d7c0a87f488da42cbd95b599",
        "components.parquet": "2df55b043302dfb21140e6ed",
        "basis.parquet": "4714e1485f7c2d572c62403a",
        "classes.parquet": "bbe0c6aadc3db017a44337ca",
        "teacher.parquet": "3eb73376e9992aab9b574684",
        "features.parquet": "8c937d37e34428f942c45222",
        "part": "8cf666aa19a3205147e2be60",
    },
    (40, 1): {
        "contexts": "d9cfc47261c1276ffb1f1dbe",
        "components.parquet": "dea297779604bbc129af2ac6",
        "basis.parquet": "2a67705acbc669245f557813",
        "classes.parquet": "0413481b0c8db04ee0bf6d8b",
        "teacher.parquet": "0df05540af81aa22d9066f0b",
        "features.parquet": "1240173d77e77e3a253f9eb9",
        "part": "79fef9eb7ea8d0e56d8c71c4",
    },
    (1000, 1): {
        "contexts": "7f56427480ec1b7329396346",
        "components.parquet": "3840c682c30530f76be22038",
        "basis.parquet": "f944dad96817a363541f58e4",
        "classes.parquet": "3a7fa05f153ae5ddcb5bf3a6",
        "teacher.parquet": "ac2456b704f54aaa68b1f2e3",
        "features.parquet": "038d81783fa4fc914fd56912",
        "part": "87ee3c496d93c15e5f030e45",
    },
    (3, None): {
        "contexts": "b3c7eb73f9f1a601afdb2fd6",
        "components.parquet": "0a0e1c2909072bee2e4500f0",
        "basis.parquet": "599d77d0f91636b3dba24b47",
        "classes.parquet": "73cd175f5bee44bec5effbe0",
        "teacher.parquet": "577db1ba6431be71db3a337d",
        "features.parquet": "ab99313172d9501c4a3dc322",
        "ridges.parquet": "b64ce52872bd42fc002460e0",
        "part": "bf61cc52f850f0ff5391e106",
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
    assert digests == ("f66edc65f807c890b8027e0a", "a43f7749f000542b6e30a4e9")


def test_a_decodable_release_pays_for_two_stages_more():
    decodable = config(decodable="8")
    assert decodable.to_dict() == {**config().to_dict(), "decodable": "8"}
    assert decodable.fit_digest == "d7a49389ac7d03f3a77f3832b33dbbd9dc60e3e9f543e62d1ec4d0f85a7b0f34"
    stages = Plan(decodable, "id").stages
    assert [stage.name for stage in stages[2:6]] == ["moment 0", "whitened 0", "pictures 0", "slopes 0"]
    assert [
        (query.name, query.size, query.one_sided, float(query.l2_sensitivity).hex())
        for stage in stages[4:6]
        for query in stage.queries
    ] == [
        ("sum", 192, False, "0x1.0000000000000p+15"),
        ("cross", 256, False, "0x1.3330000000000p+25"),
        ("square", 11, True, "0x1.0000000000000p+24"),
    ]
