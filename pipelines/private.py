"""The private folder: runs, prepared rows, the embed cache and whatever else must not leave the owner."""

import os

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.noise import KEY_BYTES
from transforms import keys
from transforms.private_files import check_scheme, is_local


def default_folder() -> str:
    """The user's own folder for private state, by the XDG convention."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "dpgmm")


def open_folder(path: str | None) -> str:
    """The private folder, made if needed; a local one is made readable by its owner only.

    Raises:
      ConfigError: others may enter the folder, or it cannot be made.
    """
    path = path or default_folder()
    check_scheme("--private-dir", path)
    if not is_local(path):
        return path
    path = os.path.abspath(path)
    try:
        if not os.path.isdir(path):
            os.makedirs(path, mode=0o700)
        if os.stat(path).st_uid == os.getuid() and os.stat(path).st_mode & 0o077:
            os.chmod(path, 0o700)
    except OSError as error:
        raise ConfigError(
            "--private-dir", path, f"be a folder that can be written ({error.strerror})"
        ) from None
    if os.stat(path).st_mode & 0o077:
        raise ConfigError("--private-dir", path, "be a folder that only its owner can enter")
    return path


def check_key(key_file: str | None, release_id: str | None) -> None:
    """Checks the user's own key and release id, of which there are both or none.

    Raises:
      ConfigError: one is named without the other, or the file is not a key.
    """
    if (key_file is None) != (release_id is None):
        given, missing = (
            ("--noise-key-file", "--release-id")
            if release_id is None
            else ("--release-id", "--noise-key-file")
        )
        raise ConfigError(given, key_file or release_id, f"come together with {missing}")
    if key_file is not None and release_id is not None:
        if not release_id or any(character.isspace() for character in release_id):
            raise ConfigError("--release-id", repr(release_id), "be a name without white space")
        check_key_file(key_file)


def check_key_file(path: str) -> None:
    """Raises ConfigError unless the file can be read and holds exactly 32 bytes."""
    check_scheme("--noise-key-file", path)
    try:
        keys.load(path)
    except ConfigError as error:
        raise ConfigError(
            "--noise-key-file", path, f"hold exactly {KEY_BYTES} bytes, not {error.value}"
        ) from None
    except OSError:
        raise ConfigError(
            "--noise-key-file", path, f"be a readable file of exactly {KEY_BYTES} bytes"
        ) from None
