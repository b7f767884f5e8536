"""What an input is.

`describe_input` is what the driver calls before anything runs: it reads
listings, Parquet schemas and some footers, never a row.
"""

import dataclasses
from collections.abc import Sequence

from dpgmm_beam.errors import ConfigError
from transforms.files.finding import absolute, is_folder, list_parquet
from transforms.files.image_folders import IMAGE_FOLDER, has_images
from transforms.files.parquet import (
    DRIVER_FOOTERS,
    EMBEDDING_PARQUET,
    IMAGE_PARQUET,
    agreeing,
    check_rows,
    check_sizes,
    embedding_length,
)

_WANTED = "be a folder of LABEL/*.png|jpg|jpeg images, or Parquet by file, folder or glob"


@dataclasses.dataclass(frozen=True)
class InputDescription:
    """What an input was found to be.

    Attributes:
      kind: IMAGE_FOLDER, IMAGE_PARQUET or EMBEDDING_PARQUET.
      pattern: the input as workers may use it (an absolute path, where local).
      dimension: length of an embedding; None for images.
      labelled: whether there are labels.  An unlabelled data set is one class.
      encoder: the encoder named inside the files, where they name one.
      rows: how many there are, bad ones included, where the driver knows.  Never shown.
    """

    kind: str
    pattern: str
    dimension: int | None
    labelled: bool
    encoder: str | None = None
    rows: int | None = None


def describe_input(pattern: str, encoder: str, dimension: int | None = None) -> InputDescription:
    """Finds out what an input is.

    A folder in which nothing is found is a data set without rows: to refuse it
    would tell nothing from one row.

    Args:
      pattern: a folder of images, or a Parquet file, folder or glob.
      encoder: the encoder's spec.
      dimension: needed only for embeddings in plain lists whose
        length the footers can't tell.

    Raises:
      ConfigError: see the sentences below.
    """
    if not pattern:
        raise ConfigError("input", pattern, _WANTED)
    pattern = absolute(pattern)
    parquet = list_parquet(pattern)
    images = has_images(pattern)
    if parquet and images:
        raise ConfigError("input", pattern, "hold either Parquet files or LABEL/*.png|jpg|jpeg, not both")
    if parquet:
        return _describe_parquet(pattern, [file.path for file in parquet], encoder, dimension)
    if images:
        _refuse_precomputed(pattern, encoder)
    elif not is_folder(pattern):
        raise ConfigError("input", pattern, f"match something: {_WANTED}")
    elif encoder == "precomputed":
        if dimension is None:
            raise ConfigError(
                "input", pattern, "hold Parquet files, or be an empty data set: state its dimension then"
            )
        return InputDescription(EMBEDDING_PARQUET, pattern, dimension, labelled=True, rows=0)
    _refuse_dimension(dimension)
    return InputDescription(IMAGE_FOLDER, pattern, None, labelled=True)


def _refuse_precomputed(pattern: str, encoder: str) -> None:
    if encoder == "precomputed":
        raise ConfigError("encoder", encoder, f"name a model, because the input {pattern} holds images")


def _refuse_dimension(dimension: int | None) -> None:
    if dimension is not None:
        raise ConfigError("dimension", dimension, "be left out for images: the encoder sets it")


def _describe_parquet(
    pattern: str, paths: Sequence[str], encoder: str, dimension: int | None
) -> InputDescription:
    found = list(agreeing(pattern, paths[:DRIVER_FOOTERS], encoder))
    columns = found[-1][1]
    rows = sum(footer.num_rows for _, _, footer in found)
    check_rows(pattern, rows)
    labelled = columns.label is not None
    if columns.kind == IMAGE_PARQUET:
        _refuse_precomputed(pattern, encoder)
        _refuse_dimension(dimension)
        length = None
    else:
        if encoder not in ("precomputed", columns.encoder):
            stored = f" or {columns.encoder}, which the files name" if columns.encoder else ""
            raise ConfigError(
                "encoder", encoder, f"be precomputed{stored}, because the input {pattern} holds embeddings"
            )
        length = embedding_length(pattern, columns.type, [footer for _, _, footer in found], dimension)
    for path, _, footer in found:
        check_sizes(pattern, path, columns, footer, length)
    if columns.kind == IMAGE_PARQUET:
        return InputDescription(IMAGE_PARQUET, pattern, None, labelled)
    known = rows if len(found) == len(paths) else None
    return InputDescription(EMBEDDING_PARQUET, pattern, length, labelled, columns.encoder, known)
