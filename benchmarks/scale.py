"""How a release grows: passes against numpy, threads, memory, ten million rows, kills, starts, baselines.

    python benchmarks/scale.py --work FOLDER [--repeats 3] [CASE ...]

Without a CASE, all of them.  Rows are made by `benchmarks/make_rows.py` (a Beam
job) and stay in FOLDER; `ten-million` wants 45 GB there.  A release is a process
of its own, run as a user would; rates are taken from its stages, so start and
output are in none of them.  Memory is a process's own (RssAnon, looked at every
50 ms): pages of mapped files are the system's to drop.  In comparisons the
settings take turns.
"""

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

STAGE = re.compile(r"fit: stage (\d+) of (\d+) done \((\S+) ")
CASES: dict[str, Callable[["Bench"], None]] = {}
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
REPOSITORY = Path(__file__).resolve().parent.parent


def case(function: Callable[["Bench"], None]) -> Callable[["Bench"], None]:
    CASES[function.__name__.replace("_", "-")] = function
    return function


def spread(values: list[float], digits: int = 2) -> str:
    """Median and range."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


@contextlib.contextmanager
def own_memory(pid: int) -> Iterator[list[float]]:
    """Yields a list that holds the peak of a process's own memory, in MiB, when the block is left."""
    peak, over = [0.0], threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            with contextlib.suppress(OSError, StopIteration):
                text = Path(f"/proc/{pid}/status").read_text()
                anonymous = next(line for line in text.splitlines() if line.startswith("RssAnon"))
                peak[0] = max(peak[0], int(anonymous.split()[1]) / 1024)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


class Run:
    """What a release printed, and when.

    Attributes:
      seconds: of the whole process.
      stages: (name, seconds after the start) of each stage.
      peak: its own memory, MiB.
      status: its exit status.
    """

    def __init__(self, command: list[str], kill_at: int = 0):
        started = time.perf_counter()
        self.stages: list[tuple[str, float]] = []
        self.said: list[str] = []
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=REPOSITORY
        )
        assert process.stderr is not None
        with own_memory(process.pid) as peak:
            for line in process.stderr:
                self.said.append(line.rstrip())
                if found := STAGE.search(line):
                    self.stages.append((found[3], time.perf_counter() - started))
                    if int(found[1]) == kill_at:
                        process.send_signal(signal.SIGKILL)
            self.status = process.wait()
        self.seconds, self.peak = time.perf_counter() - started, peak[0]
        if self.status and not kill_at:
            raise SystemExit("\n".join(self.said))

    def steps(self) -> list[float]:
        """Seconds of each teacher's step but the first, which also makes the view."""
        times = [at for name, at in self.stages if name == "teacher"]
        return list(np.diff(times))

    def passes(self) -> float:
        """Seconds from the first stage's end to the last's."""
        return self.stages[-1][1] - self.stages[0][1]


class Bench:
    def __init__(self, work: Path, repeats: int):
        self.work, self.repeats, self.number = work, repeats, 0

    def rows(self, rows: int, dimension: int = 512, classes: int = 10, files: int = 16, group: int = 65536):
        """A folder of that many rows."""
        folder = self.work / f"rows-{rows}-{dimension}-{classes}-{files}-{group}"
        if not folder.exists():
            command = [sys.executable, "benchmarks/make_rows.py", "--rows", rows, "--output", folder]
            command += ["--dimension", dimension, "--classes", classes, "--files", files]
            subprocess.run([*map(str, command), "--row-group", str(group)], cwd=REPOSITORY, check=True)
        return folder

    def command(
        self, folder: Path, *options: str, classes: int = 10, output: Path | None = None
    ) -> list[str]:
        """A release of a folder into a new place."""
        self.number += 1
        place = output or self.work / f"release-{os.getpid()}-{self.number}"
        shutil.rmtree(place, ignore_errors=True)
        return [
            *(sys.executable, "-m", "pipelines.release", "--input", str(folder), "--encoder", "precomputed"),
            *("--classes", ",".join(map(str, range(classes))), "--epsilon", "1", "--delta", "1e-7"),
            *("--output", str(place / "release"), "--private-dir", str(place / "private")),
            # Else stages have one line together.
            *("--verbose", *options),
        ]

    def release(self, folder: Path, *options: str, classes: int = 10) -> Run:
        """A release, and nothing left of it."""
        found = Run(self.command(folder, *options, classes=classes))
        shutil.rmtree(self.work / f"release-{os.getpid()}-{self.number}", ignore_errors=True)
        return found

    def numpy_step(self, folder: Path, classes: int = 10) -> float:
        """Seconds of the same regression's step over float64 rows in memory, one thread."""
        command = [sys.executable, "benchmarks/release.py", "--numpy-steps", str(folder)]
        command += ["--classes", str(classes)]
        environment = {**os.environ, **ONE_THREAD}
        said = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, check=True)
        return float(said.stdout)

    def against_numpy(self, folder: Path, rows: int) -> None:
        ratios, rates = [], []
        for _ in range(self.repeats):
            step = statistics.median(
                self.release(folder, "--threads", "1", "--samples-per-class", "10").steps()
            )
            plain = self.numpy_step(folder)
            rates.append(rows / step)
            ratios.append(plain / step)
        print(f"late pass, one thread: {spread(rates, 0)} rows/s; over numpy in memory {spread(ratios)}")


@case
def late_pass_one_row_group(bench: Bench) -> None:
    """500,000 x 512 in one row group of one file."""
    bench.against_numpy(bench.rows(500_000, files=1, group=500_000), 500_000)


@case
def late_pass_many_files(bench: Bench) -> None:
    """10^6 x 512 in 1,000 files."""
    bench.against_numpy(bench.rows(1_000_000, files=1000, group=1000), 1_000_000)


@case
def threads(bench: Bench) -> None:
    """Default options on two cores over one thread, passes after the first."""
    folder, ratios = bench.rows(1_000_000), []
    steps = []
    for _ in range(bench.repeats):
        one, two = (bench.release(folder, "--samples-per-class", "10", *o) for o in (["--threads", "1"], []))
        ratios.append(one.passes() / two.passes())
        steps.append(statistics.median(one.steps()) / statistics.median(two.steps()))
    print(f"{os.cpu_count()} cores over one thread: all passes {spread(ratios)}, a late one {spread(steps)}")


@case
def million(bench: Bench) -> None:
    """10^6 x 512, 10 classes, default options, from Parquet to published."""
    folder = bench.rows(1_000_000)
    runs = [bench.release(folder) for _ in range(bench.repeats)]
    print(
        f"whole release: {spread([run.seconds for run in runs], 1)} s,"
        f" own memory {spread([run.peak for run in runs], 0)} MiB"
    )
    last = runs[-1]
    print(
        "  " + ", ".join(f"{name} {at:.1f}" for name, at in last.stages[:3]),
        f"... {last.stages[-1][1]:.1f} s",
    )


@case
def ten_million(bench: Bench) -> None:
    """10^7 x 512, and whether time is linear from 10^5 on."""
    seconds = {}
    for rows in (100_000, 1_000_000, 10_000_000):
        run = bench.release(bench.rows(rows, files=100 if rows > 1_000_000 else 16))
        seconds[rows] = run.seconds
        start = run.stages[0][1]
        print(
            f"  {rows:>10,} rows: {run.seconds:.1f} s (first pass by {start:.1f} s, then"
            f" {run.passes():.1f} s), own memory {run.peak:.0f} MiB",
            flush=True,
        )
    slope = (seconds[1_000_000] - seconds[100_000]) / 900_000
    predicted = seconds[100_000] + slope * 9_900_000
    print(
        f"predicted from the smaller two: {predicted:.0f} s, measured over predicted"
        f" {seconds[10_000_000] / predicted:.2f}"
    )


@case
def memory(bench: Bench) -> None:
    """A worker's own memory, whatever the row groups."""
    for group in (1_000, 65_536, 500_000):
        run = bench.release(bench.rows(500_000, files=1, group=group), "--samples-per-class", "10")
        print(f"  row groups of {group:>7,}: own memory {run.peak:.0f} MiB, {run.seconds:.1f} s")


def _passes(connection, base: str, position: int, folder: str, key_file: str) -> None:
    """A worker process: sums the pieces that it is told."""
    from transforms.execution import Execution
    from transforms.files import run_files
    from transforms.files.run_files import Workspace
    from transforms.passes import Pass

    workspace = Workspace(os.path.dirname(base), folder, key_file)
    before = run_files.load_state(base, position)
    while (numbers := connection.recv()) is not None:
        running = Pass(base, before, workspace, Execution())
        for number in numbers:
            running.add(number)
        sums, pieces = running.finish()
        connection.send((sums.queries, pieces))


@case
def two_workers(bench: Bench) -> None:
    """Two worker processes over one, passes of a late stage, pieces placed at random each time."""
    folder, place = bench.rows(1_000_000), bench.work / "two-workers"
    key = bench.work / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    options = ("--noise-key-file", str(key), "--release-id", "two", "--samples-per-class", "10")
    Run(bench.command(folder, *options, output=place), kill_at=12)
    (base,) = [path.parent for path in (place / "private").glob("runs/*/*/state-000.npz")]
    rows = place / "private" / "rows"
    count = len(list((rows / base.name).glob("piece-*.npy")))
    position, ratios = 10, []
    context = multiprocessing.get_context("spawn")
    ends, workers = zip(*(context.Pipe() for _ in range(2)), strict=True)
    started = [
        context.Process(target=_passes, args=(end, str(base), position, str(rows), str(key)), daemon=True)
        for end in workers
    ]
    for process in started:
        process.start()

    def seconds(groups: list[list[int]]) -> float:
        began = time.perf_counter()
        for end, numbers in zip(ends, groups, strict=False):
            end.send(numbers)
        for end, _ in zip(ends, groups, strict=False):
            end.recv()
        return time.perf_counter() - began

    generator = random.Random(0)
    for repeat in range(3 * bench.repeats + 1):
        order = generator.sample(range(count), count)
        one, two = seconds([order]), seconds([order[::2], order[1::2]])
        if repeat:
            ratios.append(one / two)
    for end in ends:
        end.send(None)
    shutil.rmtree(place)
    print(f"two workers over one: {spread(ratios)}, {count} pieces")


@case
def many_classes(bench: Bench) -> None:
    """1,000 classes x 2,048 x 100,000."""
    folder = bench.rows(100_000, 2048, 1000, files=4, group=8192)
    run = bench.release(folder, "--samples-per-class", "10", classes=1000)
    print(
        f"1,000 classes x 2,048 x 100,000: {run.seconds:.0f} s, own memory {run.peak:.0f} MiB,"
        f" a step {statistics.median(run.steps()):.1f} s"
    )


@case
def killed(bench: Bench) -> None:
    """SIGKILL at stage 20 of 22; the same command again."""
    folder, place = bench.rows(1_000_000), bench.work / "killed"
    whole = bench.release(folder)
    Run(bench.command(folder, output=place), kill_at=20)
    command = bench.command(folder, output=bench.work / "elsewhere")
    # The same places: `command` would have emptied them.
    command = [part.replace("elsewhere", "killed") for part in command]
    again = Run(command)
    shutil.rmtree(place)
    print(
        f"killed at stage 20, run again: {again.seconds:.1f} s of {whole.seconds:.1f},"
        f" {len(again.stages)} stages drawn; it said: {again.said[0]}"
    )


@case
def start(bench: Bench) -> None:
    """Imports, graph and calibration of a release; imports of a worker; the command's help."""
    folder = bench.rows(200, 16, 2, files=1, group=200)

    def timed(command: list[str]) -> float:
        began = time.perf_counter()
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
        return time.perf_counter() - began

    figures = collections.defaultdict(list)
    for _ in range(max(3, bench.repeats)):
        command = bench.command(folder, classes=2)
        place = Path(command[command.index("--private-dir") + 1])
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        while process.poll() is None and not list(place.glob("runs/*/*/state-000.npz")):
            time.sleep(0.01)
        figures["release, until its first step runs"].append(time.perf_counter() - began)
        process.wait()
        shutil.rmtree(place.parent)
        python = [sys.executable, "-c"]
        figures["worker's imports"].append(timed([*python, "import transforms.release"]))
        figures["import apache_beam alone"].append(timed([*python, "import apache_beam"]))
        dpgmm = os.path.join(os.path.dirname(sys.executable), "dpgmm")
        figures["dpgmm --help"].append(timed([dpgmm, "--help"]))
    for name, seconds in figures.items():
        print(f"  {name}: {spread(seconds)} s")


def _baseline(name: str, folder: str) -> None:
    """Fits a baseline on all rows in memory; prints its seconds and memory."""
    import resource

    import pyarrow.parquet as pq
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.mixture import GaussianMixture

    table = pq.read_table(folder, columns=["embedding"])
    rows = table.column(0).combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    began = time.perf_counter()
    if name == "MiniBatchKMeans":
        MiniBatchKMeans(10, random_state=0, n_init=1).fit(rows)
    else:
        GaussianMixture(10, covariance_type="full", random_state=0, max_iter=20, reg_covar=1e-5).fit(rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.perf_counter() - began, "MiB": peak}))


@case
def baselines(bench: Bench) -> None:
    """scikit-learn's fits of 10 clusters on the same rows, not private, until one gives up (300 s)."""
    for name in ("MiniBatchKMeans", "GaussianMixture"):
        for rows in (10_000, 100_000, 1_000_000):
            folder = bench.rows(rows)
            command = [sys.executable, __file__, "--baseline", name, str(folder), "--work", str(bench.work)]
            try:
                said = subprocess.run(command, capture_output=True, timeout=300, check=True).stdout
            except subprocess.TimeoutExpired:
                print(f"  {name}, {rows:,} rows: not done in 300 s")
                break
            except subprocess.CalledProcessError as error:
                print(f"  {name}, {rows:,} rows: gave up ({error.stderr.decode().strip().splitlines()[-1]})")
                break
            found = json.loads(said)
            print(f"  {name}, {rows:,} rows: {found['seconds']:.1f} s, {found['MiB']:.0f} MiB", flush=True)
    for rows in (10_000, 100_000, 1_000_000):
        run = bench.release(bench.rows(rows), "--samples-per-class", "10")
        print(
            f"  private release, {rows:,} rows: {run.seconds:.1f} s, own memory {run.peak:.0f} MiB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--baseline", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.baseline:
        _baseline(*given.baseline)
        return
    if unknown := set(given.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    given.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.work.resolve(), given.repeats)
    for name in given.cases or CASES:
        print(f"{name}: {CASES[name].__doc__}", flush=True)
        CASES[name](bench)


if __name__ == "__main__":
    main()
