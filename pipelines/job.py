"""One Beam job from its start to its end: submitted, announced, waited for, cancelled."""

import contextlib
import copy
import hashlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.runners.runner import PipelineState

from dpgmm_beam.errors import ConfigError
from pipelines import cli, flink, runner
from pipelines.bounded import within
from pipelines.options import runner_name
from pipelines.signals import Interrupted

# How long a cancelled job is waited for.
CANCEL_SECONDS = 30.0
# How long a job that was being submitted when a signal came may take to show up.
_APPEAR_SECONDS = 5.0
_POLL_SECONDS = 2.0
_STANDSTILL_SECONDS = 15.0
_LONGEST_NAME = 63


def job_name(title: str, *identity: str) -> str:
    """A name for a job that is the same whenever the same thing is done, and else is not.

    Args:
      title: what is done, for a reader, e.g. "release 2026-01"; may be shortened.
      identity: all that makes it this job: texts that may become public only as a digest.

    Returns:
      At most 63 lower-case letters, digits and hyphens, as Dataflow wants it.
    """
    digest = hashlib.sha256(repr((title, *identity)).encode()).hexdigest()[:12]
    words = re.sub("[^a-z0-9]+", "-", f"dpgmm {title}".lower()).strip("-")
    return f"{words[: _LONGEST_NAME - 13].rstrip('-')}-{digest}"


def waits(options: PipelineOptions) -> bool:
    """Whether the driver stays until the job has ended; if not, nothing is released when `run` returns."""
    if runner.is_local(options):
        return True
    no_wait = options.view_as(StandardOptions).no_wait_until_finish
    return not (no_wait or runner.outlives_driver(options))


def check_drawn_key(options: PipelineOptions, instead: str = "--noise-key-file and --release-id") -> None:
    """To be called where workers find the noise key in the run's folder: the driver drops it when it ends.

    Args:
      instead: what to give.

    Raises:
      ConfigError: the driver ends before the job does.
    """
    if not waits(options):
        option = "--template_location" if runner.outlives_driver(options) else "--no_wait_until_finish"
        raise ConfigError(option, "given", f"come with {instead}")


def run(pipeline: beam.Pipeline, name: str, watch: Iterable[contextlib.AbstractContextManager] = ()) -> None:
    """Runs a pipeline to its end, as `with beam.Pipeline()` would; a signal cancels its job.

    The id and the page of a job that runs elsewhere are printed on standard
    error as soon as they are known.  If a job of this name runs on the Flink
    cluster already, its driver was lost and is tried again: that job is waited
    for, and no second one submitted.

    Args:
      pipeline: with its options, not yet run.
      name: `job_name`'s, of the job; the user's own --job_name goes before it.
      watch: entered while the job runs, such as `Progress`.

    Raises:
      Interrupted: after a signal, once the job is cancelled or half a minute
        has passed; its `running` then says what may go on.
      RuntimeError: the job failed or was cancelled by somebody else.
      Whatever a local run raises.
    """
    options = pipeline.options
    with contextlib.ExitStack() as stack:
        for each in watch:
            stack.enter_context(each)
        if runner.is_local(options):
            _check(pipeline.run().wait_until_finish())
            return
        named = options.view_as(GoogleCloudOptions)
        own_name = not named.job_name
        if own_name:
            named.job_name = name
        stack.enter_context(_safe_path())
        on_flink = _OnFlink.of(options)
        if on_flink is not None and own_name and on_flink.adopt():
            on_flink.wait()
            return
        _Remote(pipeline, on_flink).run()


class _OnFlink:
    """A job as the Flink cluster shows it.

    Args:
      master: the JobManager.
      name: the job's.
    """

    def __init__(self, master: str, name: str):
        self.master = master
        self._name = name
        self._others: list[str] = []
        self._standing_since: float | None = None
        self._said = False
        self.id: str | None = None

    @classmethod
    def of(cls, options: PipelineOptions) -> "_OnFlink | None":
        """None where the job goes elsewhere, or to a cluster without an address."""
        master = options.view_as(FlinkRunnerOptions).flink_master
        if runner_name(options) != "flinkrunner" or not flink.has_address(master):
            return None
        return cls(master, options.view_as(GoogleCloudOptions).job_name)

    def adopt(self) -> bool:
        """Whether a job of this name runs already; if so, it is this one from now on."""
        self.id = flink.find_running(self.master, self._name)
        if self.id is None:
            return False
        page = flink.page(self.master, self.id)
        cli.note(f"Flink job {self.id} is this one and runs already; waiting for its end: {page}")
        return True

    def remember_others(self) -> None:
        """Notes which jobs of this name are not this one."""
        with contextlib.suppress(OSError, ValueError):
            self._others = flink.live_jobs(self.master, self._name)

    def find(self) -> str | None:
        """The job's id; looks for it, if it is not known yet, and announces it."""
        if self.id is None:
            self.id = flink.find_running(self.master, self._name, self._others)
            if self.id is not None:
                cli.note(f"Flink job {self.id}: {flink.page(self.master, self.id)}")
        return self.id

    def look(self) -> None:
        """Announces the job when it appears, and says once if it stands still for want of slots."""
        if (found := self.find()) is None or self._said:
            return
        if not flink.lacks_slots(self.master, found):
            self._standing_since = None
            return
        now = time.monotonic()
        self._standing_since = self._standing_since or now
        if now - self._standing_since >= _STANDSTILL_SECONDS:
            self._said = True
            cli.note(f"Flink job {self.id} waits: other jobs hold the slots that it needs")

    def wait(self) -> None:
        """Waits for the job by what the cluster says; cancels it when a signal comes."""
        assert self.id is not None
        try:
            flink.wait(self.master, self.id, self.look)
        except Interrupted as error:
            with _time_to_cancel(error):
                if not self.cancel(CANCEL_SECONDS):
                    error.running = self.may_go_on()
            raise

    def cancel(self, seconds: float) -> bool:
        """Whether the job has ended, or none appeared, within so many seconds."""
        end = time.monotonic() + seconds
        appear = time.monotonic() + min(seconds, _APPEAR_SECONDS)
        while (found := self.find()) is None:
            if time.monotonic() >= appear:
                return True
            time.sleep(0.5)
        return flink.cancel(self.master, found, end - time.monotonic())

    def may_go_on(self) -> str:
        page = flink.page(self.master, self.id) if self.id else self.master
        return f"Flink's job could not be cancelled and may go on: {page}"


class _Remote:
    """A job of another process or service."""

    def __init__(self, pipeline: beam.Pipeline, on_flink: _OnFlink | None):
        self._pipeline = pipeline
        # As they are now: runners change them, the address of Flink among them.
        self._options = copy.deepcopy(pipeline.options)
        self._flink = on_flink
        self._result: Any = None
        # Not the thread itself: a join that a signal interrupts takes it for ended (Python 3.11).
        self._ended: threading.Event | None = None
        self._state = PipelineState.UNKNOWN
        self._error: BaseException | None = None

    def run(self) -> None:
        if self._flink is not None:
            self._flink.remember_others()
        try:
            self._submit()
            if runner.outlives_driver(self._options):
                return
            self._announce()
            if waits(self._options):
                self._wait()
        except Interrupted as error:
            with _time_to_cancel(error):
                if not self._cancel():
                    error.running = self._may_go_on()
            raise

    def _submit(self) -> None:
        handler = signal.getsignal(signal.SIGINT)
        try:
            self._result = self._pipeline.run()
        finally:
            # Beam's own handler would stop its job server first; then nobody
            # could be asked to cancel the job.
            if threading.current_thread() is threading.main_thread() and handler is not None:
                signal.signal(signal.SIGINT, handler)

    def _announce(self) -> None:
        what, page = self._id(), self._page()
        if what:
            cli.note(f"job {what}" + (f": {page}" if page else ""))

    def _id(self) -> str:
        found = getattr(self._result, "job_id", None)
        return str((found() if callable(found) else getattr(self._result, "_job_id", "")) or "")

    def _page(self) -> str:
        if runner_name(self._options) != "dataflowrunner":
            return ""
        cloud = self._options.view_as(GoogleCloudOptions)
        return (
            f"https://console.cloud.google.com/dataflow/jobs/{cloud.region}/{self._id()}"
            f"?project={cloud.project}"
        )

    def _wait(self) -> None:
        ended = self._ended = threading.Event()

        def wait():
            try:
                self._state = self._result.wait_until_finish()
            except BaseException as error:
                self._error = error
            finally:
                ended.set()

        threading.Thread(target=wait, daemon=True).start()
        while not ended.wait(_POLL_SECONDS):
            if self._flink is not None:
                self._flink.look()
        if self._error is None:
            _check(self._state)
        elif (
            isinstance(self._error, grpc.RpcError)
            and self._flink is not None
            and (found := self._flink.find())
        ):
            # The job server is gone.  The job need not be.
            flink.wait(self._flink.master, found, self._flink.look)
        else:
            raise self._error

    def _cancel(self) -> bool:
        """Whether the job is known to have ended."""
        end = time.monotonic() + CANCEL_SECONDS
        if self._result is not None:
            with contextlib.suppress(Exception):
                within(_APPEAR_SECONDS, self._result.cancel)
        if self._flink is not None:
            return self._flink.cancel(end - time.monotonic())
        if self._result is None:
            # Not submitted, unless the job server had it already and had not said so.
            return not self._options.view_as(PortableOptions).job_endpoint
        if self._ended is None:
            with contextlib.suppress(Exception):
                return PipelineState.is_terminal(within(_APPEAR_SECONDS, lambda: self._result.state))
            return False
        return self._ended.wait(max(0.0, end - time.monotonic()))

    def _may_go_on(self) -> str:
        if self._flink is not None:
            return self._flink.may_go_on()
        where = self._page() or self._options.view_as(PortableOptions).job_endpoint or ""
        name = " ".join(filter(None, ("job", self._id())))
        return f"{name} could not be cancelled and may go on{where and f': {where}'}"


def _check(state: str) -> None:
    if state != PipelineState.DONE:
        raise RuntimeError(f"the job ended as {state}")


@contextlib.contextmanager
def _time_to_cancel(error: Interrupted) -> Iterator[None]:
    error.allow(CANCEL_SECONDS + 2 * _APPEAR_SECONDS)
    yield
    error.allow(_APPEAR_SECONDS)


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """While entered, programs that are started from here don't import what lies in the working folder.

    Workers are started as `python -m ...`, which puts that folder first: a
    transforms.py or random.py there would run among the private rows.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = before or "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
