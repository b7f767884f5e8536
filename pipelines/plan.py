"""dpgmm plan: what a release would be like, from public numbers alone."""

import argparse
import dataclasses
import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Any

from dpgmm_beam.config import MAX_CLASSES, ReleaseConfig
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.allocation import with_shares
from dpgmm_beam.privacy.neighbours import ADD_REMOVE
from dpgmm_beam.privacy.tradeoff import Operational, in_words, operational
from dpgmm_beam.release import forecast, references, simulation
from pipelines import budget as budgets
from pipelines import cli
from pipelines.parsers.plan import parser


@dataclasses.dataclass(frozen=True)
class Forecast:
    """All that is said of a plan.

    Attributes:
      plan, rows, like: what was asked.
      errors: None where they were not simulated.
      steps: noise and signal of each mechanism.
      directions: that stand out of the covariance's noise.
      loss: low, middle and high end of the part of the accuracy above chance that noise
        takes; None with one class.
      needs: what would be needed.
      figures: what an attacker gains.
      warnings: sentences.
    """

    plan: Plan
    rows: int
    like: str
    errors: simulation.Errors | None
    steps: tuple[forecast.Step, ...]
    directions: int
    loss: tuple[float, float, float] | None
    needs: tuple[forecast.Need, ...]
    figures: Operational
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for --json."""
        config = self.plan.config
        return {
            "rows": self.rows,
            "classes": len(config.classes),
            "dimension": config.dimension,
            "components": config.components,
            "epsilon": config.epsilon,
            "delta": config.delta,
            "max_rows_per_unit": config.max_rows_per_unit,
            "adjacency": config.adjacency,
            "noise_multiplier": self.plan.budget.noise_multiplier,
            "like": self.like,
            "steps": [{**dataclasses.asdict(step), "ratio": step.ratio} for step in self.steps],
            "errors": self.errors and dataclasses.asdict(self.errors),
            "directions": self.directions,
            "loss": self.loss and dict(zip(("low", "middle", "high"), self.loss, strict=True)),
            "loss_measured": self._is_measured,
            "needs": [dataclasses.asdict(need) for need in self.needs],
            "operational": self.figures.to_dict(),
            "warnings": list(self.warnings),
        }

    @property
    def _is_measured(self) -> bool:
        return self.loss is not None and references.curve().measured(forecast.strength(self.plan, self.rows))

    def lines(self) -> Iterator[str]:
        """The same for people."""
        config, budget = self.plan.config, self.plan.budget
        yield (
            f"{self.rows:,} rows, {_classes(len(config.classes))}, dimension"
            f" {config.dimension:,}, epsilon {config.epsilon:g}, delta {config.delta:g}: noise multiplier"
            f" {budget.noise_multiplier:.4g}, mu {self.figures.mu:g}"
        )
        if config.max_rows_per_unit is not None or config.adjacency != ADD_REMOVE:
            neighbours, most = config.neighbours, config.max_rows_per_unit
            count = "" if most is None else f", of which at most {most} count"
            yield (
                f"private: {neighbours.stated}, that is {neighbours.unit}{count}: noise is"
                f" {neighbours.of_vectors:g} times that of single rows that are added or removed"
            )
        yield f"supposed: embeddings that lie like those of {self.like}; no data was read"
        yield ""
        yield from self._table()
        yield ""
        yield from self._errors()
        yield from self._accuracy()
        yield ""
        yield from self._needs()
        yield ""
        yield "what an attacker can gain, at most:"
        for sentence in in_words(self.figures, self.plan.config.neighbours):
            yield f"  {sentence}"

    def _table(self) -> Iterator[str]:
        rows = [("step", "share", "noise", "", "against", "", "signal/noise")]
        for step in self.steps:
            times = f", {step.repetitions} times" if step.repetitions > 1 else ""
            rows.append(
                (
                    step.mechanism + times,
                    f"{step.share:.3f}",
                    _number(step.noise),
                    f"{step.unit}, {step.noise_is}",
                    _number(step.signal),
                    step.signal_is,
                    _number(step.ratio),
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        numbers = (1, 2, 4, 6)
        for row in rows:
            cells = (
                cell.rjust(width) if column in numbers else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            yield "  ".join(cells).rstrip()

    def _errors(self) -> Iterator[str]:
        d = self.plan.config.dimension
        if self.errors is None:
            yield "errors of what is released were not simulated: too many classes, or too few rows for them"
        else:
            yield (
                f"errors of what is released: a class's count {_number(self.errors.counts)} rows, a class's"
                f" mean {self.errors.means:.2g} (norm), covariance {self.errors.covariance:.0%} of its norm"
                + (f", a logit {self.errors.logit:.2g}" if self.errors.logit is not None else "")
            )
        yield f"directions of the covariance that stand out of its noise: {self.directions:,} of {d:,}"

    def _accuracy(self) -> Iterator[str]:
        if self.loss is None:
            return
        low, middle, high = self.loss
        yield (
            f"accuracy: noise takes {middle:.1%} ({low:.1%} to {high:.1%}) of the accuracy above chance that"
            " a release without noise would give"
        )
        yield "  the band holds every measurement; at this strength (rows of a class times mu over the root"
        yield "  of the dimension) the networks of its data sets would have"
        for name, each in references.REFERENCES.items():
            yield (
                f"    {_expected(each, high):.3f} to {_expected(each, low):.3f} on {name} ({each.about}):"
                f" {each.without_noise:.3f} without noise, {each.real:.3f} on the real rows"
            )
        if not self._is_measured:
            found = references.curve()
            yield (
                f"  that is beyond what was measured: the strength is"
                f" {_number(forecast.strength(self.plan, self.rows))}, and was {found.least:.2g} to"
                f" {found.most:.3g}"
            )

    def _needs(self) -> Iterator[str]:
        config = self.plan.config
        yield "what it takes that"
        for need in self.needs:
            rows = "more rows than a job takes" if need.rows is None else f"{need.rows:,} rows"
            epsilon = "no epsilon up to 1000" if need.epsilon is None else f"epsilon {need.epsilon:g}"
            yield (
                f"  {need.state}: {rows} at epsilon {config.epsilon:g}, or {epsilon} with {self.rows:,} rows"
            )


def _expected(reference: references.Reference, loss: float) -> float:
    chance = 1 / reference.classes
    return chance + (1 - loss) * (reference.without_noise - chance)


def _classes(count: int) -> str:
    return f"{count:,} classes of one size" if count > 1 else "1 class"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def checked(arguments: argparse.Namespace) -> Plan:
    """The plan that the options ask about.

    Raises:
      ConfigError: `dpgmm release` would refuse it, or there can be no such data.
    """
    if not 1 <= arguments.classes <= MAX_CLASSES:
        raise ConfigError("classes", arguments.classes, f"be a whole number from 1 to {MAX_CLASSES}")
    epsilon, delta = budgets.of(arguments)
    config = ReleaseConfig(
        encoder="precomputed",
        classes=tuple(map(str, range(arguments.classes))),
        dimension=arguments.dimension,
        epsilon=epsilon,
        delta=delta,
        samples_per_class=1,
        components=arguments.components,
        rounds=arguments.rounds,
        shares=with_shares(arguments.share, arguments.favor, arguments.decodable is not None),
        max_rows_per_unit=arguments.max_rows_per_unit,
        adjacency=arguments.adjacency,
        decodable=arguments.decodable,
    )
    forecast.check_rows(arguments.rows, config)
    if not 1e-4 <= arguments.within < 1:
        raise ConfigError("within", arguments.within, "be a number from 0.0001 and below 1")
    return Plan(config, "plan", counted=arguments.rows)


def forecast_of(plan: Plan, rows: int, like: str, within: float) -> Forecast:
    """What a release of so many rows would be like."""
    geometry = references.geometry_of(like)
    errors = simulation.simulate(plan, rows, geometry)
    strength = forecast.strength(plan, rows)
    return Forecast(
        plan,
        rows,
        like,
        errors,
        forecast.steps(plan, rows, geometry, errors),
        forecast.directions_seen(plan, rows, geometry),
        references.curve().loss(strength) if plan.shape.classes > 1 else None,
        forecast.needs(plan, rows, geometry, within),
        operational(plan.budget.noise_multiplier),
        forecast.warnings(plan, rows),
    )


def check_png(path: str) -> None:
    """Raises ConfigError unless a picture can be drawn, and written there."""
    if not path.lower().endswith(".png"):
        raise ConfigError("png", path, "be the name of a .png file")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("png", path, 'come with matplotlib: pip install "dpgmm-beam[plot]"')
    # Beam, for its file systems.
    from pipelines import paths

    paths.check_path("--png", path)
    if os.path.isdir(path):
        raise ConfigError("png", path, "be the name of a file, not a folder's")
    if not os.path.lexists(path):
        paths.check_writable_place("--png", path)


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    plan = checked(arguments)
    references.geometry_of(arguments.like)
    if arguments.png is not None:
        check_png(arguments.png)
    found = forecast_of(plan, arguments.rows, arguments.like, arguments.within)
    first, *rest = found.lines()
    cli.report(first, **found.to_dict())
    for line in rest:
        cli.say(line)
    if arguments.png is not None:
        from pipelines import plan_figure
        from transforms.files.write import write_whole

        write_whole(arguments.png, plan_figure.draw(found))
        cli.say(f"drawn to {arguments.png}")
    for warning in found.warnings:
        cli.warn(warning)
    return 0
