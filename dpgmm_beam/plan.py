"""The plan of a release: its stages, what each may spend and the noise that follows.

One frozen value holds clipping, noise and privacy event, so they cannot
disagree: sensitivities come from the stages that clip, multipliers from the
budget that the manifest states.
"""

import dataclasses
import functools
from typing import Any

import dpgmm_beam
from dpgmm_beam.budget import Budget, Mechanism
from dpgmm_beam.clustering import LATE_WEIGHT, Sketch, centre_rounds
from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.noise import MAX_STANDARD_DEVIATION, SCHEME
from dpgmm_beam.rows import RowFormat
from dpgmm_beam.stage import Stage
from dpgmm_beam.stages import Means, PooledMoment, TeacherStep
from dpgmm_beam.views import Projection

CLUSTERING_HEIRS = (("moment/moment", 0.1), ("rounds/count", 0.06), ("rounds/sum", 0.84))
"""What becomes of the teacher's share in a release of several components without a teacher:
with the default shares the moment has .19 then, the clustering's counts .062 and its sums .668."""

SKETCH_SHARE = 0.25
"""Of the shares of the rounds, for all sketches together."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is done to the rows, in order.

    Attributes:
      config: the public configuration.
      release_id: the public name of this one publication.
      noise_multiplier: of the whole budget, where it was calibrated already (a
        worker has it from the driver); None: it is calibrated here.  It follows
        from the configuration, so plans that differ in it only are equal.

    Raises:
      ConfigError: a mechanism's noise would be too large to be drawn exactly.
    """

    config: ReleaseConfig
    release_id: str
    noise_multiplier: float | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self):
        # Here and not in the first stage that draws: the data has been read then.
        for stage in self.stages:
            multipliers = self.multipliers(stage)
            for channel in stage.channels:
                if not channel.private and (
                    multipliers[channel.name] * channel.sensitivity > MAX_STANDARD_DEVIATION
                ):
                    name = f"{stage.mechanism}/{channel.name}"
                    raise ConfigError(
                        "--epsilon",
                        self.config.epsilon,
                        f"be larger, for the noise of {name} would be too large to draw",
                    )

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        config, method = self.config, self.config.method
        classes, dimension = len(config.classes), config.dimension
        reduced = min(method.reduced, dimension)
        stages: list[Stage] = [
            Means(classes, dimension, method.residual_radius),
            PooledMoment(
                classes, dimension, config.components, reduced, method.residual_radius, method.damping
            ),
        ]
        if classes > 1:
            stages += [
                TeacherStep(
                    classes,
                    dimension,
                    step,
                    method.teacher_steps,
                    method.teacher_clip,
                    method.teacher_rate,
                    method.teacher_noise_cap,
                    method.teacher_momentum,
                )
                for step in range(method.teacher_steps)
            ]
        if config.clustering_stages:
            sketches = min(2, config.clustering_stages // 2)
            stages += [Sketch(classes, config.components, reduced, position) for position in range(sketches)]
            stages += centre_rounds(classes, config.components, dimension, sketches, config.clustering_stages)
        return tuple(stages)

    @functools.cached_property
    def budget(self) -> Budget:
        repetitions: dict[str, int] = {}
        for stage in self.stages:
            for channel in stage.channels:
                if not channel.private:
                    name = f"{stage.mechanism}/{channel.name}"
                    repetitions[name] = repetitions.get(name, 0) + 1
        shares = dict(self.config.shares)
        if "teacher/gradient" not in repetitions and self.config.components > 1:
            # Clustering is all that is wanted.
            for name, part in CLUSTERING_HEIRS:
                shares[name] += part * shares["teacher/gradient"]
        for what in ("count", "sum"):
            if f"sketch/{what}" in repetitions:
                whole = shares[f"rounds/{what}"]
                shares[f"sketch/{what}"] = SKETCH_SHARE * whole
                shares[f"rounds/{what}"] = (1 - SKETCH_SHARE) * whole
            if f"late/{what}" in repetitions:
                early, late = repetitions[f"rounds/{what}"], LATE_WEIGHT * repetitions[f"late/{what}"]
                whole = shares[f"rounds/{what}"]
                shares[f"rounds/{what}"] = whole * early / (early + late)
                shares[f"late/{what}"] = whole * late / (early + late)
        if "teacher/gradient" in repetitions and self.config.components == 1:
            shares["teacher/gradient"] += shares["rounds/count"] + shares["rounds/sum"]
        # What a release does not use otherwise is spread over the others.
        total = sum(shares[name] for name in repetitions)
        return Budget(
            self.config.epsilon,
            self.config.delta,
            tuple(Mechanism(name, shares[name] / total, count) for name, count in repetitions.items()),
            self.noise_multiplier,  # type: ignore[arg-type]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the noise multiplier to the last bit."""
        return {
            "version": dpgmm_beam.__version__,
            "scheme": SCHEME,
            "config": self.config.to_dict(),
            "release_id": self.release_id,
            "noise_multiplier": self.budget.noise_multiplier.hex(),
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Plan":
        """The inverse of `to_dict`: the same plan, with the noise multiplier that it had.

        Raises:
          RuntimeError: another version of this package wrote it, whose sums or noise may differ.
        """
        found, own = (data.get("version"), data.get("scheme")), (dpgmm_beam.__version__, SCHEME)
        if found != own:
            raise RuntimeError(
                "this run was begun by dpgmm-beam {} (noise scheme {}) and this is {} ({}): driver and"
                " workers must be of one version; --restart drops what was begun".format(*found, *own)
            )
        return Plan(
            ReleaseConfig.from_dict(data["config"]),
            data["release_id"],
            float.fromhex(data["noise_multiplier"]),
        )

    def multipliers(self, stage: Stage) -> dict[str, float]:
        """Noise multipliers of a stage's channels."""
        return {
            channel.name: self.budget.multiplier(f"{stage.mechanism}/{channel.name}")
            for channel in stage.channels
            if not channel.private
        }

    @property
    def views(self) -> tuple[tuple[Projection, int], ...]:
        """The views that stages read, each with its dimension."""
        found = {stage.view: stage.view_dimension for stage in self.stages if stage.view is not None}
        return tuple(found.items())

    @property
    def row_format(self) -> RowFormat:
        return self.config.row_format

    @property
    def fit_digest(self) -> str:
        return self.config.fit_digest
