"""What changes the speed of a release and never its bytes."""

import dataclasses

from dpgmm_beam.defaults import BLOCK_ROWS
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.lattice import MAX_BLOCK_ROWS

MAX_THREADS = 256


@dataclasses.dataclass(frozen=True)
class Execution:
    """Block sizes and threads.

    Attributes:
      block_rows: rows in one numpy block.
      threads: that sum side by side in one worker process.
      piece_bytes: size of a file of prepared rows, at most.
      spread: whether there is more than one worker to spread pieces over; a step
        a stage less where there is not.

    Raises:
      ConfigError: one is out of its range.
    """

    block_rows: int = BLOCK_ROWS
    threads: int = 1
    piece_bytes: int = 96 * 2**20
    spread: bool = True

    def __post_init__(self):
        for name, most in (("block_rows", MAX_BLOCK_ROWS), ("threads", MAX_THREADS)):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(name, getattr(self, name), f"be a whole number from 1 to {most}")
