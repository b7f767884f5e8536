"""dpgmm ledger: the budget of a data set, made, looked at, checked and closed."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.composition import epsilon_of
from pipelines import cli, key_store, paths, private
from pipelines.ledger import account as accounts
from pipelines.ledger import places
from pipelines.ledger.account import Account, Charge
from pipelines.ledger.book import Book
from pipelines.parsers.ledger import parser
from transforms.files import gate
from transforms.files.private import is_local

__all__ = ["main", "parser"]


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    for option, actions in _OF_ACTIONS.items():
        if getattr(arguments, option) and arguments.action not in actions:
            raise ConfigError(
                f"--{option.replace('_', '-')}",
                getattr(arguments, option),
                f"be left out of `dpgmm ledger {arguments.action}`",
            )
    if arguments.release_id is not None:
        private.check_release_id(arguments.release_id)
    if arguments.action == "forget-key":
        return _forget_key(arguments)
    for option in ("ledger", "dataset"):
        if getattr(arguments, option) is None:
            raise ConfigError(f"--{option}", "(not given)", f"be given to `dpgmm ledger {arguments.action}`")
    if arguments.witness is not None:
        paths.check_path("--witness", arguments.witness)
    return _ACTIONS[arguments.action](arguments, _book(arguments))


_OF_ACTIONS = {
    "epsilon": ("create", "set-total"),
    "delta": ("create", "set-total"),
    "privacy_unit": ("create",),
    "release_id": ("return", "forget-key"),
    "private_dir": ("return",),
    "release_key_store": ("forget-key",),
}


def _book(arguments: argparse.Namespace, *witnesses: str) -> Book:
    named = [arguments.witness] if arguments.witness is not None else []
    return Book(arguments.ledger, arguments.dataset, arguments.ledger_key_file, [*named, *witnesses])


def _total(arguments: argparse.Namespace) -> tuple[float, float]:
    for option in ("epsilon", "delta"):
        if getattr(arguments, option) is None:
            raise ConfigError(f"--{option}", "(not given)", f"be given to `dpgmm ledger {arguments.action}`")
    return arguments.epsilon, arguments.delta


def _create(arguments: argparse.Namespace, book: Book) -> int:
    epsilon, delta = _total(arguments)
    book.create(epsilon, delta, arguments.privacy_unit)
    cli.report(
        f"created {book.dataset}: epsilon {epsilon:g} at delta {delta:g} for all its releases together",
        **_facts(book.account()),
    )
    return 0


def _set_total(arguments: argparse.Namespace, book: Book) -> int:
    epsilon, delta = _total(arguments)
    book.set_total(epsilon, delta)
    cli.report(
        f"{book.dataset}: epsilon {epsilon:g} at delta {delta:g} from now on", **_facts(book.account())
    )
    return 0


def _close(arguments: argparse.Namespace, book: Book) -> int:
    book.close()
    cli.report(f"closed {book.dataset}: nothing more is released", **_facts(book.account()))
    return 0


def _show(arguments: argparse.Namespace, book: Book) -> int:
    account = book.account()
    facts = _facts(account)
    cli.report(
        f"{account.dataset}: epsilon {account.spent_epsilon():.4g} of {account.epsilon:g} at delta"
        f" {account.delta:g} is spent or reserved" + (", and it is closed" if account.closed else ""),
        **facts,
    )
    cli.say(
        f"  of: {account.privacy_unit or 'the unit of the first release'}; {account.adjacency or 'none yet'}"
    )
    states = facts["releases_by_state"]
    counts = ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
    cli.say(f"  releases: {counts}")
    for each in facts["slices"]:
        cli.say(
            f"  slice {each['slice']}: epsilon {each['spent_epsilon']:.4g} is spent or reserved,"
            f" one release of up to {each['left_epsilon']:g} is left"
        )
    if account.closed:
        return 0
    most = facts["left_epsilon"]
    cli.say(
        f"  left: one release of the whole of up to epsilon {most:g} at delta {account.delta:g}"
        if most
        else "  left: nothing that could be released"
    )
    if (last := account.last) is not None:
        cli.say(
            f"  {facts['more_like_last']} more like the last one ({last.release_id}: epsilon {last.epsilon:g}"
            f" at delta {last.delta:g}) fit"
        )
    return 0


def _facts(account: Account) -> dict[str, Any]:
    """What an account says, for machines."""
    states: dict[str, int] = {}
    for charge in account.charges.values():
        states[charge.state] = states.get(charge.state, 0) + 1
    last = account.last
    return {
        "dataset": account.dataset,
        "epsilon": account.epsilon,
        "delta": account.delta,
        "spent_epsilon": account.spent_epsilon(),
        "left_epsilon": 0.0 if account.closed else account.left_epsilon(account.delta),
        "closed": account.closed,
        "signed": bool(account.signer),
        "privacy_unit": account.privacy_unit,
        "adjacency": account.adjacency,
        "more_like_last": account.more_like(last) if last and not account.closed else None,
        "slices": [
            {
                "slice": name,
                "spent_epsilon": account.spent_epsilon(name),
                "left_epsilon": 0.0 if account.closed else account.left_epsilon(account.delta, name),
            }
            for name in sorted(account.spending.slices)
        ],
        "releases_by_state": states,
        "releases": [_release(account, charge) for charge in account.charges.values()],
    }


def _release(account: Account, charge: Charge) -> dict[str, Any]:
    return {
        "release_id": charge.release_id,
        "state": charge.state,
        "slice": charge.slice_name,
        "epsilon": charge.epsilon,
        "delta": charge.delta,
        "epsilon_at_total_delta": epsilon_of(charge.cost, account.delta),
        "reserved": charge.time,
        "key_forgotten": charge.release_id in account.forgotten,
    }


def _history(arguments: argparse.Namespace, book: Book) -> int:
    rows = book.history()
    cli.report(f"{book.dataset}: {len(rows)} rows", dataset=book.dataset, history=rows)
    for row in rows:
        cli.say(_line(row))
    return 0


def _line(row: dict[str, Any]) -> str:
    about = str(row.get("release_id", ""))
    if "epsilon" in row:
        # As it stands: a row that was tampered with may say anything.
        about += f" epsilon {row['epsilon']} at delta {row.get('delta')}"
    if row.get("slice"):
        about += f" of slice {row['slice']}"
    return (
        f"{row.get('number', '?'):>5}  {row.get('time', '?')}  {row.get('kind', '?'):<13}  {about.strip()}"
        f"  by {row.get('by', '?')}  {row['hash'][:12]}"
    )


def _verify(arguments: argparse.Namespace, book: Book) -> int:
    problems = book.problems()
    for problem in problems:
        cli.report(f"NOT VERIFIED: {problem}", verified=False, problems=problems)
    if problems:
        return 1
    account = book.account()
    rows = book.history()
    unchecked = account.signer and arguments.ledger_key_file is None
    cli.report(
        f"verified: {len(rows)} rows follow each other, and compose to epsilon"
        f" {account.spent_epsilon():.4g} at delta {account.delta:g}, of {account.epsilon:g}",
        verified=True,
        problems=[],
        rows=len(rows),
        signatures_checked=bool(account.signer) and not unchecked,
        **_facts(account),
    )
    if unchecked:
        cli.warn("the rows are signed, and signatures are checked with --ledger-key-file only")
    if arguments.witness is None:
        cli.note("rows cut off at the end, as by an older backup, are noticed with --witness FILE only")
    return 0


def _return(arguments: argparse.Namespace, book: Book) -> int:
    if arguments.release_id is None:
        raise ConfigError("--release-id", "(not given)", "be given to `dpgmm ledger return`")
    private_dir = private.check_folder(arguments.private_dir)
    book = _book(arguments, places.witness(private_dir, book.store, book.dataset))
    account = book.account()
    charge = account.named(arguments.release_id)
    if charge is None:
        raise ConfigError(
            "--release-id", arguments.release_id, "be a release that was charged and not given back"
        )
    here = is_local(private_dir) and charge.facts.get("place") == places.known_place(private_dir)
    if charge.state == accounts.DRAWING and not here:
        raise ConfigError(
            "--private-dir",
            private_dir,
            "be the folder in which the release was begun: only there it can be told that nothing was drawn",
        )
    if not book.give_back(charge, lambda: gate.shut(places.gate(private_dir, charge.token))):
        raise ConfigError(
            "--release-id",
            arguments.release_id,
            "be of a job that drew nothing, and noise may have been drawn",
        )
    cli.report(
        f"gave back what {arguments.release_id} was charged: nothing was drawn", **_facts(book.account())
    )
    return 0


def _forget_key(arguments: argparse.Namespace) -> int:
    for option in ("release-id", "release-key-store"):
        if getattr(arguments, option.replace("-", "_")) is None:
            raise ConfigError(f"--{option}", "(not given)", "be given to `dpgmm ledger forget-key`")
    if (arguments.ledger is None) != (arguments.dataset is None):
        raise ConfigError("--dataset", arguments.dataset, "come together with --ledger")
    book = _book(arguments) if arguments.ledger is not None else None
    if book is not None:
        # A data set that is not there is refused before a key is gone.
        book.account()
    store = key_store.store_of(arguments.release_key_store)
    there = store.forget(arguments.release_id)
    if book is not None:
        book.forget(arguments.release_id)
    what = "destroyed the key of" if there else "there was no key, and there will be none, of"
    cli.report(f"{what} {arguments.release_id}", release_id=arguments.release_id, destroyed=there)
    return 0


_ACTIONS: dict[str, Callable[[argparse.Namespace, Book], int]] = {
    "create": _create,
    "show": _show,
    "history": _history,
    "verify": _verify,
    "set-total": _set_total,
    "close": _close,
    "return": _return,
}


if __name__ == "__main__":
    sys.exit(cli.run(main))
