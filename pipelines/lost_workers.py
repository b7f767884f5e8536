"""A local job whose worker process dies ends with an error.

Beam 2.77 notices a dead worker by the data that it no longer sends.  A bundle
that sends none (the last of a job: a cache file written, a release published)
is waited for until somebody ends the job.
"""

import contextlib
from collections.abc import Iterator

import grpc
from apache_beam.runners.portability.fn_api_runner import worker_handlers


class Connection(worker_handlers.ControlConnection):
    """Beam's connection to a worker; when it breaks, whoever waits for an answer is told."""

    lost = False

    def _read(self):
        # A worker that ends in good order breaks nothing, and owes no answer.
        with contextlib.suppress(grpc.RpcError):
            super()._read()
        self.lost = True
        for future in list(self._futures_by_id.values()):
            future.abort(self._error())

    def push(self, req):
        future = super().push(req)
        if future is not None and self.lost:
            future.abort(self._error())
        return future

    def _error(self) -> RuntimeError:
        return RuntimeError("a worker process was killed or has crashed")


@contextlib.contextmanager
def noticed() -> Iterator[None]:
    """While entered, connections to new workers are such `Connection`s."""
    before = worker_handlers.ControlConnection
    worker_handlers.ControlConnection = Connection
    try:
        yield
    finally:
        worker_handlers.ControlConnection = before
