import os
import socket
import subprocess
import sys
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from dpgmm_beam.errors import ConfigError
from pipelines import runner
from tests.pipelines.dashboard import Cluster, served
from tests.pipelines.listening import listeners

REPOSITORY = Path(__file__).parents[2]
FLINK = "apache_beam.runners.portability.flink_runner.FlinkRunner"
IMAGE = "--sdk_container_image=registry/image"


def given(*arguments) -> PipelineOptions:
    return PipelineOptions(list(arguments))


def value(options, name):
    return options.get_all_options()[name]


@pytest.mark.parametrize(
    ("arguments", "local"),
    [
        ([], True),
        (["--runner=DirectRunner"], True),
        (["--runner=direct"], True),
        (["--runner=FnApiRunner"], True),
        ([f"--runner={runner.LOCAL}"], True),
        (["--runner=PrismRunner"], False),
        (["--runner=FlinkRunner"], False),
        (["--runner=DataflowRunner"], False),
    ],
)
def test_what_is_local(arguments, local):
    assert runner.is_local(given(*arguments)) is local
    options = runner.local_defaults(given(*arguments))
    assert (value(options, "runner") == runner.LOCAL) is local


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--direct_num_workers=2"], "--direct_num_workers=2 is refused: it must be 1, since"),
        (["--direct_num_workers=0"], "--direct_num_workers=0 is refused: it must be 1, since"),
        (["--direct_num_workers=-1", "--runner=DirectRunner"], "--direct_num_workers=-1 is refused"),
        (["--direct_running_mode=multi_processing"], "--direct_running_mode=multi_processing is refused"),
        (["--direct_running_mode=multi_threading"], "--direct_running_mode=multi_threading is refused"),
    ],
)
def test_a_local_job_is_one_process(arguments, said):
    with pytest.raises(
        ConfigError, match=r"uses threads of one process \(--threads\) and opens no ports"
    ) as error:
        runner.local_defaults(given(*arguments))
    assert str(error.value).startswith(said)
    elsewhere = runner.local_defaults(given("--runner=PrismRunner", *arguments[:1]))
    assert value(elsewhere, "runner") == "PrismRunner"


class Look(beam.DoFn):
    """What can be seen from inside a job: its process, and its listening sockets."""

    def process(self, element):
        seen.append((element, os.getpid(), listeners([os.getpid()])))
        yield element


seen: list = []


def test_a_local_job_runs_here_and_opens_no_port(monkeypatch):
    # Beam's copy of this module's DoFn finds the list by the module's name.
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Look.__module__])
    seen.clear()
    # Job servers of other tests may still listen here.
    before = listeners([os.getpid()])
    options = runner.job_options([], verbose=False)
    with beam.Pipeline(options=options) as pipeline:
        pipeline | beam.Create([1, 2]) | beam.Reshuffle() | beam.ParDo(Look())
    assert sorted(element for element, _, _ in seen) == [1, 2]
    assert {pid for _, pid, _ in seen} == {os.getpid()}
    assert all(listening <= before for *_, listening in seen)


def test_threads(monkeypatch):
    monkeypatch.setattr(runner, "usable_cores", lambda: 6)
    assert runner.threads_for(given(), 0) == 6
    assert runner.threads_for(given(), 2) == 2
    for other in ("FlinkRunner", "PortableRunner", "SparkRunner", "PrismRunner", "DataflowRunner"):
        assert runner.threads_for(given(f"--runner={other}"), 0) == 1
        assert runner.threads_for(given(f"--runner={other}"), 3) == 3


def test_a_local_run_is_left_alone():
    assert runner.portable_defaults(runner.local_defaults(given())) == {}


@pytest.fixture
def cluster():
    return Cluster(slots=8)


@pytest.fixture
def master(cluster):
    with served(cluster) as address:
        yield address


def test_flink_is_asked_for_its_slots_and_version(master):
    options = given("--runner=FlinkRunner", f"--flink_master={master}")
    filled = runner.portable_defaults(options)
    assert filled["parallelism"] == 8
    assert filled["flink_version"] == "1.20"
    assert filled["environment_cache_millis"] > 0
    assert {name: value(options, name) for name in filled if name != "experiments"} == {
        name: each for name, each in filled.items() if name != "experiments"
    }
    own = given(
        "--runner=FlinkRunner",
        f"--flink_master={master}",
        *["--parallelism=3", "--flink_version=1.19", "--environment_cache_millis=1"],
    )
    assert not runner.portable_defaults(own).keys() & {
        "parallelism",
        "flink_version",
        "environment_cache_millis",
    }
    assert (value(own, "parallelism"), value(own, "flink_version")) == (3, "1.19")


def test_flink_as_beam_names_it_too(master):
    for name in ("FlinkRunner", "flinkrunner", "flink", FLINK):
        assert (
            runner.portable_defaults(given(f"--runner={name}", f"--flink_master={master}"))["parallelism"]
            == 8
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parallelism=9"], "--parallelism=9 is refused: it must be at most 8"),
        (
            ["--environment_type=EXTERNAL", "--environment_config=pool.invalid:50000"],
            "--environment_config=pool.invalid:50000 is refused: it must be HOST:PORT of a worker pool",
        ),
        (
            ["--environment_type=external", "--environment_option=external_service_address=pool.invalid:1"],
            "--environment_config=pool.invalid:1 is refused",
        ),
        (["--environment_type=EXTERNAL"], "--environment_config=None is refused"),
        (["--environment_type=EXTERNAL", "--environment_config={x"], "--environment_config={x is refused"),
        (["--no_wait_until_finish"], "--no_wait_until_finish=given is refused: it must be left out, or come"),
    ],
)
def test_what_a_flink_job_would_fail_for_is_said_before(master, arguments, said):
    with pytest.raises(ConfigError) as refused:
        runner.job_options(["--runner=FlinkRunner", f"--flink_master={master}", *arguments], False)
    assert str(refused.value).startswith(said)


def test_a_flink_that_cannot_be_asked(cluster, master):
    options = ["--runner=FlinkRunner", f"--flink_master={master}"]
    cluster.status = 500
    with pytest.raises(ConfigError, match=f"--flink_master={master} is refused"):
        runner.portable_defaults(given(*options))


def test_all_questions_together_have_a_bound(cluster, master, monkeypatch):
    monkeypatch.setattr(runner, "PREFLIGHT_SECONDS", 0.2)
    cluster.overview["slots-total"] = 0
    with pytest.raises(ConfigError, match=f"--flink_master={master} is refused: it must answer within"):
        runner.portable_defaults(given("--runner=FlinkRunner", f"--flink_master={master}"))


def test_a_version_that_beam_does_not_publish(cluster, master):
    cluster.overview["flink-version"] = "9.9.9"
    options = given("--runner=FlinkRunner", f"--flink_master={master}")
    assert "flink_version" not in runner.portable_defaults(options)


def test_flink_stages_begin_again_alone(master, capsys):
    """Beam sends what is among the arguments, so that is where the default must be."""
    arguments = ["--runner=FlinkRunner", f"--flink_master={master}"]
    options = runner.job_options(arguments, verbose=True)
    assert "--execution_mode_for_batch=BATCH_FORCED" in options._flags
    assert "FlinkRunner: --execution_mode_for_batch=BATCH_FORCED\n" in capsys.readouterr().err
    options = runner.job_options([*arguments, "--execution_mode_for_batch", "PIPELINED"], verbose=True)
    assert "BATCH_FORCED" not in str(options._flags) + capsys.readouterr().out
    assert "BATCH_FORCED" not in str(runner.job_options(["--runner=SparkRunner"], False)._flags)


def test_a_job_server_that_ends_with_its_driver():
    server = "--job_endpoint=localhost:9"
    for arguments in (
        ["--runner=FlinkRunner"],
        ["--runner=SparkRunner"],
        ["--runner=PrismRunner"],
        ["--runner=PrismRunner", "--environment_type=DOCKER"],
        ["--runner=PortableRunner", "--environment_type=LOOPBACK", server],
    ):
        with pytest.raises(ConfigError, match="--no_wait_until_finish=given is refused"):
            runner.check_waits(given(*arguments, "--no_wait_until_finish"))
        runner.check_waits(given(*arguments))
    for arguments in (
        ["--runner=FlinkRunner", server],
        ["--runner=FlinkRunner", "--flink_submit_uber_jar"],
        ["--runner=SparkRunner", "--spark_submit_uber_jar"],
        ["--runner=PrismRunner", "--environment_type=DOCKER", server],
    ):
        runner.check_waits(given(*arguments, "--no_wait_until_finish"))


def test_a_worker_pool_beside_a_job_server():
    """On loopback, too, where the job server is."""
    with socket.socket() as listening, socket.socket() as pool:
        for each in (listening, pool):
            each.bind(("localhost", 0))
            each.listen()
        server, workers = (f"localhost:{each.getsockname()[1]}" for each in (listening, pool))
        options = ["--runner=PortableRunner", f"--job_endpoint={server}", "--environment_type=EXTERNAL"]
        runner.portable_defaults(given(*options, f"--environment_config={workers}"))
        runner.portable_defaults(given(*options, f'--environment_config={{"url": "{workers}"}}'))
        pool.close()
        with pytest.raises(ConfigError, match=f"--environment_config={workers} is refused"):
            runner.portable_defaults(given(*options, f"--environment_config={workers}"))


@pytest.fixture
def clean_environment(monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_what_is_reached_without_a_proxy(master, clean_environment, monkeypatch):
    monkeypatch.setenv("no_proxy", "example.org")
    options = given("--runner=FlinkRunner", f"--flink_master={master}")
    runner.portable_defaults(options)
    runner.portable_defaults(options)
    assert os.environ["no_proxy"] == "example.org,localhost,127.0.0.1,::1"
    assert os.environ["NO_PROXY"] == "localhost,127.0.0.1,::1"
    assert "no_grpc_proxy" not in os.environ
    above_all = "no_grpc_proxy"
    monkeypatch.setenv(above_all, "x")
    runner.keep_traffic_direct(["jobs.example"])
    assert os.environ[above_all] == "x,localhost,127.0.0.1,::1,jobs.example"


TALKS = """
import concurrent.futures, sys
import grpc
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc
from pipelines import runner

class Service(beam_job_api_pb2_grpc.JobServiceServicer):
    def DescribePipelineOptions(self, request, context):
        return beam_job_api_pb2.DescribePipelineOptionsResponse()

server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
beam_job_api_pb2_grpc.add_JobServiceServicer_to_server(Service(), server)
port = server.add_insecure_port("localhost:0")
server.start()
if sys.argv[1] == "direct":
    runner.job_options(["--runner=PrismRunner"], False)
stub = beam_job_api_pb2_grpc.JobServiceStub(grpc.insecure_channel(f"localhost:{port}"))
try:
    stub.DescribePipelineOptions(beam_job_api_pb2.DescribePipelineOptionsRequest(), timeout=60)
    print("reached")
except grpc.RpcError as error:
    print("lost")
server.stop(None)
"""


@pytest.mark.parametrize(("how", "said"), [("direct", "reached"), ("as it is", "lost")])
def test_a_proxy_in_the_environment(how, said, clean_environment):
    """What is said on this machine stays on it."""
    with socket.socket() as gone:
        gone.bind(("localhost", 0))
        proxy = f"http://localhost:{gone.getsockname()[1]}"
    environment = {**os.environ, "http_proxy": proxy, "https_proxy": proxy, "grpc_proxy": proxy}
    ran = subprocess.run(
        [sys.executable, "-c", TALKS, how], env=environment, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ran.stdout == f"{said}\n", ran.stderr


@pytest.mark.parametrize(
    "name", ["FlinkRunner", "PortableRunner", "PrismRunner", "SparkRunner", "DataflowRunner"]
)
def test_no_session_and_no_list_of_packages_travels(name):
    options = given(f"--runner={name}", IMAGE)
    runner.portable_defaults(options)
    assert runner.STAGE_NOTHING in value(options, "experiments")
    assert not value(options, "save_main_session")


def test_dataflow_needs_a_way_to_this_package(monkeypatch):
    monkeypatch.delenv("DPGMM_IMAGE", raising=False)
    with pytest.raises(ConfigError, match="--sdk_container_image=None is refused"):
        runner.portable_defaults(given("--runner=DataflowRunner"))
    for way in (IMAGE, "--setup_file=./setup.py", "--extra_package=x.tar.gz"):
        assert "sdk_container_image" not in runner.portable_defaults(given("--runner=DataflowRunner", way))
    monkeypatch.setenv("DPGMM_IMAGE", "registry/own")
    options = given("--runner=DataflowRunner")
    assert runner.portable_defaults(options)["sdk_container_image"] == "registry/own"
    assert value(options, "sdk_container_image") == "registry/own"


@pytest.mark.parametrize(
    ("arguments", "filled"),
    [
        ([], {"autoscaling_algorithm": "NONE", "num_workers": 4}),
        (["--max_num_workers=9"], {"autoscaling_algorithm": "NONE", "num_workers": 9}),
        (["--num_workers=2"], {"autoscaling_algorithm": "NONE"}),
        (["--autoscaling_algorithm=THROUGHPUT_BASED"], {}),
    ],
)
def test_dataflow_keeps_its_workers(arguments, filled):
    options = given("--runner=DataflowRunner", IMAGE, *arguments)
    found = runner.portable_defaults(options)
    assert {name: found[name] for name in ("autoscaling_algorithm", "num_workers") if name in found} == filled
    assert {name: value(options, name) for name in filled} == filled


def test_job_options_say_what_they_filled_in(capsys):
    options = runner.job_options(["--runner=PrismRunner"], verbose=False)
    assert value(options, "runner") == "PrismRunner"
    assert capsys.readouterr() == ("", "")
    runner.job_options(["--runner=PrismRunner"], verbose=True)
    assert "option filled in for PrismRunner: --save_main_session=False\n" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--direct_num_worker=2 is refused: it must be an option of"):
        runner.job_options(["--direct_num_worker", "2"], verbose=False)


def test_a_runner_that_is_none():
    with pytest.raises(ConfigError, match=r"--runner=Bogus is refused: it must be MODULE\.CLASS or one of"):
        runner.job_options(["--runner=Bogus"], verbose=False)
    for name in ("", "direct", "PRISM", "FnApiRunner", FLINK):
        runner.check_runner(given(*([f"--runner={name}"] if name else [])))


def test_a_template_outlives_its_driver():
    assert runner.outlives_driver(given("--template_location=gs://b/t"))
    assert not runner.outlives_driver(given())


def test_the_driver_waits_for_long_jobs_of_a_server_that_is_there():
    """Beam's own limit of 300 seconds ends a job that runs longer."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        listening.listen()
        endpoint = f"localhost:{listening.getsockname()[1]}"
        there = [
            f"--job_endpoint={endpoint}",
            "--environment_type=EXTERNAL",
            f"--environment_config={endpoint}",
        ]
        for arguments in (["--runner=PrismRunner"], ["--runner=PortableRunner", *there]):
            options = given(*arguments)
            assert runner.portable_defaults(options)["job_server_timeout"] > 24 * 3600
            assert value(options, "job_server_timeout") > 24 * 3600
        assert "job_server_timeout" not in runner.portable_defaults(
            given("--runner=PrismRunner", "--job_server_timeout=5")
        )
    for wrong in (endpoint, "nowhere", "localhost:many"):
        with pytest.raises(ConfigError, match=f"--job_endpoint={wrong} is refused: it must be HOST:PORT"):
            runner.portable_defaults(given("--runner=PortableRunner", f"--job_endpoint={wrong}"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Bogus.Dotted", "must be a runner that can be loaded"),
        ("os.nothing", "must be a runner that can be loaded"),
        ("os.getcwd", "must be a runner, a subclass of Beam's PipelineRunner"),
        ("\x1b[2J\n", r"--runner=\x1b[2J\n is refused"),
    ],
)
def test_a_runner_that_cannot_be_loaded(name, said):
    with pytest.raises(ConfigError) as refused:
        runner.job_options([f"--runner={name}"], verbose=False)
    assert refused.value.argument == "--runner"
    assert said in str(refused.value)


def test_options_that_beam_would_refuse_when_the_pipeline_is_made():
    options = ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=PROCESS"]
    with pytest.raises(
        ConfigError, match=r"--runner=PortableRunner .* options that Apache Beam takes \(Option process_c"
    ):
        runner.job_options(options, verbose=False)
