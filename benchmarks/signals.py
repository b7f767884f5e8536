"""Signals at random moments of a release: what is left, and how long it takes.

    python benchmarks/signals.py [--trials 100] [--prism FILE] [--seed 0]

Each trial is the command as a user types it, in a process group of its own, that gets
SIGINT, SIGTERM or SIGHUP after a random time, often before it has begun to work.  It
must end within 10 s with 128 + the signal's number (or 0, if it had finished) and
leave no process, no drawn key, no half of a release and no traceback.  With --prism
every other trial runs its work in a worker pool, as a job of that Prism.
"""

import argparse
import collections
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LIMIT = 10.0
DPGMM = str(Path(sys.executable).parent / "dpgmm")


def write_rows(path: Path, rows: int = 20_000, dimension: int = 64) -> None:
    values = np.random.default_rng(0).standard_normal((rows, dimension), np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dimension)
    labels = pa.array([("a", "b", "c")[row % 3] for row in range(rows)])
    pq.write_table(pa.table({"label": labels, "embedding": vectors}), path)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


@contextlib.contextmanager
def cluster(prism: str):
    """Options of a job that runs in a worker pool."""
    job, worker = free_port(), free_port()
    pool = [
        sys.executable,
        "-m",
        "apache_beam.runners.worker.worker_pool_main",
        "--service_port",
        str(worker),
    ]
    commands = [[prism, "-job_port", str(job), "-serve_http=false"], pool]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen(command, start_new_session=True, **quiet) for command in commands]
    try:
        for port in (job, worker):
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
                    break
                time.sleep(0.05)
        yield [
            *("--runner=PortableRunner", f"--job_endpoint=localhost:{job}"),
            *("--environment_type=EXTERNAL", f"--environment_config=localhost:{worker}"),
        ]
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def alive(group: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False


def trial(
    folder: Path, rows: Path, number: signal.Signals, delay: float, more: list[str]
) -> tuple[list[str], float]:
    """What was wrong, and the seconds from the signal to the end."""
    command = [
        *(DPGMM, "release", "--input", str(rows), "--encoder", "precomputed", "--classes", "a,b,c"),
        *("--epsilon", "1", "--delta", "1e-5", "--samples-per-class", "50"),
        *("--output", str(folder / "out" / "release"), "--private-dir", str(folder / "private"), *more),
    ]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        wrong = []
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        sent = time.monotonic()
        process.send_signal(number)
        try:
            status = process.wait(3 * LIMIT)
        except subprocess.TimeoutExpired:
            status = None
            wrong.append("never ended")
        seconds = time.monotonic() - sent
        if alive(process.pid):
            time.sleep(0.5)
            if alive(process.pid):
                wrong.append("left a process")
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    said = (folder / "log").read_text(errors="replace")
    # Before Python has begun to run the program, the system ends it: -15 here, 143 in a shell.
    if status not in (0, 128 + number, -number, None):
        wrong.append(f"ended with {status}")
    if seconds > LIMIT:
        wrong.append(f"took {seconds:.0f} s")
    if "Traceback" in said:
        wrong.append("traceback")
    if list(folder.glob("private/runs/*/noise.key")):
        wrong.append("left a key")
    output = folder / "out"
    names = os.listdir(output) if output.exists() else []
    if names not in ([], ["release"]) or (names and not (output / "release" / "manifest.json").exists()):
        wrong.append("left half a release")
    if status == 0 and not names:
        wrong.append("no release, status 0")
    return wrong, seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--prism")
    parser.add_argument("--longest", type=float, default=4.0, help="seconds before the signal, at most")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    choices = random.Random(given.seed)
    counts: collections.Counter[str] = collections.Counter()
    times = []
    with tempfile.TemporaryDirectory() as work:
        rows = Path(work) / "rows.parquet"
        write_rows(rows)
        for number in range(given.trials):
            folder = Path(work) / str(number)
            folder.mkdir()
            elsewhere = bool(given.prism) and number % 2 == 1
            kind, delay = choices.choice(SIGNALS), choices.uniform(0, given.longest * (1 + elsewhere))
            with cluster(given.prism) if elsewhere else contextlib.nullcontext([]) as more:
                wrong, seconds = trial(folder, rows, kind, delay, more)
            times.append(seconds)
            counts["right" if not wrong else "wrong"] += 1
            if wrong:
                where = "pool" if elsewhere else "one process"
                print(f"trial {number} ({where}), {kind.name} after {delay:.2f} s: {', '.join(wrong)}")
                print(
                    "  " + (folder / "log").read_text(errors="replace")[-600:].replace("\n", "\n  "),
                    flush=True,
                )
    print(f"{given.trials} trials: {counts['right']} right, {counts['wrong']} wrong")
    times.sort()
    print(f"from the signal to the end: median {times[len(times) // 2]:.2f} s, longest {times[-1]:.2f} s")


if __name__ == "__main__":
    main()
