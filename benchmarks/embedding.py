"""Images per second of the embed job beside the bare model, in one run.

    python benchmarks/embedding.py [--images 8000] [--data DIR] [--encoder SPEC]

The job reads PNG files, decodes, resizes, embeds and writes Parquet, on Beam's
in-process runner.  The bare model is the same network run by the same number of
threads on the same batches, which lie in memory ready made.  Both are timed in
turns, and the best of each counts: other processes only ever slow one down.
On a machine that is busy with other things, compare the images per second of
processor time, which what else runs changes little.
The job's time has everything but the start of the process and the loading of
the model, which are stated apart.
"""

import argparse
import gzip
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apache_beam as beam
import numpy as np
import torch
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from PIL import Image

from dpgmm_beam.encoders import registry
from transforms.embed import EmbedImages
from transforms.files.inputs import describe_input

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"


def write_images(data: Path, count: int, folder: Path) -> None:
    """The first Fashion-MNIST training images as LABEL/NUMBER.png."""
    with gzip.open(data / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + 784 * count), np.uint8)[16:].reshape(-1, 28, 28)
    with gzip.open(data / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + count), np.uint8)[8:]
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{number:05d}.png")


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self):
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._processor


def bare_seconds(
    encoder: registry.Encoder, count: int, threads: int, operator_threads: int
) -> tuple[float, float]:
    """Wall and processor seconds for `count` images by `threads` threads of `operator_threads` each."""
    size = encoder.prepare([Image.new("L", (28, 28))]).shape[1:]
    pixels = np.random.default_rng(0).integers(0, 256, (encoder.batch_size, *size), np.uint8)
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)

    def run(_):
        with torch.inference_mode():
            encoder._model.encode_image(batch, normalize=False)

    before = torch.get_num_threads()
    torch.set_num_threads(operator_threads)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, range(2 * threads)))
            clock = Clock()
            list(pool.map(run, range(count // encoder.batch_size)))
            return clock.read()
    finally:
        torch.set_num_threads(before)


def job_seconds(images: Path, encoder: str) -> tuple[float, float]:
    """Wall and processor seconds for the whole Beam job into an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        clock = Clock()
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            _ = pipeline | EmbedImages(describe_input(str(images), encoder), encoder, cache)
        return clock.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--data", default=FASHION_MNIST, help="folder of Fashion-MNIST's *.gz files")
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))

    start = time.perf_counter()
    encoder = registry.encoder_for_process(options.encoder)
    print(f"loading the model (once a process, not counted): {time.perf_counter() - start:.1f} s")

    count = options.images // encoder.batch_size * encoder.batch_size
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(options.data), count, Path(folder))
        bare, job, split = [], [], []
        for _ in range(options.repeats):
            bare.append(bare_seconds(encoder, count, threads, 1))
            job.append(job_seconds(Path(folder), options.encoder))
            split.append(bare_seconds(encoder, count, 1, threads))
    print(
        f"{count} images, batches of {encoder.batch_size}, {threads} threads, load {os.getloadavg()[0]:.1f}"
    )
    print("images per second             wall   processor   (each time, wall)")
    for name, seconds in {
        "bare model, a batch a thread": bare,
        "bare model, operators split": split,
        "embed job": job,
    }.items():
        wall, processor = (count / min(column) for column in zip(*seconds, strict=True))
        each = ", ".join(f"{count / one:.0f}" for one, _ in seconds)
        print(f"{name:29}{wall:5.0f}{processor:12.0f}   ({each})")
    ratios = [min(a) / min(b) for a, b in zip(zip(*bare, strict=True), zip(*job, strict=True), strict=True)]
    print("job / bare model, a batch a thread: {:.3f} by wall, {:.3f} by processor time".format(*ratios))


if __name__ == "__main__":
    main()
