"""Options that go to Beam and to job servers; these are real, with Beam's own describing protocol."""

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_job_api_pb2
from apache_beam.runners.portability import local_job_service

from dpgmm_beam.errors import ConfigError
from pipelines import options, runner

SERVER = ["--runner=FlinkRunner"]


def test_options_of_beam():
    found = options.beam_pipeline_options(["--direct_num_workers", "3", "--job_name=x"]).get_all_options()
    assert (found["direct_num_workers"], found["job_name"]) == (3, "x")


@pytest.mark.parametrize("name", ["FlinkRunner", "flink", "PortableRunner", "SparkRunner", "a.b.SparkRunner"])
def test_options_of_job_servers(name):
    arguments = [f"--runner={name}", "--object_reuse", "--max_bundle_size", "7", "--flink_conf_dir=x"]
    assert options.beam_pipeline_options(arguments)._flags == arguments


@pytest.mark.parametrize("arguments", [[], ["--runner=DirectRunner"], ["--runner=PrismRunner"]])
def test_options_of_job_servers_where_there_is_none(arguments):
    with pytest.raises(ConfigError) as refused:
        options.beam_pipeline_options([*arguments, "--execution_mode_for_batch=PIPELINED"])
    assert str(refused.value) == (
        "--execution_mode_for_batch=PIPELINED is refused: it must come with a --runner that has a job server,"
        " such as FlinkRunner."
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--execution_mode_for_batches=x"],
            "--execution_mode_for_batches=x is refused: it must be an option",
        ),
        (["--object_reused"], "--object_reused= is refused: it must be an option"),
        (["--object_reuse=true"], "--object_reuse=true is refused: it must be as Apache Beam takes it"),
        (["--max_bundle_size=many"], "--max_bundle_size=many is refused: it must be as Apache Beam takes it"),
        (["--flink_conf_dir"], "--flink_conf_dir= is refused: it must be as Apache Beam takes it"),
    ],
)
def test_options_that_a_job_server_has_not(arguments, said):
    """Beam itself would say nothing, or end the program with pages of usage."""
    with pytest.raises(ConfigError) as refused:
        options.beam_pipeline_options([*SERVER, *arguments])
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ([], ""),
        (["--runner=flink"], "flinkrunner"),
        (["--runner=FlinkRunner"], "flinkrunner"),
        (["--runner=apache_beam.runners.portability.flink_runner.FlinkRunner"], "flinkrunner"),
        (["--runner=direct"], "directrunner"),
    ],
)
def test_names_of_runners(given, name):
    assert options.runner_name(PipelineOptions(given)) == name


def test_no_option_is_named_twice():
    names = options.JOB_SERVER_OPTIONS
    assert len(set(names)) == len(names)
    assert not set(names) & PipelineOptions([]).get_all_options().keys()


class Server(local_job_service.LocalJobServicer):
    """Beam's own job server, which has options as a Flink one has, and keeps what it was sent."""

    sent: list

    def DescribePipelineOptions(self, request, context=None):
        kinds = beam_job_api_pb2.PipelineOptionType
        described = [("object_reuse", kinds.BOOLEAN, "false"), ("operator_chaining", kinds.BOOLEAN, "true")]
        described += [("max_bundle_size", kinds.INTEGER, ""), ("execution_mode_for_batch", kinds.STRING, "")]
        return beam_job_api_pb2.DescribePipelineOptionsResponse(
            options=[
                beam_job_api_pb2.PipelineOptionDescriptor(name=name, type=kind, default_value=default)
                for name, kind, default in described
            ]
        )

    def Prepare(self, request, context=None, timeout=None):
        self.sent.append(dict(request.pipeline_options))
        return super().Prepare(request, context, timeout)


@pytest.fixture
def server():
    """(a job server, its address)."""
    servicer = Server()
    servicer.sent = []
    port = servicer.start_grpc_server(0)
    yield servicer, f"localhost:{port}"
    servicer.stop()


def test_they_reach_the_job_server(server):
    servicer, endpoint = server
    arguments = [f"--job_endpoint={endpoint}", "--environment_type=LOOPBACK", "--object_reuse"]
    arguments += ["--max_bundle_size=7", "--operator_chaining", "--faster_copy"]
    job_options = runner.job_options(["--runner=FlinkRunner", *arguments], verbose=False)
    with beam.Pipeline(options=job_options) as pipeline:
        pipeline | beam.Create([1]) | beam.Map(abs)
    (sent,) = servicer.sent
    found = {name: sent.get(f"beam:option:{name}:v1") for name in options.JOB_SERVER_OPTIONS}
    assert {name: value for name, value in found.items() if value is not None} == {
        "execution_mode_for_batch": "BATCH_FORCED",
        "max_bundle_size": "7",
        "object_reuse": True,
        # It is on by default, and named to be turned off.
        "operator_chaining": False,
    }


def test_a_runner_without_a_name(capsys):
    """Beam would print its usage, in a hundred lines."""
    with pytest.raises(ConfigError, match=r"--runner= is refused: it must be as Apache Beam takes it"):
        options.beam_pipeline_options(["--runner"])
    assert capsys.readouterr() == ("", "")
