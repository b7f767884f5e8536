"""The ledger: one budget for each data set, on which all its releases draw.

    store.py      tables, transactions and locks, in SQLite or PostgreSQL; what goes wrong there, in words
    chain.py      rows as a signed chain of hashes; the witness that notices a restored backup
    account.py    what the rows add up to
    book.py       what is done to a data set: created, reserved, drawn from, committed, closed
    charging.py   a release's way through it
    command.py    dpgmm ledger

Nothing here is imported unless --ledger is given or the verb is `ledger`.
"""

from dpgmm_beam.errors import ConfigError

try:
    import sqlalchemy as _  # noqa: F401
except ModuleNotFoundError:
    raise ConfigError(
        "--ledger", "(given)", "have SQLAlchemy installed: pip install 'dpgmm-beam[ledger]'"
    ) from None
