"""Makes embeddings of any number by a Beam job: a mixture of Gaussians with a falling spectrum.

    python benchmarks/make_rows.py --rows 10000000 --output FOLDER [--dimension 512] [--classes 10]
                                   [--files 100] [--row-group 65536]

A file's rows are a function of its number, so the job may be run again, and
repeats what is missing.
"""

import argparse
import os

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

AT_ONCE = 8192


def write_file(number: int, output: str, rows: int, dimension: int, classes: int, row_group: int) -> str:
    """One file of rows; appears whole."""
    path = os.path.join(output, f"rows-{number:05d}.parquet")
    if os.path.exists(path):
        return path
    scales = (1.0 / np.sqrt(1.0 + np.arange(dimension))).astype(np.float32)
    centres = np.random.default_rng(0).standard_normal((classes, dimension), np.float32) * scales
    generator = np.random.default_rng([1, number])
    value_type = pa.list_(pa.float32(), dimension)
    schema = pa.schema({"label": pa.string(), "embedding": value_type})
    names = np.arange(classes).astype(str)
    with pq.ParquetWriter(
        f"{path}.partial", schema, compression="none", use_dictionary=["label"], write_statistics=False
    ) as writer:
        pending: list[pa.Table] = []
        for start in range(0, rows, AT_ONCE):
            labels = generator.integers(classes, size=min(AT_ONCE, rows - start))
            values = generator.standard_normal((len(labels), dimension), np.float32)
            values *= scales
            values += centres[labels]
            embedding = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dimension)
            pending.append(pa.table({"label": names[labels], "embedding": embedding}, schema=schema))
            if sum(map(len, pending)) >= row_group or start + AT_ONCE >= rows:
                writer.write_table(pa.concat_tables(pending), row_group_size=row_group)
                pending = []
    os.rename(f"{path}.partial", path)
    return path


def make(output: str, rows: int, dimension: int, classes: int, files: int, row_group: int) -> None:
    """Writes all files by a Beam job of this process."""
    os.makedirs(output, exist_ok=True)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        (
            pipeline
            | beam.Create(range(files))
            | beam.Reshuffle()
            | beam.Map(
                lambda number: write_file(
                    number,
                    output,
                    rows * (number + 1) // files - rows * number // files,
                    dimension,
                    classes,
                    row_group,
                )
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--row-group", type=int, default=65536)
    given = parser.parse_args()
    make(given.output, given.rows, given.dimension, given.classes, given.files, given.row_group)


if __name__ == "__main__":
    main()
