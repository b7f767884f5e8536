"""A release as a command asks for it, checked before a row is read."""

import argparse
import dataclasses
from typing import TYPE_CHECKING

from apache_beam.options.pipeline_options import PipelineOptions

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.data.schema import PICTURE
from dpgmm_beam.defaults import AUTO
from dpgmm_beam.encoders.registry import check_encoder, encoder_for_process, known_dimension
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.allocation import with_shares
from dpgmm_beam.privacy.neighbours import MAX_FOUND
from dpgmm_beam.release import manifest
from pipelines import budget as budgets
from pipelines import key_store, paths, private, runner
from pipelines.classes import read_classes
from pipelines.columns import check_units, columns_of
from transforms.execution import MAX_THREADS, Execution
from transforms.files import inputs
from transforms.files.columns import Columns
from transforms.files.private import is_local
from transforms.files.publish import exists, is_release, join, occupied
from transforms.files.small import read_small

if TYPE_CHECKING:
    from pipelines.ledger import charging


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked release: everything but the key.

    Attributes:
      config: public, part of the release.
      source: the input.
      execution: speed only.
      embed_cache: private folder for the embeddings of images.
      charged: where it is charged; None: nowhere.
    """

    config: ReleaseConfig
    source: inputs.InputDescription
    execution: Execution
    embed_cache: str
    charged: "charging.Request | None" = None


def check(arguments: argparse.Namespace, options: PipelineOptions) -> Request:
    """Checks everything that can be before a row is read: texts, then files and folders, then listings.

    Nothing is made.
    """
    private.check_names(arguments.noise_key_file, arguments.release_id, arguments.release_key_store)
    charged = charged_to(arguments)
    paths.check_path("--input", arguments.input)
    check_encoder(arguments.encoder)
    if not 0 <= arguments.threads <= MAX_THREADS:
        raise ConfigError("--threads", arguments.threads, f"be a whole number from 0 to {MAX_THREADS}")
    execution = Execution(
        arguments.block_rows,
        runner.threads_for(options, arguments.threads),
        spread=not runner.is_local(options),
    )
    epsilon, delta = budgets.of(arguments)
    found = arguments.max_rows_per_unit == AUTO
    config = ReleaseConfig(
        encoder=arguments.encoder,
        classes=read_classes(arguments.classes),
        # Until the input has been looked at; an encoder's own is no question of the options.
        dimension=arguments.dimension
        if arguments.dimension is not None
        else known_dimension(arguments.encoder) or 1,
        epsilon=epsilon,
        delta=delta,
        clip_norm=arguments.clip_norm,
        samples_per_class=arguments.samples_per_class,
        components=arguments.components,
        rounds=arguments.rounds,
        shares=with_shares(arguments.share, arguments.favor, arguments.decodable is not None),
        # What is to be found is at most this.
        max_rows_per_unit=MAX_FOUND if found else arguments.max_rows_per_unit,
        bound_found=found,
        adjacency=arguments.adjacency,
        slice=arguments.slice,
        decodable=arguments.decodable,
    )
    if arguments.no_teacher:
        config = dataclasses.replace(config, method=dataclasses.replace(config.method, teacher_steps=0))
    columns = read_columns(config, columns_of(arguments))
    check_units(columns, arguments.max_rows_per_unit)
    if arguments.noise_key_file is not None:
        private.check_key_file(arguments.noise_key_file)
    paths.check_writable_place("--output", arguments.output)
    private_dir = private.check_folder(arguments.private_dir)
    paths.check_apart(
        {
            "--input": arguments.input,
            "--output": arguments.output,
            "--private-dir": private_dir,
            "--noise-key-file": arguments.noise_key_file,
            "--release-key-store": local(arguments.release_key_store),
            "--ledger": local(arguments.ledger),
        }
    )
    if arguments.release_key_store is not None:
        key_store.store_of(arguments.release_key_store).check()
    if charged is not None:
        charged.check(config, arguments.release_id, private_dir)
    source = inputs.describe_input(arguments.input, arguments.encoder, arguments.dimension, columns)
    config = dataclasses.replace(
        config,
        dimension=source.dimension or encoder_for_process(arguments.encoder).dimension,
        labelled=source.labelled,
    )
    check_pictures(config, source)
    if not is_made(arguments.output, config, arguments.release_id):
        check_output(arguments.output, arguments.overwrite)
    # So that noise that would be too large to draw is refused here.
    Plan(config, arguments.release_id or "drawn")
    return Request(config, source, execution, join(private_dir, "embeddings"), charged)


def read_columns(config: ReleaseConfig, columns: Columns) -> Columns:
    """The columns of an input, with that of pictures where they are wanted."""
    return columns if config.decodable is None else dataclasses.replace(columns, picture=PICTURE)


def check_pictures(config: ReleaseConfig, source: inputs.InputDescription) -> None:
    """Raises ConfigError where a release is to be decodable, and the input has no pictures."""
    if config.decodable is None or not source.holds_embeddings:
        return
    if source.pictures in (config.decodable, ""):
        return
    raise ConfigError(
        "decodable",
        config.decodable,
        "be left out of embeddings that have no pictures of that form beside them: give the images, or a"
        f" folder of dpgmm embed --decodable {config.decodable}",
    )


def charged_to(arguments: argparse.Namespace) -> "charging.Request | None":
    """The ledger of a command; None where it names none.

    Raises:
      ConfigError: it names a part of one.
    """
    if arguments.ledger is None:
        for option in ("dataset", "ledger_key_file"):
            if (value := getattr(arguments, option)) is not None:
                raise ConfigError(f"--{option.replace('_', '-')}", value, "come together with --ledger")
        return None
    if arguments.max_rows_per_unit == AUTO:
        raise ConfigError(
            "max_rows_per_unit",
            AUTO,
            "be a number with --ledger: finding it draws noise before the charge is made",
        )
    if arguments.dataset is None:
        # Not its value: there may be a password in it.
        raise ConfigError("--ledger", "(given)", "come together with --dataset")
    from pipelines.ledger import charging

    return charging.Request(arguments.ledger, arguments.dataset, arguments.ledger_key_file)


def local(text: str | None) -> str | None:
    """The local path that an option names; None where it names something else."""
    if text is not None and text.startswith("sqlite:///"):
        return text.removeprefix("sqlite:///")
    return text if text is not None and is_local(text) and not text.startswith("vault:") else None


def check_output(output: str, overwrite: bool) -> None:
    """Raises ConfigError when the folder holds a release, or anything that is not one.

    With `overwrite` a release of this program may be there, with nothing beside it.
    """
    if wrong := occupied(output, overwrite):
        raise ConfigError("--output", output, wrong)


def is_made(output: str, config: ReleaseConfig, release_id: str | None) -> bool:
    """Whether the output holds the release of this id and configuration: to make it again changes nothing."""
    path = join(output, manifest.FILE_NAME)
    if not exists(path):
        return False
    data = read_small("--output", path, manifest.MAX_BYTES)
    if release_id is None or not is_release(output):
        return False
    try:
        content = manifest.parse(data, output)
    except ConfigError:
        # Of another version.
        return False
    try:
        made = manifest.plan_of(content).config.unbounded
    except ConfigError:
        return False
    return content["release_id"] == release_id and made.digest == config.unbounded.digest
