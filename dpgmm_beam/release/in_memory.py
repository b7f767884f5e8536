"""A whole release of rows that fit into memory: no runner, no file, the same bytes as the Beam job's."""

import hashlib
from collections.abc import Callable, Iterable, Iterator

from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.checkpoint import Checkpoint
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release import manifest
from dpgmm_beam.release.fitted import Fitted


def release_in_memory(
    plan: Plan, blocks: Callable[[], Iterable[Rows]], secret: NoiseKey, threads: int = 1
) -> dict[str, bytes]:
    """The files of a release by their paths, the manifest among them.

    Args:
      plan: of the release.
      blocks: gives the rows in blocks, again each time that it is called; where the plan bounds the rows
        of a unit, those that count (`data.units.bounded`).
      secret: the noise key.
      threads: that fit side by side; they change nothing but the speed.

    >>> import numpy as np
    >>> from dpgmm_beam import NoiseKey, Plan, ReleaseConfig, rows_of
    >>> config = ReleaseConfig("precomputed", ("cat", "dog"), 4, epsilon=1.0, delta=1e-5, samples_per_class=3)
    >>> rows = rows_of(np.eye(4)[[0, 0, 1, 1]], [0, 0, 1, 1])
    >>> files = release_in_memory(Plan(config, "2026-05"), lambda: [rows], NoiseKey(bytes(range(32))))
    >>> [path for path in sorted(files) if not path.startswith("mixture")]
    ['README.md', 'manifest.json', 'synthetic/part-00000-of-00001.parquet']
    """
    files, records = {}, []
    final = chain.fit(plan, blocks, secret, threads)
    for path, rows, data in files_of(final, secret):
        files[path] = data
        sha256 = hashlib.sha256(data).hexdigest()
        records.append({"path": path, "size": len(data), "sha256": sha256, "rows": rows})
    return {**files, manifest.FILE_NAME: manifest.build(final.plan, records)}


def files_of(final: Checkpoint, secret: NoiseKey) -> Iterator[tuple[str, int, bytes]]:
    """Path, number of rows and bytes of each file of a release but its manifest.

    Args:
      final: as `chain.fit` returns it.
    """
    fitted = Fitted(final, secret)
    yield from fitted.files()
    yield from map(fitted.part, range(fitted.parts))
