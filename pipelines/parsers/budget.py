"""The options of `dpgmm budget`."""

from pipelines.arguments import Parser


def parser() -> Parser:
    result = Parser(
        prog="dpgmm budget",
        description="What releases of the same people's data cost together, exactly, from their manifests"
        " alone; or, with --releases, what each of so many equal releases may cost.",
        examples=(
            "dpgmm budget releases/2026-01 releases/2026-02 releases/2026-03",
            "dpgmm budget --epsilon 4 --delta 1e-6 --releases 12",
        ),
    )
    result.add_argument("release", nargs="*", help="folders of releases")
    result.add_argument(
        "--delta", type=float, help="at which epsilon is stated (default: the releases' largest)"
    )
    result.add_argument("--epsilon", type=float, help="a total, to say what is left of it")
    result.add_argument("--releases", type=int, metavar="N", help="how many there are to be in all")
    return result
