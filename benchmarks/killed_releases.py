"""Releases whose jobs are killed at random moments and run again: the same bytes, one charge.

    python benchmarks/killed_releases.py [--trials 10] [--kills 3] [--seed 0]

Each trial has a ledger with room for one release and a private folder of its own.  Its command is killed
(SIGKILL twice as often as SIGTERM) up to so many times, each after a random moment of a whole run's
length, and then left to end.  It ends well if the release is published, has the bytes of one that was
never killed, is charged once, and the ledger's chain is whole.
"""

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import bad_ground
from pipelines.ledger.book import Book

CHECKOUT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-c", "import sys; from pipelines.cli import main; sys.exit(main())")
PATIENCE = 300


def start(ground: Path, folder: Path, output: Path) -> subprocess.Popen:
    options = [
        *(f"--input={ground}/in", "--encoder=precomputed", "--classes=a,b,c", "--epsilon=1", "--delta=1e-5"),
        *("--components=2", "--rounds=2", "--samples-per-class=5", f"--output={output}"),
        *(f"--private-dir={folder}/private", f"--ledger={folder}/ledger.sqlite", "--dataset=d"),
        *(f"--noise-key-file={ground}/key", "--release-id=r"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.Popen(
        [*COMMAND, "release", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make(folder: Path) -> Book:
    folder.mkdir()
    book = Book(f"{folder}/ledger.sqlite", "d")
    book.create(1.3, 1e-5)
    return book


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    wrong, rows = 0, collections.Counter()
    with tempfile.TemporaryDirectory(prefix="dpgmm-killed-") as place:
        ground = Path(place) / "ground"
        bad_ground.ground(ground)
        make(Path(place) / "whole")
        began = time.monotonic()
        whole = Path(place) / "whole"
        assert start(ground, whole, whole / "release").wait(PATIENCE) == 0
        seconds, expected = time.monotonic() - began, contents(whole / "release")
        for trial in range(options.trials):
            folder = Path(place) / f"trial-{trial}"
            book = make(folder)
            for _ in range(options.kills):
                running = start(ground, folder, folder / "release")
                time.sleep(generator.uniform(0.2 * seconds, seconds))
                running.send_signal(generator.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
                running.wait(PATIENCE)
            status = start(ground, folder, folder / "release").wait(PATIENCE)
            kinds = [row["kind"] for row in book.history()]
            charged = [charge.state for charge in book.account().counted()]
            well = (
                status == 0
                and charged == ["committed"]
                and contents(folder / "release") == expected
                and not book.problems()
            )
            wrong += not well
            rows.update(kinds)
            print(f"{'ended well' if well else 'WRONG'}: {' '.join(kinds)}", flush=True)
    print(f"{options.trials} releases, {options.kills} kills each: {wrong} went wrong; rows: {dict(rows)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
