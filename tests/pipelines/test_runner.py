import contextlib
import http.server
import json
import os
import socket
import threading

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from dpgmm_beam.errors import ConfigError
from pipelines import runner

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
        ([f"--runner={runner.IN_PROCESS}"], True),
        (["--runner=PrismRunner"], False),
        (["--runner=FlinkRunner"], False),
        (["--runner=DataflowRunner"], False),
    ],
)
def test_what_is_local(arguments, local):
    assert runner.is_local(given(*arguments)) is local
    options = runner.local_defaults(given(*arguments))
    assert (value(options, "runner") == runner.IN_PROCESS) is local


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [
        ([], "in_memory"),
        (["--direct_num_workers=1"], "in_memory"),
        (["--direct_num_workers=2"], "multi_processing"),
        # 0 is one for each core.
        (["--direct_num_workers=0"], "multi_processing"),
        (["--direct_num_workers=2", "--direct_running_mode=multi_threading"], "multi_threading"),
        (["--direct_num_workers=2", "--runner=PrismRunner"], "in_memory"),
    ],
)
def test_workers_are_processes(arguments, mode):
    assert value(runner.local_defaults(given(*arguments)), "direct_running_mode") == mode


def test_worker_processes_are_quiet_but_for_progress():
    options = runner.local_defaults(given("--direct_num_workers=2"))
    assert value(options, "default_sdk_harness_log_level") == "CRITICAL"
    assert value(options, "sdk_harness_log_level_overrides") == {"dpgmm": "INFO"}
    for verbose, asked in ((True, None), (False, "INFO")):
        flags = [f"--default_sdk_harness_log_level={asked}"] if asked else []
        options = runner.local_defaults(given("--direct_num_workers=2", *flags), verbose)
        assert value(options, "default_sdk_harness_log_level") == asked


def test_cores_are_shared_between_local_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    monkeypatch.setattr("multiprocessing.cpu_count", lambda: 6)

    def threads(*arguments):
        return runner.threads_per_worker(runner.local_defaults(given(*arguments)))

    assert threads() == 0
    assert threads("--direct_num_workers=2") == 3
    assert threads("--direct_num_workers=4") == 1
    assert threads("--direct_num_workers=9") == 1
    assert threads("--direct_num_workers=0") == 1
    assert threads("--direct_num_workers=2", "--runner=FlinkRunner") == 0


def test_a_local_run_is_left_alone():
    assert runner.portable_defaults(runner.local_defaults(given())) == {}


@contextlib.contextmanager
def flink(status, body):
    """A Flink dashboard that answers /overview: its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/overview"
            self.send_response(status if found else 404)
            self.end_headers()
            self.wfile.write(body if found else b"")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("localhost", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"localhost:{served.server_port}"
        finally:
            served.shutdown()
            thread.join()


OVERVIEW = {"slots-total": 8, "flink-version": "1.20.1", "taskmanagers": 2}


def test_flink_is_asked_for_its_slots_and_version():
    with flink(200, json.dumps(OVERVIEW).encode()) as master:
        for address in (master, f"http://{master}", f"http://{master}/"):
            assert runner.flink_overview(address) == OVERVIEW
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


@pytest.mark.parametrize(("status", "body"), [(500, b"{}"), (200, b"<html>no"), (200, b"\xff")])
def test_a_flink_that_cannot_be_asked(status, body):
    with flink(status, body) as master:
        assert runner.flink_overview(master) == {}
        options = given("--runner=FlinkRunner", f"--flink_master={master}")
        assert not runner.portable_defaults(options).keys() & {"parallelism", "flink_version"}
    # Nobody listens any more.
    assert runner.flink_overview(master) == {}


@pytest.mark.parametrize("master", ["[auto]", "[local]"])
def test_a_flink_of_its_own_is_not_asked(master, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked"))
    assert runner.flink_overview(master) == {}


def test_a_version_that_beam_does_not_publish():
    with flink(200, json.dumps({**OVERVIEW, "flink-version": "9.9.9"}).encode()) as master:
        options = given("--runner=FlinkRunner", f"--flink_master={master}")
        assert "flink_version" not in runner.portable_defaults(options)


@pytest.mark.parametrize("name", ["FlinkRunner", "PortableRunner", "PrismRunner", "DataflowRunner"])
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


def test_job_options_say_what_they_filled_in(capsys):
    options = runner.job_options(["--runner=PrismRunner"], verbose=False)
    assert value(options, "runner") == "PrismRunner"
    assert capsys.readouterr() == ("", "")
    runner.job_options(["--runner=PrismRunner"], verbose=True)
    assert "option filled in for PrismRunner: --save_main_session=False\n" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--direct_num_worker=2 is refused"):
        runner.job_options(["--direct_num_worker", "2"], verbose=False)


def test_a_template_outlives_its_driver():
    assert runner.outlives_driver(given("--template_location=gs://b/t"))
    assert not runner.outlives_driver(given())


def test_the_driver_waits_for_long_jobs_of_a_server_that_is_there():
    """Beam's own limit of 300 seconds ends a job that runs longer."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        listening.listen()
        endpoint = f"localhost:{listening.getsockname()[1]}"
        there = [f"--job_endpoint={endpoint}", "--environment_type=EXTERNAL"]
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
