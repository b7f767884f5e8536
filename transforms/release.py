"""Embeddings in, a release out: the whole fit and its publication as one chain."""

import dataclasses

import apache_beam as beam

from dpgmm_beam.manifest import parts_of
from dpgmm_beam.plan import Plan
from dpgmm_beam.statistics import part_count
from transforms.execution import Execution
from transforms.prepare import PrepareRows
from transforms.publish import Publication
from transforms.run_files import Workspace
from transforms.stage import RunStage
from transforms.synthesis import WriteRelease


@dataclasses.dataclass
class Release(beam.PTransform):
    """PCollection[Source] with one element -> a published release.

    Attributes:
      plan: what to fit, with its budget.
      publication: where it appears.
      workspace: private files of the run.
      execution: speed only.
    """

    plan: Plan
    publication: Publication
    workspace: Workspace
    execution: Execution

    def expand(self, source):
        current = source | "Prepare" >> PrepareRows(self.plan, self.workspace, self.execution)
        stages = self.plan.stages
        for position, stage in enumerate(stages):
            last = position == len(stages) - 1
            current = current | f"Stage {position}: {stage.name}" >> RunStage(
                position,
                part_count(stage.channels),
                self.workspace,
                self.execution,
                1 + len(parts_of(self.plan.config)) if last else None,
            )
        return current | "Write" >> WriteRelease(self.publication, self.workspace)
