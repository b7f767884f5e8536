"""A release's way through a ledger: reserved, drawn, committed; or given back, if nothing was drawn."""

import contextlib
import dataclasses
from collections.abc import Iterator

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.release.manifest import statement
from pipelines import cli, runs
from pipelines.ledger import account as accounts
from pipelines.ledger import places
from pipelines.ledger.account import Account, Charge
from pipelines.ledger.book import Book
from pipelines.ledger.store import LedgerError
from pipelines.ledger.wanted import Wanted
from transforms.files import gate, keys, register, run_files


@dataclasses.dataclass(frozen=True)
class Request:
    """Where a release is to be charged.

    Attributes:
      ledger, dataset: as the user named them.
      key_file: signs rows; or None.
    """

    ledger: str
    dataset: str
    key_file: str | None = None

    def check(self, config: ReleaseConfig, release_id: str | None, private_dir: str) -> None:
        """Asks the ledger, before any data is looked at; reserves nothing.

        What is not known of the configuration yet (the dimension, say) changes no cost.

        Args:
          release_id: the user's own; None: it will be drawn, or an interrupted run goes on with its own.
          private_dir: as it will be; it need not exist.

        Raises:
          ConfigError, BudgetError, LedgerError: see `Book.check`.
        """
        book = self._book(private_dir)
        with _nothing_drawn():
            account = book.account()
            book.store.check_writable()
            if release_id is not None and account.named(release_id) is not None:
                # Costs nothing, if it is the same; what it is is known when the data was looked at.
                return
            if release_id is None and runs.interrupted(private_dir):
                # One of which may be this command's, and was charged.
                return
            try:
                privacy = statement(Plan(config, release_id or "drawn"))["privacy"]
            except ConfigError:
                # Of a dimension that is not known yet: what is wrong is said where it is.
                return
            book.check(Wanted(release_id or "", privacy, {}, ""))

    def _book(self, private_dir: str) -> Book:
        book = Book(self.ledger, self.dataset, self.key_file)
        return Book(
            self.ledger,
            self.dataset,
            self.key_file,
            [places.witness(private_dir, book.store, self.dataset)],
        )

    @contextlib.contextmanager
    def charging(self, private_dir: str) -> Iterator["Charging"]:
        """Entered before the run is opened and left after it: what became of the charge is then known.

        After a refusal or a signal a charge is given back if nothing was drawn, and abandoned if
        the key is gone; what a crash left is the same command's to go on with.
        """
        charging = Charging(self, self._book(private_dir), private_dir)
        try:
            yield charging
        except Exception as error:
            if isinstance(error, ConfigError) or cli.refusal(error):
                charging.settle()
            raise
        except BaseException:
            charging.settle()
            raise


class Charging:
    """A release's charge."""

    def __init__(self, request: Request, book: Book, private_dir: str):
        self._request, self._book, self._private_dir = request, book, private_dir
        self._charge: Charge | None = None
        self._run: runs.Run | None = None
        self._account: Account | None = None
        self._published = False

    def reserve(self, run: runs.Run, config: ReleaseConfig) -> runs.Run:
        """Takes the release's part of the budget; the run, with its gate.

        Raises:
          ConfigError, BudgetError, LedgerError: see `Book.reserve`.
        """
        secret = keys.load(run.workspace.key_file)
        commitment = chain.commitment(secret).hex()
        wanted = Wanted(
            run.release_id,
            statement(Plan(config, run.release_id))["privacy"],
            {"fit_digest": config.fit_digest, "key": gate.told(run.release_id, "key", commitment)},
            places.place(self._private_dir),
        )
        with _nothing_drawn():
            charge = self._book.reserve(wanted)
            path = places.gate(self._private_dir, charge.token)
            if gate.is_shut(path):
                # Given back by somebody who was killed before the ledger knew.
                self._book.give_back(charge, lambda: True)
                charge = self._book.reserve(wanted)
                path = places.gate(self._private_dir, charge.token)
        self._charge = charge
        if charge.data:
            gate.open_for(path, run.release_id, gate.Passed(charge.data, charge.state_digest))
        _pass_what_was_drawn(path, run)
        self._run = dataclasses.replace(run, workspace=dataclasses.replace(run.workspace, gate=path))
        return self._run

    def begin_drawing(self) -> None:
        """Called just before the job is submitted."""
        if self._charge is not None and self._charge.state == accounts.RESERVED:
            with _nothing_drawn():
                self._book.begin_drawing(self._charge)

    def commit(self) -> None:
        """Called when the release is published; what fails here is said, for the release stands."""
        charge, run = self._charge, self._run
        assert charge is not None
        assert run is not None
        self._published = True
        try:
            if charge.state == accounts.COMMITTED:
                self._account = self._book.account()
                return
            passed = gate.read(run.workspace.gate)
            entry = register.read(run.workspace.register) if run.workspace.register else None
            state = gate.told(run.release_id, "state", entry.state) if entry else ""
            self._account = self._book.commit(charge, passed.data if passed else "", state)
        except Exception as error:
            cli.warn(
                "the release stands and is charged, but the ledger could not be told that it is published"
                f" ({cli.summary(error)}); the same command tells it"
            )

    def say(self) -> None:
        """Says what is spent and left, where that is known."""
        charge, account = self._charge, self._account
        if charge is None or account is None:
            return
        of = f", slice {charge.slice_name}" if charge.slice_name is not None else ""
        spent, more = account.spent_epsilon(charge.slice_name), account.more_like(charge)
        cli.report(
            f"charged to {account.dataset}{of}: epsilon {spent:.4g} of {account.epsilon:g} at delta"
            f" {account.delta:g} is spent; {more} more like this one fit",
            ledger={
                "dataset": account.dataset,
                "slice": charge.slice_name,
                "spent_epsilon": spent,
                "epsilon": account.epsilon,
                "delta": account.delta,
                "more_like_this": more,
            },
        )

    def settle(self) -> None:
        """Gives the charge back, or notes that it will never be committed."""
        charge, run = self._charge, self._run
        if charge is None or run is None or self._published or charge.state == accounts.COMMITTED:
            return
        try:
            if not runs.is_free(run.workspace.folder):
                # Another driver of the same release lives.
                return
            path = run.workspace.gate
            if self._book.give_back(charge, lambda: gate.shut(path)):
                cli.note(f"nothing was drawn, and {self._request.dataset} was not charged")
            elif run.drawn:
                self._book.abandon(charge)
                cli.note(f"noise may have been drawn: {self._request.dataset} stays charged for it")
        except Exception as error:
            cli.warn(
                f"the ledger could not be told what became of the charge, which counts: {cli.summary(error)}"
            )


@contextlib.contextmanager
def _nothing_drawn() -> Iterator[None]:
    """While entered, a ledger that can't be used says as well that no harm was done."""
    try:
        yield
    except LedgerError as error:
        raise LedgerError(f"{error}; nothing was drawn") from None


def _pass_what_was_drawn(path: str, run: runs.Run) -> None:
    """Passes the gate for what the run has drawn already, as one that began without a ledger may have."""
    for base in run_files.bases(run.workspace.folder):
        if run_files.has_state(base, 1):
            digest = run_files.load_state(base, 1).data_digest
            gate.go_through(path, run.release_id, digest or b"")
