"""A small release, and the ways to run it that several tests compare.

`python -m tests.small INPUT OUTPUT KEY_FILE [option ...]` is a driver process
for it; `--encoder`, `--dimension`, `--samples`, `--defaults` (as many stages as a
release has by default) and `--private-dir` are its own options, the others are
Beam's.
"""

import argparse
import contextlib
import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.data import rows
from dpgmm_beam.encoders import registry
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release.in_memory import release_in_memory
from pipelines import cli, release_job, release_request, runner, runs
from transforms.execution import Execution
from transforms.files import finding, inputs, parquet
from transforms.files.columns import DEFAULT_COLUMNS, Columns
from transforms.files.run_files import Workspace

REPOSITORY = Path(__file__).parents[1]
PRISM = REPOSITORY.parent / "shared" / "tools" / "prism"
KEY, OTHER_KEY = bytes(range(7, 39)), bytes(range(32))
RELEASE_ID = "small"
CLASSES = ("a", "b", "c")


class Blocks(registry.Encoder):
    """The encoder "blocks": means of blocks of pixels, six numbers, a few images at a time."""

    dimension, batch_size = 6, 4

    def prepare(self, images):
        arrays = [np.asarray(image.convert("RGB").resize((3, 2))) for image in images]
        return np.stack(arrays) if arrays else np.zeros((0, 2, 3, 3), np.uint8)

    def embed(self, prepared):
        return prepared.astype(np.float32).mean(axis=3).reshape(len(prepared), 6) + 1


registry.register_encoder("blocks", lambda argument, batch_size: Blocks())


def table(count: int = 600, dimension: int = 16, seed: int = 0) -> pa.Table:
    """Rows of CLASSES as they come from an encoder."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(CLASSES), count)
    centres = generator.normal(size=(len(CLASSES), dimension))
    values = (centres[labels] + 0.5 * generator.normal(size=(count, dimension))).astype(np.float32)
    return embeddings_table([CLASSES[label] for label in labels], values)


def embeddings_table(labels: list, values: np.ndarray) -> pa.Table:
    values = np.asarray(values, np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return pa.table({"label": pa.array(labels), "embedding": vectors})


def write_rows(folder: Path, content: pa.Table, files: int = 3, row_group: int = 70) -> Path:
    folder.mkdir(parents=True)
    size = -(-len(content) // files)
    for number in range(files):
        part = content.slice(number * size, size)
        pq.write_table(part, folder / f"rows-{number}.parquet", row_group_size=row_group)
    return folder


def write_key(path: Path, key: bytes = KEY) -> str:
    path.touch()
    path.chmod(0o600)
    path.write_bytes(key)
    path.chmod(0o600)
    return str(path)


def small_config(**changes) -> ReleaseConfig:
    """Nine stages, every kind of stage among them."""
    config = ReleaseConfig(
        encoder="precomputed",
        classes=CLASSES,
        dimension=16,
        epsilon=2.0,
        delta=1e-5,
        samples_per_class=40,
        components=2,
        rounds=2,
        method=Method(teacher_steps=2, subspace_dim=8),
    )
    return dataclasses.replace(config, **changes)


def default_config(dimension: int = 16) -> ReleaseConfig:
    """All options as they are by default: 35 stages."""
    return ReleaseConfig("precomputed", CLASSES, dimension, epsilon=1.0, delta=1e-5)


def run(
    source: str | Path,
    output: str | Path,
    key_file: str | Path,
    *options: str,
    config: ReleaseConfig | None = None,
    private_dir: str | Path = "",
    overwrite: bool = False,
    release_id: str = RELEASE_ID,
    columns: Columns = DEFAULT_COLUMNS,
    **execution,
) -> dict[str, bytes]:
    """The files of a release made by the product's own `pipelines.release_job.run`.

    Args:
      private_dir: default: one for this run alone.
    """
    config = config or small_config()
    described = inputs.describe_input(str(source), config.encoder, columns=columns)
    beam_options = runner.job_options(options, verbose=False)
    with contextlib.ExitStack() as stack:
        folder = str(private_dir) or stack.enter_context(tempfile.TemporaryDirectory())
        request = release_request.Request(config, described, Execution(**execution), f"{folder}/embeddings")
        current = stack.enter_context(
            runs.open_run(folder, config, str(source), str(output), str(key_file), release_id)
        )
        release_job.run(request, str(output), overwrite, current, beam_options)
    return contents(output)


def workspace(folder: str | Path, key_file: str | Path) -> Workspace:
    """A run's private files in a folder."""
    return Workspace(f"{folder}/run", f"{folder}/rows", str(key_file))


def contents(folder: str | Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


def read_blocks(source: str | Path, config: ReleaseConfig, block_rows: int = 64) -> list[rows.Rows]:
    columns = ["embedding", "label"] if config.labelled else ["embedding"]
    blocks = []
    for listed in finding.list_parquet(str(source)):
        with parquet.open_parquet(listed.path) as file:
            for batch in file.iter_batches(block_rows, columns=columns):
                blocks.append(rows.rows_of_batch(batch, config.row_format))
    return blocks


def in_memory(source: str | Path, config: ReleaseConfig | None = None) -> dict[str, bytes]:
    """The files of the release, from the mathematics alone: no Beam."""
    config = config or small_config()
    blocks = read_blocks(source, config)
    return release_in_memory(Plan(config, RELEASE_ID), lambda: blocks, NoiseKey(KEY))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("input", "output", "key_file"):
        parser.add_argument(name)
    parser.add_argument("--encoder", default="precomputed")
    parser.add_argument("--dimension", type=int, default=16)
    parser.add_argument("--defaults", action="store_true")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--private-dir", default="")
    known, options = parser.parse_known_args(arguments)
    if known.defaults:
        config = default_config(known.dimension)
    else:
        config = small_config(
            encoder=known.encoder, dimension=known.dimension, samples_per_class=known.samples
        )

    def job(_):
        run(
            known.input,
            known.output,
            known.key_file,
            *options,
            config=config,
            private_dir=known.private_dir,
        )
        return 0

    return cli.run(job, options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
