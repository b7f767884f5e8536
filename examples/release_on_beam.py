"""The release's PTransforms in a pipeline of your own.

    python examples/release_on_beam.py 'ROWS/*.parquet' OUTPUT PRIVATE [Beam options]

ROWS have columns `label` and `embedding` (16 floats).  PRIVATE is a folder that only you
can enter; it keeps the rows and the states of the fit, so that a pipeline that dies goes on.
"""

import os
import sys

import apache_beam as beam

from dpgmm_beam import Plan, ReleaseConfig
from transforms import FitMixture, PrepareRows, WriteRelease
from transforms.execution import Execution
from transforms.files.publish import Publication
from transforms.files.run_files import Workspace
from transforms.prepare import Source


def main(pattern: str, output: str, private: str, options: list[str]) -> None:
    key_file = os.path.join(private, "noise.key")
    with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(os.urandom(32))

    config = ReleaseConfig("precomputed", ("cat", "dog"), 16, epsilon=1.0, delta=1e-6)
    plan, execution = Plan(config, "2026-05"), Execution(threads=2)
    workspace = Workspace(os.path.join(private, "run"), os.path.join(private, "rows"), key_file)
    with beam.Pipeline(argv=options) as pipeline:
        (
            pipeline
            | beam.Create([Source(pattern)])
            | PrepareRows(plan, workspace, execution)
            | FitMixture(plan, workspace, execution)
            | WriteRelease(Publication(output), workspace)
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
