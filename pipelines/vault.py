"""Keys of releases in HashiCorp Vault: its key-value store, version 2.

`vault:MOUNT/PATH` keeps the key of a release in PATH/NAME of the engine at MOUNT.  Vault's own
variables say where and as whom: VAULT_ADDR, VAULT_TOKEN (or ~/.vault-token), VAULT_NAMESPACE,
VAULT_CACERT.  A policy needs create, read and update on MOUNT/data/PATH/*, and for forget-key
update on MOUNT/destroy/PATH/*.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dpgmm_beam.errors import ConfigError, PassingError
from dpgmm_beam.privacy.noise import KEY_BYTES
from pipelines.key_store import OPTION, forgotten, name_of

_SECONDS = 10
_KEY, _FORGOTTEN = "key", "forgotten"


class Vault:
    """A path of a key-value engine.

    Args:
      mount: of the engine.
      path: below it.
    """

    def __init__(self, mount: str, path: str):
        self._mount, self._path = mount, path
        self._shown = f"vault:{mount}/{path}"

    @staticmethod
    def of(text: str) -> "Vault":
        """From `vault:MOUNT/PATH`.

        Raises:
          ConfigError: it is not of this form.
        """
        mount, _, path = text.removeprefix("vault:").strip("/").partition("/")
        if not mount or not path or any(part in ("", ".", "..") for part in path.split("/")):
            raise ConfigError(OPTION, text, "be vault:MOUNT/PATH, with VAULT_ADDR and VAULT_TOKEN set")
        return Vault(mount, path)

    def check(self) -> None:
        with self._talking() as engine:
            self._latest(engine, "dpgmm-check")

    def key(self, release_id: str) -> bytes:
        import hvac

        name = name_of(release_id)
        with self._talking() as engine:
            found, _ = self._latest(engine, name)
            if found is None:
                drawn = {_KEY: secrets.token_hex(KEY_BYTES), "release_id": release_id}
                # Only where there is no version yet.
                with suppress(hvac.exceptions.InvalidRequest):
                    engine.create_or_update_secret(self._of(name), drawn, cas=0, mount_point=self._mount)
                # What counts is what Vault has.
                found, _ = self._latest(engine, name)
        if found is None or found.get(_FORGOTTEN):
            raise forgotten(release_id)
        try:
            secret = bytes.fromhex(found[_KEY])
        except (KeyError, TypeError, ValueError):
            secret = b""
        if len(secret) != KEY_BYTES or len(set(secret)) == 1:
            raise ConfigError(OPTION, f"{self._shown}/{name}", f"hold a key of {KEY_BYTES} bytes")
        return secret

    def forget(self, release_id: str) -> bool:
        name = name_of(release_id)
        with self._talking() as engine:
            found, version = self._latest(engine, name)
            there = found is not None and not found.get(_FORGOTTEN)
            if found is None or there:
                # First: from here on nobody draws it anew, wherever this is killed.
                gone = {_FORGOTTEN: "true", "release_id": release_id}
                engine.create_or_update_secret(self._of(name), gone, cas=version, mount_point=self._mount)
                version += 1
            if version > 1:
                engine.destroy_secret_versions(
                    self._of(name), versions=list(range(1, version)), mount_point=self._mount
                )
        return there

    def _of(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _latest(self, engine: Any, name: str) -> tuple[dict[str, Any] | None, int]:
        """The newest version's data and its number; (None, 0) where there is none."""
        import hvac

        try:
            found = engine.read_secret_version(
                self._of(name), mount_point=self._mount, raise_on_deleted_version=False
            )
        except hvac.exceptions.InvalidPath:
            return None, 0
        data, version = found["data"]["data"], found["data"]["metadata"]["version"]
        # Deleted by somebody else's hand: it was a key once, and is not drawn again.
        return (data if data is not None else {_FORGOTTEN: "true"}), version

    @contextmanager
    def _talking(self) -> Iterator[Any]:
        """Vault's engine; what goes wrong is one sentence."""
        try:
            import hvac
            import requests
        except ModuleNotFoundError:
            raise ConfigError(
                OPTION, self._shown, "have hvac installed: pip install 'dpgmm-beam[vault]'"
            ) from None
        if not os.environ.get("VAULT_ADDR"):
            raise ConfigError(
                OPTION, self._shown, "come with VAULT_ADDR, Vault's address, in the environment"
            )
        try:
            client = hvac.Client(
                timeout=_SECONDS,
                namespace=os.environ.get("VAULT_NAMESPACE"),
                # hvac reads the others itself.
                verify=os.environ.get("VAULT_CACERT") or True,
            )
            yield client.secrets.kv.v2
        except (hvac.exceptions.Forbidden, hvac.exceptions.Unauthorized):
            raise ConfigError(OPTION, self._shown, "be a path that Vault lets this token use") from None
        except hvac.exceptions.VaultError as error:
            said = " ".join(str(error).split())[:200]
            raise PassingError(f"Vault could not be used ({type(error).__name__}: {said})") from None
        except requests.RequestException as error:
            raise PassingError(f"Vault can't be reached ({type(error).__name__})") from None
