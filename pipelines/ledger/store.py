"""Where rows of a ledger lie: SQLite or PostgreSQL, through SQLAlchemy.

A row is written once and never changed.  Rows of a data set are numbered; who adds one holds the
data set's lock from before reading the others until the new one is on disk: BEGIN IMMEDIATE in
SQLite, a row lock in PostgreSQL.  A process that is killed leaves no lock and no half of a row.
"""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote

import sqlalchemy as sql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from dpgmm_beam.errors import ConfigError, PassingError
from pipelines import paths

SCHEMA = 1
"""Rises with the tables and with what a row may say."""

PATIENCE_SECONDS = 60
"""How long a writer waits for the others."""

_CONNECT_SECONDS = 10
# Any number: the lock under which tables are made.
_MAKING = 0x6470676D6D

_METADATA = sql.MetaData()
_ABOUT = sql.Table("dpgmm_ledger", _METADATA, sql.Column("schema_version", sql.Integer, primary_key=True))
_DATASETS = sql.Table("dpgmm_datasets", _METADATA, sql.Column("name", sql.String(256), primary_key=True))
_ROWS = sql.Table(
    "dpgmm_rows",
    _METADATA,
    sql.Column("dataset", sql.String(256), sql.ForeignKey(_DATASETS.c.name), primary_key=True),
    sql.Column("number", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("content", sql.Text, nullable=False),
    sql.Column("hash", sql.String(64), nullable=False),
    sql.Column("signature", sql.String(64), nullable=False),
)


class Row(NamedTuple):
    """A row as it lies in the table.

    Attributes:
      number: from 0, without gaps.
      content: canonical JSON; all that the row says.
      hash: SHA-256 of the content, hexadecimal.
      signature: of the hash, hexadecimal; "" where the data set is not signed.
    """

    number: int
    content: str
    hash: str
    signature: str


class LedgerError(PassingError):
    """The ledger could not be used; nothing was drawn, and another try may do."""


class Store:
    """The tables behind a URL.

    Args:
      url: `postgresql://HOST/DATABASE`, `sqlite:///PATH`, or the path of a SQLite file.

    Attributes:
      shown: the URL without its password.
      identity: of the place, without who asks for it.
      is_file, path: whether it is a file, and which.

    Raises:
      ConfigError: it is none of these.
    """

    def __init__(self, url: str):
        self.is_file, self.path = "://" not in url, ""
        if self.is_file:
            # As it stands: a path may have any characters.
            paths.check_path("--ledger", url)
            self.path = self.shown = self.identity = os.path.abspath(url)
            return
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError, NoSuchModuleError):
            raise _no_url() from None
        kind = parsed.get_backend_name()
        if kind not in ("sqlite", "postgresql") or (kind == "sqlite" and not parsed.database):
            raise _no_url()
        self.shown = parsed.render_as_string(hide_password=True)
        self.is_file = kind == "sqlite"
        if self.is_file:
            paths.check_path("--ledger", parsed.database or "")
            self.path = self.shown = self.identity = os.path.abspath(parsed.database or "")
            return
        self._url = parsed.set(drivername="postgresql+psycopg")
        host = parsed.host or parsed.query.get("host")
        self.identity = f"{host}:{parsed.port}/{parsed.database}"

    # --- What is done -----------------------------------------------------------------------------

    def make_dataset(self, name: str) -> None:
        """Makes a data set without rows, and the tables if there are none.

        A data set that is there is left as it is.

        Raises:
          ConfigError, LedgerError: as `reading`.
        """
        if self.is_file:
            self._check_file(new=True)
        with self._transaction("rwc") as connection:
            if not self.is_file:
                connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_MAKING)))
            _METADATA.create_all(connection)
            if connection.execute(sql.select(_ABOUT)).first() is None:
                connection.execute(_ABOUT.insert().values(schema_version=SCHEMA))
            self._check_schema(connection)
            if connection.execute(sql.select(_DATASETS).where(_DATASETS.c.name == name)).first() is None:
                connection.execute(_DATASETS.insert().values(name=name))

    def reading(self, dataset: str) -> list[Row]:
        """All rows of a data set, in their order; [] where it has none.

        Waits for nobody for longer than it takes to write a row.

        Raises:
          ConfigError: there is no such ledger or data set, or it can't be used as it is.
          LedgerError: it can't be reached, or is locked.
        """
        if self.is_file:
            self._check_file()
        with self._transaction("ro") as connection:
            self._check_schema(connection)
            self._check_dataset(connection, dataset)
            return _rows(connection, dataset)

    @contextlib.contextmanager
    def writing(self, dataset: str) -> Iterator[tuple[list[Row], Callable[[Row], None]]]:
        """While entered nobody else writes to the data set; what is added is there at its end, or nothing.

        Yields:
          All rows, and what adds one.

        Raises:
          ConfigError, LedgerError: as `reading`; also what can't be written.
        """
        if self.is_file:
            self._check_file()
        with self._transaction("rw") as connection:
            self._check_schema(connection)
            self._check_dataset(connection, dataset, lock=True)

            def add(row: Row) -> None:
                connection.execute(_ROWS.insert().values(dataset=dataset, **row._asdict()))

            yield _rows(connection, dataset), add

    def check_writable(self) -> None:
        """Raises ConfigError where it shows already that a file can't be written; a server says so later."""
        if self.is_file and not (
            os.access(self.path, os.W_OK) and os.access(os.path.dirname(self.path), os.W_OK | os.X_OK)
        ):
            raise ConfigError("--ledger", self.shown, _TROUBLES[0][2])

    # --- How ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self, mode: str) -> Iterator[sql.Connection]:
        """A transaction; what goes wrong in it is one sentence."""
        try:
            engine = self._file_engine(mode) if self.is_file else self._server_engine(mode)
            with engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise self._in_words(error) from None

    def _file_engine(self, mode: str) -> sql.Engine:
        def connect() -> sqlite3.Connection:
            # Made for its owner alone; in whose group there may be others is for them to say.
            before = os.umask(0o077) if mode == "rwc" else None
            try:
                made = sqlite3.connect(
                    f"file:{quote(self.path)}?mode={mode}",
                    uri=True,
                    timeout=PATIENCE_SECONDS,
                    isolation_level=None,
                )
                # A commit is on the disk, its file's name as well.
                made.execute("PRAGMA synchronous=EXTRA")
                made.execute("PRAGMA foreign_keys=ON")
                return made
            finally:
                if before is not None:
                    os.umask(before)

        engine = sql.create_engine("sqlite://", creator=connect, poolclass=NullPool)

        def begin(connection: sql.Connection) -> None:
            connection.exec_driver_sql("BEGIN" if mode == "ro" else "BEGIN IMMEDIATE")

        sql.event.listen(engine, "begin", begin)
        return engine

    def _server_engine(self, mode: str) -> sql.Engine:
        settings = {
            "lock_timeout": PATIENCE_SECONDS * 1000,
            "statement_timeout": 2 * PATIENCE_SECONDS * 1000,
            # A machine that vanished lets go, too.
            "idle_in_transaction_session_timeout": PATIENCE_SECONDS * 1000,
            "synchronous_commit": "on",
            "default_transaction_isolation": "'read committed'",
        }
        try:
            return sql.create_engine(
                self._url,
                poolclass=NullPool,
                connect_args={
                    "connect_timeout": _CONNECT_SECONDS,
                    "application_name": "dpgmm ledger",
                    "options": " ".join(
                        f"-c {name}={str(value).strip(chr(39)).replace(' ', chr(92) + ' ')}"
                        for name, value in settings.items()
                    ),
                },
                execution_options={"postgresql_readonly": True} if mode == "ro" else {},
            )
        except (NoSuchModuleError, ModuleNotFoundError):
            raise ConfigError(
                "--ledger", self.shown, "have psycopg installed: pip install 'dpgmm-beam[ledger]'"
            ) from None

    def _check_file(self, new: bool = False) -> None:
        """Raises ConfigError unless the file is there, or can be made, and not anybody's to write."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            if not new:
                raise ConfigError(
                    "--ledger", self.shown, "be a ledger; `dpgmm ledger create` makes one"
                ) from None
            if not os.path.isdir(os.path.dirname(self.path)):
                raise ConfigError("--ledger", self.shown, "lie in a folder that exists") from None
            return
        except OSError as error:
            raise ConfigError(
                "--ledger", self.shown, f"be a file that can be opened ({error.strerror})"
            ) from None
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError("--ledger", self.shown, "be a file of SQLite")
        if found.st_mode & stat.S_IWOTH:
            raise ConfigError(
                "--ledger", self.shown, "not be anybody's to write (chmod o-w): who writes it sets the budget"
            )

    def _check_schema(self, connection: sql.Connection) -> None:
        # A ledger's tables are made in one transaction: the first is there, or none.
        if not sql.inspect(connection).has_table(_ABOUT.name):
            raise ConfigError("--ledger", self.shown, "be a ledger; `dpgmm ledger create` makes one")
        found = connection.execute(sql.select(_ABOUT.c.schema_version)).scalar()
        if found != SCHEMA:
            raise ConfigError(
                "--ledger",
                self.shown,
                f"have tables of version {SCHEMA}, which this dpgmm-beam knows, not {found}",
            )

    def _check_dataset(self, connection: sql.Connection, name: str, lock: bool = False) -> None:
        wanted = sql.select(_DATASETS.c.name).where(_DATASETS.c.name == name)
        if lock and not self.is_file:
            wanted = wanted.with_for_update()
        if connection.execute(wanted).first() is None:
            others = [
                each
                for (each,) in connection.execute(sql.select(_DATASETS).order_by(_DATASETS.c.name).limit(5))
            ]
            known = f" (it has {', '.join(others)})" if others else ""
            raise ConfigError("--dataset", name, f"be a data set of the ledger{known}")

    def _in_words(self, error: Exception) -> Exception:
        """What a database says, as one sentence without its statement or the password."""
        original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        code = getattr(original, "sqlite_errorname", None) or getattr(original, "sqlstate", None) or ""
        for codes, refused, sentence in _TROUBLES:
            if any(code.startswith(each) for each in codes):
                if refused:
                    return ConfigError("--ledger", self.shown, sentence)
                return LedgerError(f"the ledger {self.shown} {sentence}")
        said = " ".join(str(original).split())[:200] or type(original).__name__
        if code:
            return LedgerError(
                f"the ledger {self.shown} failed ({code}: {said}); nothing was charged or drawn"
            )
        return LedgerError(f"the ledger {self.shown} can't be reached ({said})")


def _no_url() -> ConfigError:
    # Not shown: it may hold a password.
    return ConfigError("--ledger", "(a URL)", "be postgresql://HOST/DATABASE, sqlite:///PATH or a path")


def _rows(connection: sql.Connection, dataset: str) -> list[Row]:
    columns: Sequence[sql.Column] = [_ROWS.c[name] for name in Row._fields]
    found = sql.select(*columns).where(_ROWS.c.dataset == dataset).order_by(_ROWS.c.number)
    return [Row(*row) for row in connection.execute(found)]


# Codes of SQLite and of PostgreSQL; whether another try is of no use; what is said.
_TROUBLES: tuple[tuple[tuple[str, ...], bool, str], ...] = (
    (("SQLITE_READONLY", "25006", "42501"), True, "be one that this user may write, and it is read-only"),
    (("SQLITE_NOTADB",), True, "be a file of SQLite, and it is none"),
    (("SQLITE_CORRUPT",), True, "be whole, and its file is damaged: restore it from a backup"),
    (("SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH"), True, "be one that this user may open"),
    (("28", "3D000"), True, "be a database that lets this user in"),
    (("SQLITE_BUSY", "SQLITE_LOCKED", "55P03", "57014"), False, "is locked by another process"),
    (("SQLITE_FULL", "53100"), False, "can't grow: its disk is full"),
    (("SQLITE_IOERR",), False, "can't be read or written: its disk fails or is full"),
    (("53", "57P"), False, "lets nobody in for now"),
)
