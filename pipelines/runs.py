"""Runs of a release below the private folder: begun, continued where they were killed, cleaned up.

    PRIVATE/runs/NAME/run.json     what the run is of; with a drawn key, also noise.key beside it
    PRIVATE/runs/NAME/lock         held by a driver while it lives, on a local disk
    PRIVATE/rows/                  prepared rows; those of a drawn key lie in the run's own folder
    PRIVATE/reports/NAME.json      exactly what was set aside of the rows, for the owner alone
    PRIVATE/register/NAME.json     what a release id of the user's own key has named, for good
    PRIVATE/charges/               of ledgers, see `pipelines.ledger.places`: gates and witnesses, for good

With the user's own key a run's name is a function of the fit's configuration and the
release id: more rows of the same release are drawn from the states that are there.
With a drawn key it is drawn, too, and a run that was killed is found by the command
that began it: going on with its key and its states spends nothing, where a second
draw would.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit import chain
from dpgmm_beam.privacy.noise import KEY_BYTES, NoiseKey
from dpgmm_beam.release.manifest import digest_of_text
from pipelines import cli
from transforms.files import finding, keys, register, run_files
from transforms.files.private import is_local, make_private_folder
from transforms.files.publish import join
from transforms.files.run_files import Workspace, bases, has_state
from transforms.files.write import write_whole
from transforms.prepare import set_aside

RUNS, ROWS, REPORTS, REGISTER = "runs", "rows", "reports", "register"
_ABOUT, _LOCK, _KEY = "run.json", "lock", "noise.key"


@dataclasses.dataclass(frozen=True)
class Run:
    """One release on its way.

    Attributes:
      name: of its folder.
      workspace: its private files.
      release_id: the public name of the publication.
      drawn: whether the key was drawn, and goes at the end.
    """

    name: str
    workspace: Workspace
    release_id: str
    drawn: bool


def run_name(config: ReleaseConfig, release_id: str) -> str:
    """A name that is a function of the draw."""
    return f"{config.fit_digest[:16]}-{digest_of_text(release_id)[:16]}"


def register_entry(private_dir: str, release_id: str) -> str:
    """Path of a release id's entry in the register."""
    return join(private_dir, REGISTER, f"{digest_of_text(release_id)[:32]}.json")


@contextlib.contextmanager
def open_run(
    private_dir: str,
    config: ReleaseConfig,
    source: str,
    output: str,
    key_file: str | None,
    release_id: str | None,
    restart: bool = False,
    secret: bytes | None = None,
) -> Iterator[Run]:
    """The run of a command; continued if one was begun.

    Args:
      private_dir: see `pipelines.private`.
      config: of the release.
      source, output: the command's input and output.
      key_file, release_id: the user's, or None for both; the key may come as `secret` instead.
      restart: drop what was begun.
      secret: the user's own key, where it comes from a store and no file: workers find it in the
        run's folder as long as a driver lives.

    Raises:
      ConfigError: the release id has named something else.
    """
    if release_id is not None:
        name = run_name(config, release_id)
        folder = join(private_dir, RUNS, name)
        entry = register_entry(private_dir, release_id)
        noise_key = NoiseKey(secret) if secret is not None else keys.load(key_file or "")
        register.check(entry, fit_digest=config.fit_digest, key=chain.commitment(noise_key).hex())
        try:
            with _locked(join(private_dir, ROWS), False), _locked(folder, False):
                if restart:
                    _delete(folder, but=_LOCK)
                if secret is not None:
                    key_file = join(folder, _KEY)
                    write_whole(key_file, secret, private=True)
                workspace = Workspace(folder, join(private_dir, ROWS), key_file or "", entry)
                yield Run(name, workspace, release_id, drawn=False)
        finally:
            if secret is not None:
                _drop_key(folder)
        _delete_unfinished(folder, private_dir)
        return
    command = hashlib.sha256(json.dumps([config.digest, source, output]).encode()).hexdigest()
    with contextlib.ExitStack() as stack:
        folder, release_id = stack.enter_context(_begun(private_dir, command, restart)) or (
            stack.enter_context(_drawn(private_dir, command))
        )
        workspace = Workspace(folder, join(folder, ROWS), join(folder, _KEY))
        run = Run(os.path.basename(folder), workspace, release_id, drawn=True)
        try:
            yield run
        except Exception as error:
            # What a crash left is continued by the same command; a refusal or a signal leaves nothing.
            if isinstance(error, ConfigError) or cli.refusal(error):
                _delete(folder)
            raise
        except BaseException:
            _delete(folder)
            raise
        _delete(folder)


def _drop_key(folder: str) -> None:
    """Removes a key that came from a store, unless another driver of the same run lives."""
    if is_free(folder):
        run_files.delete_files([join(folder, _KEY)])


@contextlib.contextmanager
def _begun(private_dir: str, command: str, restart: bool) -> Iterator[tuple[str, str] | None]:
    """The interrupted run of a command with a drawn key, held; None where there is none."""
    # Where the folder is not local nobody can tell whether a run's driver lives.
    for folder in runs_with_drawn_keys(private_dir) if is_local(private_dir) else []:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_locked(folder, True, wait=False))
            except BlockingIOError:
                # Its driver lives, or another was faster to go on with it.
                continue
            about = _about(folder)
            if about is None:
                # That one was so fast that it has ended, and what was locked here is a new folder.
                _delete(folder)
            elif about["command"] != command:
                continue
            elif restart:
                cli.note(f"dropping the run that was interrupted (release id {about['release_id']})")
                _delete(folder)
            else:
                cli.note(
                    f"continuing the run that was interrupted (release id {about['release_id']});"
                    " --restart drops it"
                )
                yield folder, about["release_id"]
                return
    yield None


@contextlib.contextmanager
def _drawn(private_dir: str, command: str) -> Iterator[tuple[str, str]]:
    release_id = secrets.token_hex(16)
    folder = join(private_dir, RUNS, release_id)
    with _locked(folder, True):
        secret = secrets.token_bytes(KEY_BYTES)
        write_whole(join(folder, _KEY), secret, private=True)
        about = json.dumps({"command": command, "release_id": release_id}).encode()
        write_whole(join(folder, _ABOUT), about, private=True)
        yield folder, release_id


def runs_with_drawn_keys(private_dir: str) -> list[str]:
    """Folders of runs with drawn keys, oldest first: of living drivers and of interrupted ones."""
    found = []
    folder = os.path.join(private_dir, RUNS)
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        run = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            found.append((os.path.getmtime(os.path.join(run, _ABOUT)), run))
    return [run for _, run in sorted(found)]


def interrupted(private_dir: str) -> list[str]:
    """Names of runs with drawn keys that no driver on this machine holds."""
    found = []
    for folder in runs_with_drawn_keys(private_dir) if is_local(private_dir) else []:
        with contextlib.suppress(BlockingIOError), _locked(folder, True, wait=False):
            found.append(os.path.basename(folder))
    return found


def is_free(folder: str) -> bool:
    """Whether no driver on this machine holds a run's folder; one that is gone is free."""
    if not is_local(folder) or not os.path.isdir(folder):
        return True
    try:
        with _locked(folder, True, wait=False):
            return True
    except BlockingIOError:
        return False


def _about(folder: str) -> dict[str, str] | None:
    """What a run with a drawn key is of; None where there is no such run."""
    with contextlib.suppress(OSError, ValueError), open(os.path.join(folder, _ABOUT), "rb") as file:
        return json.load(file)
    return None


@contextlib.contextmanager
def _locked(folder: str, alone: bool, wait: bool = True) -> Iterator[None]:
    """Holds a folder's lock while entered, where its file system has locks.

    The system drops the lock of a process that dies.

    Raises:
      BlockingIOError: somebody else holds it, and `wait` is not set.
    """
    if not is_local(folder):
        yield
        return
    make_private_folder(folder)
    descriptor = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        try:
            fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            # A file system without locks.
            pass
        yield
    finally:
        os.close(descriptor)


def _delete(folder: str, but: str = "") -> None:
    """Deletes what lies in a folder, and the folder itself unless something is to stay."""
    if not is_local(folder):
        with contextlib.suppress(BeamIOError, OSError):
            (found,) = FileSystems.match([join(finding.literal(folder), "**")])
            FileSystems.delete([file.path for file in found.metadata_list])
        return
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        path = os.path.join(folder, name)
        if name == but:
            continue
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)
    if not but:
        shutil.rmtree(folder, ignore_errors=True)


def _delete_unfinished(folder: str, private_dir: str) -> None:
    """Deletes views, which a finished run needs no more, and files that killed workers left half-written.

    Not those of other living drivers: of the same run, or of one that shares its rows.
    """
    if not is_local(folder):
        return
    names = [name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name))]
    with contextlib.suppress(BlockingIOError), _locked(folder, True, wait=False):
        for base in (os.path.join(folder, name) for name in names):
            for below in os.listdir(base):
                # Views, sums and staged files; states and the listing stay.
                if os.path.isdir(os.path.join(base, below)):
                    shutil.rmtree(os.path.join(base, below), ignore_errors=True)
    rows = os.path.join(private_dir, ROWS)
    with contextlib.suppress(BlockingIOError), _locked(rows, True, wait=False):
        for folder_of_rows in (os.path.join(rows, name) for name in names):
            for left in os.listdir(folder_of_rows) if os.path.isdir(folder_of_rows) else []:
                if left.startswith(".piece-"):
                    with contextlib.suppress(OSError):
                        os.unlink(os.path.join(folder_of_rows, left))


def report(private_dir: str, run: Run, stages: int, classes: Sequence[str], images: dict | None) -> str:
    """Writes what became of a finished run's rows, exactly, into the private folder.

    Args:
      stages: of the run's plan.
      classes: the declared labels.
      images: what was left out of them, and why; None for an input of embeddings.

    Returns:
      The file's path; it is for the owner alone.
    """
    found = [
        set_aside(join(run.workspace.rows, base.rstrip("/").rpartition("/")[2]), classes)
        for base in bases(run.workspace.folder)
        if has_state(base, stages)
    ]
    path = join(private_dir, REPORTS, f"{run.name}.json")
    content = {"release_id": run.release_id, "input": found, **({"images": images} if images else {})}
    write_whole(path, json.dumps(content, indent=2).encode(), private=True)
    return path


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """What `clean` did.

    Attributes:
      runs: names of the runs that were removed.
      busy: names of those that a living driver holds.
      rows: whether prepared rows that runs share were removed.
    """

    runs: tuple[str, ...]
    busy: tuple[str, ...]
    rows: bool


def clean(private_dir: str) -> Cleaned:
    """Removes states, views, drawn keys and prepared rows of every run that no living driver holds.

    Args:
      private_dir: a local private folder.
    """
    removed, busy = [], []
    folder = os.path.join(private_dir, RUNS)
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        run = os.path.join(folder, name)
        try:
            with _locked(run, True, wait=False):
                _delete(run)
                removed.append(name)
        except BlockingIOError:
            busy.append(name)
    rows = os.path.join(private_dir, ROWS)
    removed_rows = False
    with contextlib.suppress(BlockingIOError):
        if os.path.isdir(rows):
            with _locked(rows, True, wait=False):
                _delete(rows)
                removed_rows = True
    return Cleaned(tuple(removed), tuple(busy), removed_rows)
