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
        '5, "teacher_steps": 3}, "rounds": 4, "samples_per_class": 6000, "shares": {"centres/square": '
        '0.003, "centres/sum": 0.017, "means/count": 0.01, "means/square": 0.01, "means/sum": 0.07, '
        '"moment/moment": 0.14, "rounds/count": 0.015, "rounds/sum": 0.05, "scales/moment": 0.03, '
        '"scales/square": 0.01, "scatter/moment": 0.08, "scatter/square": 0.01, "teacher/gradient": '
        "0.555}}"
    )
    assert config().digest == "e76c6f811a7a0084613466887d9ae36945f36c217bfa517ddb73e9cb8fe7789b"
    assert config().fit_digest == "bc3ba0d9cf7878a41ffb2f8cf8cd3accfaedca59dff81dcc56e26080c6eb60a0"


def test_the_words_of_the_noise():
    assert noise.SCHEME == 7
    key = KEY.within("id", "stage 0", "channel", 3, b"\x00\xff")
    assert key.context == (b"id", b"stage 0", b"channel", b"3", b"\x00\xff")
    assert key.stream(16).hex() == "821ed08df695cc6407afc569f38974bb"
    assert rounded_gaussian(key, 1000.0, 6).tolist() == [270, -731, 1438, 762, -90, 661]
    assert generator_of_key(key, 7).integers(0, 2**32, 3).tolist() == [269693925, 2325164206, 3528565428]


QUERIES = {
    (3, 1): [
        ("counts 0", "count", 3, 0, "0x1.0000000000000p+0", 36.552612),
        ("means 0", "sum", 18, 0, "0x1.0000000000000p+15", 13.815589),
        ("means 0", "square", 6, 0, "0x1.0000000000000p+20", 36.552612),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 9.769097),
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
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 9.970542),
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
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 7.895635),
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
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 5.640191),
        ("scatter 0", "moment", 10, 4, "0x1.0000000000000p+24", 7.461271),
        ("scatter 0", "square", 1, 0, "0x1.0000000000000p+12", 21.103661),
    ],
    (3, None): [
        ("counts 0", "count", 3, 0, "0x1.0000000000000p+0", 37.306354),
        ("means 0", "sum", 18, 0, "0x1.0000000000000p+15", 14.100476),
        ("means 0", "square", 6, 0, "0x1.0000000000000p+20", 37.306354),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 9.970542),
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
    "id/<64>/<64>/moment 0/moment/0x1.0000000000000p+24/0x1.0af14a18e639fp+4/0/<32>/<32>",
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
        "contexts": "07f0a95f77d5836557d1222c",
        "components.parquet": "efd40b37d39c3e6185a8b327",
        "basis.parquet": "97d6f0bd43eb243b525d9c69",
        "classes.parquet": "fd85e180b1c89f6c86550830",
        "teacher.parquet": "82a9c947ffc8b79828539dd2",
        "features.parquet": "5ccc067cbba3931bfa17d992",
        "part": "64df92714deb60847714ef65",
    },
    (3, 2): {
        "contexts": "6be0aa67a36bbeded09a68ad",
        "components.parquet": "49aa2f974c9b9568d8bdc9d4",
        "basis.parquet": "67184aa3a55d1aaf45e27f02",
        "classes.parquet": "53f1f5e67fcc85a6c5b044e1",
        "teacher.parquet": "cb3ddfaa007f799e0b117f37",
        "features.parquet": "510d4e1ae1f2e78a746627cc",
        "ridges.parquet": "b64ce52872bd42fc002460e0",
        "part": "643d39f3ef52a9e41884ba01",
    },
    (1, 3): {
        "contexts": "d99895ef6f2dac68d67c34a9",
        "components.parquet": "c1c733a32b643ae1ebae85f2",
        "basis.parquet": "1bc0d65457a191ce142cf1f0",
        "classes.parquet": "f753c601a389fdeea7f05532",
        "teacher.parquet": "3eb73376e9992aab9b574684",
        "features.parquet": "67dc819db5f22ca90948f167",
        "part": "a9cd2089778d95fc68e0ab54",
    },
    (1, 1): {
        "contexts": "6d2db876140541dc1186397b",
        "components.parquet": "fa0167b9a79dfd5271c97d0d",
        "basis.parquet": "40b4f4ba556887847392a7b7",
        "classes.parquet": "8c87ee9b6849d66ae55391ee",
        "teacher.parquet": "3eb73376e9992aab9b574684",
        "features.parquet": "b103a198c29a9cefdf9c1610",
        "part": "7d0ddbd12425e76b094a534c",
    },
    (40, 1): {
        "contexts": "a8218240cf7a29d41d2258d8",
        "components.parquet": "05db4902b5db11aba8299259",
        "basis.parquet": "fe5e13b0b4d679b8cae17c6e",
        "classes.parquet": "5cc6aeec8294368860bdc3f8",
        "teacher.parquet": "0ccd0e876f4d935cc9a931ff",
        "features.parquet": "ccb82c17a0f3b6411f62c0ba",
        "part": "c5302f6dfa2a96307f0e810e",
    },
    (1000, 1): {
        "contexts": "8b879802a6cfaba9fc19c6ca",
        "components.parquet": "d4d214816d9902f428375fd6",
        "basis.parquet": "fabe0d24a55c98aadb742f32",
        "classes.parquet": "e7160ec47312bceabd553cea",
        "teacher.parquet": "ac1cdb065fde6bb228b0b6b3",
        "features.parquet": "8f157398f482ae9f1de3fbee",
        "part": "c1fc26a1c2ede8e2faf67c9b",
    },
    (3, None): {
        "contexts": "8f10a42e92781193d20461e3",
        "components.parquet": "b1b5dd543e6174937913e6df",
        "basis.parquet": "3bf18f892b1f087783561156",
        "classes.parquet": "d60dad76faa8e67110ebe1ce",
        "teacher.parquet": "3093fe5f0bb9f041754dc7e4",
        "features.parquet": "6f01bfbcbdccad99523ec1a0",
        "ridges.parquet": "b64ce52872bd42fc002460e0",
        "part": "a2bd70cd316e7591186b5a01",
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
    assert digests == ("bc36a5262ee5d83fe7808d9b", "5a8bf63edd64276dae5a68a9")


def test_a_decodable_release_pays_for_two_stages_more():
    decodable = config(decodable="8")
    assert decodable.to_dict() == {**config().to_dict(), "decodable": "8"}
    assert decodable.fit_digest == "f25167c0b0a68f511aa28dd7a1be4a0104031b2856c14518427949c0d5701943"
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
