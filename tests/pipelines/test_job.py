"""Jobs that are submitted, announced, waited for and cancelled."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import apache_beam as beam
import grpc
import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_job_api_pb2
from apache_beam.runners.portability import local_job_service
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState
from apache_beam.runners.worker import worker_pool_main

from dpgmm_beam.errors import ConfigError
from pipelines import flink, job, runner
from pipelines.signals import Interrupted
from tests.pipelines.dashboard import Cluster, served

REPOSITORY = Path(__file__).parents[2]
PRISM = REPOSITORY.parent / "shared" / "tools" / "prism"
needs_prism = pytest.mark.skipif(
    not os.access(PRISM, os.X_OK), reason=f"needs Beam's local runner at {PRISM}"
)


def given(*arguments):
    return PipelineOptions(list(arguments))


def test_names_of_jobs():
    name = job.job_name("release 2026-01", "config", "/output")
    assert name.startswith("dpgmm-release-2026-01-")
    assert name == job.job_name("release 2026-01", "config", "/output")
    others = [("release 2026-01", "config", "/other"), ("release 2026_01", "config", "/output")]
    others += [("release 2026-01", "config/output"), ("release 2026-01", "config", "/output", "")]
    assert len({name, *(job.job_name(*other) for other in others)}) == 5
    long = job.job_name("Release Ünïcode " + "x" * 99, "y")
    assert len(long) <= 63
    for each in (name, long):
        # As Dataflow wants it.
        assert set(each) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert each[0] == "d"
        assert not each.endswith("-")


def test_drivers_that_do_not_wait():
    assert job.waits(given())
    assert job.waits(given("--no_wait_until_finish"))
    assert job.waits(given("--runner=FlinkRunner"))
    job.check_drawn_key(given("--runner=DataflowRunner"))
    for option in ("--no_wait_until_finish", "--template_location=gs://b/t"):
        options = given("--runner=DataflowRunner", option)
        assert not job.waits(options)
        said = f"{option.partition('=')[0]}=given is refused: it must come with --noise-key-file"
        with pytest.raises(ConfigError, match=said):
            job.check_drawn_key(options)


def test_a_local_job(tmp_path, capfd):
    entered = []

    @contextlib.contextmanager
    def watch():
        entered.append("in")
        yield
        entered.append("out")

    pipeline = beam.Pipeline(options=runner.job_options([], verbose=False))
    pipeline | beam.Create([1]) | beam.Map(lambda _: (tmp_path / "done").touch())
    job.run(pipeline, "name", [watch()])
    assert (tmp_path / "done").exists()
    assert entered == ["in", "out"]
    assert capfd.readouterr() == ("", "")


def test_a_local_job_that_fails():
    pipeline = beam.Pipeline(options=runner.job_options([], verbose=False))
    pipeline | beam.Create([0]) | beam.Map(lambda number: 1 / number)
    with pytest.raises(ZeroDivisionError):
        job.run(pipeline, "name")


# --- Beam's own job server, in the driver ---------------------------------------------------------


class Gate:
    """Holds a job at work in this process until it is opened."""

    open = threading.Event()
    reached = threading.Event()
    environment: ClassVar[list] = []


class Held(beam.DoFn):
    def process(self, element):
        gate = sys.modules[Gate.__module__].Gate
        gate.environment.append(os.environ.get("PYTHONSAFEPATH"))
        gate.reached.set()
        assert gate.open.wait(60)
        yield 1 // element


@pytest.fixture
def gate(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Gate.__module__])
    monkeypatch.setattr(job, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(flink, "_POLL_SECONDS", 0.02)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    Gate.open.clear()
    Gate.reached.clear()
    Gate.environment.clear()
    yield Gate
    Gate.open.set()


def soon(happened):
    for _ in range(3000):
        if happened():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


@contextlib.contextmanager
def beside(act, *arguments):
    """Runs something in a thread beside the block, which must have ended after it."""
    failed = []

    def run():
        try:
            act(*arguments)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
    assert not failed
    assert not thread.is_alive()


@contextlib.contextmanager
def serving(servicer):
    """The address of a job server."""
    port = servicer.start_grpc_server(0)
    try:
        yield f"localhost:{port}"
    finally:
        # What is at work there must end first.
        Gate.open.set()
        servicer.stop()


@pytest.fixture
def server(gate):
    with serving(local_job_service.LocalJobServicer()) as address:
        yield address


def remote(server, *arguments, element=1, environment=("--environment_type=LOOPBACK",)):
    flags = [*arguments, f"--job_endpoint={server}", *environment]
    pipeline = beam.Pipeline(options=runner.job_options(flags, verbose=False))
    pipeline | beam.Create([element]) | beam.ParDo(Held())
    return pipeline


PORTABLE = "--runner=PortableRunner"


def test_a_job_of_a_job_server(gate, server, capfd):
    pipeline = remote(server, PORTABLE)

    def act():
        assert gate.reached.wait(60)
        gate.open.set()

    with beside(act):
        job.run(pipeline, "the-name")
    out, err = capfd.readouterr()
    assert not out
    assert err.startswith("job job-")
    assert err.count("\n") == 1
    assert pipeline.options.view_as(GoogleCloudOptions).job_name == "the-name"
    assert gate.environment == ["1"]
    assert "PYTHONSAFEPATH" not in os.environ


def test_a_job_of_a_job_server_that_fails(gate, server):
    gate.open.set()
    with pytest.raises(RuntimeError, match="FAILED"):
        job.run(remote(server, PORTABLE, element=0), "name")


def test_a_driver_that_does_not_wait(gate, server):
    pipeline = remote(server, PORTABLE)
    pipeline.options.view_as(StandardOptions).no_wait_until_finish = True
    job.run(pipeline, "name")
    assert not gate.open.is_set()


def interrupt_when(happened, error):
    """Raises in the main thread, as a signal does there."""
    soon(happened)
    before = signal.getsignal(signal.SIGUSR1)
    assert before is not signal.SIG_DFL, error
    os.kill(os.getpid(), signal.SIGUSR1)


@pytest.fixture
def interruption():
    """SIGUSR1 raises what SIGTERM would, without the process's end."""
    error = Interrupted(signal.SIGTERM)

    def handle(*_):
        raise error

    before = signal.signal(signal.SIGUSR1, handle)
    yield error
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def running(gate, monkeypatch):
    """Whether the job runs, and its driver knows that and waits for the end."""
    waiting, wait = threading.Event(), job._Remote._wait

    def watched(remote):
        waiting.set()
        wait(remote)

    monkeypatch.setattr(job._Remote, "_wait", watched)
    return lambda: gate.reached.is_set() and waiting.is_set()


def test_an_interrupted_job_is_cancelled(server, interruption, running):
    with beside(interrupt_when, running, interruption), pytest.raises(Interrupted) as raised:
        job.run(remote(server, PORTABLE), "name")
    assert str(raised.value) == "interrupted; nothing half-done was published"


class Stopping:
    def __init__(self, server):
        self.close = lambda: server.stop(None)


class Stubborn(local_job_service.LocalJobServicer):
    def Cancel(self, request, context=None, timeout=None):
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "no")


def test_an_interrupted_job_that_cannot_be_cancelled(running, interruption, monkeypatch):
    monkeypatch.setattr(job, "CANCEL_SECONDS", 0.5)
    address, pool = worker_pool_main.BeamFnExternalWorkerPoolServicer.start(use_process=False)
    environment = ["--environment_type=EXTERNAL", f"--environment_config={address}"]
    with serving(Stubborn()) as server, contextlib.closing(Stopping(pool)):
        with beside(interrupt_when, running, interruption), pytest.raises(Interrupted) as raised:
            job.run(remote(server, PORTABLE, environment=environment), "name")
        assert str(raised.value).startswith("interrupted; job job-")
        assert str(raised.value).endswith(f" could not be cancelled and may go on: {server}")


# --- A Flink cluster, whose REST interface answers --------------------------------------------------


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def master(cluster):
    with served(cluster) as address:
        yield address


def on_flink(server, master, *arguments, element=1):
    return remote(server, "--runner=FlinkRunner", f"--flink_master={master}", *arguments, element=element)


def test_the_page_of_a_flink_job(gate, server, cluster, master, capfd):
    cluster.job("old", "the-name", "FINISHED", start=9)

    def act():
        assert gate.reached.wait(60)
        cluster.job("abc", "the-name")
        soon(lambda: "GET /jobs/abc" in cluster.asked)
        gate.open.set()

    with beside(act):
        job.run(on_flink(server, master), "the-name")
    assert f"\nFlink job abc: http://{master}/#/job/abc/overview\n" in capfd.readouterr().err
    assert cluster.cancelled == []


@pytest.mark.parametrize(("patience", "said"), [(0, 1), (3600, 0)])
def test_a_flink_job_that_waits_for_slots(gate, server, cluster, master, capfd, monkeypatch, patience, said):
    monkeypatch.setattr(job, "_STANDSTILL_SECONDS", patience)
    cluster.overview["slots-available"] = 1

    def act():
        assert gate.reached.wait(60)
        cluster.job("abc", "the-name", vertices=[("SCHEDULED", 4), ("CREATED", 4)])
        soon(lambda: cluster.asked.count("GET /jobs/abc") > 20 * (1 - said))
        # Time to say it again.
        time.sleep(0.2)
        gate.open.set()

    with beside(act):
        job.run(on_flink(server, master), "the-name")
    line = "Flink job abc waits: other jobs hold the slots that it needs\n"
    assert capfd.readouterr().err.count(line) == said


def test_an_interrupted_flink_job_is_cancelled(gate, server, cluster, master, interruption):
    """By Flink itself: the job server may have got the signal, too."""
    with (
        beside(interrupt_when, lambda: "GET /jobs/abc" in cluster.asked, interruption),
        beside(lambda: (gate.reached.wait(60), cluster.job("abc", "the-name"))),
        pytest.raises(Interrupted) as raised,
    ):
        job.run(on_flink(server, master), "the-name")
    assert cluster.cancelled == ["abc"]
    assert str(raised.value) == "interrupted; nothing half-done was published"


def test_a_flink_job_that_cannot_be_cancelled(gate, server, cluster, master, interruption, monkeypatch):
    monkeypatch.setattr(job, "CANCEL_SECONDS", 0.5)
    cluster.on_cancel = "CANCELLING"
    with (
        beside(interrupt_when, lambda: "GET /jobs/abc" in cluster.asked, interruption),
        beside(lambda: (gate.reached.wait(60), cluster.job("abc", "the-name"))),
        pytest.raises(Interrupted) as raised,
    ):
        job.run(on_flink(server, master), "the-name")
    assert str(raised.value) == (
        f"interrupted; Flink's job could not be cancelled and may go on: http://{master}/#/job/abc/overview"
    )


def test_a_job_that_runs_already_is_waited_for(gate, server, cluster, master, capfd):
    """Its driver was lost and is started again."""
    cluster.job("abc", "the-name")

    def act():
        soon(lambda: "GET /jobs/abc" in cluster.asked)
        cluster.job("abc", "the-name", "FINISHED")

    with beside(act):
        job.run(on_flink(server, master), "the-name")
    assert not gate.reached.is_set()
    said = capfd.readouterr().err
    assert said == (
        "Flink job abc is this one and runs already; waiting for its end:"
        f" http://{master}/#/job/abc/overview\n"
    )


def test_a_job_that_runs_already_and_fails(gate, server, cluster, master):
    cluster.job("abc", "the-name")

    def act():
        soon(lambda: "GET /jobs/abc" in cluster.asked)
        cluster.job("abc", "the-name", "FAILED")

    with beside(act), pytest.raises(RuntimeError, match="Flink's job abc ended as FAILED"):
        job.run(on_flink(server, master), "the-name")


def test_a_job_that_ran_already_is_cancelled_too(gate, server, cluster, master, interruption):
    cluster.job("abc", "the-name")
    with (
        beside(interrupt_when, lambda: "GET /jobs/abc" in cluster.asked, interruption),
        pytest.raises(Interrupted),
    ):
        job.run(on_flink(server, master), "the-name")
    assert cluster.cancelled == ["abc"]


def test_a_name_of_the_users_own_may_be_another_jobs(gate, server, cluster, master, capfd):
    cluster.job("other", "nightly")
    gate.open.set()
    pipeline = on_flink(server, master, "--job_name=nightly")
    job.run(pipeline, "the-name")
    assert gate.reached.is_set()
    assert "Flink job other" not in capfd.readouterr().err
    assert pipeline.options.view_as(GoogleCloudOptions).job_name == "nightly"


class Vanishing(local_job_service.LocalJobServicer):
    """A job server whose connection breaks while the job runs."""

    def GetStateStream(self, request, context=None, timeout=None):
        yield beam_job_api_pb2.JobStateEvent(state=beam_job_api_pb2.JobState.RUNNING)
        assert Gate.reached.wait(60)
        soon(lambda: Vanishing.seen())
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


def test_a_job_outlives_its_job_server(gate, cluster, master):
    cluster.job("old", "the-name", "FAILED")
    Vanishing.seen = lambda: "GET /jobs/abc" in cluster.asked

    def act():
        assert gate.reached.wait(60)
        cluster.job("abc", "the-name")
        soon(lambda: cluster.asked.count("GET /jobs/abc") > 30)
        cluster.job("abc", "the-name", "FINISHED")

    with serving(Vanishing()) as server, beside(act):
        job.run(on_flink(server, master), "the-name")
        assert not gate.open.is_set()


# --- Dataflow, which is nowhere near: a runner of its name ----------------------------------------------


class CloudJob(PipelineResult):
    """What Beam's DataflowRunner returns, as far as it is used."""

    def __init__(self):
        super().__init__(PipelineState.RUNNING)
        self.asked = threading.Event()
        self.over = threading.Event()

    def job_id(self):
        return "2026-7"

    @property
    def state(self):
        return self._state

    def wait_until_finish(self, duration=None):
        self.asked.set()
        assert self.over.wait(60)
        return self._state

    def end(self, state):
        self._state = state
        self.over.set()

    def cancel(self):
        self.end(PipelineState.CANCELLED)


class DataflowRunner(PipelineRunner):
    job: CloudJob

    def run_pipeline(self, pipeline, options):
        return DataflowRunner.job


@pytest.fixture
def cloud(gate, monkeypatch):
    """(pipeline, the job that it becomes)."""
    monkeypatch.setattr(DataflowRunner, "job", CloudJob(), raising=False)
    # Beam asks the store whether its buckets keep what is deleted, for minutes where there is no network.
    monkeypatch.setattr(GoogleCloudOptions, "_warn_if_soft_delete_policy_enabled", lambda *_: None)
    flags = [
        f"--runner={__name__}.DataflowRunner",
        "--project=project-1",
        "--region=r",
        "--sdk_container_image=x",
    ]
    flags += ["--temp_location=gs://bucket/t", "--staging_location=gs://bucket/s"]
    pipeline = beam.Pipeline(options=runner.job_options(flags, verbose=False))
    pipeline | beam.Create([1])
    return pipeline, DataflowRunner.job


PAGE = "job 2026-7: https://console.cloud.google.com/dataflow/jobs/r/2026-7?project=project-1\n"


@pytest.mark.parametrize("state", [PipelineState.DONE, PipelineState.CANCELLED])
def test_a_job_in_the_cloud(cloud, state, capfd):
    pipeline, result = cloud

    def act():
        assert result.asked.wait(60)
        result.end(state)

    with beside(act), contextlib.ExitStack() as stack:
        if state != PipelineState.DONE:
            stack.enter_context(pytest.raises(RuntimeError, match="the job ended as CANCELLED"))
        job.run(pipeline, "name")
    assert capfd.readouterr().err == PAGE


def test_an_interrupted_job_in_the_cloud_is_cancelled(cloud, interruption, capfd):
    pipeline, result = cloud
    with beside(interrupt_when, result.asked.is_set, interruption), pytest.raises(Interrupted) as raised:
        job.run(pipeline, "name")
    assert result.state == PipelineState.CANCELLED
    assert not raised.value.running


# --- Real processes -----------------------------------------------------------------------------------

PROGRAM = """
import os, sys, time
from pipelines import cli, job, runner
import apache_beam as beam

def held(element):
    os.write(1, b"at work\\n")
    time.sleep(600)

def main(arguments):
    pipeline = beam.Pipeline(options=runner.job_options(arguments, False))
    pipeline | beam.Create([1]) | beam.Map(held)
    try:
        job.run(pipeline, "the-name")
    finally:
        os.write(1, b"cleaned up\\n")
    return 0

sys.exit(cli.run(main))
"""
ELSEWHERE = ["--runner=PrismRunner", f"--prism_location={PRISM}"]


@contextlib.contextmanager
def program(*arguments, **environment):
    """A driver whose job is at work."""
    started = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert started.stdout.readline() == "at work\n"
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()


@pytest.mark.parametrize(
    ("arguments", "number", "status"),
    [
        ([], "SIGINT", 130),
        ([], "SIGTERM", 143),
        pytest.param(ELSEWHERE, "SIGINT", 130, marks=needs_prism),
        pytest.param(ELSEWHERE, "SIGTERM", 143, marks=needs_prism),
    ],
)
@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_a_signal_ends_the_driver_and_its_job(arguments, number, status, kill, tmp_path):
    """Sent to the driver, or, as a terminal does, to all that it has started."""
    with program(*arguments, TMPDIR=str(tmp_path)) as started:
        kill(started.pid, signal.Signals[number])
        out, err = started.communicate(timeout=120)
    assert (started.returncode, out) == (status, "cleaned up\n")
    *announced, last = err.splitlines()
    assert last == "dpgmm: interrupted; nothing half-done was published"
    assert announced == (["job job-001"] if arguments else [])


# Stands for `java -jar`, with the arguments that Beam gives it.
LAUNCHER = """#!{python}
import os, sys, time
from apache_beam.runners.portability import local_job_service
with open({folder!r} + "/server", "w") as file:
    file.write(str(os.getpid()))
port = int(sys.argv[sys.argv.index("--job-port") + 1])
local_job_service.LocalJobServicer().start_grpc_server(port)
time.sleep(600)
"""


def test_a_signal_ends_a_flink_job_and_the_job_server_of_its_driver(cluster, master, tmp_path):
    (tmp_path / "tmp").mkdir()
    jar, launcher = tmp_path / "some.jar", tmp_path / "java"
    jar.touch()
    launcher.write_text(LAUNCHER.format(python=sys.executable, folder=str(tmp_path)))
    launcher.chmod(0o755)
    options = ["--runner=FlinkRunner", f"--flink_master={master}", "--environment_type=LOOPBACK"]
    options += [f"--job_server_java_launcher={launcher}", f"--flink_job_server_jar={jar}"]
    with program(*options, TMPDIR=str(tmp_path / "tmp")) as started:
        server = int((tmp_path / "server").read_text())
        assert len(list((tmp_path / "tmp").glob("beam-temp*"))) == 1
        cluster.job("abc", "the-name")
        soon(lambda: "GET /jobs/abc" in cluster.asked)
        started.send_signal(signal.SIGTERM)
        out, err = started.communicate(timeout=120)
        with pytest.raises(ProcessLookupError):
            os.kill(server, 0)
    assert (started.returncode, out) == (143, "cleaned up\n")
    assert cluster.cancelled == ["abc"]
    assert list((tmp_path / "tmp").glob("beam-temp*")) == []
    first, second, last = err.splitlines()
    assert first.startswith("job job-")
    assert second == f"Flink job abc: http://{master}/#/job/abc/overview"
    assert last == "dpgmm: interrupted; nothing half-done was published"
