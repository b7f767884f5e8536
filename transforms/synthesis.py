"""From the final state to a published release."""

import dataclasses
import logging
from collections.abc import Iterator

import apache_beam as beam
from apache_beam.pvalue import AsIter

from dpgmm_beam import fit, manifest, state
from dpgmm_beam.algebra import one_thread
from dpgmm_beam.labeller import Labeller
from dpgmm_beam.mixture import Sampler
from dpgmm_beam.plan import Plan
from dpgmm_beam.synthesis import Parts, draw_part
from transforms import index, keys
from transforms.publish import FileRecord, Publication

_LOG = logging.getLogger("dpgmm.release")


class WritePart(beam.DoFn):
    """Part number -> the record of its file of synthetic rows, staged."""

    def __init__(self, publication: Publication, key_file: str):
        self.publication, self.key_file = publication, key_file

    def setup(self):
        self.ready = None

    def process(self, part, chunks):
        if self.ready is None:
            final = state.from_chunks(chunks)
            plan = index.unpack_plan(final["plan"])
            key = fit.release_key(plan, final, keys.load(self.key_file))
            sampler = Sampler(fit.mixture_of(plan, final))
            self.ready = plan.config, key, sampler, Labeller(final, plan.config.clip_norm)
        config, key, sampler, labeller = self.ready
        parts = Parts(len(config.classes), config.samples_per_class)
        with one_thread():
            data = draw_part(parts, part, config.classes, sampler, labeller, key)
        _LOG.info("synthetic rows: part %d of %d written", part + 1, len(parts))
        yield self.publication.stage(f"synthetic/{parts.name(part)}", data, len(parts.class_indices(part)))


class WriteMixture(beam.DoFn):
    """Once -> the records of the mixture's files, staged."""

    def __init__(self, publication: Publication):
        self.publication = publication

    def process(self, _, chunks) -> Iterator[FileRecord]:
        final = state.from_chunks(chunks)
        records: list[FileRecord] = []
        fit.mixture_of(index.unpack_plan(final["plan"]), final).save(
            lambda name, data, rows: records.append(self.publication.stage(f"mixture/{name}", data, rows))
        )
        yield from records


class Publish(beam.DoFn):
    """Once, when every file is staged -> the release, visible."""

    def __init__(self, publication: Publication):
        self.publication = publication

    def process(self, _, records, chunks):
        # A record may come twice, from a bundle that ran twice.
        files = [
            dataclasses.asdict(record) for record in sorted(set(records), key=lambda record: record.path)
        ]
        plan = index.unpack_plan(state.from_chunks(chunk for chunk in chunks if chunk.name == "plan")["plan"])
        data = manifest.build(plan.config.to_dict(), plan.budget, plan.release_id, files)
        self.publication.publish([FileRecord(**file) for file in files], data)


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
            | "Write parts" >> beam.ParDo(WritePart(self.publication, self.key_file), AsIter(final))
        )
        mixture = (
            pipeline
            | "Once" >> beam.Impulse()
            | "Write mixture" >> beam.ParDo(WriteMixture(self.publication), AsIter(final))
        )
        records = (synthetic, mixture) | "Records" >> beam.Flatten()
        return (
            pipeline
            | "Last" >> beam.Impulse()
            | "Publish" >> beam.ParDo(Publish(self.publication), AsIter(records), AsIter(final))
        )
