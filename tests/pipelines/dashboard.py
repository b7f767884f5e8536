"""A Flink cluster as its REST interface shows it, for drivers that ask."""

import contextlib
import http.server
import json
import threading


class Cluster:
    """What the dashboard answers; tests change it while it is asked.

    Attributes:
      overview: of the cluster.
      jobs: id -> name, state and, for a look at the job itself, its vertices.
      managers: the TaskManagers' own addresses.
      settings: of the JobManager.
      status: of every answer.
      body: instead of every answer, if it is not None.
      cancelled: ids, as they were asked for.
      asked: method and path of all requests.
      on_cancel: the state of a job that is cancelled.
    """

    def __init__(self, slots=8):
        self.overview = {"slots-total": slots, "slots-available": slots, "flink-version": "1.20.1"}
        self.jobs: dict[str, dict] = {}
        self.managers: list[str] = []
        self.settings: dict[str, str] = {}
        self.status = 200
        self.body: bytes | None = None
        self.cancelled: list[str] = []
        self.asked: list[str] = []
        self.on_cancel = "CANCELED"

    def job(self, job_id, name, state="RUNNING", vertices=(), start=0):
        """Adds a job, or changes one."""
        self.jobs[job_id] = {
            "jid": job_id,
            "name": name,
            "state": state,
            "start-time": start,
            "vertices": [{"status": status, "parallelism": count} for status, count in vertices],
        }

    def answer(self, method: str, path: str):
        """What Flink would answer; None for 404."""
        self.asked.append(f"{method} {path}")
        path, _, query = path.partition("?")
        if method == "PATCH":
            job = self.jobs.get(path.removeprefix("/jobs/"))
            if job is None or query != "mode=cancel":
                return None
            self.cancelled.append(job["jid"])
            job["state"] = self.on_cancel
            return {}
        if path.startswith("/jobs/") and path != "/jobs/overview":
            return self.jobs.get(path.removeprefix("/jobs/"))
        return {
            "/overview": self.overview,
            "/jobs/overview": {"jobs": list(self.jobs.values())},
            "/taskmanagers": {"taskmanagers": [{"path": path} for path in self.managers]},
            "/jobmanager/config": [{"key": key, "value": value} for key, value in self.settings.items()],
        }.get(path)


@contextlib.contextmanager
def served(cluster: Cluster):
    """The cluster's address while it answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            found = cluster.answer(self.command, self.path)
            self.send_response(404 if found is None else cluster.status)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode() if cluster.body is None else cluster.body)

        do_GET = do_PATCH = answer

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
