"""Synthetic rows of a release for a sink of Beam's: Parquet here, BigQuery or Iceberg as well.

python examples/sample_on_beam.py RELEASE OUTPUT [Beam options]
"""

import sys

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.parquetio import WriteToParquet

from transforms import SampleMixture

SCHEMA = pa.schema(
    {"label": pa.string(), "embedding": pa.list_(pa.float32()), "label_probabilities": pa.list_(pa.float32())}
)


def main(release: str, output: str, options: list[str]) -> None:
    with beam.Pipeline(argv=options) as pipeline:
        (
            pipeline
            | SampleMixture(release, rows=1000, seed=1)
            | beam.Map(lambda row: {name: getattr(row, name) for name in SCHEMA.names})
            | WriteToParquet(output, SCHEMA, file_name_suffix=".parquet")
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
