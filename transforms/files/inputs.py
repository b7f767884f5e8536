"""What an input is.

`describe_input` is what the driver calls before anything runs: it reads
listings, Parquet schemas and some footers, never a row.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import pyarrow as pa

from dpgmm_beam.data.schema import UNIT
from dpgmm_beam.errors import ConfigError
from transforms.files import arrays, image_folders, image_lists, image_names, tables, tars
from transforms.files.arrays import EMBEDDING_ARRAYS
from transforms.files.columns import DEFAULT_COLUMNS, Columns
from transforms.files.finding import InputFile, absolute, is_array, is_folder, is_table, list_tables
from transforms.files.image_folders import IMAGE_FOLDER
from transforms.files.image_lists import IMAGE_LIST
from transforms.files.opening import reading
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

# Names of files that are often given and never read.
_SINGLE = dict.fromkeys(("zip", "7z", "rar"), "an archive: unpack it and name the folder, or make it a tar")

_WANTED = (
    "be a folder of LABEL/*.png|jpg|... images, a .csv or .jsonl list of images, .tar files of images, or"
    " Parquet or arrays (.npz, embeddings.npy and labels.npy) by file, folder or glob"
)


@dataclasses.dataclass(frozen=True)
class InputDescription:
    """What an input was found to be.

    Attributes:
      kind: IMAGE_FOLDER, IMAGE_LIST, IMAGE_TARS, IMAGE_PARQUET, EMBEDDING_PARQUET or EMBEDDING_ARRAYS.
      pattern: the input as workers may use it (an absolute path, where local).
      dimension: length of an embedding; None for images.
      labelled: whether there are labels.  An unlabelled data set is one class.
      encoder: the encoder named inside the files, where they name one.
      rows: how many there are, bad ones included, where the driver knows.  Never shown.
      columns: names of its columns: of a table, a list or what a tar has of them.
      pictures: form of the pictures beside embeddings, where these are asked for; None where there are none,
        "" where there are no files either.
      unused_units: whether embeddings were written with ids of privacy units, which nobody has named.
    """

    kind: str
    pattern: str
    dimension: int | None
    labelled: bool
    encoder: str | None = None
    rows: int | None = None
    columns: Columns = DEFAULT_COLUMNS
    unused_units: bool = False
    pictures: str | None = None

    @property
    def holds_embeddings(self) -> bool:
        """Whether its rows are embeddings already."""
        return self.kind in (EMBEDDING_PARQUET, EMBEDDING_ARRAYS)


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
      pattern: a folder of images or a glob of such, a list of images, tars, or
        Parquet or arrays by file, folder or glob.
      encoder: the encoder's spec.
      dimension: needed only for embeddings in plain lists whose
        length the footers can't tell.
      columns: names of the columns of a table, a list or a tar's members.

    Raises:
      ConfigError: see the sentences below.
    """
    if not pattern:
        raise ConfigError("input", pattern, _WANTED)
    pattern = absolute(pattern)
    if not pattern.strip("/"):
        raise ConfigError("input", pattern, _WANTED)
    by_name = not is_folder(pattern)
    found = _described(pattern, by_name, encoder, dimension, columns)
    _check_units(found)
    return found


def _check_units(found: InputDescription) -> None:
    """Raises ConfigError where privacy units are named in a way that this kind of input does not have."""
    columns = found.columns
    if found.kind != IMAGE_FOLDER:
        if columns.unit_level:
            raise ConfigError(
                "privacy_unit_level",
                columns.unit_level,
                "be left out, for the input is no folder of images: a privacy_unit_column has the ids",
            )
    elif columns.unit:
        raise ConfigError(
            "privacy_unit_column",
            columns.unit,
            "be left out of folders of images, where a privacy_unit_level says whose folder it is",
        )
    elif columns.unit_level and not found.labelled:
        raise ConfigError("privacy_unit_level", columns.unit_level, "be left out, for there are no folders")


def _described(
    pattern: str, by_name: bool, encoder: str, dimension: int | None, columns: Columns
) -> InputDescription:
    if by_name and image_lists.is_list(pattern):
        _refuse_precomputed(pattern, encoder, "is a list of images; embeddings come as Parquet, .npz or .npy")
        _refuse_dimension(dimension)
        labelled = image_lists.labelled(pattern, columns)
        return InputDescription(IMAGE_LIST, pattern, None, labelled, columns=columns)
    if by_name and (kind := _SINGLE.get(image_names.suffix_of(pattern)) or _single_image(pattern)):
        raise ConfigError("input", pattern, f"{_WANTED}; this is {kind}")
    tables = [] if by_name and tars.is_tar(pattern) else list_tables(pattern)
    # Listed once for all of it: a store may need minutes.
    far = None if is_local(pattern) else image_folders.far_files(pattern)
    packed = tars.list_tars(pattern, far)
    layout = image_folders.layout(pattern, far)
    if layout is not None:
        # What lies beside folders counts by its name.
        tables = [file for file in tables if is_table(file.path)]
    parquet = [file.path for file in tables if not is_array(file.path)]
    vectors = [file.path for file in arrays.embedding_files(tables, columns)]
    # Pictures beside tables, in no label's folder, are no data.
    images = (
        layout is not None
        and (layout.labelled or not tables)
        and bool(image_folders.list_images(pattern, layout.labelled, far))
    )
    kinds = {"images": images, "tars": packed, "Parquet files": parquet, "arrays": vectors}
    several = [name for name, there in kinds.items() if there]
    if len(several) > 1:
        raise ConfigError("input", pattern, f"hold either {' or '.join(several)}, not both")
    if parquet:
        return _describe_parquet(pattern, parquet, encoder, dimension, columns)
    if vectors:
        return _describe_arrays(pattern, vectors, encoder, dimension, columns)
    if packed:
        _refuse_precomputed(pattern, encoder)
        _refuse_dimension(dimension)
        tars.check(pattern)
        return InputDescription(IMAGE_TARS, pattern, None, columns.label != "", columns=columns)
    if images:
        _refuse_precomputed(pattern, encoder)
    elif tables:
        raise ConfigError(
            "input",
            pattern,
            "be a folder that holds its arrays as embeddings.npy and labels.npy, or as the names that are"
            f" stated as its embedding_column and label_column; {tables[0].path} is none of them",
        )
    elif layout is None:
        raise ConfigError("input", pattern, f"match something: {_WANTED}")
    elif encoder == "precomputed":
        if dimension is None:
            raise ConfigError(
                "input", pattern, "hold Parquet files, or be an empty data set: state its dimension then"
            )
        pictures = "" if columns.picture else None
        return InputDescription(
            EMBEDDING_PARQUET, pattern, dimension, True, rows=0, columns=columns, pictures=pictures
        )
    _refuse_dimension(dimension)
    assert layout is not None
    if by_name and not layout.labelled:
        raise ConfigError(
            "input",
            pattern,
            f"match folders that hold a folder for each label; {layout.roots[0]} holds none: if it is a"
            " label's, name the folder that it is in",
        )
    return InputDescription(IMAGE_FOLDER, pattern, None, layout.labelled, columns=columns)


def _single_image(pattern: str) -> str:
    return "a single image, or a glob of images" if image_names.is_image(pattern.rpartition("/")[2]) else ""


def labels_of(description: InputDescription) -> Iterator[pa.Array]:
    """The labels of all rows of a table, good and bad, some thousands at a time, file by file.

    For the owner's eyes: they are exact.  Nothing comes of a table without labels.

    Returns:
      Arrays of text, plain or as dictionaries, of integers (7 is the label "7"),
      or of nulls, as `rows.label_indices` takes them.  Text need not be UTF-8.

    Raises:
      OSError, RuntimeError: a file can't be read; without a value from it.
    """
    if not description.labelled:
        return
    columns = description.columns
    files = tables.list_files(description.pattern, columns)
    # As the prepare step has it: a file of several names is read once, under the first.
    once = {_identity(file): file for file in reversed(files)}
    for file in sorted(once.values(), key=lambda file: file.path):
        with reading(file.path):
            yield from tables.labels(file.path, description.kind, columns)


def _identity(file: InputFile) -> str:
    """What two names of one file share."""
    return file.pin if is_local(file.path) else file.path


def _refuse_precomputed(pattern: str, encoder: str, what: str = "holds images") -> None:
    if encoder == "precomputed":
        raise ConfigError("encoder", encoder, f"name a model, because the input {pattern} {what}")


def _refuse_dimension(dimension: int | None) -> None:
    if dimension is not None:
        raise ConfigError("dimension", dimension, "be left out for images: the encoder sets it")


def _describe_parquet(
    pattern: str, paths: Sequence[str], encoder: str, dimension: int | None, columns: Columns
) -> InputDescription:
    found = list(agreeing(pattern, paths[:DRIVER_FOOTERS], encoder, columns))
    footers, agreed = [footer for footer, _ in found], found[-1][1]
    rows = sum(footer.metadata.num_rows for footer in footers)
    check_rows(pattern, rows)
    labelled = agreed.label is not None
    if agreed.kind == IMAGE_PARQUET:
        _refuse_precomputed(pattern, encoder)
        _refuse_dimension(dimension)
        length = None
    else:
        if encoder not in ("precomputed", agreed.encoder):
            stored = f" or {agreed.encoder}, which the files name" if agreed.encoder else ""
            raise ConfigError(
                "encoder", encoder, f"be precomputed{stored}, because the input {pattern} holds embeddings"
            )
        length = embedding_length(pattern, agreed.type, footers, dimension)
    for footer in footers:
        check_sizes(pattern, footer, agreed.kind, length)
    if agreed.kind == IMAGE_PARQUET:
        return InputDescription(IMAGE_PARQUET, pattern, None, labelled, columns=columns)
    known = rows if len(found) == len(paths) else None
    names = footers[0].metadata.schema.to_arrow_schema().names
    unused = bool(agreed.encoder) and UNIT in names and not columns.unit
    return InputDescription(
        EMBEDDING_PARQUET, pattern, length, labelled, agreed.encoder, known, columns, unused, agreed.picture
    )


def _describe_arrays(
    pattern: str, paths: Sequence[str], encoder: str, dimension: int | None, columns: Columns
) -> InputDescription:
    if encoder != "precomputed":
        raise ConfigError("encoder", encoder, f"be precomputed, because the input {pattern} holds embeddings")
    found = list(arrays.agreeing(pattern, paths[:DRIVER_FOOTERS], columns))
    rows = sum(sum(each.row_groups) for each in found)
    check_rows(pattern, rows)
    length = found[0].dimension
    if dimension not in (None, length):
        raise ConfigError("dimension", dimension, f"be {length}, the length of the embeddings")
    known = rows if len(found) == len(paths) else None
    labelled = found[0].label_kind is not None
    return InputDescription(EMBEDDING_ARRAYS, pattern, length, labelled, None, known, columns)
