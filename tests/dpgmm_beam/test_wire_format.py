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
    assert noise.SCHEME == 10
    key = KEY.within("id", "stage 0", "channel", 3, b"\x00\xff")
    assert key.context == (b"id", b"stage 0", b"channel", b"3", b"\x00\xff")
    assert key.stream(16).hex() == "c73aa48a366c48bf216c041312409952"
    assert rounded_gaussian(key, 1000.0, 6).tolist() == [-683, 460, -1221, 620, -838, 956]
    assert generator_of_key(key, 7).integers(0, 2**32, 3).tolist() == [3845037797, 4084108666, 1565525031]


QUERIES = {
    (3, 1): [
        ("counts 0", "count", 3, 0, "0x1.0000000000000p+0", 36.552612),
        ("means 0", "sum", 18, 0, "0x1.0000000000000p+15", 13.815589),
        ("means 0", "square", 6, 0, "0x1.0000000000000p+20", 36.552612),
        ("moment 0", "moment", 21, 6, "0x1.0000000000000p+24", 19.538193),
        ("whitened 0", "moment", 21, 6, "0x1.0000000000000p+24", 11.280381),
        ("scatter 0", "moment", 30, 4, "0x1.0000000000000p+24", 12.9233),
        ("scatter 0", "square", 3, 0, "0x1.0000000000000p+12", 36.552612),
        ("start 0", "slope", 6, 0, "0x1.3988e140934c7p+13", 32.30825),
        ("teacher 0", "gradient", 21, 0, "0x1.0000000001000p+28", 7.994219),
        ("teacher 1", "gradient", 21, 0, "0x1.0000000001000p+28", 7.994219),
        ("teacher 2", "gradient", 21, 0, "0x1.0000000001000p+28", 7.994219),
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
        ("start 0", "slope", 6, 0, "0x1.3988e140934c7p+13", 35.409624),
        ("teacher 0", "gradient", 36, 0, "0x1.0000000001000p+28", 8.76161),
        ("teacher 1", "gradient", 36, 0, "0x1.0000000001000p+28", 8.76161),
        ("teacher 2", "gradient", 36, 0, "0x1.0000000001000p+28", 8.76161),
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
        ("start 0", "slope", 6, 0, "0x1.3988e140934c7p+13", 35.409624),
        ("teacher 0", "gradient", 36, 0, "0x1.0000000001000p+28", 8.76161),
        ("teacher 1", "gradient", 36, 0, "0x1.0000000001000p+28", 8.76161),
        ("teacher 2", "gradient", 36, 0, "0x1.0000000001000p+28", 8.76161),
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
    "id/<64>/<64>/start 0/slope/0x1.3988e140934c7p+13/0x1.05c239b781d6dp+5/0/<32>/<32>",
    "id/<64>/<64>/teacher 0/gradient/0x1.0000000001000p+28/0x1.0312ec44bfacap+3/0/<32>/<32>",
    "id/<64>/<64>/teacher 1/gradient/0x1.0000000001000p+28/0x1.0312ec44bfacap+3/0/<32>/<32>",
    "id/<64>/<64>/teacher 2/gradient/0x1.0000000001000p+28/0x1.0312ec44bfacap+3/0/<32>/<32>",
]


def test_the_contexts_of_the_noise_in_their_order(monkeypatch):
    plan = Plan(config(3, 2), "id")
    seen, _ = contexts_of(plan, rows(3), monkeypatch)
    assert ["/".join(map(shown, context)) for context, _ in seen] == CONTEXTS


RELEASES = {
    (3, 1): {
        "contexts": "eef618d18fb6d1b7d65d7c9f",
        "components.parquet": "cda25ee1e73e373effdfdebd",
        "basis.parquet": "85b4592007e80cb8a369ff56",
        "classes.parquet": "8c4dcf372d2a01d863d775ed",
        "teacher.parquet": "4a791ba845afbcbc4a7136ed",
        "features.parquet": "f44f74e3b2bc8463251504e5",
        "part": "b27984b971ddedbbc0640ef7",
    },
    (3, 2): {
        "contexts": "4e50ddb80b5a65ad1df32240",
        "components.parquet": "05a94b4ff86b2b6e187aa715",
        "basis.parquet": "5b476a866edf8ce9a23f1d66",
        "classes.parquet": "e2fe0426c40159a60e1d75a0",
        "teacher.parquet": "d51f3f2b7a4a9e97152f2bb6",
        "features.parquet": "d52b79fbfadd24a1b43c2aea",
        "ridges.parquet": "b64ce52872bd42fc002460e0",
        "part": "583e1a80c6e40b5a85ecdd25",
    },
    (1, 3): {
        "contexts": "66a6098a19b08d7a7c679638",
        "components.parquet": "c05fcbeb574185d7c91dac01",
        "basis.parquet": "d4b5eed8b5f8570896b9b108",
        "classes.parquet": "dae5c8156d8529e401f2087c",
        "teacher.parquet": "3eb73376e9992aab9b574684",
        "features.parquet": "b103a198c29a9cefdf9c1610",
        "part": "8a081743e4a71b32c8477a28",
    },
    (1, 1): {
        "contexts": "e9021b2014226890c199b5e4",
        "components.parquet": "56525b6b3d190b88e965d179",
        "basis.parquet": "373a17268d97e95bc92f5d10",
        "classes.parquet": "8b32db6d4fa2f003a02c15fb",
        "teacher.parquet": "3eb73376e9992aab9b574684",
        "features.parquet": "5037764d8398b0c5b34f1a94",
        "part": "cf1899f93abc6a877fa84515",
    },
    (40, 1): {
        "contexts": "0479a2f1fc7dc331ca69bd26",
        "components.parquet": "f178b8f10a3e689dd4a884b9",
        "basis.parquet": "34969fdb43a2db7209120356",
        "classes.parquet": "23216b3acb75fc2599a6dce9",
        "teacher.parquet": "5582a0848df1f60e5cc7bd12",
        "features.parquet": "2a6d83e92f5abe57d2a7f38c",
        "part": "823d81d80e96b019466d6044",
    },
    (1000, 1): {
        "contexts": "5a284bffecc60c17824020ad",
        "components.parquet": "8e2ba6881c6ae696577a4df7",
        "basis.parquet": "3279423f3bb5fc90462be2be",
        "classes.parquet": "34f4a961b85cf63cee22380a",
        "teacher.parquet": "77718dcada38d77b307d9cf5",
        "features.parquet": "d4cbbe2fbadd4c5cb5d90b3c",
        "part": "3e1154cda8e9e162bd49d202",
    },
    (3, None): {
        "contexts": "951e8b010b926c9f2809bbf9",
        "components.parquet": "ddd55131f9ba6b781e0a718c",
        "basis.parquet": "4356dd1bf5336ee1bad76dd0",
        "classes.parquet": "7ec674d622141e6a95ac529e",
        "teacher.parquet": "8ed2207ba4c0e51bdd7441a8",
        "features.parquet": "cacddd5d944f9d9779e8f20d",
        "ridges.parquet": "b64ce52872bd42fc002460e0",
        "part": "7e432fd68b2a2bcfef3003d8",
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
    assert digests == ("5672fd87d6bddef72da8185b", "5914a1a4e813972b4d22b6d7")


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
