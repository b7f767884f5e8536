"""dpgmm budget: what releases cost together, from their manifests alone.

(A module `budget` here has the options that say what a release may cost.)
"""

import dataclasses
import math
from collections.abc import Sequence

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy import accounting
from dpgmm_beam.privacy.composition import (
    STEPS,
    Spending,
    allowance,
    cost_of,
    epsilon_of,
    epsilon_within,
    has_place,
    plain,
    together,
)
from dpgmm_beam.release import manifest
from pipelines import cli, paths
from pipelines.parsers.budget import parser
from transforms.files.publish import exists, join
from transforms.files.small import read_small

__all__ = ["main", "parser"]

MAX_RELEASES = 10**6

_WHAT = "release folder"


@dataclasses.dataclass(frozen=True)
class Released:
    """What a manifest says of a release's cost.

    Attributes:
      folder: of the release.
      release_id: its name.
      draw: what names the draw of its noise: two with the same id and draw are one release.
      epsilon, delta: as it states them.
      unit: privacy unit and neighbours.
      event: in plain data.
      slice_name: K/N; None: of the whole data set.
    """

    folder: str
    release_id: str
    draw: tuple[str, ...]
    epsilon: float
    delta: float
    unit: tuple[str, str]
    event: dict
    slice_name: str | None

    @property
    def cost(self) -> int:
        return cost_of(self.event)


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    if not arguments.release and arguments.releases is None:
        raise ConfigError(_WHAT, "(none)", "be folders of releases; or --releases N says how many")
    if arguments.releases is not None and not 1 <= arguments.releases <= MAX_RELEASES:
        raise ConfigError("--releases", arguments.releases, f"be a whole number from 1 to {MAX_RELEASES}")
    if arguments.releases is not None and arguments.epsilon is None:
        raise ConfigError("--epsilon", "(not given)", "be given with --releases: the total")
    for epsilon, delta in ((arguments.epsilon, 1e-6), (1.0, arguments.delta)):
        if epsilon is not None and delta is not None:
            accounting.check_privacy_parameters(epsilon, delta)
    found = [_read(folder) for folder in arguments.release]
    for each in found[1:]:
        if each.unit != found[0].unit:
            raise ConfigError(
                _WHAT,
                each.folder,
                f"be of one privacy unit and adjacency with {found[0].folder}, which has {found[0].unit[0]}"
                f" ({found[0].unit[1]}) where this one has {each.unit[0]} ({each.unit[1]})",
            )
    delta = (
        arguments.delta if arguments.delta is not None else max((each.delta for each in found), default=None)
    )
    if delta is None:
        raise ConfigError("--delta", "(not given)", "be given where no release says one")
    once = _once(found)
    if once:
        _say(found, once, delta)
    if arguments.epsilon is not None:
        _say_left(once, arguments.epsilon, delta, arguments.releases)
    return 0


def _read(folder: str) -> Released:
    paths.check_path(_WHAT, folder)
    path = join(folder, manifest.FILE_NAME)
    if not exists(path):
        raise ConfigError(_WHAT, folder, f"be a folder with a {manifest.FILE_NAME}")
    content = manifest.parse(read_small(_WHAT, path, manifest.MAX_BYTES), folder)
    # What follows from the configuration, not what somebody may have written there.
    due = manifest.statement(manifest.plan_of(content))
    privacy = due["privacy"]
    if content.get("privacy") != privacy:
        raise ConfigError(_WHAT, folder, "state the privacy that follows from it: see `dpgmm verify`")
    # Files of the fit: a release with more rows of one draw has the same.
    fitted = sorted(
        f"{file['path']} {file['sha256']}"
        for file in content["files"]
        if str(file["path"]).startswith(f"{manifest.MIXTURE}/")
    )
    return Released(
        folder,
        due["release_id"],
        (due["fit_digest"], *fitted),
        privacy["epsilon"],
        privacy["delta"],
        (privacy["privacy_unit"], privacy["adjacency"]),
        plain(privacy["dp_event"], privacy["neighboring_relation"]),
        privacy["slice"],
    )


def _once(found: Sequence[Released]) -> list[Released]:
    """Without those that are another's copy, or have more rows of the same draw."""
    return list({(each.release_id, *each.draw): each for each in reversed(found)}.values())[::-1]


def _spent(once: Sequence[Released]) -> Spending:
    spent = Spending()
    for each in once:
        spent = spent.plus(each.cost, each.slice_name)
    return spent


def _say(found: Sequence[Released], once: Sequence[Released], delta: float) -> None:
    for each in once:
        at = epsilon_of(each.cost, delta)
        cli.say(
            f"{each.release_id}: epsilon {each.epsilon:g} at delta {each.delta:g}"
            + (f", which is {at:g} at {delta:g}" if each.delta != delta else "")
            + f" ({each.folder})"
        )
    if len(once) < len(found):
        cli.say(f"{len(found) - len(once)} of the {len(found)} are copies, and cost nothing more")
    spent = _spent(once)
    cost = spent.most
    counted = [each.event for each in once if has_place(each.slice_name, spent.worst)]
    whole = accounting.event_from_json(together(counted))
    epsilon = epsilon_of(cost, delta)
    checked = accounting.epsilon_by_pld(whole, delta)
    cli.report(
        f"together: epsilon {epsilon:.6g} at delta {delta:g}, and {checked:.6g} by dp-accounting's PLD"
        f" accountant (of {once[0].unit[0]}; {once[0].unit[1]})",
        epsilon=epsilon,
        delta=delta,
        epsilon_by_pld=checked,
        mu=math.sqrt(cost / STEPS),
        counted=[
            {
                "release": each.folder,
                "release_id": each.release_id,
                "epsilon": each.epsilon,
                "delta": each.delta,
                "epsilon_here": epsilon_of(each.cost, delta),
            }
            for each in once
        ],
        copies=len(found) - len(once),
    )
    cli.say(f"the sum of their epsilons would be {math.fsum(each.epsilon for each in once):g}")


def _say_left(once: Sequence[Released], total: float, delta: float, releases: int | None) -> None:
    left = allowance(total, delta) - _spent(once).most
    more = 1 if releases is None else releases - len(once)
    each = epsilon_within(left // more, delta) if left > 0 and more > 0 else 0.0
    of = f"of epsilon {total:g} at delta {delta:g}"
    if more <= 0:
        text = f"none of {releases} releases is left"
    elif not each:
        text = f"nothing that could be released is left {of}"
    elif more == 1:
        text = f"{of}, one more release of up to epsilon {each:g} is left"
    else:
        text = f"{of}, each of {more} more equal releases may have epsilon {each:g} at delta {delta:g}"
    cli.report(text, total_epsilon=total, more_releases=max(0, more), each_epsilon=each)
