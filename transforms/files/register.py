"""The register of release ids: what each of them has named, in the private folder.

An id names one draw.  An entry is written once, before a release appears; the
same release may be made again, and anything else under its id is refused.
"""

import dataclasses
import json

from dpgmm_beam.errors import ConfigError
from transforms.files.opening import read_bytes
from transforms.files.publish import exists
from transforms.files.write import write_whole


@dataclasses.dataclass(frozen=True)
class Entry:
    """What an id names; as private as the rows.

    Attributes:
      release_id: the id.
      fit_digest: of the configuration, see `ReleaseConfig.fit_digest`.
      key: commitment to the noise key, hexadecimal.
      data: the keyed data digest, hexadecimal.
      state: digest of the final state, hexadecimal.
    """

    release_id: str
    fit_digest: str
    key: str
    data: str
    state: str


_MEANINGS = {
    "fit_digest": "another configuration",
    "key": "another noise key",
    "data": "other data",
    "state": "another draw of the same noise, by a processor that computes otherwise",
}


def read(path: str) -> Entry | None:
    """The entry in a file; None where there is none.

    Raises:
      ConfigError: the file is not an entry.
    """
    if not exists(path):
        return None
    try:
        return Entry(**json.loads(read_bytes(path)))
    except (ValueError, TypeError):
        raise ConfigError("private_dir", path, "hold the register's entry whole: it is damaged") from None


def check(path: str, **facts: str) -> None:
    """Refuses an id that has named something else.

    Args:
      path: of the id's entry; "" for a drawn key, whose id cannot come again.
      facts: some fields of `Entry`, as they would be now.

    Raises:
      ConfigError: one of them differs from the entry.
    """
    entry = read(path) if path else None
    for name, meaning in _MEANINGS.items() if entry else ():
        if name in facts and getattr(entry, name) != facts[name]:
            raise ConfigError(
                "release_id",
                entry.release_id if entry else "",
                f"be new: it names a release of {meaning}, and each release needs an id of its own",
            )


def enter(path: str, entry: Entry) -> None:
    """Writes the entry of an id, once.

    Raises:
      ConfigError: the id has named something else.
    """
    if path:
        write_whole(path, json.dumps(dataclasses.asdict(entry), indent=2).encode(), private=True, once=True)
        check(path, **dataclasses.asdict(entry))
