"""Bad inputs, each given to the command as a user would: how many are refused well, and which are not.

    python benchmarks/bad_inputs.py [--only PATTERN] [--at CHECKOUT] [--jobs N] [--json FILE]

Every case of `bad_cases.py` runs as a process of its own in a folder of its own,
with 20 seconds and 6 GiB.  It is refused well if it ends with 2 and one line on
standard error that names the option at fault, without a traceback, and leaves
nothing behind.  (`verify` may also find fault and end with 1.)  `--at` runs
another checkout's code, to compare.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import bad_cases, bad_ground
from benchmarks.bad_ground import Case

SECONDS, MEMORY = 20.0, 6 * 2**30
# `python -m pipelines.cli` did nothing once.
COMMAND = (sys.executable, "-c", "import sys; from pipelines.cli import main; sys.exit(main())")
# As somebody else, who need not be able to read this interpreter's files: they are read first.
AS_USER = """
import os, sys
from pipelines import cli, release, runner
from pipelines.ledger import charging, command
runner.job_options([], False)
user = int(sys.argv.pop(1))
os.setgroups([])
os.setgid(user)
os.setuid(user)
sys.exit(cli.main())
"""
WELL = "refused well"
LOOKS_PER_SECOND = 20


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
      case: its name.
      kind: `WELL`, or what was wrong.
      line: of standard error, or of standard output.
      seconds: that it took.
    """

    case: str
    kind: str
    line: str
    seconds: float


def run(case: Case, ground: Path, place: Path, checkout: Path) -> Outcome:
    """Runs a case in a folder of its own, which is removed."""
    at = Path(tempfile.mkdtemp(dir=place))
    try:
        shutil.copytree(ground, at, dirs_exist_ok=True)
        case.prepare(at)
        before = listing(at)
        started = time.monotonic()
        with open(place / f"{at.name}.out", "w+b") as out, open(place / f"{at.name}.err", "w+b") as err:
            ended = watched(case, at, checkout, out, err)
            seconds = time.monotonic() - started
            out.seek(0)
            err.seek(0)
            said, complained = (file.read(10**6).decode(errors="replace") for file in (out, err))
        kind = judged(case, ended, said, complained)
        if kind == WELL and listing(at) != before:
            kind = "left something behind"
        lines = (complained or said).strip().splitlines() or [""]
        return Outcome(case.name, kind, lines[-1][:300], seconds)
    finally:
        for path in (place / f"{at.name}.out", place / f"{at.name}.err"):
            path.unlink(missing_ok=True)
        shutil.rmtree(at, ignore_errors=True)


def listing(at: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mode for path in sorted(at.rglob("*"))}


def watched(case: Case, at: Path, checkout: Path, out, err) -> int | str:
    """The exit status, or why the process was ended."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1", "HOME": str(at / "home")}
    environment.pop("XDG_STATE_HOME", None)
    for name, value in case.environment.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value.replace("{at}", str(at))
    command = COMMAND if case.user is None else (sys.executable, "-c", AS_USER, str(case.user))
    process = subprocess.Popen(
        [*command, *case.arguments(at)],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        cwd=at,
        env=environment,
        start_new_session=True,
    )
    end, largest = time.monotonic() + SECONDS, 0
    try:
        while process.poll() is None:
            largest = max(largest, resident(process.pid))
            if largest > MEMORY:
                return "over memory"
            if time.monotonic() > end:
                return "hung"
            time.sleep(1 / LOOKS_PER_SECOND)
        return process.returncode
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def resident(pid: int) -> int:
    """Bytes of memory that a process has, 0 where it is gone."""
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def judged(case: Case, ended: int | str, said: str, complained: str) -> str:
    """What to call an outcome."""
    if isinstance(ended, str):
        return ended
    if "Traceback" in complained:
        return "a traceback"
    if case.finds and ended == 1 and not complained and said.startswith("NOT VERIFIED"):
        return (
            WELL
            if said.isprintable() or all(map(str.isprintable, said.split("\n")))
            else "escapes on a terminal"
        )
    if ended == 0:
        return "accepted"
    if ended != 2:
        return "exit 1" if ended == 1 else f"exit {ended}"
    lines = complained.strip("\n").split("\n")
    # Progress before it is no fault of the sentence.
    if sum(line.startswith(("dpgmm", "usage")) for line in lines) != 1 or not lines[-1].startswith("dpgmm"):
        return "several lines"
    if len(lines) > 1 and case.verb != "demo":
        return "several lines"
    if not lines[-1].isprintable():
        return "escapes on a terminal"
    named = re.match(r"dpgmm[a-z ]*: (?:argument )?(-*[^ =:]+)", lines[-1])
    required = re.match(r"dpgmm[a-z ]*: the following arguments are required: ", lines[-1])
    if required or (named and named[1] in case.names):
        return WELL
    return "wrong argument"


def make_ground(place: Path, checkout: Path) -> Path:
    """What all cases start from, with a release that the checkout makes."""
    ground = place / "ground"
    bad_ground.ground(ground)
    case = Case("release", "good", (*bad_ground.KEYED, f"--output={ground}/release"), ())
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
    subprocess.run([*COMMAND, *case.arguments(ground)], check=True, env=environment, capture_output=True)
    shutil.rmtree(ground / "private")
    return ground


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="cases whose name matches, e.g. 'train *'")
    parser.add_argument("--at", type=Path, default=Path(__file__).parents[1], help="checkout to run")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="file for all outcomes")
    arguments = parser.parse_args()
    checkout = arguments.at.resolve()
    chosen = [
        case
        for case in bad_cases.cases()
        if fnmatch.fnmatchcase(case.name, arguments.only)
        # Verbs come and go.
        and (checkout / "pipelines" / f"{case.verb.split()[0]}.py").exists()
    ]
    started = time.monotonic()
    # Not in a folder that others can't enter: some cases run as somebody else.
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool,
    ):
        place = Path(folder)
        place.chmod(0o755)
        ground = make_ground(place, checkout)
        outcomes = list(pool.map(lambda case: run(case, ground, place, checkout), chosen))
    counts = collections.Counter(outcome.kind for outcome in outcomes)
    for outcome in outcomes:
        if outcome.kind != WELL:
            print(f"{outcome.kind:>22}  {outcome.case}\n{'':>22}  {outcome.line!r}")
    print(f"\n{len(outcomes)} bad inputs in {time.monotonic() - started:.0f} s")
    for kind, count in counts.most_common():
        print(f"{count:6}  {kind}")
    slow = max(outcomes, key=lambda outcome: outcome.seconds)
    print(f"the slowest took {slow.seconds:.1f} s: {slow.case}")
    if arguments.json:
        arguments.json.write_text(json.dumps(list(map(dataclasses.asdict, outcomes)), indent=1))


if __name__ == "__main__":
    main()
