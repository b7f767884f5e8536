"""From the final state to a published release."""

import dataclasses
import logging
from collections.abc import Iterator

import apache_beam as beam
from apache_beam.pvalue import AsList

from dpgmm_beam import fit, manifest, state
from dpgmm_beam.algebra import one_thread
from dpgmm_beam.labeller import Labeller
from dpgmm_beam.mixture import Sampler
from dpgmm_beam.plan import Plan
from dpgmm_beam.synthesis import Parts, draw_part
from transforms import keys
from transforms.publish import FileRecord, Publication

_LOG = logging.getLogger("dpgmm.release")


class WritePart(beam.DoFn):
    """Part number -> the record of its file of synthetic rows, staged."""

    def __init__(self, plan: Plan, publication: Publication, key_file: str):
        self.plan, self.publication, self.key_file = plan, publication, key_file

    def setup(self):
        self.ready = None

    def process(self, part, chunks):
        config = self.plan.config
        if self.ready is None:
            final = state.from_chunks(chunks)
            key = fit.release_key(self.plan, final, keys.load(self.key_file))
            sampler = Sampler(fit.mixture_of(self.plan, final))
            self.ready = key, sampler, Labeller(final, config.clip_norm)
        key, sampler, labeller = self.ready
        parts = Parts(len(config.classes), config.samples_per_class)
        with one_thread():
            data = draw_part(parts, part, config.classes, sampler, labeller, key)
        _LOG.info("synthetic rows: part %d of %d written", part + 1, len(parts))
        yield self.publication.stage(f"synthetic/{parts.name(part)}", data, len(parts.class_indices(part)))


class WriteMixture(beam.DoFn):
    """Once -> the records of the mixture's files, staged."""

    def __init__(self, plan: Plan, publication: Publication):
        self.plan, self.publication = plan, publication

    def process(self, _, chunks) -> Iterator[FileRecord]:
        records: list[FileRecord] = []
        fit.mixture_of(self.plan, state.from_chunks(chunks)).save(
            lambda name, data, rows: records.append(self.publication.stage(f"mixture/{name}", data, rows))
        )
        yield from records


class Publish(beam.DoFn):
    """Once, when every file is staged -> the release, visible."""

    def __init__(self, plan: Plan, publication: Publication):
        self.plan, self.publication = plan, publication

    def process(self, _, records):
        # A record may come twice, from a bundle that ran twice.
        files = [
            dataclasses.asdict(record) for record in sorted(set(records), key=lambda record: record.path)
        ]
        plan = self.plan
        data = manifest.build(plan.config.to_dict(), plan.budget, plan.release_id, files)
        self.publication.publish(records, data)


@dataclasses.dataclass
class WriteRelease(beam.PTransform):
    """PCollection[Chunk], the final state -> a published release.

    Attributes:
      plan: what was fitted.
      publication: where it goes.
      key_file: where workers find the noise key.
    """

    plan: Plan
    publication: Publication
    key_file: str

    def expand(self, final):
        pipeline = final.pipeline
        count = len(Parts(len(self.plan.config.classes), self.plan.config.samples_per_class))
        synthetic = (
            pipeline
            | "Start" >> beam.Impulse()
            | "Parts" >> beam.FlatMap(lambda _: range(count))
            | "Spread" >> beam.Reshuffle()
            | "Write parts"
            >> beam.ParDo(WritePart(self.plan, self.publication, self.key_file), AsList(final))
        )
        mixture = (
            pipeline
            | "Once" >> beam.Impulse()
            | "Write mixture" >> beam.ParDo(WriteMixture(self.plan, self.publication), AsList(final))
        )
        records = (synthetic, mixture) | "Records" >> beam.Flatten()
        return (
            pipeline
            | "Last" >> beam.Impulse()
            | "Publish" >> beam.ParDo(Publish(self.plan, self.publication), AsList(records))
        )
