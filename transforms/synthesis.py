"""From the final state to a published release."""

import dataclasses
import logging
from collections.abc import Iterator

import apache_beam as beam
from apache_beam.utils.shared import Shared

from dpgmm_beam import fit, manifest, mixture
from dpgmm_beam.algebra import one_thread
from dpgmm_beam.labeller import Labeller
from dpgmm_beam.plan import Plan
from dpgmm_beam.synthesis import Parts, draw_part
from transforms import keys, run_files
from transforms.publish import FileRecord, Publication
from transforms.run_files import Base
from transforms.stage import final_state

_LOG = logging.getLogger("dpgmm.release")

MIXTURE_FILES = (f"mixture/{mixture.COMPONENTS_FILE}", f"mixture/{mixture.BASIS_FILE}")


def parts_of(plan: Plan) -> Parts:
    """How a plan's synthetic rows are cut into files."""
    return Parts(len(plan.config.classes), plan.config.samples_per_class)


class Fitted:
    """What files of a release are made from."""

    def __init__(self, base: Base, key_file: str):
        final, self.plan = final_state(base)
        secret = keys.load(key_file)
        fit.check_key(final, secret)
        self.key = fit.release_key(self.plan, final, secret)
        self.mixture = fit.mixture_of(self.plan, final)
        self.sampler = mixture.Sampler(self.mixture)
        self.labeller = Labeller(final, self.plan.config.clip_norm)


@beam.typehints.with_output_types(tuple[Base, FileRecord])
class WriteFile(beam.DoFn):
    """(base, number) -> (base, record) of staged files: 0 is the mixture, n + 1 the n-th part of rows."""

    def __init__(self, publication: Publication, key_file: str):
        self.publication, self.key_file = publication, key_file
        self.shared = Shared()

    def process(self, element) -> Iterator[tuple[Base, FileRecord]]:
        base, number = element
        fitted = self.shared.acquire(lambda: Fitted(base, self.key_file), tag=base)
        if number == 0:
            records: list[FileRecord] = []
            fitted.mixture.save(
                lambda name, data, rows: records.append(self.publication.stage(f"mixture/{name}", data, rows))
            )
            yield from ((base, record) for record in records)
            return
        parts, part = parts_of(fitted.plan), number - 1
        classes = fitted.plan.config.classes
        with one_thread():
            data = draw_part(parts, part, classes, fitted.sampler, fitted.labeller, fitted.key)
        _LOG.info("synthetic rows: part %d of %d written", part + 1, len(parts))
        name = f"synthetic/{parts.name(part)}"
        yield base, self.publication.stage(name, data, len(parts.class_indices(part)))


@dataclasses.dataclass
class Publish(beam.DoFn):
    """(base, records) -> the release, visible."""

    publication: Publication

    def process(self, element) -> Iterator[None]:
        base, records = element
        plan = fit.plan_of(run_files.load_state(base, 0))
        # A record may come twice, from a bundle that ran twice.
        found = {record.path: record for record in records}
        parts = parts_of(plan)
        wanted = {*MIXTURE_FILES, *(f"synthetic/{parts.name(part)}" for part in range(len(parts)))}
        if found.keys() != wanted:
            raise RuntimeError("files of the release are missing: run the same command again")
        files = [dataclasses.asdict(found[path]) for path in sorted(found)]
        data = manifest.build(plan.config.to_dict(), plan.budget, plan.release_id, files)
        self.publication.publish([FileRecord(**file) for file in files], data)
        yield from ()


@dataclasses.dataclass
class WriteRelease(beam.PTransform):
    """PCollection of (base, number) of the release's files -> a published release.

    Attributes:
      publication: where it goes.
      key_file: where workers find the noise key.
    """

    publication: Publication
    key_file: str

    def expand(self, numbers):
        return (
            numbers
            | "Write files" >> beam.ParDo(WriteFile(self.publication, self.key_file))
            | "All files" >> beam.GroupByKey()
            | "Publish" >> beam.ParDo(Publish(self.publication))
        )
