"""The options of `dpgmm release`."""

from dpgmm_beam.defaults import BLOCK_ROWS, FAVORS, LABELS, ROUNDS, SAMPLES_PER_CLASS
from pipelines import budget as budgets
from pipelines.arguments import Parser
from pipelines.columns import add_columns, add_neighbours, add_slice
from pipelines.folders import default_folder
from pipelines.parsers.ledger import add_ledger


def parser() -> Parser:
    result = Parser(
        prog="dpgmm release",
        description="Images or embeddings in, a differentially private release out: a mixture and synthetic,"
        " labelled embeddings. Run again, it goes on where it was interrupted.",
        examples=(
            "dpgmm release --input photos/ --encoder efficientnet_lite0 --classes cat,dog,bird \\\n"
            "      --epsilon 1 --delta 1e-6 --output release",
            "dpgmm release --config november.yaml --release-id 2026-11 --output releases/2026-11",
        ),
        beam=True,
    )
    what = result.add_argument_group("what is released")
    what.add_argument(
        "--input",
        required=True,
        help="images (folder of LABEL/*.png|jpg|..., .csv or .jsonl list, tars) or rows (Parquet, arrays)",
    )
    what.add_argument(
        "--encoder",
        required=True,
        help="efficientnet_lite0, open_clip:MODEL/PRETRAINED, scattering:SIDE, dct:SIDE, or your own;"
        " precomputed: rows are embeddings",
    )
    what.add_argument("--classes", required=True, help="the declared labels: a,b,c or a file with one a line")
    what.add_argument("--output", required=True, help="folder of the release; appears whole or not at all")
    what.add_argument(
        "--samples-per-class",
        type=int,
        default=SAMPLES_PER_CLASS,
        help="synthetic rows of each class",
    )
    add_columns(result)
    budget = result.add_argument_group("privacy")
    budgets.add_options(budget)
    add_neighbours(budget, auto=True)
    add_slice(budget)
    budget.add_argument("--noise-key-file", help="32 secret bytes, with --release-id; else drawn and dropped")
    budget.add_argument(
        "--release-key-store",
        metavar="STORE",
        help="instead: a folder, or vault:MOUNT/PATH, that keeps a drawn key for each --release-id",
    )
    budget.add_argument("--release-id", help="public name of this one publication, never used twice")
    budget.add_argument("--private-dir", help=f"runs, rows, embeddings (default: {default_folder()})")
    budget.add_argument(
        "--favor", choices=FAVORS, default=LABELS, help="what the budget is for (default: labels)"
    )
    budget.add_argument(
        "--share", action="append", default=[], metavar="NAME=NUMBER", help="of the budget, for one mechanism"
    )
    budget.add_argument(
        "--no-teacher",
        action="store_true",
        help="spend nothing on a teacher: labels are a discriminant's, of the means and the covariance",
    )
    drawn_on = result.add_argument_group("budget of the data set (docs/budget.md)")
    add_ledger(drawn_on)
    method = result.add_argument_group("method")
    method.add_argument("--components", type=int, help="Gaussians a class (default: by its noisy size)")
    method.add_argument("--rounds", type=int, help=f"clustering rounds (default: {ROUNDS})")
    method.add_argument(
        "--clip-norm", type=float, help="clip embeddings to it instead of normalising them to 1"
    )
    method.add_argument(
        "--decodable",
        metavar="SIDE",
        help="release what makes pictures of embeddings, too, SIDE pixels wide (28, or 28:rgb in colour); a"
        " tenth of the budget",
    )
    method.add_argument("--dimension", type=int, help="length of an embedding in a list column")
    running = result.add_argument_group("running (these never change the release)")
    running.add_argument("--overwrite", action="store_true", help="replace a release that is in --output")
    running.add_argument("--restart", action="store_true", help="drop what an interrupted run has done")
    running.add_argument(
        "--threads", type=int, default=0, help="of one process; 0: as many as cores, or 1 on a cluster"
    )
    running.add_argument("--block-rows", type=int, default=BLOCK_ROWS, help="rows in a numpy block")
    return result
