"""What a second core brings to embedding, and what a round sends through the runner.

    python -m benchmarks.scaling [--images 800 2400] [--repeats 3] [--skip-embed]

Images a second are the slope between two data sizes, so that the start of a
process and the model's loading drop out.  The settings take turns.  The bytes of
a round are those of its elements as the runner's coders write them: pieces and
sums.  What a second core or worker brings to the passes over rows is in
`benchmarks/scale.py`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.coders import registry

from benchmarks.release import CLASSES
from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.queries import split, zeros
from pipelines.fashion_mnist import INSTALLED, read


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


def embedding(folder: str, scratch: str, cores: int) -> float:
    """Seconds of one embed job from start to end, on so many cores."""
    output = os.path.join(scratch, f"embeddings-{time.monotonic_ns()}")
    command = [sys.executable, "-m", "pipelines.embed", "--input", folder, "--encoder", "efficientnet_lite0"]
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    started = time.perf_counter()
    subprocess.run(
        [*command, "--output", output, "--shard-rows", "100"],
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


def bytes_of_a_round(dimension: int) -> None:
    """Prints what stages send: sums of a bundle, and one piece, for each kind of stage."""
    config = ReleaseConfig("precomputed", tuple(map(str, range(CLASSES))), dimension, 1.0, 1e-5)
    coder = registry.get_coder(object)
    base = "/private/runs/" + "0" * 33 + "/" + "0" * 32
    print(f"a piece: {len(coder.encode((base, 12)))} bytes; sums of a bundle at d = {dimension}:")
    kinds = {stage.KIND: stage for stage in Plan(config, "benchmark").stages}
    for kind, stage in kinds.items():
        parts = list(split(stage.queries, zeros(stage.queries)))
        sizes = [len(coder.encode(((base, number), part))) for number, part in parts]
        print(f"  {kind}: {sum(sizes):,} bytes in {len(parts)} elements")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, nargs=2, default=[800, 2_400])
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", default=INSTALLED, help="folder with Fashion-MNIST's files")
    parser.add_argument("--skip-embed", action="store_true")
    arguments = parser.parse_args()
    bytes_of_a_round(arguments.dimension)
    if arguments.skip_embed:
        return
    with tempfile.TemporaryDirectory() as scratch:
        folders = {}
        for size in arguments.images:
            folders[size] = os.path.join(scratch, f"images-{size}")
            os.mkdir(folders[size])
            write_images(arguments.data, folders[size], size)
        slopes(
            "images embedded",
            arguments.images,
            {
                "one core": lambda size: embedding(folders[size], scratch, 1),
                "two": lambda size: embedding(folders[size], scratch, 2),
            },
            arguments.repeats,
        )


if __name__ == "__main__":
    main()
