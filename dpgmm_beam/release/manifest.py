"""The manifest: what was done, under which budget, and the digests of what came out.

It is a pure function of the release: no time, no host, no path, nothing exact
about the data.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Collection, Mapping
from typing import Any

import dpgmm_beam
from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.decoders.picture_map import (
    PICTURE_DIRECTIONS_FILE,
    PICTURE_MEANS_FILE,
    PICTURE_RESIDUALS_FILE,
)
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.mixture import BASIS_FILE, COMPONENTS_FILE
from dpgmm_beam.privacy import accounting, lattice
from dpgmm_beam.privacy.tradeoff import operational
from dpgmm_beam.release.card import CARD_FILE, card
from dpgmm_beam.release.class_rows import CLASSES_FILE
from dpgmm_beam.release.labels import FEATURES_FILE, RIDGES_FILE, TEACHER_FILE
from dpgmm_beam.release.synthesis import Parts

FILE_NAME = "manifest.json"
MIXTURE, SYNTHETIC = "mixture", "synthetic"
"""Folders of a release."""

MAX_RELEASE_ID = 256
"""Characters of a release id."""

MAX_FILE_BYTES = 2**31
"""Of one file of a release: the largest have some 512 MiB."""

Measure = Callable[[str, int], tuple[int, str]]

MAX_BYTES = 2**26
"""Of a manifest that is read; that of the largest release takes some MB."""

SCHEMA_VERSION = 4
"""Rises with what a manifest states, with the files of a release and with the words of its card."""

_PACKAGES = ("apache-beam", "dp-accounting", "numpy", "open_clip_torch", "pyarrow", "scipy", "timm", "torch")


def build(plan: Plan, files: list[dict]) -> bytes:
    """The manifest's bytes.

    Args:
      plan: of the release.
      files: path, size, sha256 and rows of every other file of the release.
    """
    content = {
        **statement(plan),
        "versions": {
            "dpgmm-beam": dpgmm_beam.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "files": sorted(files, key=lambda file: file["path"]),
    }
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def statement(plan: Plan) -> dict[str, Any]:
    """All that a manifest states of a release but its files and the versions it was made with.

    It follows from configuration, release id and the noisy number of rows, so that whoever reads a
    manifest can compute what it must state.
    """
    spent, neighbours = plan.budget, plan.config.neighbours
    return {
        "schema_version": SCHEMA_VERSION,
        "release_id": plan.release_id,
        "config": plan.config.to_dict(),
        "config_digest": plan.config.digest,
        "fit_digest": plan.fit_digest,
        "privacy": {
            "epsilon": spent.epsilon,
            "delta": spent.delta,
            "adjacency": neighbours.stated,
            "neighboring_relation": neighbours.relation,
            "privacy_unit": neighbours.unit,
            "max_rows_per_unit": neighbours.max_rows_per_unit,
            "bound_found": plan.config.bound_found,
            "slice": plan.config.slice,
            "noise_multiplier": spent.noise_multiplier,
            "noisy_rows": plan.counted,
            "operational": operational(spent.noise_multiplier).to_dict(),
            "mechanisms": [
                {**each, "noise_over_row": plan.row_multipliers[each["name"]]} for each in spent.describe()
            ],
            "dp_event": spent.event(neighbours.relation),
        },
    }


def parts_of(config: ReleaseConfig) -> Parts:
    """How the synthetic rows of a release are cut into files."""
    return Parts(len(config.classes), len(config.classes) * config.samples_per_class)


def files_of(config: ReleaseConfig) -> dict[str, int | None]:
    """Path and number of rows of every file of a release but its manifest; None where the fit finds it."""
    parts, classes = parts_of(config), len(config.classes)
    fitted = {
        COMPONENTS_FILE: None if config.components is None else classes * config.components,
        BASIS_FILE: config.dimension,
        CLASSES_FILE: classes,
        TEACHER_FILE: classes,
        FEATURES_FILE: config.dimension,
    }
    if config.ridges:
        fitted[RIDGES_FILE] = config.ridges
    if config.picture_form is not None:
        fitted |= {
            PICTURE_MEANS_FILE: classes,
            PICTURE_DIRECTIONS_FILE: None,
            PICTURE_RESIDUALS_FILE: config.picture_form.dimension,
        }
    rows = {f"{MIXTURE}/{name}": count for name, count in fitted.items()}
    drawn = {f"{SYNTHETIC}/{parts.name(part)}": parts.rows_of(part) for part in range(len(parts))}
    return {CARD_FILE: 0, **rows, **drawn}


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
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError("release", where, f"hold a {FILE_NAME} written by dpgmm release") from None
    if version != SCHEMA_VERSION:
        raise ConfigError(
            "release", where, f"hold a manifest of schema version {SCHEMA_VERSION}, not {version}"
        )
    return content


def plan_of(content: dict) -> Plan:
    """The plan of the release that a manifest tells of.

    Raises:
      ConfigError: its configuration is not one that `dpgmm release` accepts.
    """
    try:
        config, release_id = ReleaseConfig.from_dict(content["config"]), str(content["release_id"])
        privacy = content.get("privacy")
        counted = privacy.get("noisy_rows") if isinstance(privacy, dict) else None
        if type(counted) is not int or abs(counted) > lattice.MAX_ROWS * 2**10:
            raise ConfigError("noisy_rows", counted, "be a whole number in its privacy statement")
        return Plan(config, release_id, counted=counted)
    except ConfigError as error:
        raise ConfigError("release", f"{FILE_NAME} of it", f"hold a configuration ({error})") from None
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        raise ConfigError("release", f"{FILE_NAME} of it", "hold a configuration of a release") from None


def check_statement(content: dict) -> list[str]:
    """What is wrong with all that a manifest states but its files, each in a sentence; empty when all holds.

    The plan is computed from the configuration and everything that the manifest
    states compared with it; the privacy event must compose to no more than
    (epsilon, delta) by the PLD accountant.

    Args:
      content: the parsed manifest.
    """
    try:
        plan = plan_of(content)
    except ConfigError as error:
        return [str(error)]
    # As JSON has it: tuples are lists there, and true is not 1.
    stated, due = (_canonical(each) for each in (content, statement(plan)))
    problems = [
        f"{name} is not what follows from the configuration"
        for name in due
        if name != "privacy" and stated.get(name) != due[name]
    ]
    privacy, own = (json.loads(each.get("privacy", "{}")) for each in (stated, due))
    problems += [
        f"{name} of the privacy statement is not what follows from the configuration"
        for name in sorted({*own, *(privacy if isinstance(privacy, dict) else ())})
        if not isinstance(privacy, dict) or _text(privacy.get(name)) != _text(own.get(name))
    ]
    release_id = plan.release_id
    if not (0 < len(release_id) <= MAX_RELEASE_ID and release_id.isprintable() and " " not in release_id):
        problems.append("release_id is not one that dpgmm release takes")
    versions = content.get("versions")
    if not isinstance(versions, dict) or not all(isinstance(each, str) for each in versions.values()):
        problems.append("the manifest does not state the versions that it was made with")
    if unknown := set(content) - {*due, "versions", "files"}:
        problems.append(f"the manifest has entries of no known meaning: {', '.join(sorted(unknown))}")
    relation = plan.config.neighbours.relation
    event = accounting.event_from_json(plan.budget.event(relation))
    epsilon = accounting.epsilon_by_pld(event, plan.budget.delta, relation)
    if not epsilon <= plan.budget.epsilon:
        problems.append(f"the privacy event composes to epsilon {epsilon:.6g}, above {plan.budget.epsilon}")
    return problems


def check(content: dict, present: Collection[str], measure: Measure) -> list[str]:
    """What is wrong with a release, each in a sentence; empty when all holds.

    Its statement must hold, see `check_statement`; the card must be what follows from the
    configuration; the files must be those of such a release, each with its size and digest,
    and no others.

    Args:
      content: the parsed manifest.
      present: paths of the files that are there, the manifest's own left out.
      measure: size and SHA-256 (hexadecimal) of a file of the release by its path; it may
        stop when there is more than so many bytes.
    """
    problems = check_statement(content)
    try:
        plan = plan_of(content)
    except ConfigError:
        return problems
    problems += check_files(content.get("files"), files_of(plan.config), present, measure)
    if not problems and not _states_card(content["files"], card(plan)):
        problems.append(f"{CARD_FILE} is not what follows from the configuration")
    return problems


def _states_card(files: list[dict], text: bytes) -> bool:
    (stated,) = (file for file in files if file["path"] == CARD_FILE)
    return stated["sha256"] == hashlib.sha256(text).hexdigest()


def check_files(
    files: Any, due: Mapping[str, int | None], present: Collection[str], measure: Measure
) -> list[str]:
    """What is wrong with the files of a folder, each in a sentence.

    Args:
      files: the manifest's list.
      due: path and number of rows of each that must be there; None: of any number.
      present, measure: as in `check`.
    """
    try:
        stated = {file["path"]: (file["size"], file["sha256"], file["rows"]) for file in files}
    except (KeyError, TypeError):
        return ["the manifest's list of files is malformed"]
    problems = [f"{path} is in the manifest and is no file of such a release" for path in stated.keys() - due]
    problems += [f"{path} is not in the manifest" for path in due.keys() - stated]
    problems += [f"{path} is there and not of the release" for path in set(present) - set(due)]
    if len(stated) != len(files):
        problems.append("the manifest names a file twice")
    for path in sorted(due.keys() & stated):
        size, sha256, rows = stated[path]
        if due[path] not in (None, rows):
            problems.append(f"{path} has another number of rows than the configuration")
        if not (type(size) is int and 0 <= size <= MAX_FILE_BYTES):
            problems.append(f"{path} has no size that a file of such a release can have")
            continue
        try:
            found = measure(path, size)
        except OSError:
            problems.append(f"{path} is missing or cannot be read")
            continue
        if found != (size, sha256):
            problems.append(f"{path} does not have the digest that the manifest states")
    return sorted(problems)


def _canonical(content: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(value) for name, value in content.items()}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def digest_of_text(text: str) -> str:
    """SHA-256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
