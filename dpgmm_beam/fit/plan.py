"""The plan of a release: its stages, what each may spend and the noise that follows.

One frozen value holds clipping, noise and privacy event, so they cannot
disagree: sensitivities come from the stages that clip, multipliers from the
budget that the manifest states.
"""

import dataclasses
import functools
import itertools
from typing import Any

import dpgmm_beam
from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.data.rows import RowFormat
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit import lloyd, sketch
from dpgmm_beam.fit.centres import WholeCentres
from dpgmm_beam.fit.counts import Counts
from dpgmm_beam.fit.covariance import PooledMoment
from dpgmm_beam.fit.means import Means
from dpgmm_beam.fit.pictures import PictureMeans, PictureSlopes
from dpgmm_beam.fit.projection import View
from dpgmm_beam.fit.scales import ComponentScales
from dpgmm_beam.fit.scatter import ClassScatter
from dpgmm_beam.fit.sharpness import TeacherStart
from dpgmm_beam.fit.stage import Shape, Stage
from dpgmm_beam.fit.teacher import TeacherStep
from dpgmm_beam.fit.whitened import WhitenedMoment
from dpgmm_beam.privacy.accounting import Budget
from dpgmm_beam.privacy.allocation import UNITS_ROWS, allocate, following, turning_points
from dpgmm_beam.privacy.noise import MAX_STANDARD_DEVIATION, SCHEME


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is done to the rows, in order.

    Attributes:
      config: the public configuration.
      release_id: the public name of this one publication.
      noise_multiplier: of the whole budget, where it was calibrated already (a
        worker has it from the driver); None: it is calibrated here.  It follows
        from the configuration, so plans that differ in it only are equal.
      counted: noisy rows of all classes, from which shares follow (`allocation.following`); None
        until the first stage has counted them.

    Raises:
      ConfigError: a mechanism's noise would be too large to be drawn exactly.

    >>> plan = Plan(ReleaseConfig("precomputed", ("cat", "dog"), 512, epsilon=1.0, delta=1e-6), "2026-05")
    >>> len(plan.stages), [stage.name for stage in plan.stages[:3]]
    (35, ['counts 0', 'means 0', 'moment 0'])
    >>> f"{plan.budget.noise_multiplier:.3f}"
    '4.225'
    """

    config: ReleaseConfig
    release_id: str
    noise_multiplier: float | None = dataclasses.field(default=None, compare=False, repr=False)
    counted: int | None = None

    def __post_init__(self):
        # Here and not in the first stage that draws: the data has been read then.
        budgets = [self.budget]
        if self.counted is None:
            # Whatever will be counted.
            budgets += map(self._following, turning_points(dict(self.config.shares)))
        many = (self.config.max_rows_per_unit or 1) > 1
        smaller = ", or max_rows_per_unit smaller" if many else ""
        for budget, stage in itertools.product(budgets, self.stages):
            multipliers = self._multipliers(budget, stage)
            for query in stage.queries:
                if multipliers[query.name] * query.l2_sensitivity > MAX_STANDARD_DEVIATION:
                    name = f"{stage.mechanism}/{query.name}"
                    raise ConfigError(
                        "epsilon",
                        self.config.epsilon,
                        f"be larger{smaller}, for the noise of {name} would be too large to draw",
                    )

    @property
    def shape(self) -> Shape:
        config = self.config
        return Shape(
            classes=len(config.classes),
            dimension=config.dimension,
            components=config.component_room,
            subspace_dim=config.subspace_room,
            shaped_dim=config.shaped_room,
            exact_components=config.components is not None,
            unit_norm=config.clip_norm is None,
            ridges=config.ridges,
            pictures=config.picture_form,
        )

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        shape, method, clustering = self.shape, self.config.method, self.config.clustering_stages
        stages: list[Stage] = [Counts(shape, method), Means(shape, method)]
        stages += [PooledMoment(shape, method), WhitenedMoment(shape, method)]
        if shape.pictures is not None:
            stages += [PictureMeans(shape, method), PictureSlopes(shape, method)]
        if clustering:
            sketches = min(sketch.search_of(shape).sketches, clustering // 2)
            stages += [sketch.Sketch(shape, method, position) for position in range(sketches)]
            stages += lloyd.rounds(shape, method, sketches, clustering)
            stages.append(WholeCentres(shape, method))
        stages.append(ClassScatter(shape, method))
        if clustering:
            stages.append(ComponentScales(shape, method))
        if shape.classes > 1 and method.teacher_steps:
            stages.append(TeacherStart(shape, method))
            stages += [TeacherStep(shape, method, step) for step in range(method.teacher_steps)]
        return tuple(stages)

    @functools.cached_property
    def budget(self) -> Budget:
        if self.counted is None:
            return self._usual
        noise = self._usual.noise_multiplier * self.config.neighbours.of_vectors
        return self._following(self.counted / len(self.config.classes) / noise)

    @functools.cached_property
    def _usual(self) -> Budget:
        """The budget until rows are counted."""
        config = self.config
        return Budget(
            config.epsilon,
            config.delta,
            allocate(*self._wanted),
            self.noise_multiplier,  # type: ignore[arg-type]
        )

    def _following(self, rows: float) -> Budget:
        """The budget when so many rows are counted, as `allocation.following` takes them."""
        usual = self._usual
        return dataclasses.replace(
            usual, mechanisms=following(*self._wanted, rows), noise_multiplier=usual.noise_multiplier
        )

    @functools.cached_property
    def _wanted(self) -> tuple[dict[str, int], dict[str, float], bool]:
        """What `allocation.allocate` takes."""
        repetitions: dict[str, int] = {UNITS_ROWS: 1} if self.config.bound_found else {}
        for stage in self.stages:
            for query in stage.queries:
                name = f"{stage.mechanism}/{query.name}"
                repetitions[name] = repetitions.get(name, 0) + 1
        return repetitions, dict(self.config.shares), self.config.components == 1

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the noise multiplier to the last bit."""
        return {
            "version": dpgmm_beam.__version__,
            "scheme": SCHEME,
            "config": self.config.to_dict(),
            "release_id": self.release_id,
            "noise_multiplier": self.budget.noise_multiplier.hex(),
            "counted": self.counted,
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
            data["counted"],
        )

    def multipliers(self, stage: Stage) -> dict[str, float]:
        """Noise over what one row may add, of each of a stage's queries.

        The budget's multipliers are noise over what a privacy unit may change: here, and nowhere
        else, the one becomes the other.  Steps learn the noise of their sums from it.
        """
        return self._multipliers(self.budget, stage)

    def _multipliers(self, budget: Budget, stage: Stage) -> dict[str, float]:
        return {
            query.name: budget.multiplier(f"{stage.mechanism}/{query.name}")
            * self.config.neighbours.rows(query)
            for query in stage.queries
        }

    @functools.cached_property
    def row_multipliers(self) -> dict[str, float]:
        """`multipliers` by mechanism, e.g. "means/sum"; of "units/rows" it is noise over one unit."""
        found = {}
        if self.config.bound_found:
            found[UNITS_ROWS] = self.budget.multiplier(UNITS_ROWS) * self.config.neighbours.of_units
        return found | {
            f"{stage.mechanism}/{name}": value
            for stage in self.stages
            for name, value in self.multipliers(stage).items()
        }

    @property
    def views(self) -> tuple[tuple[View, int], ...]:
        """The views that stages read, each with its dimension."""
        found = {stage.view: stage.view_dimension for stage in self.stages if stage.view is not None}
        return tuple(found.items())

    @property
    def row_format(self) -> RowFormat:
        return self.config.row_format

    @property
    def fit_digest(self) -> str:
        return self.config.fit_digest
