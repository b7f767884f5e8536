"""Embeddings in, a release out: the whole fit and its publication as one chain."""

import dataclasses

import apache_beam as beam

from dpgmm_beam.fit.plan import Plan
from transforms.execution import Execution
from transforms.files.publish import Publication
from transforms.files.run_files import Workspace
from transforms.fit import FitMixture
from transforms.prepare import PrepareRows
from transforms.write import WriteRelease


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
        return (
            source
            | "Prepare" >> PrepareRows(self.plan, self.workspace, self.execution)
            | "Fit" >> FitMixture(self.plan, self.workspace, self.execution)
            | "Write" >> WriteRelease(self.publication, self.workspace)
        )
