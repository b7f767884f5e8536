"""The options of `dpgmm ledger`."""

from pipelines.arguments import Parser
from pipelines.folders import default_folder

ACTIONS = {
    "create": "a data set with its total",
    "show": "what is spent, what is left",
    "history": "every row, oldest first",
    "verify": "whether rows were changed, removed or cut off",
    "set-total": "another total, of no less than is spent",
    "close": "nothing more is released",
    "return": "gives back what an ended job was charged, if nothing was drawn",
    "forget-key": "destroys a release's key in its store",
}


def parser() -> Parser:
    result = Parser(
        prog="dpgmm ledger",
        description="One budget for all releases of a data set, on which `dpgmm release --ledger` draws."
        " Actions: " + "; ".join(f"{name}, {text}" for name, text in ACTIONS.items()) + ".",
        examples=(
            "dpgmm ledger create --ledger ledger.sqlite --dataset photos --epsilon 4 --delta 1e-6",
            "dpgmm ledger show --ledger ledger.sqlite --dataset photos",
            "dpgmm ledger verify --ledger postgresql://HOST/dpgmm --dataset photos --witness photos.seen",
        ),
    )
    result.add_argument("action", choices=tuple(ACTIONS), metavar="ACTION", help=", ".join(ACTIONS))
    where = result.add_argument_group("which")
    add_ledger(where)
    where.add_argument(
        "--witness", metavar="FILE", help="remembers the last row, and notices a restored backup"
    )
    total = result.add_argument_group("create and set-total")
    total.add_argument("--epsilon", type=float, help="the total of all releases, with --delta")
    total.add_argument("--delta", type=float, help="well under one over the number of rows")
    total.add_argument(
        "--privacy-unit", default="", help="whom it is of, as manifests say (default: the first)"
    )
    one = result.add_argument_group("return and forget-key")
    one.add_argument("--release-id", help="of which release")
    one.add_argument("--private-dir", help=f"in which it was made (default: {default_folder()})")
    one.add_argument(
        "--release-key-store", metavar="STORE", help="where its key is: a folder, or vault:MOUNT/PATH"
    )
    return result


def add_ledger(group) -> None:
    """Adds the options that name a data set of a ledger."""
    group.add_argument(
        "--ledger", metavar="URL", help="path of a SQLite file, sqlite:///PATH or postgresql://HOST/DATABASE"
    )
    group.add_argument("--dataset", metavar="NAME", help="data set whose budget is drawn on")
    group.add_argument(
        "--ledger-key-file", metavar="FILE", help="32 secret bytes that sign rows, from `create` on"
    )
