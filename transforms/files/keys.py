"""The noise key as workers find it: in a file, on any file system that Beam knows.

The key itself never enters a DoFn, an option or the job graph; only the path
of the file does.
"""

import errno
import os
import stat

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.noise import KEY_BYTES, NoiseKey
from transforms.core_dumps import forbid_core_dumps
from transforms.files.private import is_local
from transforms.files.small import read_bounded

# More than a key has, so that a sentence can say how long a wrong file is.
_MOST_BYTES = 4096


def load(key_file: str) -> NoiseKey:
    """Reads the key; from then on this process leaves no core dump.

    Raises:
      ConfigError: the file does not hold exactly 32 bytes, or one byte 32 times.
      OSError: it is no regular file, or can't be read.
    """
    forbid_core_dumps()
    secret = read_bounded(key_file, _MOST_BYTES)
    if len(secret) != KEY_BYTES:
        raise ConfigError(
            "noise_key_file", key_file, f"hold exactly {KEY_BYTES} bytes, not {len(secret)} bytes"
        )
    if len(set(secret)) == 1:
        raise ConfigError(
            "noise_key_file", key_file, "hold random bytes (head -c 32 /dev/urandom), not one repeated"
        )
    return NoiseKey(secret)


def check_access(key_file: str) -> None:
    """Checks who may read and write a key file that the user names.

    The owner must be this process's user, or root, who reads everything anyway.
    A key that a service hands out (a Secret of Kubernetes, a credential of
    systemd) is root's and has a group or an access list for its reader, which
    shows as the group's right to read; a user's own key needs none.

    Raises:
      ConfigError: others may read or write the file, or own it.
      OSError: it is not there, or no regular file.
    """
    if not is_local(key_file):
        return
    found = os.stat(key_file)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    user, mode = os.geteuid(), stat.S_IMODE(found.st_mode)
    if found.st_uid not in (user, 0):
        raise ConfigError(
            "noise_key_file",
            key_file,
            f"be a file of this user (number {user}) or of root's; number {found.st_uid} owns it",
        )
    if found.st_uid == user and mode & 0o077:
        raise ConfigError(
            "noise_key_file", key_file, f"be its owner's alone (chmod 600), and has mode {mode:04o}"
        )
    if mode & 0o027:
        raise ConfigError(
            "noise_key_file",
            key_file,
            f"be root's and its group's to read (chmod 440; Kubernetes' defaultMode); it has mode {mode:04o}",
        )
