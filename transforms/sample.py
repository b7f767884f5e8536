"""Synthetic rows of a release as a PCollection, for sinks of any kind."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.utils.shared import Shared

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.release import manifest
from dpgmm_beam.release.arguments import check_seed
from dpgmm_beam.release.release import Release
from transforms.files import finding
from transforms.files.small import read_bounded

MAX_CARRIED_BYTES = 2**22
"""Of a mixture that travels with the job."""


class SyntheticRow(NamedTuple):
    """A row of a release, with a Beam schema of arrays of doubles.

    Attributes:
      label: the teacher's likeliest class.
      embedding: d numbers.
      label_probabilities: the teacher's, in the order of the release's classes.
      component_class, component: the class, and which of its components, in which it was drawn.
    """

    label: str
    embedding: Sequence[float]
    label_probabilities: Sequence[float]
    component_class: str
    component: int


@dataclasses.dataclass
class SampleMixture(beam.PTransform):
    """Pipeline -> PCollection[SyntheticRow]: rows drawn from a release's mixture; costs nothing in privacy.

    They are the rows of `dpgmm sample --rows ROWS --seed SEED`, in no order: each is a function of the
    release, the seed and its index, wherever and however often it is drawn.

    Attributes:
      release: folder of a release that all workers can read, or a `Release`, of which the
        mixture travels with the job.
      rows: how many.
      seed: 0 to 2**64 - 1; None: it is drawn when the pipeline is built.

    Raises:
      ConfigError: a number is out of its range, the folder is no release, or the release too large to travel.
    """

    release: str | Release
    rows: int
    seed: int | None = None

    def __post_init__(self):
        super().__init__()
        self.drawn_seed = check_seed(self.seed)

    def expand(self, begin):
        source = finding.absolute(self.release) if isinstance(self.release, str) else _carried(self.release)
        parts = opened(source).parts(self.rows)
        return (
            begin
            | "Parts" >> beam.Create(range(len(parts)))
            | "Spread" >> beam.Reshuffle()
            | "Draw" >> beam.ParDo(DrawRows(source, self.rows, self.drawn_seed))
        )


Carried = tuple[bytes, dict[str, bytes]]
"""A manifest and the files of a mixture by their paths."""


def _carried(release: Release) -> Carried:
    paths = (file["path"] for file in release.manifest["files"])
    files = {path: release.read(path) for path in paths if path.startswith(f"{manifest.MIXTURE}/")}
    if (size := sum(map(len, files.values()))) > MAX_CARRIED_BYTES:
        allowed = f"be saved and named by its folder: its mixture has more than {MAX_CARRIED_BYTES} bytes"
        raise ConfigError("release", f"a release of {size} bytes", allowed)
    return release.read(manifest.FILE_NAME), files


def opened(source: str | Carried) -> Release:
    """A release in a folder on any file system, or as it travels."""
    if isinstance(source, str):
        return Release.of(functools.partial(_read, source), source)
    about, files = source
    return Release.of({**files, manifest.FILE_NAME: about}.__getitem__, "a job")


def _read(folder: str, path: str) -> bytes:
    most = manifest.MAX_BYTES if path == manifest.FILE_NAME else manifest.MAX_FILE_BYTES
    return read_bounded(FileSystems.join(folder, *path.split("/")), most)


@beam.typehints.with_output_types(SyntheticRow)
class DrawRows(beam.DoFn):
    """Number of a part -> its rows."""

    def __init__(self, source: str | Carried, rows: int, seed: int):
        self.source, self.rows, self.seed = source, rows, seed
        self.shared = Shared()

    def process(self, part: int) -> Iterator[SyntheticRow]:
        # Once a process: a sampler takes seconds and many megabytes in large releases.
        release = self.shared.acquire(lambda: opened(self.source))
        table = release.table(self.rows, part, self.seed)
        for batch in table.to_batches(max_chunksize=256):
            columns = (batch.column(name).to_pylist() for name in SyntheticRow._fields)
            yield from map(SyntheticRow._make, zip(*columns, strict=True))


beam.coders.registry.register_coder(SyntheticRow, beam.coders.RowCoder)
