"""The options of `dpgmm report`."""

from pipelines.arguments import Parser
from pipelines.columns import EMBEDDING, LABEL, add_columns


def parser() -> Parser:
    result = Parser(
        prog="dpgmm report",
        description="Writes a release as one HTML file that people can read: what was promised, where the"
        " budget went, noisy class sizes, the shape of the mixture, synthetic rows, how to use and verify"
        " them. It is made from the release alone, as public as that, and opens without a network.\n\n"
        "What --network and --private-embeddings add comes from real rows, so it goes into a second file,"
        " NAME.private.html, that only its owner can read (mode 0600). Keep that file to yourself: it is"
        " exact, and not differentially private.",
        examples=(
            "dpgmm report --release release --output report.html",
            "dpgmm report --release release --network network --private-embeddings private/embeddings"
            " --output report.html",
        ),
    )
    result.add_argument("--release", required=True, help="folder of the release; it is verified first")
    result.add_argument("--output", required=True, metavar="FILE.html", help="the page; its folder is made")
    result.add_argument(
        "--network", help="folder that dpgmm train wrote: its tests on real rows (private file)"
    )
    result.add_argument(
        "--private-embeddings",
        metavar="EMBEDDINGS",
        help="real embeddings in Parquet or arrays by file, folder or glob, best the ones that the release"
        " was made from: likeness of synthetic rows to them (private file)",
    )
    result.add_argument("--overwrite", action="store_true", help="replace pages that are there")
    add_columns(result, LABEL, EMBEDDING)
    return result
