"""Where a job runs: what this project fills in around the user's own Beam options."""

import json
import multiprocessing
import os
import socket
import urllib.request
from collections.abc import Sequence

from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)

from dpgmm_beam.errors import ConfigError
from pipelines import cli

IN_PROCESS = "pipelines.in_process.InProcessRunner"
PORTABLE = ("flinkrunner", "portablerunner", "prismrunner", "dataflowrunner")

# Else a list of the driver's packages is staged as a file: nobody's business,
# and on Flink a file on the driver's disk that other machines cannot open.
STAGE_NOTHING = "disable_logging_submission_environment"

LONGEST_JOB_SECONDS = 30 * 24 * 3600
PATIENCE_SECONDS = 10


def is_local(options: PipelineOptions) -> bool:
    """Whether the job runs on `InProcessRunner`, by default or by the name DirectRunner."""
    runner = options.view_as(StandardOptions).runner or "DirectRunner"
    return runner.lower() in ("direct", "directrunner", IN_PROCESS.lower())


def job_options(arguments: Sequence[str], verbose: bool) -> PipelineOptions:
    """Beam's options for a job, from what a verb's own parser did not know.

    What the runner needs to run well is filled in unless the user said
    otherwise, and printed when `verbose`.

    Raises:
      ConfigError: an option that nobody knows, or no way for workers to have
        this package.
    """
    options = local_defaults(cli.beam_pipeline_options(arguments), verbose)
    filled = portable_defaults(options)
    if verbose:
        for name, value in filled.items():
            print(f"option filled in for {options.view_as(StandardOptions).runner}: --{name}={value}")
    return options


def local_defaults(options: PipelineOptions, verbose: bool = False) -> PipelineOptions:
    """Fills in what a local run needs; leaves every other runner alone.

    No runner, or DirectRunner, becomes `InProcessRunner`: no download, no
    Internet.  Prism is had by `--runner PrismRunner`.  With more than one
    worker, workers are processes unless the user asked for threads.  They share
    this process's standard error, and write progress there and, unless
    `verbose`, nothing else.

    Returns:
      The same options.
    """
    if is_local(options):
        options.view_as(StandardOptions).runner = IN_PROCESS
        direct = options.view_as(DirectOptions)
        if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
            direct.direct_running_mode = "multi_processing"
        logs = options.view_as(WorkerOptions)
        if logs.default_sdk_harness_log_level is None and not verbose:
            logs.default_sdk_harness_log_level = "CRITICAL"
            logs.sdk_harness_log_level_overrides = {
                "dpgmm": "INFO",
                **(logs.sdk_harness_log_level_overrides or {}),
            }
    return options


def portable_defaults(options: PipelineOptions) -> dict[str, object]:
    """Fills in what Flink, Prism or Dataflow need to run well, unless the user said otherwise.

    Returns:
      What was filled in, by option.

    Raises:
      ConfigError: workers would have no way to this package, or nothing answers
        at the job server's address.
    """
    runner = (options.view_as(StandardOptions).runner or "").rpartition(".")[2].lower()
    if runner not in PORTABLE:
        return {}
    given = options.get_all_options(drop_default=True)
    filled: dict[str, object] = {}

    def fill(view, name, value):
        if name not in given and value is not None:
            setattr(options.view_as(view), name, value)
            filled[name] = value

    # Everything that is pickled is imported from the package; a pickled session
    # would carry caches along.
    fill(SetupOptions, "save_main_session", False)
    debug = options.view_as(DebugOptions)
    if not debug.lookup_experiment(STAGE_NOTHING):
        debug.add_experiment(STAGE_NOTHING)
        filled["experiments"] = STAGE_NOTHING
    if runner in ("flinkrunner", "portablerunner"):
        # 0 drops the Python workers, and their caches, between the stages of a batch job.
        fill(PortableOptions, "environment_cache_millis", 120_000)
    if runner in ("prismrunner", "portablerunner"):
        # Beam's driver gives up on a job server's running job after so long, 300
        # seconds by default, although its help says otherwise.
        fill(PortableOptions, "job_server_timeout", LONGEST_JOB_SECONDS)
        endpoint = options.view_as(PortableOptions).job_endpoint
        if runner == "portablerunner" and endpoint and endpoint != "embed":
            check_answers(endpoint)
    if runner == "flinkrunner":
        cluster = flink_overview(options.view_as(FlinkRunnerOptions).flink_master)
        # The job server runs here and never sees the cluster's parallelism.default:
        # without this, 1.
        fill(FlinkRunnerOptions, "parallelism", cluster.get("slots-total") or None)
        # Beam's default is its newest.
        version = ".".join(str(cluster.get("flink-version", "")).split(".")[:2])
        known = version in FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS
        fill(FlinkRunnerOptions, "flink_version", version if known else None)
    if runner == "dataflowrunner":
        fill(WorkerOptions, "sdk_container_image", os.environ.get("DPGMM_IMAGE") or None)
        setup = options.view_as(SetupOptions)
        image = options.view_as(WorkerOptions).sdk_container_image
        if not (image or setup.setup_file or setup.extra_packages):
            raise ConfigError(
                "--sdk_container_image",
                None,
                "name an image that holds this package (deploy/Dockerfile), or --setup_file be given",
            )
    return filled


def check_answers(job_endpoint: str) -> None:
    """Raises ConfigError where no job server listens."""
    host, _, port = job_endpoint.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_SECONDS).close()
    except (OSError, ValueError):
        raise ConfigError(
            "--job_endpoint", job_endpoint, "be HOST:PORT of a job server that answers"
        ) from None


def flink_overview(master: str) -> dict:
    """Flink's own summary of the cluster, or {} where it cannot be asked."""
    if master in ("[auto]", "[local]"):
        return {}
    url = (master if "://" in master else f"http://{master}").rstrip("/") + "/overview"
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return {}


def outlives_driver(options: PipelineOptions) -> bool:
    """Whether the driver only writes a template and ends before the job starts."""
    return bool(options.view_as(GoogleCloudOptions).template_location)


def threads_per_worker(options: PipelineOptions) -> int:
    """Cores for each worker process of a local run; 0, for all, where the runner decides."""
    direct = options.view_as(DirectOptions)
    if not is_local(options) or direct.direct_running_mode != "multi_processing":
        return 0
    workers = direct.direct_num_workers or multiprocessing.cpu_count()
    return max(1, len(os.sched_getaffinity(0)) // workers)
