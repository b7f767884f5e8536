"""The commands of a scheduled release, in the order in which they run; no Airflow in here.

Settings are environment variables, as in deploy/schedule/release.sh:

    DPGMM_COMMAND            how the program is started (default: dpgmm)
    DPGMM_INPUT, _ENCODER    labelled images, and what embeds them
    DPGMM_CLASSES            the declared labels
    DPGMM_TEST               real embeddings to test the network on
    DPGMM_EPSILON, _DELTA    of one release
    DPGMM_LEDGER, _DATASET   the budget of all of them: made once, by hand, with `dpgmm ledger create`
    DPGMM_RELEASE_KEY_STORE  keeps a key for each release: a folder, or vault:MOUNT/PATH
    DPGMM_PRIVATE_DIR        states, rows, embeddings, networks and pages: only its owner may enter
    DPGMM_RELEASES           gets a folder a release
    DPGMM_OPTIONS            more options of `dpgmm release`, or of Beam
"""

import os
import shlex
from collections.abc import Mapping

STEPS = ("embed", "release", "train", "report")

NEVER_AGAIN = (2, 3)
"""Exit statuses that another try does not change: refused, and no budget left."""


def program(environ: Mapping[str, str] = os.environ) -> list[str]:
    """How the program is started."""
    return shlex.split(environ.get("DPGMM_COMMAND", "")) or ["dpgmm"]


def commands(release_id: str, environ: Mapping[str, str] = os.environ) -> dict[str, list[str]]:
    """Arguments of the program, by step.

    Each may run again, at once or much later: it goes on, or finds done what it would do.

    Args:
      release_id: of the occasion, not of the try; may be a template.
    """

    def of(name: str) -> str:
        # What is not set is refused by the command itself, which says what it must be.
        return environ.get(f"DPGMM_{name}", "")

    private = of("PRIVATE_DIR")
    embeddings, release = f"{private}/embedded", f"{of('RELEASES')}/{release_id}"
    # Tests on real rows are exact, and so is what a page says of them.
    network, page = f"{private}/networks/{release_id}", f"{private}/pages/{release_id}.html"
    return {
        "embed": [
            *("embed", "--input", of("INPUT"), "--encoder", of("ENCODER"), "--output", embeddings),
        ],
        "release": [
            *("release", "--input", embeddings, "--encoder", "precomputed", "--classes", of("CLASSES")),
            *("--epsilon", of("EPSILON"), "--delta", of("DELTA"), "--output", release),
            *("--release-id", release_id, "--release-key-store", of("RELEASE_KEY_STORE")),
            *("--ledger", of("LEDGER"), "--dataset", of("DATASET"), "--private-dir", private),
            *shlex.split(of("OPTIONS")),
        ],
        "train": [
            *("train", "--synthetic", release, "--test", of("TEST")),
            *("--output", network, "--overwrite"),
        ],
        "report": [
            *("report", "--release", release, "--network", network, "--output", page, "--overwrite"),
        ],
    }
