"""What a ledger keeps in the private folder: gates of releases, witnesses, and the folder's own name."""

import hashlib
import secrets

from pipelines.ledger.store import Store
from transforms.files.opening import read_bytes
from transforms.files.publish import exists, join
from transforms.files.write import write_whole

CHARGES = "charges"


def place(private_dir: str) -> str:
    """A name of the private folder that tells it from all others, made when there is none."""
    path = join(private_dir, CHARGES, "place")
    if not exists(path):
        write_whole(path, secrets.token_hex(16).encode(), private=True, once=True)
    return read_bytes(path).decode("ascii", "replace")


def known_place(private_dir: str) -> str:
    """As `place`, but makes nothing: "" where the private folder has no name."""
    path = join(private_dir, CHARGES, "place")
    return place(private_dir) if exists(path) else ""


def gate(private_dir: str, token: str) -> str:
    """Path of a charge's gate, see `transforms.files.gate`."""
    return join(private_dir, CHARGES, f"gate-{token}.json")


def witness(private_dir: str, store: Store, dataset: str) -> str:
    """Path of what this private folder has seen of a data set."""
    name = hashlib.sha256(f"{store.identity}\0{dataset}".encode()).hexdigest()[:32]
    return join(private_dir, CHARGES, f"witness-{name}.json")
