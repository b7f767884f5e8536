"""Rows in, a release out: the whole fit and its publication as one transform."""

import dataclasses

import apache_beam as beam

from dpgmm_beam.plan import Plan
from dpgmm_beam.stages import PooledMoment
from transforms.publish import Publication
from transforms.stage import Execution, InitialState, RunStage, is_for_the_end
from transforms.synthesis import WriteRelease


@dataclasses.dataclass
class Release(beam.PTransform):
    """PCollection[RowGroups] -> a published release.

    Attributes:
      plan: what to fit, with its budget.
      publication: where it appears.
      key_file: path of the noise key, readable by workers.
      execution: speed only.
    """

    plan: Plan
    publication: Publication
    key_file: str
    execution: Execution

    def expand(self, row_groups):
        current = row_groups | "Initial state" >> InitialState(self.plan)
        kept = []
        for position, stage in enumerate(self.plan.stages):
            current = current | f"Stage {position}: {stage.name}" >> RunStage(
                position, self.execution, self.key_file
            )
            if stage.KIND == PooledMoment.KIND:
                # Large, and of no use to the stages that follow.
                kept.append(current | "For the end" >> beam.Filter(is_for_the_end))
        final = (current, *kept) | "Final state" >> beam.Flatten()
        return final | "Write" >> WriteRelease(self.plan, self.publication, self.key_file)
