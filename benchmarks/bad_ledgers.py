"""What goes wrong with a ledger or a store of keys, each tried on a real release: how many end well.

    python benchmarks/bad_ledgers.py [--only PATTERN] [--jobs N]

Each case runs `dpgmm release --ledger ...` (or `dpgmm ledger ...`) as a process of its own, on a ledger of
its own in SQLite or in a PostgreSQL server from Debian's package.  It ends well with the status that
it should have, one sentence that says what is wrong, no traceback and no password, no noise drawn
(no state after a stage, no gate passed, no release), and every row of the ledger as it was.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import fnmatch
import itertools
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import sqlalchemy as sql

from benchmarks import bad_ground, bad_inputs, postgres
from benchmarks.bad_ground import Case
from benchmarks.ledger import wanted
from pipelines.ledger import book as books
from pipelines.ledger import store as stores
from pipelines.ledger.book import Book

CHECKOUT = Path(__file__).parents[1]
# Who waits for a lock does so for a minute.
bad_inputs.SECONDS = 2.0 * stores.PATIENCE_SECONDS
PASSWORD = "correct-horse"


@dataclasses.dataclass
class Ground:
    """A case's own folder and ledger.

    Attributes:
      at: the folder, as `bad_ground.ground` makes it.
      url: of the ledger.
      server: URL of the server's first database; "" for none.
    """

    at: Path
    url: str
    server: str

    def book(self, **options) -> Book:
        return Book(self.url, "photos", **options)

    def spend(self, release_id: str = "before", fit: int = 4, **options) -> None:
        book = self.book(**options)
        charge = book.reserve(wanted(release_id, fit))
        book.begin_drawing(charge)
        book.commit(charge, "data", "state")

    def execute(self, *statements: str) -> None:
        """Runs SQL in the ledger's database."""
        if self.server:
            engine = sql.create_engine(self.url.replace("postgresql:", "postgresql+psycopg:"))
        else:
            engine = sql.create_engine(f"sqlite:///{self.url}")
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(sql.text(statement))
        engine.dispose()


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a command is to end.

    Attributes:
      status: of the process.
      words: a regular expression for its last line of standard error.
      options: that follow those of the case's command.
      verb: the command: "release", or "ledger ACTION".
      environment: changes.
      user: who runs it.
      released: whether there is a release afterwards.
      same: whether the ledger's rows stay as they were.
    """

    status: int
    words: str
    options: tuple[str, ...] = ()
    verb: str = "release"
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    user: int | None = None
    released: bool = False
    same: bool = True


Trouble = Callable[[Ground], Iterator[Ending]]
BOTH, FILE, SERVER = ("sqlite", "postgresql"), ("sqlite",), ("postgresql",)
TROUBLES: dict[str, tuple[tuple[str, ...], Trouble]] = {}


def trouble(*databases: str) -> Callable[[Trouble], Trouble]:
    def enter(made: Trouble) -> Trouble:
        TROUBLES[made.__name__.strip("_").replace("_", " ")] = (databases, made)
        return made

    return enter


# --- Unreachable ---------------------------------------------------------------------------------


@trouble(*SERVER)
def nobody_listens(ground: Ground) -> Iterator[Ending]:
    yield Ending(1, "can't be reached", ("--ledger", f"postgresql://u:{PASSWORD}@127.0.0.1:1/d"), same=False)


@trouble(*SERVER)
def a_server_that_says_nothing(ground: Ground) -> Iterator[Ending]:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        yield Ending(
            1, "can't be reached", ("--ledger", f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/d")
        )


@trouble(*SERVER)
def a_server_that_hangs_up(ground: Ground) -> Iterator[Ending]:
    with socket.socket() as rude:
        rude.bind(("127.0.0.1", 0))
        rude.listen()

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    rude.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        yield Ending(
            1, "can't be reached|failed", ("--ledger", f"postgresql://u@127.0.0.1:{rude.getsockname()[1]}/d")
        )
        rude.shutdown(socket.SHUT_RDWR)


@trouble(*SERVER)
def another_database(ground: Ground) -> Iterator[Ending]:
    yield Ending(1, "can't be reached.*does not exist", ("--ledger", ground.url.replace("/case", "/no")))


@trouble(*SERVER)
def another_user(ground: Ground) -> Iterator[Ending]:
    yield Ending(1, "can't be reached.*does not exist", ("--ledger", ground.url.replace("dpgmm@", "nobody@")))


@trouble(*SERVER)
def a_server_that_is_full(ground: Ground) -> Iterator[Ending]:
    ground.execute("ALTER ROLE guest CONNECTION LIMIT 0", "GRANT ALL ON ALL TABLES IN SCHEMA public TO guest")
    yield Ending(1, "can't be reached|lets nobody in", ("--ledger", ground.url.replace("dpgmm@", "guest@")))
    ground.execute("ALTER ROLE guest CONNECTION LIMIT -1")


@trouble(*FILE)
def no_file(ground: Ground) -> Iterator[Ending]:
    yield Ending(2, r"--ledger=.*`dpgmm ledger create` makes one", ("--ledger", f"{ground.at}/no.sqlite"))


@trouble(*FILE)
def no_folder(ground: Ground) -> Iterator[Ending]:
    yield Ending(2, r"--ledger=.*folder that exists", ("--ledger", f"{ground.at}/no/l"), "ledger create")


# --- Not to be written, or not whole -------------------------------------------------------------


@trouble(*FILE)
def read_only(ground: Ground) -> Iterator[Ending]:
    for path in (ground.at, *ground.at.rglob("*")):
        os.chown(path, 65534, 65534)
    os.chown(ground.url, 0, 0)
    Path(ground.url).chmod(0o644)
    yield Ending(2, "--ledger=.*read-only", user=65534)


@trouble(*FILE)
def not_to_be_read(ground: Ground) -> Iterator[Ending]:
    for path in (ground.at, *ground.at.rglob("*")):
        os.chown(path, 65534, 65534)
    os.chown(ground.url, 0, 0)
    yield Ending(2, "--ledger=.*this user may (open|write)", user=65534)


@trouble(*SERVER)
def a_role_that_may_only_read(ground: Ground) -> Iterator[Ending]:
    ground.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO guest")
    yield Ending(2, "--ledger=.*read-only", ("--ledger", ground.url.replace("dpgmm@", "guest@")))


@trouble(*SERVER)
def a_replica(ground: Ground) -> Iterator[Ending]:
    ground.execute(
        f"ALTER DATABASE {ground.url.split('/')[3].split('?')[0]} SET default_transaction_read_only = on"
    )
    yield Ending(2, "--ledger=.*read-only")


@trouble(*FILE)
def anybody_may_write_it(ground: Ground) -> Iterator[Ending]:
    Path(ground.url).chmod(0o666)
    yield Ending(2, "--ledger=.*chmod o-w")
    Path(ground.url).chmod(0o600)


@trouble(*FILE)
def a_full_disk(ground: Ground) -> Iterator[Ending]:
    full = ground.at / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(full)], check=True)
    try:
        ledger = full / "ledger.sqlite"
        shutil.copy(ground.url, ledger)
        with contextlib.suppress(OSError), open(full / "fill", "wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
        yield Ending(1, "disk (is full|fails or is full); nothing was drawn", ("--ledger", str(ledger)))
        (full / "fill").unlink()
        with sqlite3.connect(ledger) as connection:
            assert connection.execute("SELECT count(*) FROM dpgmm_rows").fetchone() == (4,)
        connection.close()
    finally:
        subprocess.run(["umount", str(full)], check=True)


@trouble(*BOTH)
def locked(ground: Ground) -> Iterator[Ending]:
    # Of a process that lives: one that vanished is made to let go after a minute.
    with _held(ground):
        yield Ending(1, "is locked by another process; nothing was drawn")


@contextlib.contextmanager
def _held(ground: Ground) -> Iterator[None]:
    if not ground.server:
        with ground.book().store.writing("photos"):
            yield
        return
    engine = sql.create_engine(ground.url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sql.text("SELECT * FROM dpgmm_datasets FOR UPDATE"))
        yield
    engine.dispose()


@trouble(*FILE)
def locked_for_readers_too(ground: Ground) -> Iterator[Ending]:
    holding = sqlite3.connect(ground.url, isolation_level=None)
    holding.execute("BEGIN EXCLUSIVE")
    yield Ending(1, "is locked by another process; nothing was drawn")
    holding.close()


def spoilt(name: str, words: str, spoil: Callable[[Path], object]) -> None:
    """A file in the place of the ledger that is none."""

    def made(ground: Ground) -> Iterator[Ending]:
        path = Path(ground.url)
        kept = path.read_bytes()
        path.unlink()
        spoil(path)
        yield Ending(2, f"--ledger=.*({words})", same=False)
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
        path.write_bytes(kept)

    TROUBLES[f"the file is {name}"] = (FILE, made)


def _zeros(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE x (y)")
    connection.close()
    data = bytearray(path.read_bytes())
    data[100:] = bytes(len(data) - 100)
    path.write_bytes(data)


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**33)


def _another(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE x (y)")
    connection.close()


spoilt("empty", "makes one", lambda path: path.touch())
spoilt("text", "file of SQLite", lambda path: path.write_text("no ledger" * 1000))
spoilt("random", "file of SQLite", lambda path: path.write_bytes(os.urandom(10000)))
spoilt("a folder", "file of SQLite", lambda path: path.mkdir())
spoilt("a fifo", "file of SQLite", lambda path: os.mkfifo(path))
spoilt("a device", "file of SQLite", lambda path: path.symlink_to("/dev/zero"))
spoilt("a link to itself", "opened", lambda path: path.symlink_to(path))
spoilt("8 GiB of zeros", "file of SQLite|makes one|damaged", _huge)
spoilt("damaged", "damaged|makes one", _zeros)
spoilt("another program's", "makes one", _another)


@trouble(*BOTH)
def tables_of_another_version(ground: Ground) -> Iterator[Ending]:
    ground.execute("UPDATE dpgmm_ledger SET schema_version = 7")
    yield Ending(2, "--ledger=.*tables of version 1", same=False)


# --- Changed behind the program's back -----------------------------------------------------------

for _name, _statements in {
    "a total that was raised": [
        "UPDATE dpgmm_rows SET content = replace(content, '4.0', '9.0') WHERE number = 0"
    ],
    "a row that was removed": ["DELETE FROM dpgmm_rows WHERE number = 2"],
    "rows that changed places": [
        "UPDATE dpgmm_rows SET number = 9 WHERE number = 2",
        "UPDATE dpgmm_rows SET number = 2 WHERE number = 1",
        "UPDATE dpgmm_rows SET number = 1 WHERE number = 9",
    ],
    "a row that was added": [
        "INSERT INTO dpgmm_rows SELECT dataset, 4, content, hash, signature FROM dpgmm_rows WHERE number = 3"
    ],
    "no rows": ["DELETE FROM dpgmm_rows"],
}.items():

    def _changed(ground: Ground, statements: list[str] = _statements) -> Iterator[Ending]:
        ground.execute(*statements)
        yield Ending(2, "--ledger=.*nothing is charged|--dataset=", same=False)

    TROUBLES[_name] = (BOTH, _changed)


@trouble(*BOTH)
def restored_from_an_old_backup(ground: Ground) -> Iterator[Ending]:
    witness = ground.at / "seen"
    ground.book(witnesses=[str(witness)]).close()
    ground.execute("DELETE FROM dpgmm_rows WHERE number > 3")
    yield Ending(
        2, "--ledger=.*restored from an older state", ("close", "--witness", str(witness)), verb="ledger"
    )


@trouble(*BOTH)
def restored_under_a_driver_that_saw_more(ground: Ground) -> Iterator[Ending]:
    more = bad_ground.COMMANDS["release"]
    first = [each.replace("{at}", str(ground.at)) for each in more]
    ledger = ["--ledger", ground.url, "--dataset", "photos", f"--output={ground.at}/first", "--epsilon=.1"]
    run = [*bad_inputs.COMMAND, "release", *first, *ledger]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "HOME": str(ground.at)}
    subprocess.run(run, check=True, capture_output=True, env=environment, cwd=ground.at)
    ground.execute("DELETE FROM dpgmm_rows WHERE number > 3")
    yield Ending(2, "--ledger=.*restored from an older state", ("--epsilon=.1",))


@trouble(*FILE)
def a_witness_that_is_none(ground: Ground) -> Iterator[Ending]:
    (ground.at / "seen").write_text("x")
    yield Ending(2, "--witness=", ("close", "--witness", f"{ground.at}/seen"), verb="ledger")


@trouble(*BOTH)
def a_forged_row_in_a_signed_ledger(ground: Ground) -> Iterator[Ending]:
    key = ground.at / "ledger.key"
    bad_ground.write_key(key)
    signed = Book(ground.url, "signed", str(key))
    signed.create(4.0, 1e-6)
    forger = Book(ground.url, "signed")
    with forger.store.writing("signed") as (rows, add):
        add(forger._row(rows, "total changed", epsilon=999.0, delta=1e-6))
    yield Ending(
        2, "--ledger=.*not signed with this key", ("--dataset", "signed", "--ledger-key-file", str(key))
    )


for _title, _prepare, _words in (
    ("not given", lambda path: None, "not given"),
    ("another", lambda path: bad_ground.write_key(path, bytes(range(1, 33))), "not signed with this key"),
    ("of 31 bytes", lambda path: bad_ground.write_key(path, bytes(range(31))), "32 bytes"),
    ("anybody's to read", lambda path: bad_ground.write_key(path, mode=0o644), "chmod 600"),
    ("not there", lambda path: None, "readable file"),
):

    def _signed(ground: Ground, title=_title, prepare=_prepare, words=_words) -> Iterator[Ending]:
        bad_ground.write_key(ground.at / "right.key")
        Book(ground.url, "signed", f"{ground.at}/right.key").create(4.0, 1e-6)
        prepare(ground.at / "ledger.key")
        key = () if title == "not given" else ("--ledger-key-file", f"{ground.at}/ledger.key")
        yield Ending(2, f"--(ledger-key-file|ledger)=.*{words}", ("--dataset", "signed", *key))

    TROUBLES[f"the ledger's key is {_title}"] = (FILE, _signed)


# --- Time and others -----------------------------------------------------------------------------


@trouble(*BOTH)
def a_clock_that_went_back(ground: Ground) -> Iterator[Ending]:
    class Ahead(books.datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + books.datetime.timedelta(days=400)

    with _CLOCK, mock.patch.object(books.datetime, "datetime", Ahead):
        ground.book().set_total(5.0, 1e-6)
    yield Ending(0, "", released=True, same=False)
    rows = ground.book().history()
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)


_CLOCK = threading.Lock()


@trouble(*BOTH)
def two_schedulers_of_one_release(ground: Ground) -> Iterator[Ending]:
    own = ("--release-id", "same", "--noise-key-file", f"{ground.at}/key")
    with _beside(ground, own) as other:
        yield Ending(0, "", own, released=True, same=False)
        assert other.wait(120) == 0, other.stderr.read()
    states = [charge.state for charge in ground.book().account().counted()]
    assert states == ["committed", "committed"], states


@trouble(*BOTH)
def two_schedulers_for_the_last_share(ground: Ground) -> Iterator[Ending]:
    """One is refused, and either may be."""
    ground.spend("more", 2)
    ground.book().set_total(3.75, 1e-6)
    own = ("--release-id", "mine", "--noise-key-file", f"{ground.at}/key")
    theirs = (*own[:1], "theirs", *own[2:], f"--output={ground.at}/theirs", f"--private-dir={ground.at}/p2")
    with _beside(ground, theirs) as other:
        yield Ending(-1, "|--epsilon=", own, released=True, same=False)
        other.wait(120)
    made = [name for name in ("out/release", "theirs") if (ground.at / name / "manifest.json").exists()]
    assert len(made) == 1, made
    assert ground.book().problems() == []


@contextlib.contextmanager
def _beside(ground: Ground, options: tuple[str, ...]) -> Iterator[subprocess.Popen]:
    """The same release, started at the same time as the case's command."""
    arguments = [each.replace("{at}", str(ground.at)) for each in bad_ground.COMMANDS["release"]]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "HOME": str(ground.at)}
    run = [
        *bad_inputs.COMMAND,
        "release",
        *arguments,
        "--ledger",
        ground.url,
        "--dataset",
        "photos",
        *options,
    ]
    started = subprocess.Popen(
        run, env=environment, cwd=ground.at, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


# --- Refused by the budget -----------------------------------------------------------------------


@trouble(*BOTH)
def a_closed_data_set(ground: Ground) -> Iterator[Ending]:
    ground.book().close()
    yield Ending(2, "--dataset=photos .*closed")


@trouble(*BOTH)
def a_total_below_what_is_spent(ground: Ground) -> Iterator[Ending]:
    yield Ending(
        2, "--epsilon=1.0 .*at least", ("set-total", "--epsilon", "1", "--delta", "1e-6"), verb="ledger"
    )


@trouble(*BOTH)
def a_release_that_overspends(ground: Ground) -> Iterator[Ending]:
    yield Ending(3, "--epsilon=9.0 .*at most .* is left", ("--epsilon=9",))


@trouble(*BOTH)
def nothing_left(ground: Ground) -> Iterator[Ending]:
    for number in range(3):
        ground.spend(f"more-{number}")
    yield Ending(3, "--epsilon=1.0 .*nothing that could be released")


@trouble(*FILE)
def another_unit(ground: Ground) -> Iterator[Ending]:
    Book(ground.url, "patients").create(4.0, 1e-6, "a patient")
    yield Ending(2, "privacy unit=.*a patient", ("--dataset", "patients"))


@trouble(*BOTH)
def an_id_of_another_release(ground: Ground) -> Iterator[Ending]:
    yield Ending(
        2,
        "--release-id=before .*must be new",
        ("--release-id", "before", "--noise-key-file", f"{ground.at}/key"),
    )


@trouble(*FILE)
def a_data_set_that_is_there_already(ground: Ground) -> Iterator[Ending]:
    yield Ending(
        2, "--dataset=photos .*must be new", ("create", "--epsilon", "9", "--delta", "1e-6"), verb="ledger"
    )


for _dataset in ("", "pohtos", " photos", "x" * 300, bad_ground.ESCAPES, "'; DROP TABLE dpgmm_rows; --"):

    def _named(ground: Ground, name: str = _dataset) -> Iterator[Ending]:
        yield Ending(2, "--dataset=", (f"--dataset={name}",))

    TROUBLES[f"the data set {_dataset[:30]!r}"] = (BOTH, _named)

for _url in (
    "mysql://u:{p}@h/d",
    "postgresql://u:{p}@h:x/d",
    "sqlite://",
    "x://{p}@y",
    "",
    "gs://bucket/ledger",
):

    def _at(ground: Ground, url: str = _url) -> Iterator[Ending]:
        yield Ending(2, "--ledger=", (f"--ledger={url.format(p=PASSWORD)}",))

    TROUBLES[f"the URL {_url!r}"] = (FILE, _at)

# --- Stores of keys ------------------------------------------------------------------------------


def stored(
    name: str, status: int, words: str, text: str, prepare=lambda ground: None, **environment: str
) -> None:
    def made(ground: Ground) -> Iterator[Ending]:
        prepare(ground)
        store = text.replace("{at}", str(ground.at))
        yield Ending(
            status, words, (f"--release-key-store={store}", "--release-id=new"), environment=environment
        )

    TROUBLES[f"the key store is {name}"] = (FILE, made)


def _open_folder(ground: Ground) -> None:
    (ground.at / "keys").mkdir(mode=0o755)
    (ground.at / "keys").chmod(0o755)


def _destroyed(ground: Ground) -> None:
    from pipelines.key_store import Folder

    Folder(str(ground.at / "keys")).forget("new")


OPTION = "--release-key-store="
stored("a file", 2, OPTION, "{at}/key")
stored("a folder of others", 2, OPTION, "{at}/keys", _open_folder)
stored("nowhere", 2, OPTION, "/proc/x")
stored("of no kind", 2, OPTION, "gs://x/y")
stored("where the key was destroyed", 2, "--release-id=new .*destroyed", "{at}/keys", _destroyed)
stored("a Vault of no name", 2, OPTION, "vault:")
stored("a Vault without an address", 2, f"{OPTION}.*VAULT_ADDR", "vault:secret/x", VAULT_ADDR="")
stored("a Vault that is gone", 1, "Vault can't be reached", "vault:secret/x", VAULT_ADDR="http://127.0.0.1:1")

# --- Running -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    case: str
    wrong: str
    line: str


def run(
    name: str, database: str, made: Trouble, ground: Path, place: Path, server: str, number: int
) -> Outcome:
    """Tries a case; what was wrong with its end, "" for nothing."""
    at = Path(tempfile.mkdtemp(dir=place))
    at.chmod(0o755)
    try:
        shutil.copytree(ground, at, dirs_exist_ok=True)
        url = f"{at}/ledger.sqlite"
        if database == "postgresql":
            engine = sql.create_engine(
                server.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
            )
            with engine.connect() as connection:
                connection.execute(sql.text(f"CREATE DATABASE case{number}"))
            engine.dispose()
            url = server.replace("/dpgmm?", f"/case{number}?")
        tried = Ground(at, url, server if database == "postgresql" else "")
        tried.book().create(4.0, 1e-6)
        tried.spend()
        steps = made(tried)
        ending = next(steps)
        before = None
        if ending.same and name not in ("locked for readers too", "anybody may write it"):
            before = tried.book().store.reading("photos")
        line, wrong = _try(tried, ending, at)
        try:
            next(steps, None)
            after = tried.book().store.reading("photos") if before is not None else None
        except Exception as error:
            wrong = wrong or f"{type(error).__name__}: {error}"
        else:
            if before != after:
                wrong = wrong or "the ledger's rows have changed"
        return Outcome(f"{database}: {name}", wrong, line)
    except Exception as error:
        return Outcome(f"{database}: {name}", f"could not be tried ({type(error).__name__}: {error})", "")
    finally:
        shutil.rmtree(at, ignore_errors=True)


def _try(tried: Ground, ending: Ending, at: Path) -> tuple[str, str]:
    """The last line on standard error, and what was wrong."""
    where = ("--ledger", tried.url, "--dataset", "photos")
    if ending.verb == "release":
        case = Case(
            "release",
            "ledger",
            (*where, *ending.options),
            (),
            environment=ending.environment,
            user=ending.user,
        )
    else:
        case = Case("plan", "ledger", (), (), environment=ending.environment)
        words = ["ledger", *ending.verb.split()[1:], *ending.options]
        if ending.verb == "ledger create":
            words += ["--epsilon", "1", "--delta", "1e-6", "--dataset", "photos"]
        else:
            words[2:2] = where
        case = _Plain(words, ending)
    there = _drawn(at)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        status = bad_inputs.watched(case, at, CHECKOUT, out, err)
        err.seek(0)
        said = err.read().decode(errors="replace")
    lines = said.strip().splitlines() or [""]
    sentences = [line for line in lines if line.startswith("dpgmm: ")]
    released = (at / "out/release/manifest.json").exists()
    checks = {
        f"ended with {status}": status != ending.status and ending.status != -1,
        "a traceback": "Traceback" in said,
        "the password is shown": PASSWORD in said,
        "not one sentence": status != 0 and len(sentences) != 1,
        "another sentence": not re.search(ending.words, lines[-1] if status else said),
        "not printable": not lines[-1].isprintable(),
        "noise was drawn": not ending.released and _drawn(at) != there,
        "a release appeared": released and not ending.released,
    }
    return lines[-1][:250], next((text for text, is_wrong in checks.items() if is_wrong), "")


def _drawn(at: Path) -> set[Path]:
    """What shows that noise was drawn: states after a stage, and gates that were passed."""
    gates = {
        path for path in at.glob("private/charges/gate-*.json") if "data" in json.loads(path.read_text())
    }
    return gates | set(at.glob("private/**/state-001.npz"))


class _Plain:
    """A command line that is no release."""

    def __init__(self, words: list[str], ending: Ending):
        self._words, self.environment, self.user = words, ending.environment, ending.user

    def arguments(self, _: Path) -> list[str]:
        return self._words


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="*", help="cases whose name matches, e.g. '*locked*'")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dpgmm-ledgers-")))
        place.chmod(0o755)
        ground = place / "ground"
        bad_ground.ground(ground)
        server = ""
        if why := postgres.missing():
            print(f"PostgreSQL is left out: {why}")
        else:
            server = stack.enter_context(postgres.server("max_connections=100", "fsync=off"))
            Ground(place, server, server).execute("CREATE ROLE guest LOGIN")
        chosen = [
            (name, database, made)
            for name, (databases, made) in TROUBLES.items()
            for database in databases
            if (database == "sqlite" or server) and fnmatch.fnmatchcase(f"{database}: {name}", options.only)
        ]
        numbers = itertools.count()
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as workers:
            outcomes = list(
                workers.map(lambda each: run(*each, ground, place, server, next(numbers)), chosen)
            )
    for outcome in outcomes:
        print(f"{outcome.wrong or 'ended well'}: {outcome.case}\n    {outcome.line}")
    kinds = collections.Counter(outcome.wrong or "ended well" for outcome in outcomes)
    print(f"\n{len(outcomes)} cases: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    return 0 if set(kinds) <= {"ended well"} else 1


if __name__ == "__main__":
    sys.exit(main())
