"""The options that name columns of an input; several verbs have them."""

# What is imported here delays every `dpgmm VERB --help`: neither Beam nor numpy.
import argparse

from dpgmm_beam.defaults import ADJACENCIES, AUTO
from dpgmm_beam.errors import ConfigError
from transforms.files.columns import MAX_LEVEL, Columns

IMAGE, LABEL, EMBEDDING, UNIT = "image", "label", "embedding", "unit"

_HELP = {
    IMAGE: "of encoded images in Parquet",
    LABEL: "of labels in Parquet or arrays; '' where there are none, and all rows are one class",
    EMBEDDING: "of embeddings in Parquet or arrays",
}


def add_columns(parser: argparse.ArgumentParser, *which: str) -> None:
    """Adds `--image-column`, `--label-column` and `--embedding-column`, or those that are wanted."""
    group = parser.add_argument_group("columns of the input (a.b is field b of column a)")
    for name in which or (*_HELP, UNIT):
        if name != UNIT:
            group.add_argument(
                f"--{name}-column", default=getattr(Columns, name), metavar="NAME", help=_HELP[name]
            )
            continue
        group.add_argument(
            "--privacy-unit-column",
            default=Columns.unit,
            metavar="NAME",
            help="of ids of people (or whatever is protected as a whole), in Parquet, arrays, lists and tars;"
            " default: each row is one of its own",
        )
        group.add_argument(
            "--privacy-unit-level",
            type=int,
            metavar="N",
            help="the same for folders of images: the N-th folder below the label's is a person",
        )


def columns_of(arguments: argparse.Namespace) -> Columns:
    """What the options say.

    Raises:
      ConfigError: a name that can't be one.
    """
    named = {name: getattr(arguments, f"{name}_column", None) for name in _HELP}
    return Columns(
        **{name: value for name, value in named.items() if value is not None},
        unit=getattr(arguments, "privacy_unit_column", Columns.unit),
        unit_level=_level(getattr(arguments, "privacy_unit_level", None)),
    )


def _level(given: int | None) -> int:
    if given == 0:
        # Which would mean that none was given.
        raise ConfigError("privacy_unit_level", given, f"be a whole number from 1 to {MAX_LEVEL}")
    return given or Columns.unit_level


def check_units(columns: Columns, max_rows_per_unit: int | str | None) -> None:
    """Raises ConfigError unless units are named and their rows bounded, or neither."""
    if columns.has_units and max_rows_per_unit is None:
        raise ConfigError(
            "max_rows_per_unit",
            "(not given)",
            "be given with a privacy unit, whose rows it bounds: noise is so many times as large",
        )
    if max_rows_per_unit is not None and not columns.has_units:
        raise ConfigError(
            "max_rows_per_unit",
            max_rows_per_unit,
            "come with --privacy-unit-column or --privacy-unit-level, which say whose each row is",
        )


def add_slice(group: argparse._ArgumentGroup) -> None:
    """Adds `--slice`."""
    group.add_argument(
        "--slice",
        metavar="K/N",
        help="release the K-th of N parts of all people, into which ids fall by their hashes: releases of"
        " different parts are of different people",
    )


def _number_or_auto(text: str) -> int | str:
    try:
        return text if text == AUTO else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"it must be a whole number or {AUTO}, not {text!r}") from None


def add_neighbours(group: argparse._ArgumentGroup, auto: bool = False) -> None:
    """Adds `--max-rows-per-unit` and `--adjacency`, which say what is protected.

    Args:
      auto: whether the bound may be found.
    """
    group.add_argument(
        "--max-rows-per-unit",
        type=_number_or_auto if auto else int,
        metavar="L",
        help="rows of a privacy unit that count, over all classes; noise is L times that of single rows"
        + ("; auto: as a noisy histogram says, which the budget pays" if auto else ""),
    )
    group.add_argument(
        "--adjacency",
        choices=ADJACENCIES,
        default=ADJACENCIES[0],
        help="what epsilon is for: a unit that comes or goes, or one in the place of another, which takes"
        " up to twice the noise",
    )
