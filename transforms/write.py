"""From the final state to a published release."""

import dataclasses
import logging
from collections.abc import Iterator

import apache_beam as beam
from apache_beam.utils.shared import Shared

from dpgmm_beam.fit import chain
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.mixture import Sampler
from dpgmm_beam.release import manifest
from dpgmm_beam.release.labels import Labeller
from dpgmm_beam.release.manifest import MIXTURE, SYNTHETIC, parts_of
from dpgmm_beam.release.synthesis import draw_part, generator_of_key
from transforms.files import keys, publish, register, run_files
from transforms.files.publish import FileRecord, Publication
from transforms.files.run_files import Base, Workspace
from transforms.fit import final_checkpoint

_LOG = logging.getLogger("dpgmm.release")


class Fitted:
    """What files of a release are made from.

    Attributes:
      state: digest of the final state: files of two draws must not meet in one release.
    """

    def __init__(self, base: Base, key_file: str):
        final, secret = final_checkpoint(base), keys.load(key_file)
        chain.check_key(final, secret)
        self.plan = final.plan
        self.state = final.digest().hex()
        self.key = chain.release_key(final, secret)
        self.mixture = chain.released_mixture(final)
        self.sampler = Sampler(self.mixture)
        self.labeller = Labeller.of(final)


@beam.typehints.with_output_types(tuple[Base, FileRecord])
class WriteFile(beam.DoFn):
    """(base, number) -> (base, record) of staged files: 0 is the mixture, n + 1 the n-th part of rows."""

    def __init__(self, key_file: str):
        self.key_file = key_file
        self.shared = Shared()

    def process(self, element) -> Iterator[tuple[Base, FileRecord]]:
        base, number = element
        fitted = self.shared.acquire(lambda: Fitted(base, self.key_file), tag=base)
        staged = run_files.staging(base, fitted.state)
        if number == 0:
            records: list[FileRecord] = []

            def write(name: str, data: bytes, rows: int) -> None:
                records.append(publish.stage(staged, f"{MIXTURE}/{name}", data, rows, fitted.state))

            fitted.mixture.save(write)
            fitted.labeller.save(write)
            yield from ((base, record) for record in records)
            return
        parts, part = parts_of(fitted.plan.config), number - 1
        with one_thread():
            generator = generator_of_key(fitted.key, part)
            data = draw_part(parts, part, fitted.sampler, fitted.labeller, generator)
        _LOG.info("synthetic rows: part %d of %d written", part + 1, len(parts))
        name = f"{SYNTHETIC}/{parts.name(part)}"
        yield base, publish.stage(staged, name, data, parts.rows_of(part), fitted.state)


@dataclasses.dataclass
class Publish(beam.DoFn):
    """(base, records) -> the release, visible, and its id in the register."""

    publication: Publication
    workspace: Workspace

    def process(self, element) -> Iterator[None]:
        base, records = element
        final = final_checkpoint(base)
        plan, digest = final.plan, final.digest().hex()
        # A record may come twice, from a bundle that ran twice.
        found = {record.path: record for record in records}
        if {path: record.rows for path, record in found.items()} != manifest.files_of(plan.config):
            raise RuntimeError("files of the release are missing: run the same command again")
        if {record.state for record in found.values()} != {digest}:
            raise RuntimeError("files of the release come from different states: run the same command again")
        entry = register.Entry(
            plan.release_id,
            plan.fit_digest,
            final.key_commitment.hex(),
            (final.data_digest or b"").hex(),
            digest,
        )
        register.enter(self.workspace.register, entry)
        records = [found[path] for path in sorted(found)]
        data = manifest.build(plan, [record.entry() for record in records])
        self.publication.publish(run_files.staging(base, digest), records, data)
        yield from ()


@dataclasses.dataclass
class WriteRelease(beam.PTransform):
    """PCollection of (base, number) of the release's files -> a published release.

    Attributes:
      publication: where it goes.
      workspace: private files of the run.
    """

    publication: Publication
    workspace: Workspace

    def expand(self, numbers):
        return (
            numbers
            | "Write files" >> beam.ParDo(WriteFile(self.workspace.key_file))
            | "All files" >> beam.GroupByKey()
            | "Publish" >> beam.ParDo(Publish(self.publication, self.workspace))
        )
