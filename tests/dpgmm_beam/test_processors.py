"""The same release on other processors: OpenBLAS's kernels and numpy's instruction sets are switched."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

COMPONENTS = "1", "8"
# With fewer dimensions nothing ties, and every setting agrees whatever is done.
PROGRAM = """
import hashlib, json, sys
import numpy as np
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.checkpoint import _to_arrays
from dpgmm_beam.privacy import lattice
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.release.class_rows import ClassRows
from dpgmm_beam.release.labels import Labeller
from dpgmm_beam.release.manifest import parts_of
from dpgmm_beam.mixture import Sampler
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.data.rows import Rows
from dpgmm_beam.release.row_statement import RowStatement
from dpgmm_beam.release.synthesis import draw_part, generator_of_key

d, count = (512, 4000)
classes = tuple("abcdefghij")
generator = np.random.default_rng(5)
labels = generator.integers(0, len(classes), count).astype(np.int32)
values = generator.integers(-600, 600, (count, d)) + generator.integers(-500, 500, (len(classes), d))[labels]
rows = Rows(lattice.clip_rows(values.astype(float), lattice.UNIT).astype(np.int16), labels)
secret = NoiseKey(bytes(range(32)))
for components in map(int, sys.argv[1:]):
    config = ReleaseConfig("precomputed", classes, d, 1.0, 1e-5, samples_per_class=5, components=components,
        rounds=2, method=Method(teacher_steps=4))
    plan = Plan(config, "one")
    with one_thread():
        final = chain.fit(plan, lambda: rows.blocks(512), secret)
        key = chain.release_key(final, secret)
        labeller = Labeller.of(final)
        mixture = chain.released_mixture(final)
        statement = RowStatement.of(config, "one", mixture)
        data = draw_part(parts_of(config), 0, Sampler(mixture), labeller, generator_of_key(key, 0), statement)
    files = {name: array.tobytes() for name, array in _to_arrays(final).items() if name != "plan"}
    files["rows"] = data
    for each in (mixture, ClassRows.of(final), labeller):
        each.save(lambda name, data, count: files.update({name: data}))
    for name, data in files.items():
        print(components, name, hashlib.sha256(data).hexdigest()[:16])
"""

DISPATCHED = " ".join(np._core._multiarray_umath.__cpu_dispatch__)
SETTINGS = {
    "Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "Zen": {"OPENBLAS_CORETYPE": "Zen"},
    "SkylakeX": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "Prescott": {"OPENBLAS_CORETYPE": "Prescott"},
    "numpy baseline": {"NPY_DISABLE_CPU_FEATURES": DISPATCHED},
}


def digests(setting: dict[str, str]) -> dict[tuple[str, str], str]:
    """Of every entry of the final state and every file of the release, by components and name."""
    own = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "NPY_DISABLE_CPU_FEATURES")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, *COMPONENTS],
        cwd=Path(__file__).parents[2],
        env={**environment, **setting},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = map(str.split, done.stdout.splitlines())
    return {(components, name): digest for components, name, digest in lines}


def can_run(setting: dict[str, str]) -> bool:
    """OpenBLAS takes its kernels for AVX512 only where the processor has it."""
    if setting.get("OPENBLAS_CORETYPE") != "SkylakeX":
        return True
    return " avx512f " in Path("/proc/cpuinfo").read_text()


def test_every_processor_gives_the_same_state_and_rows():
    settings = {name: setting for name, setting in SETTINGS.items() if can_run(setting)}
    with ThreadPoolExecutor(2) as pool:
        expected, *found = pool.map(digests, [{}, *settings.values()])
    for components in COMPONENTS:
        for name in ("rows", "state.class_means.counts", "components.parquet", "teacher.parquet"):
            assert (components, name) in expected
    for name, of_setting in zip(settings, found, strict=True):
        assert of_setting.keys() == expected.keys()
        assert {key for key in expected if of_setting[key] != expected[key]} == set(), name
    assert len(settings) >= 4
