"""What `dpgmm train --synthetic` is given: a release, a copy of its rows, or rows of whatever made them."""

import argparse
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from dpgmm_beam.config import MAX_CLASSES, check_classes, check_clip_norm
from dpgmm_beam.data.rows import RowFormat
from dpgmm_beam.data.schema import PROBABILITIES
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy import lattice
from dpgmm_beam.release import manifest
from dpgmm_beam.release.row_statement import StatedPart, stated
from pipelines.labelled_rows import Source, check_files, describe, readable
from transforms.files import finding, parquet, tables
from transforms.files.columns import DEFAULT_COLUMNS
from transforms.files.publish import exists, join
from transforms.files.small import read_small


def describe_synthetic(arguments: argparse.Namespace) -> Source:
    """What `--synthetic` is, from its manifest or its schema; labels alone are read.

    Raises:
      ConfigError: see the sentences below.
    """
    folder = arguments.synthetic
    if exists(join(folder, manifest.FILE_NAME)):
        return _describe_release(arguments)
    pattern = _rows_of_copy(folder)
    check_files("--synthetic", pattern)
    parts = _read_statements(pattern)
    if any(parts):
        return _describe_stated(arguments, pattern, parts)
    if arguments.labels == "soft":
        raise ConfigError(
            "--labels",
            "soft",
            f"be hard or auto, for --synthetic={folder} has neither a {manifest.FILE_NAME} nor what"
            " dpgmm release writes into the metadata of a schema",
        )
    if arguments.labels == "auto" and _has_probabilities(pattern):
        raise ConfigError(
            "--synthetic",
            folder,
            "have beside its label_probabilities what tells the order of their classes: a"
            f" {manifest.FILE_NAME}, or the metadata 'dpgmm' of its schema, which other writers of Parquet"
            " drop (--labels hard trains on the column 'label' as it is)",
        )
    found = describe("--synthetic", pattern, arguments.dimension)
    assert found.dimension is not None
    classes = distinct_labels(pattern)
    _check_classes(folder, classes)
    row_format = RowFormat(classes, found.dimension, arguments.clip_norm)
    return Source(pattern, row_format, soft=False, encoder=_known(found.encoder))


def _rows_of_copy(folder: str) -> str:
    """Where the rows are in a folder that may be a copy of a release without its manifest."""
    below, place = join(folder, manifest.SYNTHETIC), finding.absolute(folder).rstrip("/")
    if not finding.is_folder(finding.absolute(below)):
        return folder
    own = (file.path.rpartition("/")[0] == place for file in finding.list_parquet(place))
    return folder if any(own) else below


def _known(encoder: str | None) -> str | None:
    """An encoder's spec, or None where it says nothing of the model."""
    return None if encoder == "precomputed" else encoder


def _read_statements(pattern: str) -> list[StatedPart | None]:
    """What each file says of itself, in their order."""
    found = []
    for file in finding.list_parquet(finding.absolute(pattern)):
        with readable("--synthetic", pattern), parquet.open_parquet(file.path) as opened:
            try:
                found.append(stated(opened.schema_arrow.metadata))
            except ConfigError as error:
                raise ConfigError(
                    "--synthetic", file.path, f"in its metadata 'dpgmm' {error.allowed}"
                ) from None
    return found


def _has_probabilities(pattern: str) -> bool:
    """Whether the first file has the column."""
    with parquet.open_parquet(finding.list_parquet(finding.absolute(pattern))[0].path) as file:
        return PROBABILITIES in file.schema_arrow.names


def _describe_stated(arguments: argparse.Namespace, pattern: str, parts: list[StatedPart | None]) -> Source:
    """Rows of a release without its manifest, as their files say."""
    folder = arguments.synthetic
    _refuse_stated_options(arguments)
    told = [part for part in parts if part is not None]
    if len(told) < len(parts):
        raise ConfigError(
            "--synthetic", folder, "hold files of releases only, each with its metadata, or none of them"
        )
    formats = {
        (RowFormat(part.rows.classes, part.rows.dimension, part.rows.clip_norm), part.rows.encoder)
        for part in told
    }
    if len(formats) > 1:
        raise ConfigError(
            "--synthetic",
            folder,
            "hold rows of one encoder, norm and length, and of the same classes in one order",
        )
    # Whoever names files means these; a folder should be whole.
    if finding.is_folder(finding.absolute(pattern)):
        draws: dict[tuple, set[int]] = {}
        for part in told:
            draws.setdefault((part.rows.release_id, part.rows.seed, part.parts), set()).add(part.part)
        for (release_id, _, due), found in draws.items():
            if len(found) < due:
                raise ConfigError(
                    "--synthetic",
                    folder,
                    f"hold all {due} files of rows of release {release_id}, not {len(found)}; name the files"
                    " (by a glob, say) to train on fewer",
                )
    ((row_format, encoder),) = formats
    _check_classes(folder, row_format.classes)
    return _describe_rows(arguments, pattern, row_format, encoder, "their metadata states")


def _refuse_stated_options(arguments: argparse.Namespace) -> None:
    for name in ("clip_norm", "dimension"):
        if getattr(arguments, name) is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')}",
                getattr(arguments, name),
                f"be left out: --synthetic={arguments.synthetic} is a release, which states its own",
            )


def _describe_release(arguments: argparse.Namespace) -> Source:
    folder = arguments.synthetic
    _refuse_stated_options(arguments)
    row_format, encoder, files = _stated(folder)
    pattern = join(folder, "synthetic")
    check_files("--synthetic", pattern)
    if files != {file.path.rpartition("/")[2] for file in finding.list_parquet(finding.absolute(pattern))}:
        raise ConfigError(
            "--synthetic", folder, "hold in synthetic/ the files that its manifest names, and no others"
        )
    for part in _read_statements(pattern):
        if part and (part.rows.classes, part.rows.dimension, part.rows.clip_norm) != (
            row_format.classes,
            row_format.dimension,
            row_format.clip_norm,
        ):
            raise ConfigError(
                "--synthetic", folder, "have in the metadata of its files what its manifest states"
            )
    return _describe_rows(arguments, pattern, row_format, encoder, "its manifest states")


def _describe_rows(
    arguments: argparse.Namespace, pattern: str, row_format: RowFormat, encoder: str | None, stated: str
) -> Source:
    """Rows of a release, when it is known what a row must look like."""
    folder = arguments.synthetic
    try:
        describe("--synthetic", pattern, row_format.dimension)
    except ConfigError as error:
        if error.argument != "dimension":
            raise
        raise ConfigError(
            "--synthetic", folder, f"hold embeddings of length {row_format.dimension}, as {stated}"
        ) from None
    soft = arguments.labels != "hard"
    if soft and not _has_probabilities(pattern):
        raise ConfigError(
            "--synthetic",
            folder,
            f"have the column {PROBABILITIES} of a release, or train with --labels hard",
        )
    return Source(pattern, row_format, soft, released=True, encoder=_known(encoder))


def _stated(folder: str) -> tuple[RowFormat, str | None, set[str]]:
    """What a release's manifest says of its rows and their encoder, and the names of their files."""
    data = read_small("--synthetic", join(folder, manifest.FILE_NAME), manifest.MAX_BYTES)
    try:
        content = manifest.parse(data, folder)
        # Only what is needed: the rest of a configuration may differ between versions.
        config = content["config"]
        classes, dimension, clip_norm = config["classes"], config["dimension"], config["clip_norm"]
        encoder = config.get("encoder")
        if not isinstance(encoder, str | None):
            raise TypeError
        if not (isinstance(classes, list) and isinstance(dimension, int)):
            raise TypeError
        check_classes(classes)
        lattice.check_dimension(dimension)
        check_clip_norm(clip_norm)
        named = [file["path"] for file in content["files"]]
        files = {path.removeprefix("synthetic/") for path in named if path.startswith("synthetic/")}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        reason = f" ({error.allowed})" if isinstance(error, ConfigError) else ""
        raise ConfigError(
            "--synthetic",
            folder,
            f"hold a {manifest.FILE_NAME} that states classes, dimension, clip norm and files{reason}",
        ) from None
    _check_classes(folder, classes)
    return RowFormat(tuple(classes), dimension, clip_norm), encoder, files


def _check_classes(folder: str, classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise ConfigError(
            "--synthetic", folder, "have two classes at least, or there is nothing to tell apart"
        )


def distinct_labels(pattern: str) -> tuple[str, ...]:
    """All labels of a pattern's files, as text, sorted; nulls are left out.

    Raises:
      ConfigError: there are more than a release may have.
    """
    seen: set[str] = set()
    with readable("--synthetic", pattern):
        for file in tables.list_files(finding.absolute(pattern), DEFAULT_COLUMNS):
            for labels in tables.labels(file.path, parquet.EMBEDDING_PARQUET, DEFAULT_COLUMNS):
                if pa.types.is_dictionary(labels.type):
                    labels = labels.dictionary_decode()
                seen.update(pc.unique(labels.cast(pa.string(), safe=False)).drop_null().to_pylist())
                if len(seen) > MAX_CLASSES:
                    raise ConfigError("--synthetic", pattern, f"have at most {MAX_CLASSES} different labels")
    return tuple(sorted(seen))
