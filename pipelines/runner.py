"""Where a job runs: what this project fills in around the user's own Beam options."""

import multiprocessing
import os

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle

IN_PROCESS = "pipelines.runner.InProcessRunner"


class InProcessRunner(fn_runner.FnApiRunner):
    """Beam's runner inside this process (or its own worker processes), and nothing else.

    `DirectRunner` first tries Prism, which it downloads from GitHub, and comes
    here only if that fails.  Made by hand, `FnApiRunner` would not pass the
    pipeline's options on to worker processes; this one does.
    """

    def run_pipeline(self, pipeline, options):
        encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
        self._provision_info = fn_runner.ExtendedProvisionInfo(
            beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
        )
        return super().run_pipeline(pipeline, options)


def is_local(options: PipelineOptions) -> bool:
    """Whether the job runs on `InProcessRunner`, by default or by the name DirectRunner."""
    runner = options.view_as(StandardOptions).runner or "DirectRunner"
    return runner.lower() in ("direct", "directrunner", IN_PROCESS.lower())


def local_defaults(options: PipelineOptions) -> PipelineOptions:
    """Fills in what a local run needs; leaves every other runner alone.

    No runner, or DirectRunner, becomes `InProcessRunner`: no download, no
    Internet.  Prism is had by `--runner PrismRunner`.  With more than one
    worker, workers are processes unless the user asked for threads.

    Returns:
      The same options.
    """
    if is_local(options):
        options.view_as(StandardOptions).runner = IN_PROCESS
        direct = options.view_as(DirectOptions)
        if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
            direct.direct_running_mode = "multi_processing"
    return options


def threads_per_worker(options: PipelineOptions) -> int:
    """Cores for each worker process of a local run; 0, for all, where the runner decides."""
    direct = options.view_as(DirectOptions)
    if not is_local(options) or direct.direct_running_mode != "multi_processing":
        return 0
    workers = direct.direct_num_workers or multiprocessing.cpu_count()
    return max(1, len(os.sched_getaffinity(0)) // workers)
