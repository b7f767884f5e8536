"""Time and memory of a release from embeddings, and its rounds beside plain numpy, in one run.

    python benchmarks/release.py [--rows 60000] [--dimension 512] [--classes 10] [--repeats 3] [-- OPTIONS]

OPTIONS are more options of `dpgmm release`, and Beam's.  Many classes in a high dimension:

    python benchmarks/release.py --rows 100000 --dimension 2048 --classes 1000 --repeats 1 \
        -- --samples-per-class 10

A release of precomputed embeddings runs as a process of its own, which tells
seconds, peak memory and where the time goes.  The rounds (the teacher's steps,
the passes of which a release has most) are then compared with plain numpy: one
process, one thread, the same Parquet files, float64 products without a lattice,
without noise and without a runner.  Both are rows a second over the steps
after the first, so that reading is in neither.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CLASSES = 10
STEP_PREFIX = "fit: stage"


def write_rows(folder: str, rows: int, dimension: int, classes: int = CLASSES) -> None:
    """A mixture of Gaussians with a falling spectrum, as four files of row groups of 1,024."""
    generator = np.random.default_rng(0)
    scales = 1.0 / np.sqrt(1.0 + np.arange(dimension))
    centres = generator.standard_normal((classes, dimension)) * scales
    for number in range(4):
        labels = generator.integers(classes, size=rows // 4)
        values = centres[labels] + generator.standard_normal((rows // 4, dimension)) * scales
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), dimension)
        table = pa.table({"label": pa.array(labels.astype(str)), "embedding": embedding})
        pq.write_table(
            table, os.path.join(folder, f"{number}.parquet"), row_group_size=1024, compression="none"
        )


def release(folder: str, output: str, options: list[str], classes: int = CLASSES) -> dict:
    """Runs `dpgmm release`; seconds in all and of each part, and peak memory in MiB."""
    command = [sys.executable, "-m", "pipelines.release", "--input", folder, "--encoder", "precomputed"]
    command += ["--classes", ",".join(map(str, range(classes))), "--epsilon", "1", "--delta", "1e-5"]
    # Else stages have one line together.
    command += ["--output", output, "--private-dir", f"{output}-private", "--verbose", *options]
    started = time.perf_counter()
    marks: list[tuple[str, float]] = []
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        marks.append((line.strip(), time.perf_counter() - started))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit("\n".join(line for line, _ in marks))
    seconds = time.perf_counter() - started
    stages = [at for line, at in marks if STEP_PREFIX in line]
    return {
        "seconds": seconds,
        "start": stages[0],
        "means": stages[1] - stages[0],
        "second moment": stages[2] - stages[1],
        "other steps": stages[-1] - stages[2],
        "synthetic rows": seconds - stages[-1],
        "step": statistics.median(np.diff(stages[2:])),
        "peak MiB": usage.ru_maxrss / 1024,
    }


def numpy_steps(folder: str, classes: int, steps: int = 12) -> float:
    """Seconds of one step of the same regression on whole files in plain numpy."""
    table = pq.read_table(folder)
    rows = table.column("embedding").combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    labels = table.column("label").to_numpy().astype(int)
    rows = rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True)
    features = np.column_stack([rows, np.full(len(rows), 0.1)])
    norms = np.linalg.norm(features, axis=1)
    theta = np.zeros((classes, features.shape[1]))
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        logits = features @ theta.T
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        gradient = powers / powers.sum(axis=1, keepdims=True)
        gradient[np.arange(len(labels)), labels] -= 1.0
        lengths = np.linalg.norm(gradient, axis=1) * norms
        gradient *= np.minimum(1.0, 0.25 / np.maximum(lengths, 1e-12))[:, None]
        theta -= 10.0 * (gradient.T @ features) / len(labels)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--numpy-steps", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments, options = parser.parse_known_args()
    if arguments.numpy_steps:
        print(numpy_steps(arguments.numpy_steps, arguments.classes))
        return
    options = [option for option in options if option != "--"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = os.path.join(scratch, "rows")
        os.mkdir(folder)
        write_rows(folder, arguments.rows, arguments.dimension, arguments.classes)
        ours, plain = [], []
        # In turns, so that a machine whose speed drifts slows both.
        for repeat in range(arguments.repeats):
            output = os.path.join(scratch, f"release-{repeat}")
            ours.append(release(folder, output, options, arguments.classes))
            command = [sys.executable, __file__, "--numpy-steps", folder]
            command += ["--classes", str(arguments.classes)]
            one_thread = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            plain.append(
                float(subprocess.run(command, env=one_thread, capture_output=True, check=True).stdout)
            )
    shape = f"{arguments.rows} rows x {arguments.dimension}, {arguments.classes} classes"
    print(f"{shape}, median (min-max) of {arguments.repeats}")
    for name in ours[0]:
        values = [run[name] for run in ours]
        print(f"  {name:<24}{statistics.median(values):>10.2f} ({min(values):.2f}-{max(values):.2f})")
    rates = [arguments.rows / run["step"] for run in ours]
    baselines = [arguments.rows / seconds for seconds in plain]
    ratios = [rate / baseline for rate, baseline in zip(rates, baselines, strict=True)]
    print(
        f"rounds: {statistics.median(rates):,.0f} rows/s, plain numpy {statistics.median(baselines):,.0f},"
        f" ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
