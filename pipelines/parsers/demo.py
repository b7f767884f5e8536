"""The options of `dpgmm demo`."""

from pipelines.arguments import Parser


def parser() -> Parser:
    result = Parser(
        prog="dpgmm demo",
        description="Embeds Fashion-MNIST, releases it privately, trains on each release and on the real"
        " embeddings, and prints one table. A second run reuses the embeddings.",
    )
    result.add_argument("--work", default="demo", help="folder for everything that the demo makes")
    result.add_argument("--data", help="folder with Fashion-MNIST's files, where apt cannot bring them")
    result.add_argument("--epsilons", default="1,8", help="comma-separated")
    result.add_argument("--keys", type=int, default=3, help="releases at each epsilon, for the spread")
    return result
