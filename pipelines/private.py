"""The private folder: runs, prepared rows, the embed cache and whatever else must not leave the owner."""

import os

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.noise import KEY_BYTES
from dpgmm_beam.release.manifest import MAX_RELEASE_ID
from pipelines import paths
from pipelines.folders import default_folder
from transforms.files import keys
from transforms.files.private import check_scheme, is_local, make_private_folder


def check_folder(path: str | None) -> str:
    """The private folder as an absolute path; it need not exist, and is not made.

    Args:
      path: `--private-dir`; None: the default.

    Raises:
      ConfigError: others may enter or own the folder, it cannot be made, or there is no default.
    """
    if path is None:
        path = default_folder()
        if not os.path.isabs(path):
            raise ConfigError(
                "--private-dir",
                path,
                "be given, since neither XDG_STATE_HOME nor HOME names an absolute folder here",
            )
    paths.check_writable_folder("--private-dir", path)
    return os.path.abspath(path) if is_local(path) else path


def open_folder(path: str | None) -> str:
    """As `check_folder`, and makes the folder if there is none; a local one is its owner's only."""
    path = check_folder(path)
    try:
        make_private_folder(path)
    except OSError as error:
        raise ConfigError(
            "--private-dir", path, f"be a folder that can be written ({error.strerror})"
        ) from None
    return path


def check_key(key_file: str | None, release_id: str | None) -> None:
    """Checks the user's own key and release id, of which there are both or none.

    Raises:
      ConfigError: one is named without the other, or the file is not a key.
    """
    check_names(key_file, release_id)
    if key_file is not None:
        check_key_file(key_file)


def check_names(key_file: str | None, release_id: str | None, key_store: str | None = None) -> None:
    """As `check_key`, but does not look at the file; a store of keys takes its place."""
    if key_file is not None and key_store is not None:
        raise ConfigError(
            "--release-key-store", key_store, "come without --noise-key-file, in whose place it is"
        )
    key, option = (key_file, "--noise-key-file") if key_store is None else (key_store, "--release-key-store")
    if (key is None) != (release_id is None):
        given, missing = (option, "--release-id") if release_id is None else ("--release-id", option)
        raise ConfigError(given, key or release_id, f"come together with {missing}")
    if release_id is not None:
        check_release_id(release_id)


def check_release_id(release_id: str) -> None:
    """Raises ConfigError unless a release may be called so."""
    if not release_id or any(character.isspace() for character in release_id):
        raise ConfigError("--release-id", repr(release_id), "be a name without white space")
    if not release_id.isprintable() or len(release_id) > MAX_RELEASE_ID:
        raise ConfigError(
            "--release-id", release_id, f"be a name of at most {MAX_RELEASE_ID} printable characters"
        )


def check_key_file(path: str) -> None:
    """Raises ConfigError unless the file is a key of 32 bytes that nobody else can read or write."""
    check_scheme("--noise-key-file", path)
    try:
        # First, so that a file of others is not even read.
        keys.check_access(path)
        keys.load(path)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            "--noise-key-file", path or "''", f"be a readable file of exactly {KEY_BYTES} bytes"
        ) from None
