"""Rows of a release -> a folder of pictures, which appears whole or not at all.

What passes through the runner is numbers of pieces.  A finished piece leaves a list of its
files beside the staged ones, so that neither a bundle that runs twice nor the same command
after a kill makes it again.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from apache_beam.utils.shared import Shared

from dpgmm_beam.data.schema import COMPONENT, COMPONENT_CLASS, EMBEDDING, LABEL, PROBABILITIES
from dpgmm_beam.decoders.decoder import Decoder, Drawn, Origin, pictures
from dpgmm_beam.decoders.registry import load_decoder
from dpgmm_beam.encoders.registry import encoder_for_process
from dpgmm_beam.mixture import matrix_of
from dpgmm_beam.release import decoded, manifest
from dpgmm_beam.release.card import CARD_FILE
from dpgmm_beam.release.decoded import Decoding, Labels, Piece
from dpgmm_beam.release.picture_files import (
    IMAGES,
    SHEET_FILE,
    SHEET_PICTURES,
    Pictures,
    files_of,
    image_of,
    samples_of,
    sheet,
)
from dpgmm_beam.release.release import Release
from transforms.files import finding, publish
from transforms.files.opening import read_bytes
from transforms.files.private import is_local
from transforms.files.publish import FileRecord, Publication, exists, files_below, join
from transforms.files.write import write_whole
from transforms.sample import opened

OWN_FILES = (f"{IMAGES}/", SHEET_FILE)
"""How paths of the files begin, but for card and manifest."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What every step of a job knows.

    Attributes:
      release: folder of the release, as all workers can read it.
      decoder: spec, as whoever runs the job gives it.
      output: folder of the pictures.
      decoding: what they are a function of.
      threads: that decode side by side in one worker process; 0 is one for each core.
      label_release: folder of the release whose teacher labels the pictures; "" for the release itself.
    """

    release: str
    decoder: str
    output: str
    decoding: Decoding
    threads: int = 0
    label_release: str = ""

    @property
    def staged(self) -> str:
        """Folder of files that are not published yet: of this output and these pictures alone."""
        name = f".{self._name}.decoding-{self.decoding.digest[:16]}"
        return join(self._parent, name)

    @property
    def finished(self) -> str:
        """Folder of what finished pieces say of themselves."""
        return f"{self.staged}-pieces"

    @property
    def _parent(self) -> str:
        return FileSystems.split(self.output.rstrip("/"))[0]

    @property
    def _name(self) -> str:
        return FileSystems.split(self.output.rstrip("/"))[1]

    def others(self) -> list[str]:
        """What other decodings, that were killed, have left beside a local output."""
        if not is_local(self.output) or not os.path.isdir(self._parent):
            return []
        start, own = f".{self._name}.decoding-", os.path.basename(self.staged)
        return sorted(
            join(self._parent, name)
            for name in os.listdir(self._parent)
            if name.startswith(start) and not name.startswith(own)
        )

    def foreign(self) -> str | None:
        """What somebody else has put, on a local disk, where pictures are staged; else None.

        What lies there is taken for this job's own, and would be published.
        """
        for place in (self.staged, self.finished, f"{self.staged}-unfinished"):
            if is_local(place) and os.path.lexists(place):
                found = os.lstat(place)
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o002:
                    return place
        return None

    def is_published(self) -> bool:
        """Whether the output holds exactly these pictures."""
        path = join(self.output, manifest.FILE_NAME)
        try:
            return exists(path) and json.loads(read_bytes(path))["digest"] == self.decoding.digest
        except (KeyError, OSError, TypeError, ValueError):
            return False

    def discard(self) -> None:
        """Removes what is staged."""
        publish.discard(self.staged)
        if is_local(self.finished):
            shutil.rmtree(self.finished, ignore_errors=True)
            return
        with contextlib.suppress(BeamIOError, OSError):
            FileSystems.delete([join(self.finished, name) for name in files_below(self.finished)])

    def finished_pieces(self) -> set[int]:
        """Numbers of the pieces that are finished."""
        if is_local(self.finished):
            names = os.listdir(self.finished) if os.path.isdir(self.finished) else []
        else:
            (found,) = FileSystems.match([join(finding.literal(self.finished), "*.json")])
            names = [FileSystems.split(file.path)[1] for file in found.metadata_list]
        stems = (name.removesuffix(".json") for name in names)
        return {int(stem) for stem in stems if stem.isdecimal()}

    def piece_file(self, number: int) -> str:
        """Where a finished piece is listed."""
        return join(self.finished, f"{number:06d}.json")


def read_release(job: Job) -> Release:
    """The release of a job.

    Raises:
      ConfigError: there is none, or its files are not as its manifest says.
      RuntimeError: it is another one than when the job began.
    """
    return _pinned(job.release, job.decoding.release_sha256)


def read_label_release(job: Job) -> Release | None:
    """The release whose teacher labels the pictures; None where that is the release itself.

    Raises as `read_release`.
    """
    return _pinned(job.label_release, job.decoding.label_release_sha256) if job.label_release else None


def _pinned(folder: str, sha256: str) -> Release:
    release = opened(folder)
    if hashlib.sha256(release.read(manifest.FILE_NAME)).hexdigest() != sha256:
        raise RuntimeError(f"the release in {folder} was replaced while the job ran")
    return release


def origin_of(release: Release, encoder: str) -> Origin:
    """What a decoder is told of the embeddings."""
    return Origin(encoder, release.config.clip_norm, release.mixture, release.picture_map)


@dataclasses.dataclass
class DecodeRelease(beam.PTransform):
    """Pipeline -> a published folder of pictures.

    Attributes:
      job: what to make of what.
    """

    job: Job

    def expand(self, pipeline):
        return (
            pipeline
            | "Pieces" >> beam.Create(range(self.job.decoding.pieces))
            | "Spread" >> beam.Reshuffle()
            | "Decode" >> beam.ParDo(DecodePieces(self.job))
            | "All pieces" >> beam.CombinePerKey(sum)
            | "Publish" >> beam.ParDo(PublishPictures(self.job))
        )


class _Loaded:
    """Release and decoder of a process, with the part of the draw that was used last."""

    def __init__(self, job: Job):
        self.release = read_release(job)
        self.decoder: Decoder = load_decoder(job.decoder, origin_of(self.release, job.decoding.encoder))
        self._label_release = read_label_release(job)
        self._part: tuple[int, pa.Table] | None = None

    def probabilities(self, pixels: np.ndarray) -> np.ndarray | None:
        """What the teacher of the other release makes of pictures, (n, C); None where there is none."""
        if self._label_release is None:
            return None
        encoder = encoder_for_process(self._label_release.config.encoder)
        prepared = np.concatenate([encoder.prepare([image_of(picture)]) for picture in pixels])
        with encoder.session():
            return self._label_release.labeller.probabilities(encoder.embed(prepared))

    def part(self, decoding: Decoding, part: int) -> pa.Table:
        held = self._part
        if held is None or held[0] != part:
            # Others may be at another part meanwhile.
            self._part = held = part, self.release.table(decoding.pictures, part, decoding.seed)
        return held[1]


@beam.typehints.with_output_types(tuple[str, int])
class DecodePieces(beam.DoFn):
    """Number of a piece -> (output, 1), when the piece's files are staged."""

    def __init__(self, job: Job):
        self.job = job
        self.shared = Shared()

    def process(self, number: int) -> Iterator[tuple[str, int]]:
        # Loaded only where something is left to do.
        if not exists(self.job.piece_file(number)) and not self.job.is_published():
            loaded = self.shared.acquire(lambda: _Loaded(self.job))
            stage_piece(self.job, self.job.decoding.piece(number), loaded)
        yield self.job.output, 1


def stage_piece(job: Job, piece: Piece, loaded: "_Loaded") -> None:
    """Decodes a piece and writes its files, and then the list of them."""
    decoding = job.decoding
    table = loaded.part(decoding, piece.part).slice(piece.start, piece.stop - piece.start)
    classes = table.column(COMPONENT_CLASS).to_pylist()
    indices = {label: index for index, label in enumerate(decoding.classes)}
    drawn = Drawn(
        matrix_of(table.column(EMBEDDING)),
        np.array([indices[label] for label in classes]),
        table.column(COMPONENT).to_numpy(),
    )
    numbers = range(piece.first, piece.first + len(drawn))
    generators = [decoded.generator_of_picture(decoding.seed, number) for number in numbers]
    threads = job.threads or len(os.sched_getaffinity(0))
    with loaded.decoder.session(), ThreadPoolExecutor(threads, thread_name_prefix="decode") as workers:
        pixels = pictures(loaded.decoder, drawn, generators, workers)
    labels, probabilities = table.column(LABEL).to_pylist(), matrix_of(table.column(PROBABILITIES))
    if (looked_at := loaded.probabilities(pixels)) is not None:
        probabilities = looked_at
        labels = [decoding.classes[index] for index in looked_at.argmax(axis=1)]
    made = Pictures(
        piece.first,
        pixels,
        classes if decoding.labels == Labels.DRAWN else labels,
        probabilities,
        classes,
        drawn.components,
    )
    records = [
        publish.stage(job.staged, path, data, rows, decoding.digest, settled=False)
        for path, data, rows in files_of(
            made, decoding.format, decoding.classes, piece.number, decoding.pieces
        )
    ]
    samples = {
        label: [(number, base64.b64encode(data).decode()) for number, data in found]
        for label, found in samples_of(made, decoding.classes).items()
    }
    content = {"files": [dataclasses.asdict(record) for record in records], "samples": samples}
    write_whole(job.piece_file(piece.number), json.dumps(content).encode())


@dataclasses.dataclass
class PublishPictures(beam.DoFn):
    """(output, pieces) -> the pictures, visible."""

    job: Job

    def process(self, element: tuple[str, int]) -> Iterator[None]:
        job = self.job
        try:
            if not job.is_published():
                self._publish()
        except (OSError, RuntimeError):
            # Another attempt was faster, and has removed what it published.
            if not job.is_published():
                raise
        job.discard()
        yield from ()

    def _publish(self) -> None:
        job, decoding = self.job, self.job.decoding
        records: list[FileRecord] = []
        samples: dict[str, list[tuple[int, bytes]]] = {}
        for piece in range(decoding.pieces):
            content = json.loads(read_bytes(job.piece_file(piece)))
            records += [FileRecord(**each) for each in content["files"]]
            for label, found in content["samples"].items():
                held = samples.setdefault(label, [])
                held += [
                    (number, base64.b64decode(data)) for number, data in found[: SHEET_PICTURES - len(held)]
                ]
        about, of_labels = read_release(job).manifest, read_label_release(job)
        labelled = None if of_labels is None else of_labels.manifest
        for path, data in (
            (SHEET_FILE, sheet(samples, decoding.classes)),
            (CARD_FILE, decoded.card(decoding, about, labelled)),
        ):
            records.append(publish.stage(job.staged, path, data, 0, decoding.digest))
        stated = decoded.build(decoding, about, [record.entry() for record in records], labelled)
        publication = Publication(job.output, own=OWN_FILES)
        try:
            publication.publish(job.staged, records, stated)
        except RuntimeError:
            if not job.is_published():
                # A file is not as its piece says: pieces are made again by the next run.
                job.discard()
            raise
