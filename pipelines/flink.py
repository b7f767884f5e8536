"""Flink's REST interface: what a job needs to know of its cluster before, while and after it runs.

A MASTER is what `--flink_master` takes: HOST:PORT or a URL of the JobManager.
Nothing here goes through a proxy, and every request has a bound.
"""

import contextlib
import http.client
import ipaddress
import json
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection
from typing import Any

from dpgmm_beam.errors import ConfigError
from pipelines.bounded import within

# What Beam starts itself, or finds by its own means.
NAMELESS = ("[auto]", "[local]", "[collection]")

ENDED = ("FINISHED", "FAILED", "CANCELED")
_LIVE = ("INITIALIZING", "CREATED", "RUNNING", "RESTARTING", "SUSPENDED", "RECONCILING")
_WAITING, _AT_WORK = ("CREATED", "SCHEDULED"), ("DEPLOYING", "INITIALIZING", "RUNNING")

_REQUEST_SECONDS = 4.0
# For TaskManagers that are about to come.
SLOTS_SECONDS = 10.0
# A JobManager that comes back after so long has forgotten its jobs, or has lost its storage.
SILENCE_SECONDS = 300.0
_POLL_SECONDS = 1.0


def has_address(master: str) -> bool:
    """Whether there is a JobManager to ask: not so for [auto] and [local]."""
    return master.strip() not in NAMELESS


def url(master: str) -> str:
    """The JobManager's address as a URL without a slash at its end."""
    master = master.strip().rstrip("/")
    return master if "://" in master else f"http://{master}"


def page(master: str, job_id: str) -> str:
    """The page of a job in Flink's dashboard."""
    return f"{url(master)}/#/job/{job_id}/overview"


def ask(master: str, path: str, method: str = "GET") -> Any:
    """Flink's answer to one request.

    Raises:
      OSError: there is none within a few seconds, or it is an error (`urllib.error.HTTPError`).
      ValueError: it is not JSON, or the address is none.
    """
    request = urllib.request.Request(f"{url(master)}{path}", method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answer() -> bytes:
        with opener.open(request, timeout=_REQUEST_SECONDS) as response:
            return response.read()

    # The name of a host may take longer to be looked up than any socket's bound.
    try:
        found = within(_REQUEST_SECONDS, answer)
    except http.client.HTTPException as error:
        raise ValueError(str(error) or type(error).__name__) from None
    return json.loads(found) if found else {}


def overview(master: str) -> dict:
    """The cluster's summary: slots-total, slots-available, flink-version and more; {} for [auto] and [local].

    Raises:
      ConfigError: nothing, or not Flink, answers at the address.
    """
    if not has_address(master):
        return {}
    try:
        found = ask(master, "/overview")
        if not isinstance(found, dict) or "slots-total" not in found:
            raise ValueError("that is not Flink")
        return found
    except (OSError, ValueError) as error:
        raise ConfigError(
            "--flink_master",
            master,
            f"be HOST:PORT, the REST address of a Flink JobManager that answers ({_reason(error)})",
        ) from None


def check_slots(master: str, parallelism: int | None, patience: float = SLOTS_SECONDS) -> dict:
    """The cluster's summary, once it has slots for a job.

    A cluster that starts TaskManagers when a job asks for them (Kubernetes,
    YARN) may have none now.

    Args:
      master: the JobManager.
      parallelism: what the user asked for; None to take what is there.
      patience: how many seconds a cluster without slots is waited for.

    Raises:
      ConfigError: no answer, no slots, or fewer than asked for.
    """
    end = time.monotonic() + patience
    found = overview(master)
    if not found or _makes_slots(master):
        return found
    while not found["slots-total"] and time.monotonic() < end:
        time.sleep(min(_POLL_SECONDS, patience))
        found = overview(master)
    total = found["slots-total"]
    if not total:
        raise ConfigError("--flink_master", master, "be of a cluster with TaskManagers: it has no slot yet")
    if parallelism is not None and parallelism > total:
        raise ConfigError("--parallelism", parallelism, f"be at most {total}, the slots that the cluster has")
    return found


def check_pool(master: str, endpoint: str) -> None:
    """Looks whether a worker pool is there, as far as that can be seen from here.

    On loopback it is each TaskManager's own, and looked for only where all of
    them run on this very host.

    Args:
      master: the JobManager.
      endpoint: HOST:PORT of the pool, as TaskManagers see it.

    Raises:
      ConfigError: nothing listens there, or the host is unknown.
    """
    if is_loopback(endpoint) and not _all_here(master):
        return
    check_listens("--environment_config", endpoint, "be HOST:PORT of a worker pool that runs")


def check_listens(option: str, endpoint: str, allowed: str) -> None:
    """Refuses an endpoint whose host is unknown, or where a connection is refused at once.

    Raises:
      ConfigError: with the option's name, the endpoint and what is allowed.
    """
    try:
        host, port = split(endpoint)
        within(_REQUEST_SECONDS, lambda: socket.create_connection((host, port), _REQUEST_SECONDS).close())
    except (ConnectionRefusedError, socket.gaierror, ValueError) as error:
        raise ConfigError(option, endpoint, f"{allowed} ({_reason(error)})") from None
    except OSError:
        # A firewall may let others through.
        return


def split(endpoint: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT, brackets of IPv6 taken off.

    Raises:
      ValueError: it is not of that form.
    """
    host, _, port = endpoint.rpartition(":")
    if not host:
        raise ValueError("not HOST:PORT")
    return host.strip("[]"), int(port)


def is_loopback(endpoint: str) -> bool:
    """Whether HOST:PORT, or a URL, is of the machine on which it is read."""
    host = urllib.parse.urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def live_jobs(master: str, name: str) -> list[str]:
    """Ids of the jobs of this name that have not ended, the newest first.

    Raises:
      OSError, ValueError: Flink does not answer.
    """
    jobs = ask(master, "/jobs/overview").get("jobs", [])
    found = [job for job in jobs if job.get("name") == name and job.get("state") in _LIVE]
    return [job["jid"] for job in sorted(found, key=lambda job: -job.get("start-time", 0))]


def find_running(master: str, name: str, besides: Collection[str] = ()) -> str | None:
    """The id of the newest job of this name that has not ended.

    Args:
      master: the JobManager.
      name: the job's whole name.
      besides: ids that are not meant.

    Returns:
      None where there is none, or Flink does not answer.
    """
    with contextlib.suppress(OSError, ValueError):
        return next((job for job in live_jobs(master, name) if job not in besides), None)
    return None


def wait(master: str, job_id: str, each_time: Callable[[], None] = lambda: None) -> None:
    """Waits until a job is finished.

    Args:
      master: the JobManager.
      job_id: Flink's own id.
      each_time: called about once a second.

    Raises:
      RuntimeError: it failed or was cancelled, Flink does not know it any more,
        or has not answered for minutes.
    """
    heard = time.monotonic()
    while True:
        try:
            state = ask(master, f"/jobs/{job_id}")["state"]
            heard = time.monotonic()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise RuntimeError(f"Flink at {master} has forgotten job {job_id}") from None
            state = ""
        except (OSError, ValueError, KeyError, TypeError):
            state = ""
        if state == "FINISHED":
            return
        if state in ENDED:
            raise RuntimeError(f"Flink's job {job_id} ended as {state}: {page(master, job_id)}")
        if time.monotonic() - heard > SILENCE_SECONDS:
            raise RuntimeError(f"Flink at {master} has not answered for {SILENCE_SECONDS:g} seconds")
        each_time()
        time.sleep(_POLL_SECONDS)


def cancel(master: str, job_id: str, seconds: float) -> bool:
    """Cancels a job and waits for its end.

    Returns:
      Whether it has ended, one way or another, within so many seconds.
    """
    end = time.monotonic() + seconds
    asked = False
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if ask(master, f"/jobs/{job_id}")["state"] in ENDED:
                return True
            if not asked:
                ask(master, f"/jobs/{job_id}?mode=cancel", "PATCH")
                asked = True
                continue
        time.sleep(min(_POLL_SECONDS, max(0.0, end - time.monotonic())))
    return False


def lacks_slots(master: str, job_id: str) -> bool:
    """Whether nothing of a job is at work and fewer slots are free than it needs; False without an answer."""
    try:
        vertices = ask(master, f"/jobs/{job_id}")["vertices"]
        free = ask(master, "/overview")["slots-available"]
        states = [vertex["status"] for vertex in vertices]
        needed = max(vertex["parallelism"] for vertex in vertices)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    waits = any(state in _WAITING for state in states) and not any(state in _AT_WORK for state in states)
    return waits and free < needed


def _makes_slots(master: str) -> bool:
    """Whether the cluster starts TaskManagers itself when a job needs them."""
    try:
        settings = {each["key"]: each["value"] for each in ask(master, "/jobmanager/config")}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    target = settings.get("execution.target", "")
    return "kubernetes.cluster-id" in settings or target.startswith(("kubernetes", "yarn"))


def _all_here(master: str) -> bool:
    """Whether all TaskManagers run on this host: their own addresses are this host's, and answer."""
    try:
        managers = ask(master, "/taskmanagers")["taskmanagers"]
        addresses = [re.search(r"@([^@/]+:\d+)/", manager["path"]) for manager in managers]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if not addresses or not all(addresses):
        return False
    return all(_is_here(*split(address[1])) for address in addresses if address)


def _is_here(host: str, port: int) -> bool:
    def listens() -> None:
        # Only an address of this host can be bound.
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(address)
        socket.create_connection((host, port), 1).close()

    try:
        within(_REQUEST_SECONDS, listens)
    except OSError:
        return False
    return True


def _reason(error: BaseException) -> str:
    """What was wrong, in a few words."""
    inner = getattr(error, "reason", None)
    error = inner if isinstance(inner, BaseException) else error
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]
