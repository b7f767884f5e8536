"""The options that say what a release may cost: (epsilon, delta), or mu, or an attacker's advantage."""

import argparse

from dpgmm_beam.errors import ConfigError

# Light: every `--help` of a verb with these options imports it.


def add_options(group: argparse._ArgumentGroup) -> None:
    """Adds --epsilon and --delta, and --mu and --max-advantage, which take their place."""
    group.add_argument("--epsilon", type=float, help="budget of this release, with --delta")
    group.add_argument("--delta", type=float, help="well under one over the number of rows")
    group.add_argument(
        "--mu",
        type=float,
        metavar="MU",
        help="instead of both: the budget in Gaussian differential privacy's mu",
    )
    group.add_argument(
        "--max-advantage",
        type=float,
        metavar="A",
        help="instead: the most by which an attacker's true-positive rate may be above the false-positive"
        " rate, in guessing whether one image was in",
    )


def of(arguments: argparse.Namespace) -> tuple[float, float]:
    """Epsilon and delta of a command, those that follow from --mu or --max-advantage where it was given.

    Raises:
      ConfigError: no budget, two, or one that is out of range.
    """
    instead = {
        name: value for name in ("mu", "max_advantage") if (value := getattr(arguments, name)) is not None
    }
    if not instead:
        if arguments.epsilon is None:
            raise ConfigError(
                "epsilon", "(not given)", "come with --delta; or --mu or --max-advantage in the place of both"
            )
        if arguments.delta is None:
            raise ConfigError("delta", "(not given)", "come with --epsilon")
        return arguments.epsilon, arguments.delta
    name, value = next(iter(instead.items()))
    if arguments.epsilon is not None or arguments.delta is not None:
        raise ConfigError(name, value, "come without --epsilon and --delta, in whose place it is")
    if len(instead) > 1:
        raise ConfigError(name, value, "come without --max-advantage, which says the same in other words")
    from dpgmm_beam.privacy.tradeoff import budget_of_mu, mu_of_advantage

    return budget_of_mu(value if name == "mu" else mu_of_advantage(value))
