"""Beam's runner in this process or in its own worker processes, made fit for a long chain of stages."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import apache_beam
from apache_beam.portability.api import beam_fn_api_pb2, beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner, worker_handlers
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.utils import thread_pool_executor

from pipelines import lost_workers

# What is overridden below with an underscore is not Beam's public interface.
# Under any other version the runner is Beam's as it is: slower, and larger.
KNOWN_INTERNALS = apache_beam.__version__.startswith("2.77.")


class InProcessRunner(fn_runner.FnApiRunner):
    """Beam's `FnApiRunner` and nothing else: no download, no Internet.

    `DirectRunner` first tries Prism, which it downloads from GitHub, and comes
    here only if that fails.  Made by hand, `FnApiRunner` would not pass the
    pipeline's options on to worker processes; this one does.  It also

    - forgets what has been read for the last time: `FnApiRunner` keeps each
      stage's state until the job ends, in a copy for each reader;
    - gives a share of a stage's elements to the same worker in every stage, so
      that workers find their rows in their caches.
    """

    def run_pipeline(self, pipeline, options):
        encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
        self._provision_info = fn_runner.ExtendedProvisionInfo(
            beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
        )
        with lost_workers.noticed() if KNOWN_INTERNALS else contextlib.nullcontext():
            return super().run_pipeline(pipeline, options)

    def _execute_bundle(self, runner_execution_context, bundle_context_manager, bundle_input):
        result = super()._execute_bundle(runner_execution_context, bundle_context_manager, bundle_input)
        if KNOWN_INTERNALS:
            _forget(runner_execution_context, bundle_context_manager)
        return result

    def _get_bundle_manager(self, bundle_context_manager):
        manager = super()._get_bundle_manager(bundle_context_manager)
        if KNOWN_INTERNALS and isinstance(manager, fn_runner.ParallelBundleManager):
            return StickyBundleManager(
                bundle_context_manager,
                self._progress_frequency,
                cache_token_generator=manager._cache_token_generator,
            )
        return manager


def _forget(context: Any, bundle_context_manager: Any) -> None:
    """Frees the side inputs that a stage has read, what it wrote for side inputs alone, and its DoFns."""
    stage = bundle_context_manager.stage
    if stage.name in context.queues.ready_inputs._keyed_elements:
        # It has not finished: a part of its input was put off.
        return
    readers = {transform.unique_name for transform in stage.transforms}
    servicer = context.state_servicer
    with servicer._lock:
        for key in list(servicer._state):
            if beam_fn_api_pb2.StateKey.FromString(key).iterable_side_input.transform_id in readers:
                del servicer._state[key]
    # Each reader has its own copy by now.
    for buffer_id, _ in context.side_input_descriptors_by_stage.get(stage.name, {}).values():
        context.pcoll_buffers.pop(buffer_id, None)
    # Output streams keep their buffers.  Worker processes drop idle ones after a minute.
    for handler in bundle_context_manager.worker_handlers:
        if isinstance(handler, worker_handlers.EmbeddedWorkerHandler):
            unused = handler.bundle_processor_cache.cached_bundle_processors
            for processor in unused.pop(bundle_context_manager.process_bundle_descriptor.id, []):
                processor.shutdown()


class StickyBundleManager(fn_runner.ParallelBundleManager):
    """Runs the parts of a bundle at the same time, the i-th part on the i-th worker.

    Beam's own lets the parts race for the workers.
    """

    def process_bundle(
        self,
        inputs: Mapping[str, Any],
        expected_outputs: Any,
        fired_timers: Any,
        expected_output_timers: Any,
        dry_run: bool = False,
    ):
        def run(part: tuple[fn_runner.BundleManager, dict, Mapping]):
            manager, elements, timers = part
            return manager.process_bundle(elements, expected_outputs, timers, expected_output_timers, dry_run)

        parts = [{} for _ in range(self._num_workers)]
        for name, buffer in inputs.items():
            for part, elements in zip(parts, buffer.partition(self._num_workers), strict=True):
                part[name] = elements
        timers = [fired_timers] + [{}] * (self._num_workers - 1)
        # Beam's pool of daemon threads: a part that is stuck must not hold up another's error.
        threads = thread_pool_executor.shared_unbounded_instance()
        results, splits = zip(
            *threads.map(run, zip(self._managers(), parts, timers, strict=True)), strict=True
        )
        infos = (info for result in results for info in result.process_bundle.monitoring_infos)
        merged = beam_fn_api_pb2.InstructionResponse(
            process_bundle=beam_fn_api_pb2.ProcessBundleResponse(
                monitoring_infos=fn_runner.monitoring_infos.consolidate(infos)
            )
        )
        return merged, [split for found in splits for split in found]

    def _managers(self) -> Iterator[fn_runner.BundleManager]:
        """One manager for each worker, which knows of no other worker."""
        for handler in self.bundle_context_manager.worker_handlers:
            alone = copy.copy(self.bundle_context_manager)
            alone._worker_handlers = [handler]
            yield fn_runner.BundleManager(
                alone, self._progress_frequency, cache_token_generator=self._cache_token_generator
            )
