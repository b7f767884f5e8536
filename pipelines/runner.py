"""Where a job runs: what this project fills in around the user's own Beam options."""

import json
import os
import socket
import urllib.parse
from collections.abc import Callable, Iterable, Sequence

from apache_beam.io.filesystems import FileSystems
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
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners.runner import PipelineRunner, create_runner

from dpgmm_beam.errors import ConfigError
from pipelines import cli, flink
from pipelines.bounded import within
from pipelines.cores import usable_cores
from pipelines.options import beam_pipeline_options, is_given, runner_name

__all__ = ["is_local", "job_options", "outlives_driver", "threads_for", "usable_cores"]

# Beam's runner in this process.  `DirectRunner` first tries Prism, which it
# downloads from GitHub, and comes to this one only if that fails.
LOCAL = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
PORTABLE = ("flinkrunner", "portablerunner", "prismrunner", "sparkrunner", "dataflowrunner")

# Else a list of the driver's packages is staged as a file: nobody's business,
# and on Flink a file on the driver's disk that other machines cannot open.
STAGE_NOTHING = "disable_logging_submission_environment"

LONGEST_JOB_SECONDS = 30 * 24 * 3600
PATIENCE_SECONDS = 10
# For all questions to a cluster before a job is submitted.
PREFLIGHT_SECONDS = 15
DATAFLOW_WORKERS = 4


def is_local(options: PipelineOptions) -> bool:
    """Whether the job runs in this process, by default or by the name DirectRunner."""
    runner = options.view_as(StandardOptions).runner or "DirectRunner"
    return runner.lower() in ("direct", "directrunner", "fnapi", "fnapirunner", LOCAL.lower())


def job_options(arguments: Sequence[str], verbose: bool) -> PipelineOptions:
    """Beam's options for a job, from what a verb's own parser did not know.

    What the runner needs to run well is filled in unless the user said
    otherwise, and printed when `verbose`.  What the options name (a cluster, a
    job server, a worker pool) is looked for, within seconds.

    Raises:
      ConfigError: an option that nobody knows, something named that does not
        answer, or no way for workers to have this package.
    """
    options = beam_pipeline_options(arguments)
    check_runner(options)
    added: dict[str, object] = {}
    if runner_name(options) == "flinkrunner" and not is_given(arguments, "execution_mode_for_batch"):
        # Flink's own default joins all stages into one region, which begins
        # again at the first stage when one task is lost.
        added["execution_mode_for_batch"] = "BATCH_FORCED"
        options = beam_pipeline_options([*arguments, "--execution_mode_for_batch=BATCH_FORCED"])
    # Before a pipeline is made, too, the driver looks at files on stores that want options.
    FileSystems.set_options(options)
    filled = {**portable_defaults(local_defaults(options)), **added}
    check_options(options)
    if verbose:
        for name, value in filled.items():
            cli.note(f"option filled in for {options.view_as(StandardOptions).runner}: --{name}={value}")
    return options


def check_runner(options: PipelineOptions) -> None:
    """Raises ConfigError for a name that is neither a runner of Beam's that is installed nor MODULE.CLASS."""
    name = options.view_as(StandardOptions).runner or "DirectRunner"
    known = [path.rpartition(".")[2] for path in StandardOptions.ALL_KNOWN_RUNNERS]
    if "." not in name and not {name.lower(), f"{name.lower()}runner"} & {each.lower() for each in known}:
        raise ConfigError("--runner", name, f"be MODULE.CLASS or one of {', '.join(known)}")
    if is_local(options):
        return
    try:
        found: object = create_runner(name)
    except Exception as error:
        # Whatever a module does when it is imported.
        raise ConfigError("--runner", name, f"be a runner that can be loaded ({error})") from None
    if not isinstance(found, PipelineRunner):
        raise ConfigError("--runner", name, "be a runner, a subclass of Beam's PipelineRunner")


def check_options(options: PipelineOptions) -> None:
    """Raises ConfigError where Beam would not take the options together."""
    runner = options.view_as(StandardOptions).runner
    validator = PipelineOptionsValidator(options, create_runner(runner))
    if validator.is_service_runner():
        # Beam also asks the store about its buckets; that is for the job's submission.
        cloud = options.view_as(GoogleCloudOptions)
        wrong = validator.validate_gcs_path(cloud, "temp_location") + validator.validate_cloud_options(cloud)
    else:
        wrong = validator.validate()
    if wrong:
        raise ConfigError("--runner", runner, f"come with options that Apache Beam takes ({' '.join(wrong)})")


def check_ports(options: PipelineOptions) -> None:
    """Refuses what Beam would start in or from this process with ports on every interface.

    Whoever reaches the port of a job server is given exact sums, and a worker pool runs
    what whoever reaches it hands over; none of them asks who that is.
    """
    portable, opens = options.view_as(PortableOptions), "which opens ports on every interface of this machine"
    apart = "started where nobody but your workers reaches it, and named with --job_endpoint HOST:PORT"
    if runner_name(options) == "prismrunner":
        raise ConfigError("--runner", "PrismRunner", f"not start Prism, {opens}: let it be {apart}")
    if portable.job_endpoint == "embed":
        raise ConfigError("--job_endpoint", "embed", f"not start a job server, {opens}: let it be {apart}")
    if (portable.environment_type or "").upper() == "LOOPBACK":
        raise ConfigError(
            "--environment_type", portable.environment_type, f"not be a worker pool in this process, {opens}"
        )


def local_defaults(options: PipelineOptions) -> PipelineOptions:
    """Fills in what a local run needs; leaves every other runner alone.

    No runner, or DirectRunner, becomes Beam's runner in this process: no
    download, no Internet, no ports.  Prism is had by `--runner PrismRunner`.

    Returns:
      The same options.

    Raises:
      ConfigError: workers other than this process are asked for.
    """
    if is_local(options):
        options.view_as(StandardOptions).runner = LOCAL
        direct = options.view_as(DirectOptions)
        instead = "since a local job uses threads of one process (--threads) and opens no ports"
        if direct.direct_num_workers != 1:
            raise ConfigError("--direct_num_workers", direct.direct_num_workers, f"be 1, {instead}")
        if direct.direct_running_mode != "in_memory":
            raise ConfigError("--direct_running_mode", direct.direct_running_mode, f"be in_memory, {instead}")
    return options


def portable_defaults(options: PipelineOptions) -> dict[str, object]:
    """Fills in what Flink, Spark, Prism or Dataflow need to run well, unless the user said otherwise.

    Returns:
      What was filled in, by option.

    Raises:
      ConfigError: workers would have no way to this package, something that
        the options name does not answer, or the driver would end too early.
    """
    runner = runner_name(options)
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
    portable = options.view_as(PortableOptions)
    if runner in ("flinkrunner", "portablerunner"):
        # 0 drops the Python workers, and their caches, between the stages of a batch job.
        fill(PortableOptions, "environment_cache_millis", 120_000)
    if runner in ("prismrunner", "portablerunner"):
        # Beam's driver gives up on a job server's running job after so long, 300
        # seconds by default, although its help says otherwise.
        fill(PortableOptions, "job_server_timeout", LONGEST_JOB_SECONDS)
    if runner == "dataflowrunner":
        _dataflow_defaults(options, fill)
    else:
        check_waits(options)
        master = options.view_as(FlinkRunnerOptions).flink_master if runner == "flinkrunner" else "[auto]"
        keep_traffic_direct(host for host in (_host(master), _host(portable.job_endpoint)) if host)
        if portable.job_endpoint and portable.job_endpoint != "embed":
            check_answers(portable.job_endpoint)
        try:
            cluster = within(PREFLIGHT_SECONDS, lambda: _look_around(options, master))
        except TimeoutError:
            raise ConfigError(
                "--flink_master", master, f"answer within {PREFLIGHT_SECONDS} seconds"
            ) from None
        # The job server runs here and never sees the cluster's parallelism.default:
        # without this, 1.
        fill(FlinkRunnerOptions, "parallelism", cluster.get("slots-total") or None)
        # Beam's default is its newest.
        version = ".".join(str(cluster.get("flink-version", "")).split(".")[:2])
        known = version in FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS
        fill(FlinkRunnerOptions, "flink_version", version if known else None)
    return filled


def _dataflow_defaults(options: PipelineOptions, fill: Callable[[type, str, object], None]) -> None:
    workers = options.view_as(WorkerOptions)
    if workers.autoscaling_algorithm is None:
        # Elements are names of pieces of work, so small that Dataflow would take
        # a stage of hours for nothing and send its workers home.
        fill(WorkerOptions, "autoscaling_algorithm", "NONE")
        fill(WorkerOptions, "num_workers", workers.max_num_workers or DATAFLOW_WORKERS)
    fill(WorkerOptions, "sdk_container_image", os.environ.get("DPGMM_IMAGE") or None)
    setup = options.view_as(SetupOptions)
    if not (workers.sdk_container_image or setup.setup_file or setup.extra_packages):
        raise ConfigError(
            "--sdk_container_image",
            None,
            "name an image that holds this package (deploy/Dockerfile), or --setup_file be given",
        )


def _look_around(options: PipelineOptions, master: str) -> dict:
    """Looks for the Flink cluster and the worker pool of a job; the cluster's summary."""
    asked = options.view_as(FlinkRunnerOptions).parallelism
    cluster = flink.check_slots(master, asked if asked > 0 else None)
    portable = options.view_as(PortableOptions)
    pool = worker_pool(options)
    if pool and cluster:
        flink.check_pool(master, pool)
    elif pool and (not flink.is_loopback(pool) or flink.is_loopback(portable.job_endpoint or "")):
        # A pool on loopback is seen from where the job's own workers' side runs:
        # here, if its job server is.
        flink.check_listens("--environment_config", pool, "be HOST:PORT of a worker pool that runs")
    return cluster


def worker_pool(options: PipelineOptions) -> str | None:
    """HOST:PORT of the worker pool that the options name, None where workers are made another way."""
    portable = options.view_as(PortableOptions)
    if (portable.environment_type or "").upper() != "EXTERNAL":
        return None
    config = portable.environment_config or portable.lookup_environment_option("external_service_address")
    if config and config.lstrip().startswith("{"):
        try:
            config = json.loads(config).get("url")
        except ValueError:
            raise ConfigError(
                "--environment_config", config, "be HOST:PORT of a worker pool, or JSON with its url"
            ) from None
    if not config or not isinstance(config, str):
        raise ConfigError("--environment_config", config, "be HOST:PORT of a worker pool")
    return config


def check_waits(options: PipelineOptions) -> None:
    """Raises ConfigError where a driver that does not wait would take its job along when it ends."""
    portable = options.view_as(PortableOptions)
    if not options.view_as(StandardOptions).no_wait_until_finish:
        return
    runner = runner_name(options)
    if (portable.environment_type or "").upper() == "LOOPBACK" or (
        runner == "prismrunner" and not portable.environment_type
    ):
        raise ConfigError("--no_wait_until_finish", "given", "be left out: the driver's own process works")
    uber_jar = options.get_all_options().get(f"{runner.removesuffix('runner')}_submit_uber_jar")
    if not portable.job_endpoint and not uber_jar:
        raise ConfigError(
            "--no_wait_until_finish",
            "given",
            "be left out, or come with the --job_endpoint of a job server that stays: one that the driver"
            " starts ends with it, and nothing would be submitted",
        )


def check_answers(job_endpoint: str) -> None:
    """Raises ConfigError where no job server listens."""
    try:
        address = flink.split(job_endpoint)
        within(PATIENCE_SECONDS, lambda: socket.create_connection(address, timeout=PATIENCE_SECONDS).close())
    except (OSError, ValueError):
        raise ConfigError(
            "--job_endpoint", job_endpoint, "be HOST:PORT of a job server that answers"
        ) from None


def keep_traffic_direct(hosts: Iterable[str]) -> None:
    """Names hosts, and loopback, as such that gRPC reaches without a proxy, here and in what is started here.

    With a proxy in the environment, gRPC would send it even what two processes
    of this machine say to each other.
    """
    names = list(dict.fromkeys(["localhost", "127.0.0.1", "::1", *hosts]))
    for variable in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        # The last, where it is set, stands for the others.
        if variable in os.environ or variable != "no_grpc_proxy":
            known = [name for name in os.environ.get(variable, "").split(",") if name]
            os.environ[variable] = ",".join([*known, *(name for name in names if name not in known)])


def _host(address: str | None) -> str | None:
    if not address or address == "embed" or not flink.has_address(address):
        return None
    try:
        return urllib.parse.urlsplit(flink.url(address)).hostname
    except ValueError:
        return None


def outlives_driver(options: PipelineOptions) -> bool:
    """Whether the driver only writes a template and ends before the job starts."""
    return bool(options.view_as(GoogleCloudOptions).template_location)


def threads_for(options: PipelineOptions, asked: int) -> int:
    """Threads for the numbers of one process of the job.

    Args:
      options: of the job.
      asked: `--threads`; 0 for what suits the runner.

    Returns:
      What was asked for; else all usable cores of a local run, and 1 for other
      runners, which start a process for each core.
    """
    if asked > 0:
        return asked
    return usable_cores() if is_local(options) else 1
