"""A PostgreSQL server of one's own, from Debian's package: a cluster on a Unix socket, gone afterwards."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_SECONDS = 60


def binaries() -> Path | None:
    """The newest version's programs; None where the package is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


def missing() -> str:
    """Why there can be no server here; "" where there can."""
    if binaries() is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    if os.geteuid() == 0 and _user() is None:
        return "PostgreSQL does not run as root, and there is no user postgres"
    return ""


def _user() -> pwd.struct_passwd | None:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres")
    return None


@contextlib.contextmanager
def server(*settings: str) -> Iterator[str]:
    """While entered a server runs; the URL of its empty database `dpgmm`.

    Args:
      settings: more of PostgreSQL's, e.g. "max_connections=300".
    """
    folder = tempfile.mkdtemp(prefix="dpgmm-postgres-")
    user = _user() if os.geteuid() == 0 else None
    options = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(binaries() / program), *arguments],
            check=True,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # Of a server that stays: a pipe would never end.
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            **options,
        )

    try:
        if user:
            os.chown(folder, user.pw_uid, user.pw_gid)
        data = f"{folder}/data"
        run("initdb", "-D", data, "-U", "dpgmm", "-A", "trust", "-E", "UTF8", "--no-sync")
        wanted = [*settings, f"unix_socket_directories={folder}", "listen_addresses="]
        run(
            "pg_ctl",
            "-D",
            data,
            "-w",
            "-l",
            f"{folder}/log",
            "-o",
            " ".join(f"-c {each}" for each in wanted),
            "start",
        )
        try:
            run("createdb", "-h", folder, "-U", "dpgmm", "dpgmm")
            yield f"postgresql://dpgmm@/dpgmm?host={folder}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
