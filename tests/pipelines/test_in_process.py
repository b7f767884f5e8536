"""What the project's own in-process runner adds to Beam's: bounded memory, workers that keep their share."""

import itertools
import os
import resource
import sys
import time

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsIter
from apache_beam.runners.portability.fn_api_runner import fn_runner

from pipelines import in_process
from pipelines.in_process import InProcessRunner
from pipelines.runner import local_defaults
from tests.pipelines.processes import process

STAGES = 30
ELEMENT = 2**20
ELEMENTS = 16

if __name__ != "__main__" and not in_process.KNOWN_INTERNALS:
    pytest.skip("another version of Beam: its runner is used as it is", allow_module_level=True)


def chain(pipeline, stages, step):
    """Stages that read the one before as a side input, as those of a fit do."""
    state = pipeline | beam.Create([step(None, [])])
    for number in range(stages):
        state = (
            pipeline
            | f"Start {number}" >> beam.Impulse()
            | f"Step {number}" >> beam.FlatMap(step, AsIter(state))
        )
    return state


def large_step(_, before):
    """The state of one stage, 16 MiB in small elements."""
    for _ in before:
        pass
    return [bytes(ELEMENT) for _ in range(ELEMENTS)]


def peak_of_chain() -> int:
    """Peak memory, in MiB, that a long chain adds to a short one's."""
    peaks = []
    for stages in (2, STAGES):
        with beam.Pipeline(runner=InProcessRunner()) as pipeline:
            chain(pipeline, stages, large_step)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
    return peaks[1] - peaks[0]


def test_a_chain_of_states_is_not_kept(tmp_path):
    """Beam's own keeps the 16 MiB of each stage, in several copies; its cache of side inputs has 100."""
    with (
        open(tmp_path / "log", "w+") as log,
        process(sys.executable, "-m", "tests.pipelines.test_in_process", log=log) as started,
    ):
        assert started.wait() == 0
        log.seek(0)
        assert int(log.read().split()[-1]) < STAGES * ELEMENTS // 2


class Where(beam.DoFn):
    """element -> (element, process); the side input keeps the stages in order."""

    def process(self, element, before):
        for _ in before:
            pass
        yield element, os.getpid()


def test_a_share_stays_with_its_worker(tmp_path, monkeypatch):
    """Also where the threads that hand out the shares are held up in turn."""
    handed_out, hand_out = itertools.count(), fn_runner.BundleManager.process_bundle

    def late(*arguments):
        if next(handed_out) % 3 == 0:
            time.sleep(0.05)
        return hand_out(*arguments)

    monkeypatch.setattr(fn_runner.BundleManager, "process_bundle", late)
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    options = local_defaults(PipelineOptions(["--direct_num_workers=2"]))
    with beam.Pipeline(options=options) as pipeline:
        before = pipeline | beam.Create([("", 0)])
        found = []
        for number in range(12):
            before = (
                pipeline
                | f"Start {number}" >> beam.Impulse()
                | f"All {number}" >> beam.FlatMap(lambda _: range(10))
                | f"Spread {number}" >> beam.Reshuffle()
                | f"Where {number}" >> beam.ParDo(Where(), AsIter(before))
            )
            found.append(before)
        lines = found | beam.Flatten() | beam.Distinct() | beam.MapTuple(lambda e, pid: f"{e} {pid}")
        lines | beam.io.WriteToText(str(tmp_path / "where"), shard_name_template="")
    seen = dict(line.split() for line in (tmp_path / "where").read_text().splitlines())
    pairs = len((tmp_path / "where").read_text().splitlines())
    assert (len(seen), pairs) == (10, 10), "an element was seen by both workers"
    assert len(set(seen.values())) == 2


if __name__ == "__main__":
    print(peak_of_chain())
