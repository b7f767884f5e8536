"""The options that name columns of an input; several verbs have them."""

# What is imported here delays every `dpgmm VERB --help`: neither Beam nor numpy.
import argparse

from transforms.files.columns import Columns

IMAGE, LABEL, EMBEDDING = "image", "label", "embedding"

_HELP = {
    IMAGE: "of encoded images in Parquet",
    LABEL: "of labels in Parquet or arrays; '' where there are none, and all rows are one class",
    EMBEDDING: "of embeddings in Parquet or arrays",
}


def add_columns(parser: argparse.ArgumentParser, *which: str) -> None:
    """Adds `--image-column`, `--label-column` and `--embedding-column`, or those that are wanted."""
    group = parser.add_argument_group("columns of the input (a.b is field b of column a)")
    for name in which or _HELP:
        group.add_argument(
            f"--{name}-column", default=getattr(Columns, name), metavar="NAME", help=_HELP[name]
        )


def columns_of(arguments: argparse.Namespace) -> Columns:
    """What the options say.

    Raises:
      ConfigError: a name that can't be one.
    """
    named = {name: getattr(arguments, f"{name}_column", None) for name in _HELP}
    return Columns(**{name: value for name, value in named.items() if value is not None})
