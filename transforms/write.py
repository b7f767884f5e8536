"""From the final state to a published release."""

import dataclasses
import logging
from collections.abc import Iterator

import apache_beam as beam
from apache_beam.utils.shared import Shared

from dpgmm_beam.release import manifest
from dpgmm_beam.release.fitted import Fitted
from transforms.files import gate, keys, publish, register, run_files
from transforms.files.publish import FileRecord, Publication
from transforms.files.run_files import Base, Workspace
from transforms.fit import final_checkpoint

_LOG = logging.getLogger("dpgmm.release")


@beam.typehints.with_output_types(tuple[Base, FileRecord])
class WriteFile(beam.DoFn):
    """(base, number) -> (base, record) of staged files: 0 is all but rows, n + 1 their n-th part."""

    def __init__(self, key_file: str):
        self.key_file = key_file
        self.shared = Shared()

    def process(self, element) -> Iterator[tuple[Base, FileRecord]]:
        base, number = element
        fitted = self.shared.acquire(
            lambda: Fitted(final_checkpoint(base), keys.load(self.key_file)), tag=base
        )
        staged = run_files.staging(base, fitted.state)
        for path, rows, data in fitted.files() if number == 0 else [fitted.part(number - 1)]:
            yield base, publish.stage(staged, path, data, rows, fitted.state)
        if number:
            _LOG.info("synthetic rows: part %d of %d written", number, fitted.parts)


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
        due = manifest.files_of(plan.config)
        if found.keys() != due.keys() or any(
            rows not in (None, found[path].rows) for path, rows in due.items()
        ):
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
        gate.check_state(self.workspace.gate, plan.release_id, digest)
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
