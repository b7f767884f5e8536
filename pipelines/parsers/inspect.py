"""The options of `dpgmm inspect`."""

from pipelines.arguments import Parser
from pipelines.columns import add_columns


def parser() -> Parser:
    result = Parser(
        prog="dpgmm inspect",
        description="Prints what an input holds, for its OWNER'S eyes: exact facts about private data."
        " Nothing is written anywhere, and nothing is spent. Run it before a release.",
        examples=(
            "dpgmm inspect --input photos/",
            "dpgmm inspect --input photos/ --classes cat,dog,bird --decode",
            "dpgmm inspect --input private/embeddings --encoder precomputed --classes classes.txt --json",
        ),
    )
    result.add_argument(
        "--input", required=True, help="what a release would read: images or embeddings, of any layout"
    )
    result.add_argument("--classes", help="the labels that will be declared: a,b,c or a file with one a line")
    result.add_argument("--encoder", help="as for embed and release; without it none is loaded")
    result.add_argument("--dimension", type=int, help="length of an embedding in a list column")
    result.add_argument(
        "--decode",
        action="store_true",
        help="read each row to its end: finds pictures that are cut or damaged, and embeddings that are no"
        " numbers. Without it headers and labels are read",
    )
    result.add_argument("--names", type=int, default=10, help="how many of what is left out are named")
    result.add_argument("--threads", type=int, default=0, help="0: as many as cores")
    add_columns(result)
    return result
