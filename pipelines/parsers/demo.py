"""The options of `dpgmm demo`."""

from pipelines.arguments import Parser

SIZE = 64
"""Pixels that an image is embedded at, unless --full."""


def parser() -> Parser:
    result = Parser(
        prog="dpgmm demo",
        description="Embeds Fashion-MNIST, releases it privately, trains on each release and on the real"
        " embeddings, prints one table and draws a sheet of private pictures. A second run reuses the"
        " embeddings. Where Fashion-MNIST can't be"
        " had, it runs on small images of an installed package and says so.",
        examples=(
            "dpgmm demo",
            "dpgmm demo --full                  # the table of the README: 6 to 11 minutes on 2 cores",
            "dpgmm demo --data fashion-mnist/   # a folder with the data set's four files",
        ),
        beam=True,
    )
    result.add_argument("--work", default="demo", help="folder for everything that the demo makes")
    result.add_argument("--data", help="folder with Fashion-MNIST's files, where apt cannot bring them")
    result.add_argument("--epsilons", default="1,8", help="comma-separated")
    result.add_argument("--keys", type=int, help="releases at each epsilon, for the spread (default: 1)")
    result.add_argument(
        "--size", type=int, help=f"pixels that images are embedded at: fewer are faster (default: {SIZE})"
    )
    result.add_argument("--full", action="store_true", help="as --keys 3 and the encoder's own 128 pixels")
    return result
