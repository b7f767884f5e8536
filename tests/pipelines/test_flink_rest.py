"""What is asked of Flink, over real HTTP; the cluster is a dashboard of the tests' own."""

import contextlib
import re
import socket
import threading

import pytest

from dpgmm_beam.errors import ConfigError
from pipelines import flink
from tests.pipelines.dashboard import Cluster, served


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(flink, "_POLL_SECONDS", 0.02)


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def master(cluster):
    with served(cluster) as address:
        yield address


@contextlib.contextmanager
def listening(host="127.0.0.1"):
    """HOST:PORT where somebody listens."""
    with socket.socket() as server:
        server.bind((host, 0))
        server.listen()
        yield f"{host}:{server.getsockname()[1]}"


@pytest.fixture
def nobody():
    """HOST:PORT where nobody listens."""
    with listening() as endpoint:
        pass
    return endpoint


def test_addresses(cluster, master):
    for address in (master, f"http://{master}", f"http://{master}/", f" {master}"):
        assert flink.overview(address) == cluster.overview
        assert flink.page(address, "7") == f"http://{master}/#/job/7/overview"


@pytest.mark.parametrize("master", ["[auto]", "[local]"])
def test_a_flink_of_its_own_is_not_asked(master, monkeypatch):
    monkeypatch.setattr(flink, "ask", lambda *_: pytest.fail("asked"))
    assert flink.overview(master) == {}
    assert flink.check_slots(master, 9) == {}


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, b"{}", "Internal Server Error"),
        (200, b"<html>no", "Expecting value"),
        (200, b"\xff", "decode"),
        (200, b"[]", "that is not Flink"),
        (200, b'{"a": 1}', "that is not Flink"),
    ],
)
def test_what_is_not_flink_is_refused(cluster, master, status, body, reason):
    cluster.status, cluster.body = status, body
    with pytest.raises(ConfigError) as refused:
        flink.overview(master)
    assert str(refused.value).startswith(f"--flink_master={master} is refused: it must be HOST:PORT, ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("wrong", ["none.invalid:8081", "http://", "local host:1", "localhost:port"])
def test_an_address_of_nothing(wrong):
    with pytest.raises(ConfigError, match=re.escape(f"--flink_master={wrong} is refused")):
        flink.overview(wrong)


def test_nobody_listens(nobody):
    with pytest.raises(ConfigError, match=rf"--flink_master={nobody} is refused: .*\(Connection refused\)"):
        flink.check_slots(nobody, None)


def test_one_that_never_answers(monkeypatch):
    monkeypatch.setattr(flink, "_REQUEST_SECONDS", 0.2)
    with listening() as endpoint, pytest.raises(ConfigError, match=f"--flink_master={endpoint} is refused"):
        flink.overview(endpoint)


def test_no_proxy_is_asked(cluster, master, nobody, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://{nobody}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert flink.overview(master) == cluster.overview


def test_slots_that_are_there(cluster, master):
    assert flink.check_slots(master, None) == cluster.overview
    assert flink.check_slots(master, 8) == cluster.overview
    with pytest.raises(ConfigError, match="--parallelism=9 is refused: it must be at most 8, the slots"):
        flink.check_slots(master, 9)


def test_task_managers_that_are_about_to_come(cluster, master):
    cluster.overview["slots-total"] = 0
    come = threading.Timer(0.3, cluster.overview.update, [{"slots-total": 2}])
    come.start()
    assert flink.check_slots(master, 2, patience=60)["slots-total"] == 2
    come.join()


def test_task_managers_that_never_come(cluster, master):
    cluster.overview["slots-total"] = 0
    with pytest.raises(ConfigError, match=f"--flink_master={master} is refused: .* it has no slot yet"):
        flink.check_slots(master, None, patience=0.1)


@pytest.mark.parametrize("settings", [{"kubernetes.cluster-id": "x"}, {"execution.target": "yarn-session"}])
def test_a_cluster_that_makes_its_slots(cluster, master, settings):
    cluster.overview["slots-total"] = 0
    cluster.settings = settings
    assert flink.check_slots(master, 4) == cluster.overview


def test_a_pool_on_another_host(master, nobody):
    """None of the addresses is one of this machine's loopback."""
    with pytest.raises(ConfigError, match=r"--environment_config=pool\.invalid:50000 is refused"):
        flink.check_pool(master, "pool.invalid:50000")
    with pytest.raises(ConfigError, match="--environment_config=pool:x is refused"):
        flink.check_pool(master, "pool:x")


@pytest.mark.parametrize(
    ("managers", "refused"),
    [
        (["pekko.tcp://flink@{here}/user/rpc/taskmanager_0"], True),
        (["akka.tcp://flink@{here}/user/rpc/taskmanager_0"] * 2, True),
        # Behind a forwarded port or in a container: its own loopback is another.
        (["pekko.tcp://flink@{nobody}/user/rpc/taskmanager_0"], False),
        (["pekko.tcp://flink@{here}/user/x", "pekko.tcp://flink@192.0.2.7:99/user/x"], False),
        (["pekko.tcp://flink@none.invalid:99/user/x"], False),
        (["something else"], False),
        ([], False),
    ],
)
def test_a_pool_on_loopback_is_each_task_managers_own(cluster, master, nobody, managers, refused):
    with listening() as here:
        cluster.managers = [path.format(here=here, nobody=nobody) for path in managers]
        with listening() as pool:
            flink.check_pool(master, pool)
        port = pool.rpartition(":")[2]
        for missing in (pool, f"localhost:{port}"):
            with contextlib.ExitStack() as stack:
                if refused:
                    stack.enter_context(
                        pytest.raises(ConfigError, match=f"--environment_config={missing} is refused")
                    )
                flink.check_pool(master, missing)


@pytest.mark.parametrize(
    ("endpoint", "loopback"),
    [
        ("localhost:1", True),
        ("127.0.0.9:1", True),
        ("[::1]:1", True),
        ("http://localhost:1/", True),
        ("10.0.0.1:1", False),
        ("localhosts:1", False),
        ("", False),
    ],
)
def test_loopback(endpoint, loopback):
    assert flink.is_loopback(endpoint) is loopback


def test_a_job_is_found_by_its_name(cluster, master):
    cluster.job("a", "mine", "FINISHED", start=9)
    cluster.job("b", "other", "RUNNING")
    assert flink.find_running(master, "mine") is None
    cluster.job("c", "mine", "RESTARTING", start=1)
    cluster.job("d", "mine", "CREATED", start=2)
    assert flink.find_running(master, "mine") == "d"
    assert flink.find_running(master, "mine", besides=["d"]) == "c"
    assert flink.live_jobs(master, "mine") == ["d", "c"]


def test_a_flink_that_is_gone_has_no_jobs(nobody):
    assert flink.find_running(nobody, "mine") is None
    assert not flink.lacks_slots(nobody, "a")
    assert not flink.cancel(nobody, "a", 0.1)


def test_waiting_for_a_job(cluster, master):
    cluster.job("a", "mine")
    looks = []

    def look():
        looks.append(1)
        if len(looks) == 3:
            cluster.job("a", "mine", "FINISHED")

    flink.wait(master, "a", look)
    assert len(looks) == 3


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_job_that_does_not_finish(cluster, master, state):
    cluster.job("a", "mine", state)
    with pytest.raises(RuntimeError, match=f"job a ended as {state}: http://{master}/#/job/a/overview"):
        flink.wait(master, "a")


def test_a_job_that_is_forgotten(master):
    with pytest.raises(RuntimeError, match="has forgotten job a"):
        flink.wait(master, "a")


def test_a_flink_that_falls_silent_is_not_waited_for_for_ever(cluster, master, monkeypatch):
    monkeypatch.setattr(flink, "SILENCE_SECONDS", 0.2)
    cluster.job("a", "mine")
    cluster.status = 500
    with pytest.raises(RuntimeError, match="has not answered"):
        flink.wait(master, "a")


def test_a_flink_that_stumbles_is_waited_for(cluster, master):
    cluster.job("a", "mine")
    cluster.body = b"<html>busy"

    def look():
        cluster.body = None
        cluster.job("a", "mine", "FINISHED")

    flink.wait(master, "a", look)


def test_cancelling(cluster, master):
    cluster.job("a", "mine")
    assert flink.cancel(master, "a", 60)
    assert cluster.cancelled == ["a"]
    # It has ended by itself.
    assert flink.cancel(master, "a", 60)
    assert cluster.cancelled == ["a"]
    cluster.job("b", "mine")
    cluster.on_cancel = "CANCELLING"
    assert not flink.cancel(master, "b", 0.2)
    assert cluster.cancelled == ["a", "b"]


@pytest.mark.parametrize(
    ("vertices", "free", "lacks"),
    [
        ([("SCHEDULED", 4), ("CREATED", 4)], 2, True),
        ([("SCHEDULED", 4), ("CREATED", 1)], 3, True),
        # In the middle of a job, after a TaskManager was lost.
        ([("FINISHED", 4), ("SCHEDULED", 4)], 0, True),
        ([("SCHEDULED", 4), ("CREATED", 4)], 4, False),
        ([("RUNNING", 4), ("CREATED", 4)], 0, False),
        ([("DEPLOYING", 4), ("CREATED", 4)], 0, False),
        ([("FINISHED", 4)], 0, False),
        ([], 0, False),
    ],
)
def test_a_job_without_slots(cluster, master, vertices, free, lacks):
    cluster.job("a", "mine", vertices=vertices)
    cluster.overview["slots-available"] = free
    assert flink.lacks_slots(master, "a") is lacks
