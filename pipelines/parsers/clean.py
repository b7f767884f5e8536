"""The options of `dpgmm clean`."""

from pipelines.arguments import Parser
from pipelines.folders import default_folder


def parser() -> Parser:
    result = Parser(
        prog="dpgmm clean",
        description="Removes prepared rows, states and drawn keys of runs that are finished or were"
        " interrupted. Runs of living drivers on this machine, embeddings and your own keys stay. An"
        " interrupted run can't be continued afterwards: it is drawn anew, at the price of a release.",
        examples=("dpgmm clean", "dpgmm clean --private-dir /private/state"),
    )
    result.add_argument("--private-dir", help=f"local private folder (default: {default_folder()})")
    return result
