"""The options of `dpgmm plan`."""

from dpgmm_beam.defaults import FAVORS, LABELS, ROUNDS
from pipelines import budget as budgets
from pipelines.arguments import Parser
from pipelines.columns import add_neighbours

REFERENCE = "Fashion-MNIST"


def parser() -> Parser:
    result = Parser(
        prog="dpgmm plan",
        description="What a release of so many rows would be like, before any data is read: noise against"
        " signal of every step, the accuracy to expect, what an attacker could gain, and what it would take"
        " to do better. --rows is your own public expectation: do not count private rows for it.",
        examples=(
            "dpgmm plan --rows 20000 --classes 10 --dimension 1280 --epsilon 1 --delta 1e-6",
            "dpgmm plan --rows 20000 --classes 10 --dimension 1280 --max-advantage .1 --png plan.png",
        ),
    )
    what = result.add_argument_group("what is planned")
    what.add_argument("--rows", type=int, required=True, help="images that are expected, of all classes")
    what.add_argument("--classes", type=int, required=True, help="how many, of one size")
    what.add_argument("--dimension", type=int, required=True, help="length of an embedding")
    budget = result.add_argument_group("privacy")
    budgets.add_options(budget)
    add_neighbours(budget)
    budget.add_argument(
        "--favor", choices=FAVORS, default=LABELS, help="what the budget is for (default: labels)"
    )
    budget.add_argument(
        "--share", action="append", default=[], metavar="NAME=NUMBER", help="of the budget, for one mechanism"
    )
    method = result.add_argument_group("method")
    method.add_argument("--components", type=int, help="Gaussians a class (default: by its noisy size)")
    method.add_argument("--rounds", type=int, help=f"clustering rounds (default: {ROUNDS})")
    method.add_argument("--decodable", metavar="SIDE", help="pictures are to be made of embeddings, so wide")
    more = result.add_argument_group("what is supposed and shown")
    more.add_argument(
        "--like",
        default=REFERENCE,
        metavar="DATA",
        help="Fashion-MNIST or digits: the public data set like whose embeddings yours are taken to lie",
    )
    more.add_argument(
        "--within", type=float, default=0.02, help="part of the accuracy above chance that noise may cost"
    )
    more.add_argument("--png", metavar="FILE", help="also draw it (needs the extra `plot`)")
    return result
