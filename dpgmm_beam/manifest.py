"""The manifest: what was done, under which budget, and the digests of what came out.

It is a pure function of the release: no time, no host, no path, nothing exact
about the data.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from typing import Any

import dpgmm_beam
from dpgmm_beam import budget
from dpgmm_beam.errors import ConfigError

FILE_NAME = "manifest.json"
SCHEMA_VERSION = 1
_PACKAGES = ("apache-beam", "dp-accounting", "numpy", "open_clip_torch", "pyarrow", "scipy", "timm", "torch")


def build(config: Mapping[str, Any], spent: budget.Budget, release_id: str, files: list[dict]) -> bytes:
    """The manifest's bytes.

    Args:
      config: the public configuration of the release, as plain data.
      spent: the budget.
      release_id: the public name of this publication.
      files: path, size, sha256 and rows of every other file of the release.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "release_id": release_id,
        "config": config,
        "config_digest": config_digest(config),
        "privacy": {
            "epsilon": spent.epsilon,
            "delta": spent.delta,
            "adjacency": budget.ADJACENCY,
            "neighboring_relation": "ADD_OR_REMOVE_ONE",
            "privacy_unit": budget.PRIVACY_UNIT,
            "noise_multiplier": spent.noise_multiplier,
            "mechanisms": spent.describe(),
            "dp_event": spent.event(),
        },
        "versions": {
            "dpgmm-beam": dpgmm_beam.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "files": sorted(files, key=lambda file: file["path"]),
    }
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of the configuration in canonical JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def parse(data: bytes, where: str) -> dict:
    """The manifest's content.

    Raises:
      ConfigError: it is not a manifest of this schema version.
    """
    try:
        content = json.loads(data)
        version = content["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError("--release", where, f"hold a {FILE_NAME} written by dpgmm release") from None
    if version != SCHEMA_VERSION:
        raise ConfigError(
            "--release", where, f"hold a manifest of schema version {SCHEMA_VERSION}, not {version}"
        )
    return content


def check(content: dict, read: Callable[[str], bytes]) -> list[str]:
    """What is wrong with a release, each in a sentence; empty when all holds.

    The privacy event must compose to no more than (epsilon, delta) by the PLD
    accountant and agree with the table of mechanisms; the configuration must
    have its digest; every file must have its size and digest.

    Args:
      content: the parsed manifest.
      read: the bytes of a file of the release by its path.
    """
    problems = []
    try:
        privacy = content["privacy"]
        event = budget.event_from_json(privacy["dp_event"])
        epsilon = budget.epsilon_by_pld(event, privacy["delta"])
        if not epsilon <= privacy["epsilon"]:
            problems.append(
                f"the privacy event composes to epsilon {epsilon:.6g}, above {privacy['epsilon']}"
            )
        stated = budget.Budget(
            privacy["epsilon"],
            privacy["delta"],
            tuple(
                budget.Mechanism(entry["name"], entry["share"], entry["repetitions"])
                for entry in privacy["mechanisms"]
            ),
        )
        if stated.noise_multiplier != privacy["noise_multiplier"]:
            problems.append("the noise multiplier is not that of epsilon and delta")
        if stated.describe() != privacy["mechanisms"] or stated.event() != privacy["dp_event"]:
            problems.append("the table of mechanisms does not agree with the privacy event")
        if config_digest(content["config"]) != content["config_digest"]:
            problems.append("the configuration does not have the digest that the manifest states")
        for name in ("epsilon", "delta"):
            if content["config"][name] != privacy[name]:
                problems.append(f"{name} of the configuration is not that of the privacy statement")
        for file in content["files"]:
            try:
                data = read(file["path"])
            except OSError:
                problems.append(f"{file['path']} is missing")
                continue
            if len(data) != file["size"] or hashlib.sha256(data).hexdigest() != file["sha256"]:
                problems.append(f"{file['path']} does not have the digest that the manifest states")
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        problems.append(f"the manifest is malformed: {error}")
    return problems


def digest_of_text(text: str) -> str:
    """SHA-256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
