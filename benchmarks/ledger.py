"""Processes that race for the last shares of a budget, of which a third are killed at random.

    python benchmarks/ledger.py [--processes 200] [--fit 60] [--seeds 3] [--postgresql URL]

Each process reserves a release of its own in one data set, begins to draw and commits. However many
are killed, and when, exactly as many releases are charged as fit, everybody who was told
that the budget has room is in the ledger, nobody else is, and the chain is whole.  On SQLite and on
PostgreSQL (a server of its own from Debian's package, unless a URL names one).  Prints, for each
database and seed: how many won, were refused, were killed, died with a charge, and the seconds.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import postgres
from dpgmm_beam.errors import BudgetError
from dpgmm_beam.privacy.neighbours import IMAGES
from pipelines.ledger import account as accounts
from pipelines.ledger.book import Book
from pipelines.ledger.wanted import Wanted

TOTAL_EPSILON, DELTA = 4.0, 1e-6
_WON, _REFUSED, _FAILED = 1, 2, 3
_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Storm:
    """What became of a race.

    Attributes:
      won: processes that were told that their release fits, and lived.
      refused: processes that were told that it does not.
      killed: processes that were killed.
      charged: releases that the ledger counts.
      fit: releases that fit.
      seconds: that the race took.
      problems: what is wrong, in sentences.
    """

    won: int
    refused: int
    killed: int
    charged: int
    fit: int
    seconds: float
    problems: tuple[str, ...]


def wanted(release_id: str, fit: int, slice_name: str | None = None) -> Wanted:
    """A release of which so many fit in the total."""
    from dpgmm_beam.privacy.composition import STEPS, allowance

    multiplier = (fit * STEPS / allowance(TOTAL_EPSILON, DELTA)) ** 0.5 * (1 + 1e-9)
    privacy = {
        "epsilon": 1.0,
        "delta": DELTA,
        "privacy_unit": IMAGES.unit,
        "adjacency": IMAGES.stated,
        "neighboring_relation": IMAGES.relation,
        "slice": slice_name,
        "dp_event": {"GaussianDpEvent": {"noise_multiplier": multiplier}},
    }
    return Wanted(release_id, privacy, {"fit_digest": "f", "key": release_id}, "here")


def _race(url: str, number: int, fit: int, started, ends) -> None:
    book = Book(url, "race")
    # No lock: a process that is killed with one would stop the others.
    while not started.value:
        time.sleep(0.002)
    try:
        charge = book.reserve(wanted(f"r{number}", fit))
        # From here on the process has been told.
        ends[number] = _WON
        book.begin_drawing(charge)
        book.commit(charge, "data", "state")
    except BudgetError:
        ends[number] = _REFUSED
    except BaseException:
        ends[number] = _FAILED
        raise


def storm(url: str, processes: int, fit: int, killed: int, seed: int) -> Storm:
    """Runs a race in a new data set.

    Args:
      url: of the ledger, in which no data set `race` is yet.
      killed: how many of the processes are killed, at random moments.
    """
    generator = random.Random(seed)
    Book(url, "race").create(TOTAL_EPSILON, DELTA)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.ledger", "psycopg", "sqlalchemy.dialects.sqlite"])
    started, ends = context.Value("i", 0, lock=False), context.Array("i", processes, lock=False)
    racers = [
        context.Process(target=_race, args=(url, number, fit, started, ends)) for number in range(processes)
    ]
    for racer in racers:
        racer.start()
    # Each after so many others have an answer, and a moment more: in the middle of something.
    moments = sorted(generator.sample(range(processes - killed), killed))
    began = time.monotonic()
    started.value = 1
    for moment in moments:
        while sum(map(bool, ends)) < moment and time.monotonic() < began + _SECONDS:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.02))
        living = [racer for racer in racers if racer.exitcode is None]
        if living:
            generator.choice(living).kill()
    for racer in racers:
        racer.join(_SECONDS)
    seconds = time.monotonic() - began
    dead = {number for number in range(processes) if racers[number].exitcode == -signal.SIGKILL}
    book = Book(url, "race")
    account = book.account()
    charged = {charge.release_id: charge.state for charge in account.counted()}
    problems = book.problems()
    if len(charged) != fit:
        problems.append(f"{len(charged)} were charged, where {fit} fit")
    for number in range(processes):
        state = charged.get(f"r{number}")
        if ends[number] == _WON and state is None:
            problems.append(f"process {number} won, and its release is not charged")
        if ends[number] == _REFUSED and state is not None:
            problems.append(f"process {number} was refused, and its release is {state}")
        if number not in dead and ends[number] == _WON and state != accounts.COMMITTED:
            problems.append(f"process {number} committed, and its release is {state}")
        if number not in dead and ends[number] not in (_WON, _REFUSED):
            problems.append(f"process {number} failed")
    alive = [ends[number] for number in range(processes) if number not in dead]
    return Storm(
        alive.count(_WON), alive.count(_REFUSED), len(dead), len(charged), fit, seconds, tuple(problems)
    )


@contextlib.contextmanager
def _databases(url: str | None) -> Iterator[list[tuple[str, str | None]]]:
    with contextlib.ExitStack() as stack:
        if url is None and not postgres.missing():
            url = stack.enter_context(postgres.server("max_connections=400"))
        if url is None:
            print(f"PostgreSQL is left out: {postgres.missing()}")
        yield [("SQLite", None), *([("PostgreSQL", url)] if url else [])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, default=200)
    parser.add_argument("--fit", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--postgresql", metavar="URL", help="an empty database")
    options = parser.parse_args()
    wrong = 0
    with _databases(options.postgresql) as databases:
        for name, url in databases:
            for seed in range(options.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    place = url or f"{folder}/ledger.sqlite"
                    found = storm(place, options.processes, options.fit, options.processes // 3, seed)
                    if url:
                        forget(url)
                print(
                    f"{name} seed {seed}: {options.processes} processes for {options.fit} shares:"
                    f" {found.charged} charged; {found.won} won and lived, {found.refused} refused,"
                    f" {found.killed} killed, {found.charged - found.won} of them with a charge;"
                    f" {found.seconds:.1f} s; {'; '.join(found.problems) or 'no problem'}",
                    flush=True,
                )
                wrong += bool(found.problems)
    print(f"{wrong} races went wrong")
    return 1 if wrong else 0


def forget(url: str) -> None:
    """Empties the ledger's tables."""
    import sqlalchemy as sql

    engine = sql.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        for table in ("dpgmm_rows", "dpgmm_datasets", "dpgmm_ledger"):
            connection.execute(sql.text(f"DROP TABLE IF EXISTS {table}"))
    engine.dispose()


if __name__ == "__main__":
    sys.exit(main())
