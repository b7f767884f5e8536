"""Rows as a chain: each says what the one before hashed to, and a key signs the hashes.

What that finds: without a key, any row that was changed, removed or put elsewhere by who
did not hash all later rows anew; with one, by anybody without the key.  Rows cut off at the
end leave a whole chain: that is what a witness is for, a file elsewhere with the last row that was seen.
"""

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.noise import KEY_BYTES
from pipelines.ledger.store import Row
from transforms.files import keys
from transforms.files.private import is_local, make_private_folder
from transforms.files.publish import exists
from transforms.files.small import read_small
from transforms.files.write import write_whole

_MOST_WITNESS = 2**16


class Signer:
    """Signs rows with HMAC-SHA256: who can check a signature can also make one.

    Args:
      key_file: 32 bytes, its owner's alone; None: rows are not signed.

    Raises:
      ConfigError: it is no such file.
    """

    def __init__(self, key_file: str | None):
        self._key: bytes | None = None
        if key_file is not None:
            self._key = _read_key(key_file)

    @property
    def name(self) -> str:
        """What tells the key from others, and nothing else about it; "" for none."""
        return self.sign("name")[:16] if self._key else ""

    def sign(self, hashed: str) -> str:
        return hmac.new(self._key, hashed.encode(), "sha256").hexdigest() if self._key else ""

    def has_signed(self, row: Row) -> bool:
        return hmac.compare_digest(self.sign(row.hash), row.signature)


def _read_key(path: str) -> bytes:
    try:
        keys.check_access(path)
        keys.load(path)
        return read_small("--ledger-key-file", path, KEY_BYTES)
    except ConfigError as error:
        raise ConfigError("--ledger-key-file", path, error.allowed) from None
    except (OSError, ValueError):
        raise ConfigError(
            "--ledger-key-file", path or "''", f"be a readable file of exactly {KEY_BYTES} bytes"
        ) from None


def next_row(rows: Sequence[Row], content: Mapping[str, Any], signer: Signer) -> Row:
    """The row that follows: its content, with its number and the hash of the one before."""
    number = len(rows)
    whole = {**content, "number": number, "previous": rows[-1].hash if rows else ""}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    hashed = _hash(text)
    return Row(number, text, hashed, signer.sign(hashed))


def problems_of(dataset: str, rows: Sequence[Row], signer: Signer) -> list[str]:
    """What is wrong with a chain, in sentences; signatures are checked where the signer has a key."""
    found, previous = [], ""
    for position, row in enumerate(rows):
        content = content_of(row)
        if row.number != position:
            found.append(f"row {position} is missing: row {row.number} follows {position - 1}")
            break
        if row.hash != _hash(row.content):
            found.append(f"row {position} was changed: it does not have its hash")
        elif content.get("number") != position or content.get("dataset") != dataset:
            found.append(f"row {position} was put in the place of another")
        if content.get("previous") != previous:
            found.append(f"row {position} does not follow the row before it")
        if signer.name and not signer.has_signed(row):
            found.append(f"row {position} is not signed with this key")
        previous = row.hash
    return found


def content_of(row: Row) -> dict[str, Any]:
    """What a row says; {} where that is damaged."""
    try:
        content = json.loads(row.content)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Witness:
    """A file that remembers a data set's last row, kept where the ledger's backups are not.

    Args:
      path: of the file; it need not exist.
    """

    def __init__(self, path: str):
        self.path = path

    def problem_of(self, rows: Sequence[Row]) -> str:
        """Why the rows are no continuation of what was seen; "" where they are.

        Raises:
          ConfigError: the file is none of a witness.
        """
        seen = self._seen()
        if seen is None or (seen[0] < len(rows) and rows[seen[0]].hash == seen[1]):
            return ""
        return (
            f"its row {seen[0]} is not the one that {self.path} has seen: the ledger was restored from an"
            " older state, or made anew"
        )

    def _seen(self) -> tuple[int, str] | None:
        """Number and hash of the last row that was seen."""
        if not exists(self.path):
            return None
        try:
            content = json.loads(read_small("--witness", self.path, _MOST_WITNESS))
            return int(content["number"]), str(content["hash"])
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError("--witness", self.path, "be a file that a ledger's witness wrote") from None

    def see(self, rows: Sequence[Row]) -> None:
        """Remembers the last row, on disk when this returns; what is behind what was seen changes nothing."""
        with _alone(self.path):
            seen = self._seen()
            if rows and (seen is None or seen[0] < rows[-1].number):
                content = json.dumps({"number": rows[-1].number, "hash": rows[-1].hash}).encode()
                write_whole(self.path, content, private=True)


@contextlib.contextmanager
def _alone(path: str) -> Iterator[None]:
    """One process at a time, where the file system has locks."""
    if not is_local(path):
        yield
        return
    make_private_folder(os.path.dirname(os.path.abspath(path)))
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
