"""What an input is.

`describe_input` is what the driver calls before anything runs: it reads
listings, Parquet schemas and some footers, never a row.
"""

import dataclasses
from collections.abc import Sequence

from dpgmm_beam.errors import ConfigError
from transforms.files import image_folders, image_lists, image_names, tars
from transforms.files.columns import Columns
from transforms.files.finding import absolute, is_folder, list_parquet
from transforms.files.image_folders import IMAGE_FOLDER
from transforms.files.image_lists import IMAGE_LIST
from transforms.files.parquet import (
    DRIVER_FOOTERS,
    EMBEDDING_PARQUET,
    IMAGE_PARQUET,
    agreeing,
    check_rows,
    check_sizes,
    embedding_length,
)
from transforms.files.private import is_local
from transforms.files.tars import IMAGE_TARS

DEFAULT_COLUMNS = Columns()

# Names of files that are often given and never read.
_SINGLE = dict.fromkeys(("zip", "7z", "rar"), "an archive: unpack it and name the folder, or make it a tar")

_WANTED = (
    "be a folder that holds a folder of images for each label, a .csv or .jsonl list of images, .tar files of"
    " images, or Parquet by file, folder or glob"
)


@dataclasses.dataclass(frozen=True)
class InputDescription:
    """What an input was found to be.

    Attributes:
      kind: IMAGE_FOLDER, IMAGE_LIST, IMAGE_TARS, IMAGE_PARQUET or EMBEDDING_PARQUET.
      pattern: the input as workers may use it (an absolute path, where local).
      dimension: length of an embedding; None for images.
      labelled: whether there are labels.  An unlabelled data set is one class.
      encoder: the encoder named inside the files, where they name one.
      rows: how many there are, bad ones included, where the driver knows.  Never shown.
      columns: which columns hold what, in lists, tars and Parquet.
    """

    kind: str
    pattern: str
    dimension: int | None
    labelled: bool
    encoder: str | None = None
    rows: int | None = None
    columns: Columns = DEFAULT_COLUMNS


def describe_input(
    pattern: str, encoder: str, dimension: int | None = None, columns: Columns = DEFAULT_COLUMNS
) -> InputDescription:
    """Finds out what an input is.

    A folder in which nothing is found is a data set without rows: to refuse it
    would tell nothing from one row.  What is refused depends on names of folders, on
    schemas and on first lines, which are the owner's layout, and on disks that can't
    be read; whether the layout is that of this or that kind, on the kinds of files
    that are there at all.

    Args:
      pattern: a folder of images or a glob of such, a list of images, tars, or a
        Parquet file, folder or glob.
      encoder: the encoder's spec.
      dimension: needed only for embeddings in plain lists whose
        length the footers can't tell.
      columns: which columns hold what, in lists, tars and Parquet.

    Raises:
      ConfigError: see the sentences below.
    """
    if not pattern:
        raise ConfigError("input", pattern, _WANTED)
    pattern = absolute(pattern)
    if (images := _describe_images(pattern, columns)) is not None:
        _refuse_precomputed(pattern, encoder)
        _refuse_dimension(dimension)
        return images
    if parquet := list_parquet(pattern):
        return _describe_parquet(pattern, [file.path for file in parquet], encoder, dimension)
    layout = image_folders.layout(pattern)
    if layout is None:
        raise ConfigError("input", pattern, f"match something: {_WANTED}")
    if encoder == "precomputed":
        if dimension is None:
            raise ConfigError(
                "input", pattern, "hold Parquet files, or be an empty data set: state its dimension then"
            )
        return InputDescription(EMBEDDING_PARQUET, pattern, dimension, labelled=True, rows=0)
    _refuse_dimension(dimension)
    return InputDescription(IMAGE_FOLDER, pattern, None, layout.labelled, columns=columns)


def _describe_images(pattern: str, columns: Columns) -> InputDescription | None:
    """The description of images that are files, or in tars; None if there are none."""
    if pattern == "/":
        raise ConfigError("input", pattern, _WANTED)
    folder = is_folder(pattern)
    if not folder and image_lists.is_list(pattern):
        labelled = image_lists.labelled(pattern, columns)
        return InputDescription(IMAGE_LIST, pattern, None, labelled, columns=columns)
    if not folder and (kind := _SINGLE.get(image_names.suffix_of(pattern)) or _single_image(pattern)):
        raise ConfigError("input", pattern, f"{_WANTED}; this is {kind}")
    # Listed once: a store may need minutes for it.
    far = None if is_local(pattern) else image_folders.far_files(pattern)
    found = tars.list_tars(pattern, far)
    layout = None if found and not folder else image_folders.layout(pattern, far)
    images = layout is not None and bool(image_folders.find(pattern, layout.labelled, far).images)
    kinds = {"images": images, "tars": bool(found)}
    if images or found:
        kinds["Parquet"] = bool(list_parquet(pattern)) and layout is not None
    if sum(kinds.values()) > 1:
        several = " or ".join(name for name, there in kinds.items() if there)
        raise ConfigError("input", pattern, f"hold either {several}, not both")
    if found:
        tars.check(pattern)
        return InputDescription(IMAGE_TARS, pattern, None, columns.label != "", columns=columns)
    if layout is None or not images:
        return None
    return InputDescription(IMAGE_FOLDER, pattern, None, layout.labelled, columns=columns)


def _single_image(pattern: str) -> str:
    return "a single image, or a glob of images" if image_names.is_image(pattern.rpartition("/")[2]) else ""


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
