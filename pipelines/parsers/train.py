"""The options of `dpgmm train`."""

from dpgmm_beam.data.schema import PROBABILITIES
from dpgmm_beam.recipe import METRICS_FILE, MODEL_FILE, TrainConfig
from pipelines.arguments import Parser, add_recipe
from pipelines.columns import EMBEDDING, LABEL, add_columns

RECIPE = {
    "hidden": "units of the hidden layer",
    "epochs": "passes over the rows",
    "batch_size": "rows of a step",
    "learning_rate": "of Adam at the start; it falls to 0 along a half cosine",
    "label_temperature": "of soft labels; above 1 they are less sure",
    "seed": "of the first weights and of the order of rows",
}


def parser() -> Parser:
    result = Parser(
        prog="dpgmm train",
        description="Trains the two-layer network on a release (or on real embeddings, for comparison) and"
        " tests it on real embeddings. The defaults are fixed: they were not chosen on a test set.",
        examples=("dpgmm train --synthetic release --test private/test-embeddings --output network",),
    )
    result.add_argument(
        "--synthetic",
        required=True,
        help="a release, or Parquet by file, folder or glob with columns 'label' and 'embedding'",
    )
    result.add_argument(
        "--test", required=True, help="Parquet or arrays of real rows, e.g. what dpgmm embed wrote"
    )
    result.add_argument("--output", required=True, help=f"folder for {MODEL_FILE} and {METRICS_FILE}")
    result.add_argument("--overwrite", action="store_true", help="replace a training that is in --output")
    result.add_argument(
        "--labels",
        choices=("auto", "hard", "soft"),
        default="auto",
        help=f"train on 'label' (hard) or a release's '{PROBABILITIES}' (soft); auto: soft for a release",
    )
    rows = result.add_argument_group("rows that are not a release's, which states these itself")
    rows.add_argument("--clip-norm", type=float, help="clip embeddings to it instead of bringing them to 1")
    rows.add_argument("--dimension", type=int, help="length of an embedding in a list column")
    add_columns(result, LABEL, EMBEDDING)
    add_recipe(result, TrainConfig, RECIPE)
    return result
