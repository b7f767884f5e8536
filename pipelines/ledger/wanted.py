"""A release that asks for its part of a budget, and whether it may have it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dpgmm_beam.errors import BudgetError, ConfigError
from dpgmm_beam.privacy.composition import cost_of, plain
from pipelines.ledger import account as accounts
from pipelines.ledger.account import Account, Charge


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A release that asks for its part of the budget.

    Attributes:
      release_id: its public name.
      privacy: what its manifest will state: epsilon, delta, dp_event, neighboring_relation, privacy_unit,
        adjacency and slice.
      facts: digests of what it is; another release under its id has others.
      place: of the private folder in which it is made.
    """

    release_id: str
    privacy: Mapping[str, Any]
    facts: Mapping[str, str]
    place: str

    @property
    def event(self) -> dict[str, Any]:
        return plain(self.privacy["dp_event"], self.privacy["neighboring_relation"])

    @property
    def cost(self) -> int:
        return cost_of(self.event)

    @property
    def slice_name(self) -> str | None:
        """K/N, of the data set, where it is of no more than that."""
        return self.privacy["slice"]

    @property
    def all_facts(self) -> dict[str, str]:
        """What its charge says of it: the facts and the place."""
        return {**self.facts, "place": self.place}


def charge_of(account: Account, wanted: Wanted) -> Charge | None:
    """The charge that a release has already; None where it has none and may have one.

    Raises:
      ConfigError: it may not be released.
      BudgetError: it would overspend.
    """
    found = account.named(wanted.release_id)
    if found is not None:
        _check_same(found, wanted)
        return found
    if account.closed:
        raise ConfigError(
            "--dataset", account.dataset, "be open, and it was closed: nothing more is released"
        )
    for field, argument in (("privacy_unit", "privacy unit"), ("adjacency", "adjacency")):
        fixed, asked = getattr(account, field), wanted.privacy[field]
        if fixed and fixed != asked:
            raise ConfigError(
                argument, f"'{asked}'", f"be '{fixed}', of which the budget of {account.dataset} is"
            )
    if wanted.cost > account.left(wanted.slice_name):
        delta = wanted.privacy["delta"]
        most = account.left_epsilon(delta, wanted.slice_name)
        what = (
            f"at most {most:g} at delta {delta:g}, which is what is left"
            if most
            else f"for another data set: nothing that could be released at delta {delta:g} is left"
        )
        spent = account.spent_epsilon(wanted.slice_name)
        raise BudgetError(
            "--epsilon",
            wanted.privacy["epsilon"],
            f"be {what}: of {account.dataset}'s total epsilon {account.epsilon:g} at delta {account.delta:g},"
            f" {spent:.4g} is spent or reserved",
        )
    return None


_DIFFERENT = {
    "fit_digest": "another configuration",
    "key": "another noise key",
}


def _check_same(found: Charge, wanted: Wanted) -> None:
    """Raises ConfigError unless a charge is of the release that asks for it."""
    for fact, meaning in _DIFFERENT.items():
        if found.facts.get(fact) != wanted.facts.get(fact):
            raise ConfigError(
                "--release-id",
                wanted.release_id,
                f"be new: it names a release of {meaning}, and each release needs an id of its own",
            )
    if found.slice_name != wanted.slice_name:
        raise ConfigError(
            "--slice",
            wanted.slice_name or "(none)",
            f"be {found.slice_name or 'left out'}, as this release was charged for",
        )
    if found.state == accounts.DRAWING and found.facts.get("place") != wanted.place:
        raise ConfigError(
            "--private-dir",
            "(another)",
            f"be the one in which the release {wanted.release_id} was begun: until it is published, only"
            " there its noise is not drawn twice",
        )
