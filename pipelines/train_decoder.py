"""dpgmm train-decoder: public images -> a decoder of an encoder's embeddings.

Plain Python; nothing here runs on Beam but its file systems.
"""

import argparse
import dataclasses
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dpgmm_beam.data import images
from dpgmm_beam.encoders import registry
from dpgmm_beam.encoders.encoder import Encoder
from dpgmm_beam.encoders.preparation import Preparation
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.recipe import DecoderConfig
from pipelines import cli, cores, paths
from pipelines.columns import columns_of
from pipelines.parsers.train_decoder import parser
from pipelines.progress import Steps, device
from pipelines.public import check_public
from transforms.execution import MAX_THREADS
from transforms.files import finding, inputs
from transforms.files.encoded_images import EncodedImage, load, parts_of
from transforms.files.shards import Shard, plan_shards
from transforms.files.write import write_whole

FEWEST, MOST = 10, 10**6
"""Pictures of a training."""

_MEMORY_BYTES = 2**31


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    config = DecoderConfig(
        **{field.name: getattr(arguments, field.name) for field in dataclasses.fields(DecoderConfig)}
    )
    source = check(arguments)
    threads = arguments.threads or cores.usable_cores()
    encoder = registry.load_encoder(arguments.encoder)
    most = min(arguments.max_images, _MEMORY_BYTES // (4 * encoder.dimension + 3 * config.side**2))
    embeddings, pictures = read(source, encoder, config.side, most, config.seed, threads)
    count = len(embeddings)
    if count < FEWEST:
        raise ConfigError(
            "--public-images", arguments.public_images, f"hold at least {FEWEST} images, not {count}"
        )
    # Slow to import, and of no use to what is refused.
    from dpgmm_beam.decoders.convolution import train_decoder

    with Steps("training on cpu", config.steps, "steps") as progress:
        trained = train_decoder(
            embeddings,
            pictures,
            arguments.encoder,
            config,
            lambda loss: progress.add(detail=f"loss {loss:.4f}"),
        )
    write_whole(finding.absolute(arguments.output), trained.to_bytes())
    cli.report(
        f"a decoder of {arguments.encoder} is in {arguments.output}: trained on {trained.pictures} images, it"
        f" is {trained.error:.4f} off a pixel of the {count - trained.pictures} held out (root mean square;"
        f" the mean image is {trained.mean_error:.4f} off)",
        output=arguments.output,
        encoder=arguments.encoder,
        side=trained.side,
        channels=trained.channels,
        images=trained.pictures,
        held_out=count - trained.pictures,
        error=trained.error,
        mean_error=trained.mean_error,
    )
    if trained.error >= trained.mean_error:
        cli.warn("the decoder is no better than the mean image: give it more images, or more --steps")
    return 0


def check(arguments: argparse.Namespace) -> inputs.InputDescription:
    """Checks everything that can be before an image is read.

    Raises:
      ConfigError: something is refused.
    """
    registry.check_encoder(arguments.encoder)
    if arguments.encoder == "precomputed":
        raise ConfigError("--encoder", arguments.encoder, "name a model")
    for name, least, most in (("max_images", FEWEST, MOST), ("threads", 0, MAX_THREADS)):
        value = getattr(arguments, name)
        if not least <= value <= most:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(option, value, f"be a whole number from {least} to {most}")
    paths.check_path("--public-images", arguments.public_images)
    check_output(arguments.output, arguments.overwrite)
    paths.check_apart({"--public-images": arguments.public_images, "--output": arguments.output})
    check_public("--public-images", arguments.public_images, arguments.private_dir)
    try:
        found = inputs.describe_input(
            arguments.public_images, arguments.encoder, columns=columns_of(arguments)
        )
    except ConfigError as error:
        # Of the fields of an input; of embeddings that are another encoder's, too.
        if error.argument not in ("input", "encoder"):
            raise
        raise ConfigError("--public-images", arguments.public_images, error.allowed) from None
    if found.holds_embeddings:
        raise ConfigError("--public-images", arguments.public_images, "hold images; these are embeddings")
    return found


def check_output(output: str, overwrite: bool) -> None:
    """Raises ConfigError unless the file can appear."""
    paths.check_path("--output", output)
    paths.check_output_file(output, overwrite)


def read(
    source: inputs.InputDescription, encoder: Encoder, side: int, most: int, seed: int, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and small pictures of the images; of more than `most`, of some.

    Returns:
      (n, d) float32, and (n, side, side, 1 or 3) uint8: gray where all are.
    """
    from dpgmm_beam.encoders.dct import letterboxed

    use = Preparation(encoder)

    def small(part: Sequence[EncodedImage]) -> tuple[np.ndarray, np.ndarray] | None:
        made = [
            images.use_image(
                image.data,
                lambda picture: (use(picture), letterboxed([picture], side, 3)),
                max(use.side, side),
            )
            for image in part
            if image.reason is None
        ]
        good = [each for each in made if not isinstance(each, images.Reason)]
        if not good:
            return None
        prepared, pictures = (np.concatenate(each) for each in zip(*good, strict=True))
        return encoder.embed(prepared), pictures

    embeddings, pictures, count = [], [], 0
    shards = list(plan_shards(source, encoder.spec, 1024))
    # Labels follow each other by path: of more images than are used, some of each kind.
    random.Random(seed).shuffle(shards)
    with (
        Steps(f"embedding {device()}", len(shards), "shards") as progress,
        encoder.session(),
        ThreadPoolExecutor(threads) as workers,
    ):
        for shard in shards:
            for block in _blocks(shard, encoder.batch_size, threads) if count < most else ():
                for found in workers.map(small, block):
                    if found is not None:
                        embeddings.append(found[0])
                        pictures.append(found[1])
                        count += len(found[0])
            progress.add()
    if not embeddings:
        return np.zeros((0, encoder.dimension), np.float32), np.zeros((0, side, side, 1), np.uint8)
    small_pictures = np.concatenate(pictures)[:most]
    if (small_pictures == small_pictures[..., :1]).all():
        small_pictures = small_pictures[..., :1]
    return np.concatenate(embeddings)[:most], small_pictures


def _blocks(shard: Shard, rows: int, threads: int) -> Iterator[list[list[EncodedImage]]]:
    """Parts of images that are read, as many at a time as there are threads."""
    block: list[list[EncodedImage]] = []
    for part in parts_of(shard, rows):
        block.append(load(shard, part))
        if len(block) == threads:
            yield block
            block = []
    if block:
        yield block
