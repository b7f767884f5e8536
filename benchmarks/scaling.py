"""What a second worker process brings, and what a round sends through the runner.

    python -m benchmarks.scaling [--rows 20000 100000] [--images 800 2400] [--repeats 3] [--skip-embed]

Rows a second are the slope between two data sizes, so that starting processes,
building the pipeline and central steps drop out.  The settings take turns.  A
worker that embeds uses every core that it may, so the ratio that counts is that of
two workers over one that may use one core; one with all cores stands beside it.
The bytes of a round are those of its elements as the runner's coders write them:
index, sums and state.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.coders import registry

from benchmarks.release import CLASSES, release, write_rows
from dpgmm_beam import fit, state
from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.noise import NoiseKey
from dpgmm_beam.plan import Plan
from dpgmm_beam.rows import read_row_group
from dpgmm_beam.statistics import split
from pipelines.fashion_mnist import INSTALLED, read


def workers(count: int) -> list[str]:
    """Options for that many processes, also for one, so that both pay for processes."""
    return ["--direct_running_mode", "multi_processing", "--direct_num_workers", str(count)]


def rounds(folder: str, scratch: str, count: int) -> float:
    """Seconds of a release with next to no synthetic rows: 22 passes over the rows."""
    output = os.path.join(scratch, f"release-{time.monotonic_ns()}")
    return release(folder, output, [*workers(count), "--samples-per-class", "1"])["seconds"]


def write_images(data: str, folder: str, count: int) -> None:
    """Fashion-MNIST images as one Parquet file with small row groups."""
    import io

    from PIL import Image

    images, labels = read(data, "train")
    encoded = []
    for image in images[:count]:
        sink = io.BytesIO()
        Image.fromarray(image).save(sink, "PNG", compress_level=1)
        encoded.append(sink.getvalue())
    table = pa.table({"label": pa.array(labels[:count].astype(str)), "image": pa.array(encoded, pa.binary())})
    pq.write_table(table, os.path.join(folder, "images.parquet"), row_group_size=100)


def embedding(folder: str, scratch: str, count: int, cores: int) -> float:
    """Seconds of one embed job from start to end, on so many cores."""
    output = os.path.join(scratch, f"embeddings-{time.monotonic_ns()}")
    command = [sys.executable, "-m", "pipelines.embed", "--input", folder, "--encoder", "efficientnet_lite0"]
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    started = time.perf_counter()
    subprocess.run(
        [*command, "--output", output, "--shard-rows", "100", *workers(count)],
        check=True,
        capture_output=True,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )
    return time.perf_counter() - started


def slopes(name: str, sizes: list[int], settings: dict[str, Callable[[int], float]], repeats: int) -> None:
    """Prints units a second with each setting, and the ratio of the last to the first.

    Args:
      settings: size -> seconds, by what the setting is called.
    """
    rates: dict[str, list[float]] = {setting: [] for setting in settings}
    for _ in range(repeats):
        for setting, measure in settings.items():
            small, large = (measure(size) for size in sizes)
            rates[setting].append((sizes[1] - sizes[0]) / (large - small))
    first, *_, last = rates.values()
    ratios = [two / one for one, two in zip(first, last, strict=True)]
    told = ", ".join(f"{setting} {statistics.median(found):,.0f}/s" for setting, found in rates.items())
    print(f"{name}: {told}; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


def bytes_of_a_round(scratch: str, dimension: int) -> None:
    """Prints what one teacher step sends, for row groups of two sizes."""
    config = ReleaseConfig("precomputed", tuple(map(str, range(CLASSES))), dimension, 1.0, 1e-5)
    plan = Plan(config, "benchmark")
    coder = registry.get_coder(object)
    for group_rows in (256, 4096):
        path = os.path.join(scratch, f"groups-{group_rows}.parquet")
        generator = np.random.default_rng(0)
        values = generator.standard_normal((2 * group_rows, dimension)).astype(np.float32)
        labels = generator.integers(CLASSES, size=len(values)).astype(str)
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dimension)
        pq.write_table(pa.table({"label": labels, "embedding": column}), path, row_group_size=group_rows)
        with pq.ParquetFile(path) as file:
            blocks = [
                block for group in range(2) for block in read_row_group(file, group, config.row_format, 1024)
            ]
        current: state.State = {}
        secret = NoiseKey(bytes(32))
        for position in range(3):
            stage = plan.stages[position]
            sums = stage.begin()
            for block in blocks:
                fit.add_block(stage, fit.view(stage, block, current), current, sums, b"key")
            parts = list(split(stage.channels, stage.finish(sums)))
            before = current
            current = fit.advance(plan, position, current, dict_of(stage, parts), secret)
        sent = {
            "index": [(path, group, group_rows) for group in range(2)],
            "sums of a bundle": parts,
            "state": list(state.to_chunks(before)),
        }
        sizes = {name: sum(len(coder.encode(item)) for item in items) for name, items in sent.items()}
        print(
            f"a round at d = {dimension}, row groups of {group_rows}: "
            + ", ".join(f"{name} {size:,} bytes" for name, size in sizes.items())
        )


def dict_of(stage, parts):
    from dpgmm_beam.statistics import join

    return join(stage.channels, dict(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=[20_000, 100_000])
    parser.add_argument("--images", type=int, nargs=2, default=[800, 2_400])
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", default=INSTALLED, help="folder with Fashion-MNIST's files")
    parser.add_argument("--skip-embed", action="store_true")
    arguments = parser.parse_args()
    # Worker processes are started by their bare name.
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    with tempfile.TemporaryDirectory() as scratch:
        bytes_of_a_round(scratch, arguments.dimension)
        folders = {}
        for size in arguments.rows:
            folders[size] = os.path.join(scratch, f"rows-{size}")
            os.mkdir(folders[size])
            write_rows(folders[size], size, arguments.dimension)
        slopes(
            "rows of 22 passes",
            arguments.rows,
            {
                "one worker": lambda size: rounds(folders[size], scratch, 1),
                "two": lambda size: rounds(folders[size], scratch, 2),
            },
            arguments.repeats,
        )
        if not arguments.skip_embed:
            for size in arguments.images:
                folders[size] = os.path.join(scratch, f"images-{size}")
                os.mkdir(folders[size])
                write_images(arguments.data, folders[size], size)
            slopes(
                "images embedded",
                arguments.images,
                {
                    "one worker on one core": lambda size: embedding(folders[size], scratch, 1, 1),
                    "one on two cores": lambda size: embedding(folders[size], scratch, 1, 2),
                    "two on two": lambda size: embedding(folders[size], scratch, 2, 2),
                },
                arguments.repeats,
            )


if __name__ == "__main__":
    main()
