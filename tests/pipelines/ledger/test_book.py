"""What is done to a data set of a ledger, on SQLite and on a real PostgreSQL server."""

import dataclasses
import datetime
import json
import sqlite3

import pytest
import sqlalchemy as sql

from benchmarks import ledger as benchmark
from benchmarks.ledger import wanted
from dpgmm_beam.errors import BudgetError, ConfigError
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.composition import epsilon_of
from dpgmm_beam.release import manifest
from pipelines.ledger import account as accounts
from pipelines.ledger import book as books
from pipelines.ledger.book import Book
from pipelines.ledger.store import Store
from tests import small


@pytest.fixture
def book(url):
    made = Book(url, "photos")
    made.create(4.0, 1e-6)
    return made


def spend(book, release_id, fit=4, slice_name=None):
    charge = book.reserve(wanted(release_id, fit, slice_name))
    book.begin_drawing(charge)
    book.commit(charge, "data", "state")
    return charge


def test_exactly_as_many_as_fit(book):
    for number in range(4):
        spend(book, f"r{number}")
    with pytest.raises(
        BudgetError, match=r"--epsilon=1.0 is refused: it must be for another data set: nothing"
    ):
        book.reserve(wanted("r4", 4))
    account = book.account()
    assert account.spent_epsilon() == pytest.approx(4.0, rel=1e-6)
    assert account.more_like(account.last) == 0
    assert book.problems() == []
    # What is left is said where something is.
    book.set_total(5.0, 1e-6)
    with pytest.raises(
        BudgetError, match=r"at most 2\.\d+ at delta 1e-06, which is what is left: of photos's total"
    ):
        book.reserve(wanted("r5", 1))


def test_a_release_is_charged_once(book):
    first = spend(book, "r")
    assert book.reserve(wanted("r", 4)).token == first.token
    book.commit(first, "data", "state")
    assert len(book.history()) == 4


@pytest.mark.parametrize(
    ("facts", "meaning"), [("fit_digest", "another configuration"), ("key", "another noise key")]
)
def test_an_id_names_one_release(book, facts, meaning):
    spend(book, "r")
    other = {**wanted("r", 4).facts, facts: "other"}
    with pytest.raises(ConfigError, match=f"--release-id=r is refused: it must be new: .* {meaning}"):
        book.reserve(dataclasses.replace(wanted("r", 4), facts=other))
    with pytest.raises(ConfigError, match="--slice=1/2 is refused: it must be left out"):
        book.reserve(wanted("r", 4, "1/2"))
    assert len(book.history()) == 4


def test_until_it_is_published_a_release_belongs_to_one_private_folder(book):
    """Two folders would draw twice at the price of one."""
    here, there = wanted("r", 4), dataclasses.replace(wanted("r", 4), place="there")
    first = book.reserve(here)
    # Its driver died before it submitted a job: reserved anew, and the old reservation is of no use.
    second = book.reserve(there)
    assert second.token != first.token
    with pytest.raises(ConfigError, match="run the same command again"):
        book.begin_drawing(first)
    book.begin_drawing(second)
    with pytest.raises(ConfigError, match=r"--private-dir=\(another\) is refused"):
        book.reserve(here)
    book.commit(second, "data", "state")
    found = book.reserve(here)
    assert (found.token, found.data, found.state_digest) == (second.token, "data", "state")


def test_what_drew_nothing_is_given_back_and_what_drew_is_not(book):
    full = spend(book, "full", fit=2)
    charge = book.reserve(wanted("r", 2))
    with pytest.raises(BudgetError):
        book.reserve(wanted("other", 2))
    assert book.give_back(charge, lambda: pytest.fail("no job was submitted"))
    charge = book.reserve(wanted("r", 2))
    book.begin_drawing(charge)
    assert not book.give_back(charge, lambda: False)
    assert book.give_back(charge, lambda: True)
    assert book.give_back(charge, lambda: False)
    with pytest.raises(ConfigError, match="was returned: run the same command again"):
        book.commit(charge, "data", "state")
    again = book.reserve(wanted("r", 2))
    book.begin_drawing(again)
    book.abandon(again)
    assert not book.give_back(again, lambda: True)
    assert not book.give_back(full, lambda: True)
    with pytest.raises(BudgetError):
        book.reserve(wanted("other", 2))
    states = [charge.state for charge in book.account().charges.values()]
    assert states == [accounts.COMMITTED, accounts.RETURNED, accounts.RETURNED, accounts.ABANDONED]


def test_slices_are_charged_apart_and_where_they_overlap(book):
    for number in (1, 2):
        for again in range(3):
            spend(book, f"{number}-{again}", slice_name=f"{number}/4")
    assert book.account().spending.most == 3 * wanted("r", 4).cost
    spend(book, "whole")
    # The first half is the first two quarters.
    for name in ("1/4", "1/2", None):
        with pytest.raises(BudgetError):
            book.reserve(wanted("more", 4, name))
    spend(book, "last", slice_name="2/2")
    assert book.problems() == []


def test_a_unit_in_anothers_place_costs_as_much_as_it_hides(book):
    """dp-accounting's event of such a relation has twice the noise, and doubles the sensitivity itself."""
    due = wanted("r", 4)
    privacy = {**due.privacy, "neighboring_relation": "REPLACE_ONE"}
    assert dataclasses.replace(due, privacy=privacy).cost == pytest.approx(4 * due.cost, rel=1e-9)
    config = small.small_config(adjacency="replace_one")
    stated = manifest.statement(Plan(config, "r"))["privacy"]
    found = dataclasses.replace(due, privacy=stated).cost
    assert epsilon_of(found, config.delta) == pytest.approx(config.epsilon, rel=1e-5)


@pytest.mark.parametrize("field", ["privacy_unit", "adjacency"])
def test_a_budget_is_of_one_unit(book, field):
    spend(book, "r")
    privacy = {**wanted("s", 4).privacy, field: "another"}
    with pytest.raises(ConfigError, match=f"{field.replace('_', ' ')}='another' is refused"):
        book.reserve(dataclasses.replace(wanted("s", 4), privacy=privacy))


def test_a_unit_may_be_declared_before_the_first_release(url):
    book = Book(url, "photos")
    book.create(4.0, 1e-6, "a patient")
    with pytest.raises(ConfigError, match="it must be 'a patient'"):
        book.reserve(wanted("r", 4))


def test_a_closed_data_set(book):
    begun = book.reserve(wanted("r", 4))
    book.begin_drawing(begun)
    book.close()
    book.close()
    with pytest.raises(ConfigError, match="--dataset=photos is refused: it must be open"):
        book.reserve(wanted("s", 4))
    # What was on its way comes to its end, and is made again.
    book.commit(begun, "data", "state")
    assert book.reserve(wanted("r", 4)).token == begun.token
    assert [row["kind"] for row in book.history()] == [
        "created",
        "reserved",
        "drawing",
        "closed",
        "committed",
    ]


def test_a_total_is_not_lowered_below_what_is_spent(book):
    spend(book, "r", fit=2)
    with pytest.raises(
        ConfigError, match=r"--epsilon=1.0 is refused: it must be at least 2\.\d+ at delta 1e-06"
    ):
        book.set_total(1.0, 1e-6)
    book.set_total(3.0, 1e-6)
    with pytest.raises(BudgetError):
        spend(book, "s", fit=2)
    book.set_total(4.0, 1e-6)
    spend(book, "s", fit=2)
    assert book.problems() == []


def test_data_sets_are_apart_and_made_once(book, url):
    with pytest.raises(ConfigError, match="--dataset=photos is refused: it must be new"):
        Book(url, "photos").create(9.0, 1e-6)
    assert book.account().epsilon == 4.0
    other = Book(url, "other")
    other.create(1.0, 1e-6)
    spend(book, "r")
    assert len(other.history()) == 1
    with pytest.raises(ConfigError, match=r"--dataset=ohter is refused: .*\(it has other, photos\)"):
        Book(url, "ohter").account()


@pytest.mark.parametrize("name", ["", " a", "a\n", "x" * 201, "a\x1b[2J"])
def test_names_that_are_none(url, name):
    with pytest.raises(ConfigError, match="--dataset="):
        Book(url, name)


@pytest.mark.parametrize("budget", [(0.0, 1e-6), (1.0, 0.5), (float("nan"), 1e-6), (1e9, 1e-6)])
def test_totals_that_are_none_make_nothing(url, budget):
    with pytest.raises(ConfigError):
        Book(url, "photos").create(*budget)
    with pytest.raises(ConfigError, match="`dpgmm ledger create` makes one"):
        Book(url, "photos").account()


# --- The chain -----------------------------------------------------------------------------------


def tamper(url, *statements):
    text = f"sqlite:///{url}" if "://" not in url else url.replace("postgresql:", "postgresql+psycopg:")
    engine = sql.create_engine(text)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sql.text(statement))
    engine.dispose()


def _content(url, number, change):
    rows = Store(url).reading("photos")
    content = {**json.loads(rows[number].content), **change}
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).replace("'", "''").replace(":", r"\:")
    return f"UPDATE dpgmm_rows SET content = '{text}' WHERE number = {number}"


TAMPERINGS = {
    "changed": lambda url: [_content(url, 1, {"release_id": "x"})],
    "no JSON": lambda url: ["UPDATE dpgmm_rows SET content = 'x' WHERE number = 1"],
    "removed": lambda url: ["DELETE FROM dpgmm_rows WHERE number = 2"],
    "first removed": lambda url: ["DELETE FROM dpgmm_rows WHERE number = 0"],
    "reordered": lambda url: [
        "UPDATE dpgmm_rows SET number = 99 WHERE number = 1",
        "UPDATE dpgmm_rows SET number = 1 WHERE number = 2",
        "UPDATE dpgmm_rows SET number = 2 WHERE number = 99",
    ],
    "of another data set": lambda url: [
        "INSERT INTO dpgmm_datasets VALUES ('other')",
        "UPDATE dpgmm_rows SET dataset = 'other'",
        "UPDATE dpgmm_rows SET dataset = 'photos' WHERE number > 1",
    ],
    "hash": lambda url: ["UPDATE dpgmm_rows SET hash = 'x' WHERE number = 3"],
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_row_that_was_changed_removed_or_moved(book, url, name):
    spend(book, "r")
    tamper(url, *TAMPERINGS[name](url))
    assert Book(url, "photos").problems()
    with pytest.raises(ConfigError, match=r"--ledger=.* is refused: it must hold what was written, and row"):
        book.reserve(wanted("s", 4))


def test_who_hashes_all_anew_needs_the_key(url, tmp_path):
    key, other = small.write_key(tmp_path / "a"), small.write_key(tmp_path / "b", small.OTHER_KEY)
    book = Book(url, "photos", key)
    book.create(4.0, 1e-6)
    spend(book, "r")
    assert book.problems() == []
    for wrong in (None, other):
        with pytest.raises(
            ConfigError, match=r"--ledger-key-file=|hold what was written, and row 0 is not signed"
        ):
            Book(url, "photos", wrong).reserve(wanted("s", 4))
    assert Book(url, "photos", other).problems()
    # A forger cuts the last row off and appends another, with hashes that are right.
    forger = Book(url, "photos")
    rows = Store(url).reading("photos")
    with forger.store.writing("photos") as (_, add):
        add(forger._row(rows, accounts.TOTAL, epsilon=999.0, delta=1e-6))
    assert Book(url, "photos").problems() == []
    assert book.problems() == ["row 4 is not signed with this key"]
    with pytest.raises(ConfigError, match="row 4 is not signed with this key: nothing is charged"):
        book.reserve(wanted("s", 4))


def test_a_key_where_none_was(book, url, tmp_path):
    with pytest.raises(ConfigError, match=r"row 0 is not signed|be left out"):
        Book(url, "photos", small.write_key(tmp_path / "a")).reserve(wanted("s", 4))


def test_a_witness_notices_rows_that_were_cut_off(book, url, tmp_path, mode):
    seen = str(tmp_path / "seen")
    watched = Book(url, "photos", witnesses=[seen])
    spend(watched, "r")
    # Others go on, and it sees so.
    spend(book, "s")
    assert watched.problems() == []
    assert mode(seen) == 0o600
    tamper(url, "DELETE FROM dpgmm_rows WHERE number > 5")
    # A whole chain, of which nobody else knows.
    assert book.problems() == []
    assert "restored from an older state" in watched.problems()[0]
    for refused in (lambda: watched.reserve(wanted("t", 4)), watched.account, watched.close):
        with pytest.raises(ConfigError, match=r"be as it was last seen, and its row 6 is not the one"):
            refused()
    assert len(book.history()) == 6


def test_a_witness_never_goes_back(book, tmp_path):
    witness = books.Witness(str(tmp_path / "seen"))
    spend(book, "r")
    rows = book.store.reading("photos")
    witness.see(rows)
    witness.see(rows[:2])
    assert witness.problem_of(rows[:2])
    assert not witness.problem_of(rows)


# --- Troubles ------------------------------------------------------------------------------------


def test_a_clock_that_goes_back(book, monkeypatch, capfd):
    spend(book, "r")

    class Yesterday(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) - datetime.timedelta(days=1)

    class Clock:
        datetime, timedelta, UTC = Yesterday, datetime.timedelta, datetime.UTC

    monkeypatch.setattr(books, "datetime", Clock)
    spend(book, "s")
    assert "this machine's clock says" in capfd.readouterr().err
    times = [row["time"] for row in book.history()]
    assert times == sorted(times)
    assert book.problems() == []


def test_tables_of_another_version_are_refused(book, url):
    tamper(url, "UPDATE dpgmm_ledger SET schema_version = 99")
    for attempt in (
        book.account,
        lambda: book.reserve(wanted("s", 4)),
        lambda: Book(url, "x").create(1.0, 1e-6),
    ):
        with pytest.raises(
            ConfigError, match="have tables of version 1, which this dpgmm-beam knows, not 99"
        ):
            attempt()


def test_a_row_of_a_later_version_is_refused(book):
    with book.store.writing("photos") as (rows, add):
        add(book._row(rows, "gifted", token="x"))
    with pytest.raises(ConfigError, match="have a history that this dpgmm-beam understands"):
        book.reserve(wanted("s", 4))


def test_it_is_read_while_somebody_writes(book, url):
    with book.store.writing("photos") as (rows, add):
        add(book._row(rows, accounts.CLOSED))
        assert not Book(url, "photos").account().closed
    assert Book(url, "photos").account().closed


def test_a_writer_that_fails_leaves_nothing(book):
    def fail():
        with book.store.writing("photos") as (rows, add):
            add(book._row(rows, accounts.CLOSED))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(book.history()) == 1


@pytest.mark.parametrize(("processes", "fit", "killed"), [(18, 6, 6)])
def test_processes_that_race_and_are_killed(url, processes, fit, killed):
    """The benchmark of the same name does it with 200."""
    found = benchmark.storm(url, processes, fit, killed, seed=1)
    assert found.problems == ()
    assert found.charged == fit


def test_a_file_of_sqlite_is_its_makers(tmp_path, mode):
    path = tmp_path / "ledger.sqlite"
    Book(str(path), "photos").create(4.0, 1e-6)
    assert mode(path) == 0o600
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="not be anybody's to write"):
        Book(str(path), "photos").account()


@pytest.mark.parametrize("name", ["l.sqlite", "a b?mode=ro#x%41.db", "ü"])
def test_any_path_is_a_path(tmp_path, name):
    Book(f"{tmp_path}/{name}", "photos").create(4.0, 1e-6)
    assert (tmp_path / name).exists()
    assert len(Book(f"{tmp_path}/{name}", "photos").history()) == 1
    sqlite3.connect(tmp_path / name).execute("SELECT * FROM dpgmm_rows").fetchall()


@pytest.mark.parametrize(
    "wrong",
    ["mysql://u:secret@h/d", "sqlite://", "sqlite:///:memory:", "postgresql://u:secret@h:x/d", "x://"],
)
def test_what_is_no_ledger_is_refused_without_its_password(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--ledger=") as refused:
        Book(wrong, "photos").account()
    assert "secret" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_role_needs_no_more_than_the_documentation_says(server):
    """docs/budget.md: SELECT and INSERT, and UPDATE on the data sets for their locks."""
    Book(server, "photos").create(4.0, 1e-6)
    try:
        tamper(
            server,
            "CREATE ROLE driver LOGIN",
            "GRANT SELECT, INSERT ON dpgmm_ledger, dpgmm_datasets, dpgmm_rows TO driver",
            "GRANT UPDATE ON dpgmm_datasets TO driver",
        )
        url = server.replace("dpgmm@", "driver@")
        spend(Book(url, "photos"), "r")
        assert Book(url, "photos").problems() == []
        with pytest.raises(sql.exc.ProgrammingError, match="permission denied"):
            tamper(url, "DELETE FROM dpgmm_rows")
    finally:
        tamper(server, "DROP OWNED BY driver", "DROP ROLE driver")
        benchmark.forget(server)
