"""What the rows of a data set add up to: its total, its releases, what is spent and what is left."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.composition import Spending, allowance, cost_of, epsilon_of, epsilon_within

RESERVED, DRAWING, COMMITTED, ABANDONED, RETURNED = (
    "reserved",
    "drawing",
    "committed",
    "abandoned",
    "returned",
)
CREATED, TOTAL, CLOSED, KEY_FORGOTTEN = "created", "total changed", "closed", "key forgotten"

_AFTER = {
    DRAWING: (RESERVED, DRAWING),
    COMMITTED: (DRAWING, COMMITTED, ABANDONED),
    ABANDONED: (RESERVED, DRAWING, ABANDONED),
    RETURNED: (RESERVED, DRAWING, RETURNED),
}
"""From which states a release may come into one."""


@dataclasses.dataclass(frozen=True)
class Charge:
    """A release, as the ledger knows it.

    Attributes:
      release_id: its public name.
      token: of this reservation; an id whose charge was given back may be reserved again.
      state: reserved; drawing, from before its job is submitted; committed, when it is published;
        abandoned, when its key is gone after noise may have been drawn; returned, when nothing was.
      cost: in steps, see `dpgmm_beam.privacy.composition`.
      epsilon, delta: as its manifest states them.
      slice_name: of the data; None: all of it.
      facts: what the release is: digests of its configuration, its key and the private folder.
      data, state_digest: of the committed release, see `transforms.files.gate.told`; else "".
      event: the privacy event, in plain data.
      time: when it was reserved.
    """

    release_id: str
    token: str
    state: str
    cost: int
    epsilon: float
    delta: float
    slice_name: str | None
    facts: Mapping[str, str]
    event: Mapping[str, Any]
    time: str
    data: str = ""
    state_digest: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is spent or may yet be."""
        return self.state != RETURNED


@dataclasses.dataclass(frozen=True)
class Account:
    """A data set's budget, from its rows.

    Attributes:
      dataset: its name.
      epsilon, delta: the total.
      signer: name of the key that signs; "" for none.
      closed: whether nothing more may be released.
      privacy_unit, adjacency: whom the budget is of, and what neighbours are; "" until the
        first release says.
      charges: by their tokens, in the order in which they were reserved.
      forgotten: ids of releases whose keys were destroyed.
    """

    dataset: str
    epsilon: float
    delta: float
    signer: str
    closed: bool = False
    privacy_unit: str = ""
    adjacency: str = ""
    charges: Mapping[str, Charge] = dataclasses.field(default_factory=dict)
    forgotten: frozenset[str] = frozenset()

    @property
    def spending(self) -> Spending:
        spent = Spending()
        for charge in self.counted():
            spent = spent.plus(charge.cost, charge.slice_name)
        return spent

    @property
    def total(self) -> int:
        """The most that may be spent, in steps."""
        return allowance(self.epsilon, self.delta)

    def counted(self) -> Iterator[Charge]:
        return (charge for charge in self.charges.values() if charge.counts)

    def left(self, slice_name: str | None = None) -> int:
        """What a release of a slice may cost, in steps."""
        return max(0, self.total - self.spending.of(slice_name))

    def spent_epsilon(self, slice_name: str | None = None) -> float:
        return epsilon_of(self.spending.of(slice_name), self.delta)

    def left_epsilon(self, delta: float, slice_name: str | None = None) -> float:
        """The epsilon that one more release may have at a delta; 0: none fits."""
        return epsilon_within(self.left(slice_name), delta)

    def more_like(self, charge: Charge) -> int:
        """How many more releases of the same cost and slice fit."""
        return self.left(charge.slice_name) // charge.cost if charge.cost else 0

    @property
    def last(self) -> Charge | None:
        """The release that was reserved last, of those that count."""
        return next((charge for charge in reversed(list(self.charges.values())) if charge.counts), None)

    def named(self, release_id: str) -> Charge | None:
        """The charge of a release id, unless it was given back."""
        return next((charge for charge in self.counted() if charge.release_id == release_id), None)


def account_of(dataset: str, rows: Iterable[Mapping[str, Any]]) -> Account:
    """Adds up what rows say.

    Raises:
      ConfigError: they are no history of a data set.
    """
    account: Account | None = None
    try:
        for row in rows:
            account = _after(account, dataset, row)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError) and error.argument != "dp_event":
            raise
        raise ConfigError(
            "--dataset", dataset, "have a history that this dpgmm-beam understands: see `dpgmm ledger verify`"
        ) from None
    if account is None:
        raise ConfigError("--dataset", dataset, "be a data set of the ledger with a total: create it again")
    return account


def _after(account: Account | None, dataset: str, row: Mapping[str, Any]) -> Account:
    kind = row["kind"]
    if kind == CREATED:
        if account is not None:
            raise ValueError(kind)
        return Account(
            dataset,
            row["epsilon"],
            row["delta"],
            row["signer"],
            privacy_unit=row["privacy_unit"],
        )
    if account is None:
        raise ValueError(kind)
    if kind == TOTAL:
        return dataclasses.replace(account, epsilon=row["epsilon"], delta=row["delta"])
    if kind == CLOSED:
        return dataclasses.replace(account, closed=True)
    if kind == KEY_FORGOTTEN:
        return dataclasses.replace(account, forgotten=account.forgotten | {row["release_id"]})
    token = row["token"]
    if kind == RESERVED:
        if token in account.charges:
            raise ValueError(token)
        charge = Charge(
            row["release_id"],
            token,
            RESERVED,
            cost_of(row["event"]),
            row["epsilon"],
            row["delta"],
            row["slice"],
            row["facts"],
            row["event"],
            row["time"],
        )
        account = dataclasses.replace(account, privacy_unit=row["privacy_unit"], adjacency=row["adjacency"])
    else:
        before = account.charges[token]
        if before.state not in _AFTER[kind]:
            raise ValueError(kind)
        charge = dataclasses.replace(before, state=kind)
        if kind == COMMITTED:
            charge = dataclasses.replace(charge, data=row["data"], state_digest=row["state"])
    return dataclasses.replace(account, charges={**account.charges, token: charge})


def may_become(charge: Charge, state: str) -> bool:
    return charge.state in _AFTER[state]
