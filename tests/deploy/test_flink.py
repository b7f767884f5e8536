"""The Flink cluster of deploy/flink, on Kubernetes and by compose.

No image is built and no cluster is asked here: these find what would be wrong
before either is.
"""

import http.server
import itertools
import json
import os
import re
import subprocess
import sys
import threading

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import environments

from pipelines.options import beam_pipeline_options
from tests.deploy.manifests import (
    DEPLOY,
    ROOT,
    compose,
    containers,
    driver_arguments,
    flink,
    job,
    kind,
    load,
    mebibytes,
    objects,
    pod_spec,
    pod_template,
    settings,
)

JOBMANAGER, TASKMANAGER = ("Deployment", "flink-jobmanager"), ("Deployment", "flink-taskmanager")


# --- The driver's options ------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["cronjob", "compose"])
def test_drivers_pass_options_that_beam_has(where):
    """An option of another Beam version is refused here, not at three in the morning."""
    options = beam_pipeline_options(driver_arguments(where)).get_all_options()
    assert options["runner"] == "FlinkRunner"
    assert options["flink_version"] == "1.20"
    assert int(options["environment_cache_millis"]) >= 60_000
    assert options["environment_type"] == "EXTERNAL"
    ports = [port["containerPort"] for port in containers(kind(*TASKMANAGER))["worker-pool"]["ports"]]
    assert options["environment_config"] == f"localhost:{ports[0]}"
    assert options["flink_master"] == f"{flink()['rest.address']}:{flink()['rest.port']}"


@pytest.mark.parametrize("where", ["cronjob", "compose"])
def test_the_driver_is_left_to_ask_for_the_slots(where):
    """A number written here would be wrong as soon as `replicas` changes."""
    assert not [argument for argument in driver_arguments(where) if "parallelism" in argument]


@pytest.mark.parametrize("where", ["cronjob", "compose"])
def test_nothing_is_staged_for_workers_elsewhere(where):
    """TaskManagers can't read files staged on the driver's disk, so there must be none."""
    assert not environments.python_sdk_dependencies(PipelineOptions(driver_arguments(where)))


# --- Flink's settings ----------------------------------------------------------------------------


def test_flink_settings_of_the_measurements():
    assert mebibytes(flink()["taskmanager.memory.task.off-heap.size"]) >= 768
    assert flink()["taskmanager.network.sort-shuffle.min-buffers"] <= 64
    assert flink()["restart-strategy.type"] == "fixed-delay"
    assert not any("savepoint" in key or key.endswith("checkpointing.interval") for key in flink())


def test_taskmanager_memory_adds_up():
    """Flink refuses to start when the parts leave nothing for the heap."""
    process = mebibytes(flink()["taskmanager.memory.process.size"])
    overhead = min(max(0.1 * process, 192), 1024)
    total = process - 256 - overhead  # metaspace
    heap = (
        total
        - 2 * 128  # the framework's heap and off-heap
        - mebibytes(flink()["taskmanager.memory.task.off-heap.size"])
        - mebibytes(flink()["taskmanager.memory.network.max"])
        - flink()["taskmanager.memory.managed.fraction"] * total
    )
    assert heap >= 512


def test_limits_are_the_sizes_that_flink_was_told():
    taskmanager = mebibytes(flink()["taskmanager.memory.process.size"])
    jobmanager = mebibytes(flink()["jobmanager.memory.process.size"])
    limits = containers(kind(*TASKMANAGER))["taskmanager"]["resources"]["limits"]
    assert mebibytes(limits["memory"]) == taskmanager
    limits = containers(kind(*JOBMANAGER))["jobmanager"]["resources"]["limits"]
    assert mebibytes(limits["memory"]) == jobmanager
    assert mebibytes(compose()["services"]["taskmanager-1"]["mem_limit"]) == taskmanager
    assert mebibytes(compose()["services"]["flink-jobmanager"]["mem_limit"]) == jobmanager


def test_settings_that_the_documentation_names_are_set():
    text = (ROOT / "docs/running.md").read_text()
    named = set(
        re.findall(
            r"`((?:taskmanager|jobmanager|restart-strategy|parallelism|classloader|io|web)\.[a-zA-Z.-]+)",
            text,
        )
    )
    assert len(named) >= 5
    assert named <= flink().keys()


# --- Beam's classes on Flink's class path --------------------------------------------------------


def test_the_job_server_is_in_the_clusters_lib_and_comes_first():
    steps = load(DEPLOY / "check_image_steps.py")
    instructions = steps.instructions((DEPLOY / "flink/Dockerfile").read_text())
    assert flink()["classloader.resolve-order"] == "parent-first"
    assert [rest for word, rest in instructions if word == "FROM"] == [
        "${DPGMM_IMAGE} AS dpgmm",
        "flink:${FLINK_TAG}",
    ]
    (copied,) = (rest.split() for word, rest in instructions if word == "COPY")
    source, target = copied[-2:]
    assert "--from=dpgmm" in copied
    for where in ("cronjob", "compose"):
        assert f"--flink_job_server_jar={source}" in driver_arguments(where)
    # In the folder itself, after log4j, and not taken for Flink's own.
    folder, name = os.path.split(target)
    assert folder == "/opt/flink/lib"
    assert name.endswith(".jar")
    assert name > "log4j"
    assert not name.startswith("flink-dist")


def test_one_version_of_flink():
    flink_image = (DEPLOY / "flink/Dockerfile").read_text()
    version = re.search(r"ARG FLINK_VERSION=(.+)", (DEPLOY / "Dockerfile").read_text()).group(1)
    assert f"ARG FLINK_TAG={version}-" in flink_image
    for where in ("cronjob", "compose"):
        assert f"--flink_version={version}" in driver_arguments(where)


def test_both_sides_of_the_cluster_run_the_image_with_the_jar():
    assert containers(kind(*JOBMANAGER))["jobmanager"]["image"] == "dpgmm-flink"
    assert containers(kind(*TASKMANAGER))["taskmanager"]["image"] == "dpgmm-flink"
    services = compose()["services"]
    java = {name: s for name, s in services.items() if name.startswith(("flink-", "taskmanager-"))}
    assert len(java) == 3
    for service in java.values():
        assert service["image"] == "${DPGMM_FLINK_IMAGE:-dpgmm-flink:0.1.0}"
        assert service["build"]["args"]["DPGMM_IMAGE"] == services["driver"]["image"]
        assert (DEPLOY / "flink" / service["build"]["context"] / "Dockerfile").is_file()
    # Nothing is mounted over lib/, which would hide Flink itself.
    for deployment in (JOBMANAGER, TASKMANAGER):
        for container in containers(kind(*deployment)).values():
            assert not [m for m in container["volumeMounts"] if m["mountPath"].startswith("/opt/flink")]


def test_every_taskmanager_has_a_worker_pool_of_its_own():
    pods = containers(kind(*TASKMANAGER))
    assert pods["worker-pool"]["args"] == ["--worker_pool"]
    services = compose()["services"]
    taskmanagers = [name for name in services if name.startswith("taskmanager")]
    pools = [s["network_mode"] for s in services.values() if s.get("command") == ["--worker_pool"]]
    assert len(taskmanagers) > 1
    assert sorted(pools) == sorted(f"service:{name}" for name in taskmanagers)


# --- Who reaches what ----------------------------------------------------------------------------

COMPONENTS = {
    pod_template(o)["metadata"]["labels"]["app.kubernetes.io/component"]
    for _, o in objects()
    if pod_template(o)
}


def selects(selector, component):
    labels = {"app.kubernetes.io/component": component} if component else {}
    return selector.get("matchLabels", {}).items() <= labels.items()


def admitted(source, target, port):
    """Whether the network policies let a pod of one component reach a port of another's.

    None is a pod without labels, such as one that somebody else starts in the namespace.
    """
    policies = [
        o["spec"]
        for _, o in objects()
        if o["kind"] == "NetworkPolicy" and selects(o["spec"]["podSelector"], target)
    ]
    assert policies, f"no policy selects {target}, so everybody may reach it"
    return any(
        any(selects(peer["podSelector"], source) for peer in rule["from"])
        and any(each["port"] == port for each in rule["ports"])
        for policy in policies
        for rule in policy.get("ingress", [])
    )


def test_policies_open_what_the_cluster_needs_and_nothing_else():
    needed = {
        ("taskmanager", "jobmanager", flink()["jobmanager.rpc.port"]),
        ("taskmanager", "jobmanager", flink()["blob.server.port"]),
        ("driver", "jobmanager", flink()["rest.port"]),
        ("jobmanager", "taskmanager", flink()["taskmanager.rpc.port"]),
        ("jobmanager", "taskmanager", flink()["metrics.internal.query-service.port"]),
        ("taskmanager", "taskmanager", flink()["taskmanager.data.port"]),
    }
    # The pool's port, and two that Beam may be given.
    ports = {port for _, _, port in needed} | {50000, 41234, 8099}
    pods = [None, *sorted(COMPONENTS)]
    assert len(pods) == 4
    assert {each for each in itertools.product(pods, pods, ports) if admitted(*each)} == needed


def test_every_pod_port_is_one_that_flink_was_told_or_the_pools():
    told = {value for key, value in flink().items() if key.endswith(".port")} | {50000}
    for _, document in objects():
        for container in containers(document).values():
            assert {each["containerPort"] for each in container.get("ports", [])} <= told


def test_the_compose_network_is_internal_and_only_the_page_is_published_here():
    services, networks = compose()["services"], compose()["networks"]
    inside = {name for name, network in networks.items() if network.get("internal")}
    published = {name: s["ports"] for name, s in services.items() if "ports" in s}
    assert published == {"flink-jobmanager": ["127.0.0.1:8081:8081"]}
    for name, service in services.items():
        if "network_mode" not in service and name != "flink-jobmanager":
            assert service["networks"]
            assert set(service["networks"]) <= inside


# --- The key, the users, the volumes -------------------------------------------------------------


def test_key_is_mounted_where_it_is_read_and_nowhere_else():
    path = settings()["DPGMM_NOISE_KEY_FILE"]
    folder = os.path.dirname(path)
    mounted = {}
    for name, document in objects():
        spec = pod_spec(document)
        for container in spec.get("containers", []) + spec.get("initContainers", []):
            mounts = [m for m in container.get("volumeMounts", []) if m["name"] == "noise-key"]
            mounted[name, container["name"]] = mounts
    assert {name for (_, name), mounts in mounted.items() if mounts} == {"worker-pool", "driver"}
    assert all(m["mountPath"] == folder and m["readOnly"] for mounts in mounted.values() for m in mounts)
    for name, service in compose()["services"].items():
        targets = [secret["target"] for secret in service.get("secrets", [])]
        assert targets == ([path] if name.startswith("pool") or name == "driver" else [])


def test_no_secret_is_in_the_repository():
    assert not [name for name, document in objects() if document["kind"] == "Secret"]
    assert not list(DEPLOY.rglob("*.key"))


def test_worker_and_driver_are_one_user():
    """The private folder is its owner's only."""
    pool = containers(kind(*TASKMANAGER))["worker-pool"]["securityContext"]
    assert pool["runAsUser"] == job()["template"]["spec"]["securityContext"]["runAsUser"] == 10001
    assert pod_spec(kind("Pod", "fill"))["securityContext"]["runAsUser"] == 10001
    assert "ARG RUN_AS=10001" in (DEPLOY / "Dockerfile").read_text()


def test_volumes_can_be_written_by_who_fills_them_and_are_shared():
    claims = {o["metadata"]["name"]: o for _, o in objects() if o["kind"] == "PersistentVolumeClaim"}
    assert {tuple(claim["spec"]["accessModes"]) for claim in claims.values()} == {("ReadWriteMany",)}
    used = {}
    for _, document in objects():
        for volume in pod_spec(document).get("volumes", []):
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]
                used.setdefault(claim["claimName"], []).append(claim.get("readOnly", False))
    assert used.keys() == claims.keys()
    # The one-off pod writes it, workers and driver do not.
    assert sorted(used["dpgmm-data"]) == [False, True, True]
    assert settings()["DPGMM_INPUT"].startswith("/data/input/")


# --- The CronJob ---------------------------------------------------------------------------------


def test_a_refused_configuration_is_not_tried_again_and_a_hung_job_ends():
    assert kind("CronJob", "dpgmm-release")["spec"]["concurrencyPolicy"] == "Forbid"
    assert job()["activeDeadlineSeconds"] > 3600
    fails, ignores = job()["podFailurePolicy"]["rules"]
    assert fails == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "driver", "operator": "In", "values": [2, 3]},
    }
    assert ignores["action"] == "Ignore"
    # The API takes a podFailurePolicy with this policy only.
    assert job()["template"]["spec"]["restartPolicy"] == "Never"


def test_the_schedule_knows_its_own_name():
    environment = {e["name"]: e for e in containers(kind("CronJob", "dpgmm-release"))["driver"]["env"]}
    assert environment["DPGMM_CRONJOB"]["value"] == "dpgmm-release"
    assert (
        environment["JOB_NAME"]["valueFrom"]["fieldRef"]["fieldPath"]
        == "metadata.labels['batch.kubernetes.io/job-name']"
    )


@pytest.mark.parametrize(("answers", "status"), [([b"no json", 0, 4], 0), ([0], 1)])
def test_the_job_waits_for_the_cluster(answers, status):
    """Else a cluster that is just starting is a refused configuration, which ends the Job."""
    (waiter,) = job()["template"]["spec"]["initContainers"]
    python, flag, code, url = waiter["command"]
    assert (python, flag) == ("python", "-c")
    assert url == f"http://{flink()['rest.address']}:{flink()['rest.port']}/overview"
    assert code.count("time.sleep(5)") == 1
    asked = []

    class Overview(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers[min(len(asked), len(answers) - 1)]
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(
                answer if isinstance(answer, bytes) else json.dumps({"slots-total": answer}).encode()
            )

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Overview) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                code.replace("time.sleep(5)", "time.sleep(0)"),
                f"http://127.0.0.1:{server.server_port}/overview",
            ],
            env={"no_proxy": "127.0.0.1"},
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    assert done.returncode == status, done.stderr
    assert len(asked) >= len(answers)
    assert set(asked) == {"/overview"}
