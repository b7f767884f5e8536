"""Executes a pipeline's own transforms under the worst schedule that Beam allows.

The graph that the transforms' `expand` built is walked as it is: the real
DoFns and CombineFns, pickled and unpickled as a runner would.

- Every input of a step is put in a random order and cut into bundles anywhere,
  some of them empty.
- A bundle is executed one to three times, on the same worker or on a fresh one;
  some attempts die half-way, between two elements or wherever `Died` is raised in
  them.  Attempts that nobody waits for may run at any time
  later, also after everything else is done.
- Each reader of a bundle's output sees the output of one attempt that has
  finished, chosen at random for each reader, while side effects of all attempts
  stay.
- Steps whose inputs are done run in any order, their bundles interleaved.
- Combiners are lifted: accumulators are made for each bundle, travel, and are
  merged in random groups.
- Values are gathered by key over bundles, each reader sees them in another order,
  and they can only be iterated over.
- Workers restart between bundles: their DoFns, and what they share in a process,
  are gone.
- Somebody else may act between any two elements of a bundle, and another one
  looks on after every attempt.

Side inputs are refused: the release has none.
"""

import dataclasses
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.internal import pickler
from apache_beam.pipeline import AppliedPTransform
from apache_beam.pvalue import PCollection
from apache_beam.transforms.core import CombinePerKey, Flatten, GroupByKey, Impulse, ParDo
from apache_beam.transforms.util import Reshuffle
from apache_beam.utils import shared
from apache_beam.utils.windowed_value import WindowedValue


class Died(BaseException):
    """Raised where a process is to end at once: in whatever a test puts into a DoFn's way."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What decides everything that chaos does.

    Attributes:
      seed: of the choices.
      attempts: the most whole attempts of a bundle.
      cut: probability of a bundle's end after an element.
      death: probability of one more attempt that dies half-way.
      restart: probability that a worker is a fresh one.
      late: probability that an attempt beyond the first is left for the very end.
    """

    seed: int
    attempts: int = 3
    cut: float = 0.5
    death: float = 0.3
    restart: float = 0.5
    late: float = 0.3


@dataclasses.dataclass
class Bundle:
    """Elements that are processed together, and the outputs of finished attempts."""

    elements: list
    outputs: list[bytes] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Values:
    """What was gathered for one key: an iterable and nothing else, as where it does not fit memory."""

    content: list

    def __iter__(self):
        return iter(self.content)


class Step:
    """A leaf of the graph (a Reshuffle or CombinePerKey counts as one) and its bundles."""

    def __init__(self, applied: AppliedPTransform):
        self.applied, self.transform = applied, applied.transform
        self.sources = [value for value in applied.inputs if isinstance(value, PCollection)]
        assert not applied.side_inputs, applied.full_label
        self.bundles: list[Bundle] | None = None
        self.workers: list[Any] = []

    @property
    def done(self) -> bool:
        return self.bundles is not None and all(bundle.outputs for bundle in self.bundles)


def steps(applied: AppliedPTransform) -> Iterator[Step]:
    if isinstance(applied.transform, Reshuffle | CombinePerKey | GroupByKey) or not applied.parts:
        passes_on = all(output in applied.inputs for output in applied.outputs.values())
        if applied.transform is not None and not passes_on:
            yield Step(applied)
        return
    for part in applied.parts:
        yield from steps(part)


def forget_shared() -> None:
    """A new process shares nothing with the old one."""
    shared._shared_map = shared._SharedMap()


def nothing() -> None:
    """What somebody else does by default."""


class Chaos:
    """One execution of a pipeline; `run` it once.

    Attributes:
      attempts, deaths: how many of them there were.

    Args:
      between: called between elements of every attempt, and before its end.
      after: called after every attempt.
    """

    def __init__(
        self,
        pipeline: beam.Pipeline,
        schedule: Schedule,
        between: Callable[[], None] = nothing,
        after: Callable[[], None] = nothing,
    ):
        self.schedule, self.random = schedule, random.Random(schedule.seed)
        self.steps = [step for root in pipeline.transforms_stack for step in steps(root)]
        self.producer = {output: step for step in self.steps for output in step.applied.outputs.values()}
        self.between, self.after = between, after
        self.attempts = self.deaths = 0

    def run(self) -> None:
        """Executes everything; at the end every attempt that was planned has run."""
        forget_shared()
        tasks: list[tuple[Step, Bundle, bool]] = []
        late: list[tuple[Step, Bundle, bool]] = []
        while True:
            for step in self.steps:
                if step.bundles is None and all(self._of(source).done for source in step.sources):
                    step.bundles = self._cut(step)
                    for bundle in step.bundles:
                        tasks.append((step, bundle, False))
                        extra = self.random.randrange(self.schedule.attempts)
                        deaths = self.random.random() < self.schedule.death
                        for dies in [False] * extra + [True] * deaths:
                            afterwards = self.random.random() < self.schedule.late
                            (late if afterwards else tasks).append((step, bundle, dies))
            if not tasks:
                tasks, late = late, []
            if not tasks:
                break
            task = tasks.pop(self.random.randrange(len(tasks)))
            try:
                self._attempt(*task)
            except Died:
                self.deaths += 1
                tasks.append(task)
            self.after()
        stuck = [step.applied.full_label for step in self.steps if not step.done]
        assert not stuck, stuck
        for step in self.steps:
            for worker in step.workers:
                worker.teardown()

    def output(self, collection) -> list:
        """What one more reader of a collection would see."""
        return [
            element
            for bundle in self._of(collection).bundles
            for element in pickle.loads(self.random.choice(bundle.outputs))
        ]

    def _of(self, collection) -> Step:
        return self.producer[collection]

    def _shuffled(self, elements: list) -> list:
        return self.random.sample(elements, len(elements))

    def _cut(self, step: Step) -> list[Bundle]:
        if isinstance(step.transform, Impulse):
            return [Bundle([b""])]
        elements = self._shuffled([e for source in step.sources for e in self.output(source)])
        bundles = [[]]
        for element in elements:
            bundles[-1].append(element)
            while self.random.random() < self.schedule.cut:
                bundles.append([])
        if isinstance(step.transform, CombinePerKey):
            # The shuffle: accumulators of lifted bundles, gathered by key.
            gathered: dict[Any, list] = {}
            for bundle in bundles:
                for key, accumulator in self._lift(step, bundle):
                    gathered.setdefault(key, []).append(accumulator)
            return [Bundle([item]) for item in self._shuffled(list(gathered.items()))]
        if isinstance(step.transform, GroupByKey):
            grouped: dict[Any, list] = {}
            for key, value in elements:
                grouped.setdefault(key, []).append(value)
            return [Bundle([item]) for item in self._shuffled(list(grouped.items()))]
        return [Bundle(bundle) for bundle in bundles]

    def _lift(self, step: Step, elements: list) -> Iterator[tuple[Any, Any]]:
        accumulators: dict[Any, Any] = {}
        combine = pickler.loads(pickler.dumps(step.transform.fn))
        for key, value in elements:
            current = accumulators[key] if key in accumulators else combine.create_accumulator()
            accumulators[key] = combine.add_input(current, value)
        return iter(pickle.loads(pickle.dumps(list(accumulators.items()))))

    def _attempt(self, step: Step, bundle: Bundle, dies: bool) -> None:
        self.attempts += 1
        self.deaths += dies
        if self.random.random() < self.schedule.restart / 4:
            forget_shared()
        elements = pickle.loads(pickle.dumps(bundle.elements))
        if dies:
            elements = elements[: self.random.randint(0, len(elements))]
        if isinstance(step.transform, ParDo):
            output = list(self._process(step, elements, dies))
        elif isinstance(step.transform, CombinePerKey):
            output = [(key, self._merge(step, accumulators)) for key, accumulators in elements]
        elif isinstance(step.transform, GroupByKey):
            output = [(key, Values(self._shuffled(values))) for key, values in elements]
        else:
            assert isinstance(step.transform, Flatten | Impulse | Reshuffle), step.transform
            output = elements
        if not dies:
            bundle.outputs.append(pickle.dumps(output))

    def _merge(self, step: Step, accumulators: list) -> Any:
        combine = pickler.loads(pickler.dumps(step.transform.fn))
        accumulators = self._shuffled(accumulators) + [
            combine.create_accumulator() for _ in range(self.random.randrange(2))
        ]
        while len(accumulators) > 1:
            count = self.random.randint(2, len(accumulators))
            merged = combine.merge_accumulators(iter(accumulators[:count]))
            accumulators = [*accumulators[count:], merged]
        return combine.extract_output(accumulators[0])

    def _process(self, step: Step, elements: list, dies: bool) -> Iterator:
        if not step.workers or self.random.random() < self.schedule.restart:
            fresh = pickler.loads(pickler.dumps(step.transform.fn))
            fresh.setup()
            step.workers.append(fresh)
        worker = self.random.choice(step.workers)
        try:
            worker.start_bundle()
            for element in elements:
                self.between()
                yield from worker.process(element, *step.transform.args, **step.transform.kwargs) or ()
            self.between()
            if dies:
                self._end(step, worker)
                return
            for value in worker.finish_bundle() or ():
                assert isinstance(value, WindowedValue)
                yield value.value
        except Died:
            self._end(step, worker)
            raise

    def _end(self, step: Step, worker: Any) -> None:
        """The process is gone, and its threads with it; here they must be ended."""
        step.workers = [other for other in step.workers if other is not worker]
        worker.teardown()
