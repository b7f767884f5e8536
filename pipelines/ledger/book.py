"""What is done to a data set of a ledger; each of it one transaction."""

import contextlib
import datetime
import getpass
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy import accounting
from dpgmm_beam.privacy.composition import allowance, epsilon_of, has_place, together
from pipelines import cli
from pipelines.ledger import account as accounts
from pipelines.ledger import chain
from pipelines.ledger.account import Account, Charge, account_of
from pipelines.ledger.chain import Signer, Witness
from pipelines.ledger.store import Row, Store
from pipelines.ledger.wanted import Wanted, charge_of

MAX_NAME = 200
"""Characters of the name of a data set."""

_CLOCK_SLACK = datetime.timedelta(minutes=5)


class Book:
    """A data set of a ledger.

    Args:
      url: of the ledger.
      dataset: the name.
      key_file: that signs; None where nothing is signed.
      witnesses: files that remember the last row.
    """

    def __init__(self, url: str, dataset: str, key_file: str | None = None, witnesses: Sequence[str] = ()):
        check_name("--dataset", dataset)
        self.store = Store(url)
        self.dataset = dataset
        self._signer = Signer(key_file)
        self._witnesses = [Witness(path) for path in witnesses]

    # --- Reading ---------------------------------------------------------------------------------

    def account(self) -> Account:
        """The data set as it is.

        Raises:
          ConfigError: there is none, its rows are no chain, or are older than what was seen.
          LedgerError: the ledger can't be reached.
        """
        return self._checked(self.store.reading(self.dataset))

    def history(self) -> list[dict[str, Any]]:
        """What the rows say, oldest first.

        Raises:
          ConfigError, LedgerError: it can't be read.
        """
        return [chain.content_of(row) | {"hash": row.hash} for row in self.store.reading(self.dataset)]

    def problems(self) -> list[str]:
        """What is wrong with the ledger, in sentences; [] where nothing is.

        What was signed and is not checked, for want of a key, is a problem of the caller.

        Raises:
          ConfigError, LedgerError: it can't be read.
        """
        rows = self.store.reading(self.dataset)
        found = chain.problems_of(self.dataset, rows, self._signer)
        found += filter(None, (witness.problem_of(rows) for witness in self._witnesses))
        try:
            account = account_of(self.dataset, map(chain.content_of, rows))
        except ConfigError as error:
            return [*found, str(error)]
        if self._signer.name and account.signer != self._signer.name:
            found.append("the data set was created without this key")
        spent = account.spending.most
        if spent > account.total:
            found.append(
                f"more is spent than the total: epsilon {account.spent_epsilon():.4g} at delta"
                f" {account.delta:g}"
            )
        found += _confirmed(account)
        if not found:
            for witness in self._witnesses:
                witness.see(rows)
        return found

    # --- Writing ---------------------------------------------------------------------------------

    def create(self, epsilon: float, delta: float, privacy_unit: str = "") -> None:
        """Makes the data set with its total.

        Raises:
          ConfigError: it is there already, or the total is out of range.
          LedgerError: the ledger can't be reached.
        """
        accounting.check_privacy_parameters(epsilon, delta)
        self.store.make_dataset(self.dataset)
        with self.store.writing(self.dataset) as (rows, add):
            if rows:
                raise ConfigError(
                    "--dataset", self.dataset, "be new: it is in the ledger (set-total changes its total)"
                )
            self._unseen(rows)
            row = self._row(
                rows,
                accounts.CREATED,
                epsilon=epsilon,
                delta=delta,
                privacy_unit=privacy_unit,
                signer=self._signer.name,
                made=secrets.token_hex(16),
            )
            add(row)
            rows.append(row)
        self._see(rows)

    def set_total(self, epsilon: float, delta: float) -> None:
        """Changes the total.

        Raises:
          ConfigError: it is out of range, or less than what is spent.
          LedgerError: the ledger can't be reached.
        """
        most = allowance(epsilon, delta)
        with self._adding() as (account, add):
            spent = account.spending.most
            if spent > most:
                raise ConfigError(
                    "--epsilon",
                    epsilon,
                    f"be at least {epsilon_of(spent, delta):.8g} at delta {delta:g}, which is spent already",
                )
            add(accounts.TOTAL, epsilon=epsilon, delta=delta)

    def close(self) -> None:
        """Lets nothing more be released; releases that are on their way come to their end."""
        with self._adding() as (account, add):
            if not account.closed:
                add(accounts.CLOSED)

    def forget(self, release_id: str) -> None:
        """Notes that a release's key was destroyed."""
        with self._adding() as (account, add):
            if release_id not in account.forgotten:
                add(accounts.KEY_FORGOTTEN, release_id=release_id)

    def check(self, wanted: Wanted) -> Charge | None:
        """The charge that the release has already, if it has one; reserves nothing.

        Raises:
          ConfigError: it may not be released.
          BudgetError: it would overspend.
          LedgerError: the ledger can't be reached.
        """
        return charge_of(self.account(), wanted)

    def reserve(self, wanted: Wanted) -> Charge:
        """Takes a release's part of the budget, or finds it taken for the same release.

        Raises: as `check`.
        """
        with self._adding() as (account, add):
            found = charge_of(account, wanted)
            if found is not None and found.state == accounts.RESERVED and found.facts != wanted.all_facts:
                # No job was submitted where it was reserved, and none will be for that token.
                add(accounts.RETURNED, token=found.token, release_id=wanted.release_id)
                found = None
            if found is not None:
                return found
            token = secrets.token_hex(16)
            after = add(
                accounts.RESERVED,
                token=token,
                release_id=wanted.release_id,
                epsilon=wanted.privacy["epsilon"],
                delta=wanted.privacy["delta"],
                event=wanted.event,
                privacy_unit=wanted.privacy["privacy_unit"],
                adjacency=wanted.privacy["adjacency"],
                slice=wanted.slice_name,
                facts=wanted.all_facts,
            )
            return after.charges[token]

    def begin_drawing(self, charge: Charge) -> None:
        """To be called before a job is submitted that draws noise; on disk when this returns.

        Raises:
          ConfigError: the charge was given back.
          LedgerError: the ledger can't be reached.
        """
        with self._adding() as (account, add):
            now = account.charges[charge.token]
            if now.state in (accounts.DRAWING, accounts.COMMITTED):
                # Another driver of the same release, with the same noise, was faster.
                return
            self._move(now, accounts.DRAWING, add)

    def commit(self, charge: Charge, data: str, state: str) -> Account:
        """Notes that a release is published; see `Charge` for data and state."""
        return self._become(charge, accounts.COMMITTED, data=data, state=state)

    def abandon(self, charge: Charge) -> None:
        """Notes that a release will never be: it counts."""
        self._become(charge, accounts.ABANDONED)

    def give_back(self, charge: Charge, nothing_drawn: Callable[[], bool]) -> bool:
        """Gives a charge back that nothing was drawn for; whether it did.

        Args:
          nothing_drawn: asked, once, where a job may have been submitted.
        """
        with self._adding() as (account, add):
            now = account.charges.get(charge.token)
            if now is None or not accounts.may_become(now, accounts.RETURNED):
                return False
            if now.state == accounts.DRAWING and not nothing_drawn():
                return False
            if now.state != accounts.RETURNED:
                add(accounts.RETURNED, token=charge.token, release_id=charge.release_id)
            return True

    # --- How -------------------------------------------------------------------------------------

    def _become(self, charge: Charge, kind: str, **more: str) -> Account:
        with self._adding() as (account, add):
            now = account.charges[charge.token]
            return account if now.state == kind else self._move(now, kind, add, **more)

    def _move(self, now: Charge, kind: str, add: Callable[..., Account], **more: str) -> Account:
        """Brings a charge into another state.

        Raises:
          ConfigError: it can't come into that one.
        """
        if not accounts.may_become(now, kind):
            raise ConfigError(
                "--release-id",
                now.release_id,
                f"have a charge that can be {kind}, and it was {now.state}: run the same command again",
            )
        return add(kind, token=now.token, release_id=now.release_id, **more)

    @contextlib.contextmanager
    def _adding(self) -> Iterator[tuple[Account, Callable[..., Account]]]:
        """The account, locked, and what adds a row to it; witnesses see the rows when they are on disk."""
        with self.store.writing(self.dataset) as (rows, insert):
            account = self._checked(rows)
            self._check_signer(account)

            def add(kind: str, **facts: Any) -> Account:
                row = self._row(rows, kind, **facts)
                insert(row)
                rows.append(row)
                return account_of(self.dataset, map(chain.content_of, rows))

            yield account, add
        self._see(rows)

    def _check_signer(self, account: Account) -> None:
        """Raises ConfigError unless rows are signed as all others are."""
        if account.signer == self._signer.name:
            return
        if not account.signer:
            raise ConfigError(
                "--ledger-key-file", "given", "be left out: this data set was created without one"
            )
        given = "(another)" if self._signer.name else "(not given)"
        raise ConfigError("--ledger-key-file", given, "be the key with which this data set was created")

    def _row(self, rows: Sequence[Row], kind: str, **facts: Any) -> Row:
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        last = chain.content_of(rows[-1])["time"] if rows else ""
        if last and datetime.datetime.fromisoformat(last) - now > _CLOCK_SLACK:
            cli.warn(
                f"this machine's clock says {now.isoformat()} and the ledger's last row is of {last}: the new"
                " row takes that time"
            )
        time = max(now.isoformat(), last)
        content = {"dataset": self.dataset, "kind": kind, "time": time, "by": _who(), **facts}
        return chain.next_row(rows, content, self._signer)

    def _checked(self, rows: Sequence[Row]) -> Account:
        """The account of rows that are a chain, and no older than what was seen."""
        if problems := chain.problems_of(self.dataset, rows, self._signer):
            raise ConfigError(
                "--ledger", self.store.shown, f"hold what was written, and {problems[0]}: nothing is charged"
            )
        self._unseen(rows)
        return account_of(self.dataset, map(chain.content_of, rows))

    def _unseen(self, rows: Sequence[Row]) -> None:
        for witness in self._witnesses:
            if problem := witness.problem_of(rows):
                raise ConfigError("--ledger", self.store.shown, f"be as it was last seen, and {problem}")

    def _see(self, rows: Sequence[Row]) -> None:
        for witness in self._witnesses:
            witness.see(rows)


def check_name(argument: str, name: str) -> None:
    """Raises ConfigError unless a data set may have this name."""
    if not name or len(name) > MAX_NAME or not name.isprintable() or name != name.strip():
        raise ConfigError(
            argument,
            name or "''",
            f"be a name of at most {MAX_NAME} printable characters, no blanks round it",
        )


def _confirmed(account: Account) -> list[str]:
    """What dp-accounting's PLD accountant has against the epsilon that the charges compose to."""
    events = [dict(charge.event) for charge in account.counted() if _reaches(account, charge)]
    if not events:
        return []
    exact = epsilon_of(account.spending.most, account.delta)
    found = accounting.epsilon_by_pld(accounting.event_from_json(together(events)), account.delta)
    if abs(found - exact) > _PLD_TOLERANCE * max(exact, 0.01):
        return [
            f"the charges compose to epsilon {exact:g} by their closed form and to {found:g} by the PLD"
            " accountant"
        ]
    return []


_PLD_TOLERANCE = 1e-3


def _reaches(account: Account, charge: Charge) -> bool:
    """Whether a charge is of the units that were charged most."""
    return has_place(charge.slice_name, account.spending.worst)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "?"
    return f"{user}@{socket.gethostname()}"
