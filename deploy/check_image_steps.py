"""Does by hand what deploy/Dockerfile does with pip and python, in a clean virtual environment.

    python deploy/check_image_steps.py [--work FOLDER] [--build-arg NAME=VALUE ...]

For machines that can't build an image.  COPY takes the same files; RUN steps that start with pip
or python are run as they are; what needs root or another image is listed as skipped.  Minutes and
gigabytes: not part of the tests.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def instructions(text: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, argument) of a Dockerfile; comments out, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [
        (word.upper(), rest.strip())
        for word, _, rest in (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    ]


def copies(text: str) -> list[tuple[list[str], str]]:
    """(sources, destination) of each COPY from the build context."""
    found = []
    for word, rest in instructions(text):
        words = shlex.split(rest)
        if word == "COPY" and not words[0].startswith("--from"):
            found.append((words[:-1], words[-1]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", help="folder to install into; else a temporary one, removed at the end")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    work = Path(options.work or tempfile.mkdtemp(prefix="dpgmm-image-"))
    try:
        return replay(work, dict(argument.split("=", 1) for argument in options.build_arg))
    finally:
        if not options.work:
            shutil.rmtree(work, ignore_errors=True)


def replay(work: Path, build_arguments: dict[str, str]) -> int:
    venv.create(work / "venv", with_pip=True, clear=True)
    environment = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    environment["PATH"] = f"{work / 'venv' / 'bin'}:{os.environ['PATH']}"
    folder = work
    for word, rest in instructions((ROOT / "deploy/Dockerfile").read_text()):
        if word == "ARG":
            name, _, default = rest.partition("=")
            environment[name] = build_arguments.get(name, default)
        elif word == "WORKDIR":
            folder = work / rest.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
        elif word == "COPY" and not rest.startswith("--from"):
            *sources, target = shlex.split(rest)
            destination = work / target.lstrip("/") if target.startswith("/") else folder / target
            for source in sources:
                copy(ROOT / source, destination / source if target.endswith("/") else destination)
        elif word == "RUN" and rest.split()[0] in ("pip", "python"):
            print(f"+ {rest}", flush=True)
            subprocess.run(["sh", "-ec", rest], cwd=folder, env=environment, check=True)
        else:
            print(f"skipped: {word} {rest[:70]}", flush=True)
    # What the image must be able to do, away from the sources.
    for command in (["dpgmm", "--version"], ["dpgmm", "release", "--help"], ["pip", "check"]):
        print("+", *command, flush=True)
        subprocess.run(
            command, cwd=work, env=environment, check=command[0] != "pip", stdout=sys.stderr.fileno()
        )
    return 0


def copy(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, destination, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copy(source, destination)


if __name__ == "__main__":
    sys.exit(main())
