"""dpgmm decode: pictures of synthetic embeddings of a release, at no cost in privacy."""

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Sequence

import apache_beam as beam

from dpgmm_beam.decoders import registry
from dpgmm_beam.encoders.registry import check_encoder
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.release import manifest
from dpgmm_beam.release.arguments import MAX_SEED
from dpgmm_beam.release.decoded import MAX_FILES, MAX_PICTURES, Decoding, Labels
from dpgmm_beam.release.picture_files import Format
from dpgmm_beam.release.release import Release
from pipelines import cli, job, paths, runner
from pipelines.parsers.decode import parser
from pipelines.progress import Progress
from pipelines.public import check_public
from transforms.decode import OWN_FILES, DecodeRelease, Job, read_label_release
from transforms.execution import MAX_THREADS
from transforms.files import finding
from transforms.files.publish import occupied
from transforms.sample import opened


def main(argv: Sequence[str]) -> int:
    arguments, beam_arguments = parser().parse_known_args(argv)
    options = runner.job_options(beam_arguments, arguments.verbose)
    runner.check_ports(options)
    request, release = check(arguments)
    if runner.is_local(options) and not request.threads:
        threads = runner.threads_for(options, 0)
        request = dataclasses.replace(request, threads=threads)
    if request.is_published():
        # What a killed one may not have come to.
        request.discard()
        return _report(request, release, "these pictures are in {} already")
    if occupied(request.output, False, OWN_FILES):
        raise ConfigError("--output", arguments.output, "be an empty or a new folder, or hold these pictures")
    if place := request.foreign():
        raise ConfigError("--output", arguments.output, f"lie where nobody else has put {place}")
    for path in request.others():
        cli.note(
            f"{path} was left by an interrupted dpgmm decode; its own command goes on with it, or delete it"
        )
    pipeline = beam.Pipeline(options=options)
    pipeline | "Decode release" >> DecodeRelease(request)
    total = request.decoding.pieces
    progress = Progress("decoding", total, lambda: len(request.finished_pieces()), unit="pieces", public=True)
    job.run(pipeline, job.job_name("decode", request.decoding.digest, request.output), [progress])
    if not job.waits(options):
        cli.report(f"submitted; pictures will be in {request.output}", submitted=True, output=request.output)
        return 0
    return _report(request, release, "{} pictures are in {}")


def _report(request: Job, release: Release, words: str) -> int:
    config, count = release.config, request.decoding.pictures
    place = (request.output,) if words.count("{}") == 1 else (count, request.output)
    labels = ""
    if (other := read_label_release(request)) is not None:
        labels = f", their labels by epsilon {other.config.epsilon:g} and delta {other.config.delta:g},"
    cli.report(
        f"{words.format(*place)}: they are covered by the release's epsilon {config.epsilon:g} and delta"
        f" {config.delta:g}{labels} and spend nothing",
        output=request.output,
        pictures=count,
        decoder=request.decoding.decoder,
        epsilon=config.epsilon,
        delta=config.delta,
    )
    return 0


def check(arguments: argparse.Namespace) -> tuple[Job, Release]:
    """Checks everything that can be before a picture is made: texts, then folders, then the release.

    Raises:
      ConfigError: something is refused.
    """
    for name, least, most in (("seed", 0, MAX_SEED - 1), ("threads", 0, MAX_THREADS)):
        if not least <= getattr(arguments, name) <= most:
            raise ConfigError(
                f"--{name}", getattr(arguments, name), f"be a whole number from {least} to {most}"
            )
    if arguments.images_per_class < 1:
        raise ConfigError("--images-per-class", arguments.images_per_class, "be a whole number above 0")
    paths.check_path("--release", arguments.release)
    paths.check_writable_place("--output", arguments.output)
    paths.check_apart({"--release": arguments.release, "--output": arguments.output})
    place = finding.absolute(arguments.release)
    release, label_release = opened(place), _label_release(arguments)
    config = release.config
    _check_count(arguments, len(config.classes))
    encoder = _encoder_of(arguments, config.encoder)
    # Workers run in folders of their own.
    spec = registry.with_paths(arguments.decoder, finding.absolute)
    registry.check_decoder(spec, encoder, config.decodable is not None)
    for path in registry.read_paths(spec):
        check_public("--decoder", path, arguments.private_dir, gallery=True)
        paths.check_apart({"--decoder": path, "--output": arguments.output})
    decoding = Decoding(
        release_sha256=_digest(release),
        decoder=registry.shown_decoder(spec),
        decoder_fingerprint=registry.decoder_fingerprint(spec),
        encoder=encoder,
        encoder_stated=encoder != config.encoder,
        images_per_class=arguments.images_per_class,
        seed=arguments.seed,
        format=Format(arguments.format),
        labels=Labels(arguments.labels),
        classes=config.classes,
        piece_images=registry.piece_images(spec),
        label_release_sha256="" if label_release is None else _digest(label_release),
    )
    if label_release is not None and label_release.classes != config.classes:
        raise ConfigError(
            "--label-release", arguments.label_release, "have the classes of --release, in order"
        )
    labels = finding.absolute(arguments.label_release) if label_release else ""
    return Job(place, spec, finding.absolute(arguments.output), decoding, arguments.threads, labels), release


def _label_release(arguments: argparse.Namespace) -> Release | None:
    """The release whose teacher is to label pictures, checked; None where there is none."""
    path = arguments.label_release
    if path is None:
        return None
    paths.check_path("--label-release", path)
    paths.check_apart({"--label-release": path, "--output": arguments.output})
    try:
        release = opened(finding.absolute(path))
        encoder = release.config.encoder
        check_encoder(encoder)
    except ConfigError as error:
        raise ConfigError("--label-release", path, error.allowed) from None
    if encoder == "precomputed":
        raise ConfigError(
            "--label-release", path, "be of an encoder that can embed pictures, not precomputed"
        )
    return release


def _digest(release: Release) -> str:
    return hashlib.sha256(release.read(manifest.FILE_NAME)).hexdigest()


def _check_count(arguments: argparse.Namespace, classes: int) -> None:
    most = MAX_FILES if arguments.format == Format.PNG else MAX_PICTURES
    if arguments.images_per_class * classes > most:
        other = " (more with --format parquet)" if most == MAX_FILES else ""
        raise ConfigError(
            "--images-per-class",
            arguments.images_per_class,
            f"be at most {most // classes} for {classes} classes{other}",
        )


def _encoder_of(arguments: argparse.Namespace, released: str) -> str:
    """The encoder of the release's embeddings: its own word, or, where that says little, the user's."""
    stated = arguments.encoder
    if stated is None or registry.same_encoder(stated, released):
        return released
    model, _, weights = released.partition("/")
    unnamed = released == "precomputed" or weights.startswith("/") or model.startswith("open_clip:local-dir:")
    if not unnamed:
        raise ConfigError(
            "--encoder", stated, f"be left out: the release says that its encoder is {released}"
        )
    check_encoder(stated)
    return stated


if __name__ == "__main__":
    sys.exit(cli.run(main))
