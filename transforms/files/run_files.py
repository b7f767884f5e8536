"""Where a run keeps what it has done, and how its workers find it.

    ROWS/DATA/piece-00012.npy                 prepared rows
    FOLDER/DATA/input.json                    what was found of the input, pinned
    FOLDER/DATA/state-07.npz                  the state after seven stages, written once
    FOLDER/DATA/features/piece-00012.npy      rows of a view
    FOLDER/DATA/sums/...                      large sums on their way to the noise
    FOLDER/DATA/staged-0123456789abcdef/...   the release, until it is published

DATA is a digest of the pinned input, so that a run never goes on with states of
other data.  All of it is as private as the rows.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterable

from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.fit.checkpoint import Checkpoint
from transforms.files.finding import literal
from transforms.files.opening import read_bytes
from transforms.files.private import is_local
from transforms.files.write import write_whole

Base = str
"""A run's folder for one state of the data: what elements of the pipeline carry."""


@dataclasses.dataclass(frozen=True)
class Workspace:
    """A run's private places, by names that the driver and all workers share.

    Attributes:
      folder: of the run: states, views and sums.
      rows: folder of prepared rows, which other runs over the same data may share.
      key_file: path of the noise key.
      register: path of the release id's entry in the register; "" for none.
      gate: path of the gate of a release that a ledger charges; "" for none.
    """

    folder: str
    rows: str
    key_file: str
    register: str = ""
    gate: str = ""

    def base(self, data: str) -> Base:
        """The run's folder for data of this digest."""
        return FileSystems.join(self.folder, data)

    def piece(self, base: Base, number: int) -> str:
        """Path of a piece's prepared rows."""
        return FileSystems.join(self.rows, base.rstrip("/").rpartition("/")[2], piece_name(number))


def piece_name(number: int) -> str:
    return f"piece-{number:05d}.npy"


def view_piece(base: Base, view: str, number: int) -> str:
    """Path of a piece's rows in a view."""
    return FileSystems.join(base, view, piece_name(number))


def input_file(base: Base) -> str:
    return FileSystems.join(base, "input.json")


def state_file(base: Base, stages: int) -> str:
    """Path of the state after so many stages."""
    return FileSystems.join(base, f"state-{stages:03d}.npz")


def has_state(base: Base, stages: int) -> bool:
    return FileSystems.exists(state_file(base, stages))


def load_state(base: Base, stages: int) -> Checkpoint:
    """The checkpoint after so many stages.

    Raises:
      OSError: it is not there.
      RuntimeError: it is damaged.
    """
    path = state_file(base, stages)
    try:
        return Checkpoint.from_bytes(read_bytes(path))
    except ValueError as error:
        raise RuntimeError(f"{path} is damaged ({error}); start the run anew with --restart") from None


def write_state(base: Base, checkpoint: Checkpoint) -> None:
    """Writes a state unless one is there: what counts afterwards is what the file holds."""
    path = state_file(base, checkpoint.stages_done)
    write_whole(path, checkpoint.to_bytes(), private=True, once=True)


def bases(folder: str) -> list[Base]:
    """A run's folders for states of the data that it began with, the newest last."""
    (found,) = FileSystems.match([state_file(FileSystems.join(literal(folder), "*"), 0)])
    files = sorted(found.metadata_list, key=lambda file: file.last_updated_in_seconds or 0.0)
    return [file.path.rpartition("/")[0] for file in files]


def finished_stages(folder: str) -> int:
    """How many stages a run has done with its newest data; 0 where nothing is to be seen."""
    with contextlib.suppress(OSError, IndexError):
        (found,) = FileSystems.match([FileSystems.join(literal(bases(folder)[-1]), "state-*.npz")])
        numbers = [os.path.basename(file.path)[len("state-") : -len(".npz")] for file in found.metadata_list]
        return max(map(int, numbers), default=0)
    return 0


def sums_file(base: Base, stages: int, part: int, digest: str) -> str:
    """Path of one part of a stage's exact sums."""
    return FileSystems.join(base, "sums", f"stage-{stages:03d}-part-{part:05d}-{digest}")


def staging(base: Base, state_digest: str) -> str:
    """Folder of the files of a release, made from a final state, until it is published."""
    return FileSystems.join(base, f"staged-{state_digest[:16]}")


def delete_files(paths: Iterable[str]) -> None:
    """Deletes files; those that are gone already are no matter."""
    for path in paths:
        with contextlib.suppress(OSError):
            if is_local(path):
                os.unlink(path)
            else:
                FileSystems.delete([path])
