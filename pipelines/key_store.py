"""Where keys of releases are kept, one for each release id: drawn once, found again, destroyed.

A store is a folder of the owner's, or a secret manager behind the same three methods
(`KeyStore`); pipelines/vault.py is one.  A key that was destroyed is not drawn again: under
its id that would be another release.
"""

import hashlib
import os
import re
import secrets
from typing import Protocol

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.noise import KEY_BYTES
from pipelines import paths
from transforms.files import keys
from transforms.files.private import is_local, make_private_folder
from transforms.files.small import read_bounded
from transforms.files.write import write_whole

OPTION = "--release-key-store"


class KeyStore(Protocol):
    """A place for keys.

    Each method raises ConfigError where the store can't be used as it was named, and
    PassingError where another try may do.
    """

    def check(self) -> None:
        """Looks at the store, and makes nothing."""

    def key(self, release_id: str) -> bytes:
        """The key of a release, 32 bytes; drawn and kept if there is none.

        Two at once get the same.

        Raises:
          ConfigError: the key was destroyed.
        """

    def forget(self, release_id: str) -> bool:
        """Destroys a key for good; whether there was one."""


def store_of(text: str) -> KeyStore:
    """The store that a user names: `vault:MOUNT/PATH`, or a local folder.

    Raises:
      ConfigError: it is neither.
    """
    if text.startswith("vault:"):
        from pipelines.vault import Vault

        return Vault.of(text)
    if not is_local(text):
        raise ConfigError(OPTION, text, "be a local folder or vault:MOUNT/PATH")
    return Folder(text)


def name_of(release_id: str) -> str:
    """What a key is called in a store: readable, and one for each id."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", release_id)[:60].strip("-")
    return f"{readable}-{hashlib.sha256(release_id.encode()).hexdigest()[:16]}"


def forgotten(release_id: str) -> ConfigError:
    return ConfigError("--release-id", release_id, "be new: the key of its release was destroyed")


class Folder:
    """A folder that only its owner enters; a file of 32 bytes for each key, as --noise-key-file takes it.

    Args:
      path: of the folder, which is made if there is none.
    """

    def __init__(self, path: str):
        self._path = os.path.abspath(path) if path else path

    def check(self) -> None:
        paths.check_writable_folder(OPTION, self._path)

    def key(self, release_id: str) -> bytes:
        self.check()
        path, gone = self._files(release_id)
        if os.path.lexists(gone):
            raise forgotten(release_id)
        try:
            make_private_folder(self._path)
            if not os.path.lexists(path):
                write_whole(path, secrets.token_bytes(KEY_BYTES), private=True, once=True)
            keys.check_access(path)
            keys.load(path)
            return read_bounded(path, KEY_BYTES)
        except (OSError, ValueError) as error:
            if os.path.lexists(gone):
                raise forgotten(release_id) from None
            reason = (
                error.allowed if isinstance(error, ConfigError) else getattr(error, "strerror", "") or error
            )
            raise ConfigError(OPTION, path, f"hold the key of {release_id} ({reason})") from None

    def forget(self, release_id: str) -> bool:
        self.check()
        path, gone = self._files(release_id)
        there = os.path.lexists(path)
        try:
            # First: from here on nobody draws it anew, wherever this is killed.
            write_whole(gone, b"", private=True)
            if there:
                # On flash and in snapshots copies may stay: docs/budget.md.
                with open(path, "r+b") as file:
                    file.write(bytes(KEY_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
                os.unlink(path)
        except OSError as error:
            raise ConfigError(OPTION, path, f"be a file that can be removed ({error.strerror})") from None
        return there

    def _files(self, release_id: str) -> tuple[str, str]:
        name = os.path.join(self._path, name_of(release_id))
        return f"{name}.key", f"{name}.forgotten"
