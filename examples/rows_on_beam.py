"""A release of rows that a pipeline of your own has, wherever they come from.

    python examples/rows_on_beam.py OUTPUT PRIVATE [Beam options]

PRIVATE is a folder that only you can enter; it keeps the rows and the states of the fit.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import apache_beam as beam
import numpy as np

from dpgmm_beam import ReleaseConfig
from pipelines.own import private_run
from transforms import FitMixture, PrepareElements, WriteRelease


class Patient(NamedTuple):
    diagnosis: str
    scan: Sequence[float]


def patient(number: int) -> Patient:
    """Stands for a row of BigQuery, Kafka's archive or another step of yours."""
    generator = np.random.default_rng(number)
    ill = number % 2
    return Patient("ill" if ill else "well", (generator.standard_normal(16) + 2 * ill).tolist())


def main(output: str, private: str, options: list[str]) -> None:
    config = ReleaseConfig("our-encoder", ("ill", "well"), 16, epsilon=1.0, delta=1e-6)
    begun = private_run(config, output, private_dir=private, source="patients")
    # The pipeline ends before the run does.
    with begun as run, beam.Pipeline(argv=options) as pipeline:
        (
            pipeline
            | beam.Create(range(500))
            | beam.Map(patient).with_output_types(Patient)
            | PrepareElements(run.plan, run.workspace, embedding_field="scan", label_field="diagnosis")
            | FitMixture(run.plan, run.workspace)
            | WriteRelease(run.publication, run.workspace)
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
