"""deploy/ against published schemas, the command's own options, and itself.

No image is built and no cluster is asked here: these find what would be wrong
before either is.
"""

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import environments

from dpgmm_beam.errors import ConfigError
from pipelines import cli, release

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = sorted((DEPLOY / "flink/kubernetes").glob("*.yaml"))
# The oldest release that the manifests are meant for, and a recent one.
KUBERNETES_VERSIONS = ("1.30", "1.35")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def objects():
    return [
        (path.name, document)
        for path in KUBERNETES
        for document in yaml.safe_load_all(path.read_text())
        if document
    ]


def kind(wanted, name):
    return next(o for _, o in objects() if o["kind"] == wanted and o["metadata"]["name"] == name)


def containers(deployment):
    return {c["name"]: c for c in deployment["spec"]["template"]["spec"]["containers"]}


@pytest.fixture(scope="module")
def flink():
    return yaml.safe_load((DEPLOY / "flink/conf/config.yaml").read_text())


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DEPLOY / "flink/compose.yaml").read_text())


# --- Published schemas ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize(
    ("name", "document"), objects(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_kubernetes_objects_fit_the_published_schema(name, document, version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install .[test]")
    kubernetes_validate.validate(document, version, strict=True)


def test_compose_file_fits_the_compose_specification(compose):
    check_jsonschema = pytest.importorskip("check_jsonschema", reason="pip install .[test]")
    import jsonschema

    schema = Path(check_jsonschema.__file__).parent / "builtin_schemas/vendor/compose-spec.json"
    jsonschema.validate(compose, json.loads(schema.read_text()))


def test_kustomization_names_every_file_and_nothing_else():
    kustomization = yaml.safe_load((DEPLOY / "flink/kustomization.yaml").read_text())
    named = {DEPLOY / "flink" / name for name in kustomization["resources"]}
    assert named == set(KUBERNETES)
    for generator in kustomization["configMapGenerator"]:
        for name in generator.get("files", []) + generator.get("envs", []):
            assert (DEPLOY / "flink" / name).is_file()
    used = {c["image"] for _, o in objects() for c in pods(o)} - {"flink:1.20-scala_2.12-java11"}
    assert used == {image["name"] for image in kustomization["images"]}


def pods(document):
    spec = document.get("spec", {})
    for step in ("jobTemplate", "spec", "template", "spec"):
        spec = spec.get(step, spec) if isinstance(spec, dict) else {}
    return spec.get("containers", [])


# --- The command's options -----------------------------------------------------------------------


def driver_options(compose):
    job = kind("CronJob", "dpgmm-release")["spec"]["jobTemplate"]
    return {"cronjob": containers(job)["driver"]["args"], "compose": compose["services"]["driver"]["command"]}


@pytest.mark.parametrize("where", ["cronjob", "compose"])
def test_drivers_pass_options_that_beam_has(compose, where):
    """An option of another Beam version is refused here, not at three in the morning."""
    options = cli.beam_pipeline_options(driver_options(compose)[where]).get_all_options()
    assert options["runner"] == "FlinkRunner"
    assert options["flink_version"] == "1.20"
    assert int(options["environment_cache_millis"]) >= 60_000
    assert options["environment_type"] == "EXTERNAL"
    pool = kind("Deployment", "flink-taskmanager")
    ports = [port["containerPort"] for port in containers(pool)["worker-pool"]["ports"]]
    assert options["environment_config"] == f"localhost:{ports[0]}"


def test_parallelism_is_all_slots(compose, flink):
    slots = flink["taskmanager.numberOfTaskSlots"]
    replicas = {
        "cronjob": kind("Deployment", "flink-taskmanager")["spec"]["replicas"],
        "compose": sum(name.startswith("taskmanager") for name in compose["services"]),
    }
    for where, arguments in driver_options(compose).items():
        assert f"--parallelism={replicas[where] * slots}" in arguments


def test_nothing_is_staged_for_workers_elsewhere(compose):
    """TaskManagers can't read files staged on the driver's disk, so there must be none."""
    for arguments in driver_options(compose).values():
        assert not environments.python_sdk_dependencies(PipelineOptions(arguments))


def test_template_metadata_is_the_commands_options():
    module = load(DEPLOY / "dataflow/metadata.py")
    written = json.loads((DEPLOY / "dataflow/metadata.json").read_text())
    assert written == module.metadata(), (
        "run: python deploy/dataflow/metadata.py > deploy/dataflow/metadata.json"
    )
    parameters = {parameter["name"].replace("_", "-"): parameter for parameter in written["parameters"]}
    actions = {a.option_strings[0][2:]: a for a in release.parser()._actions if a.dest != "help"}
    assert parameters.keys() == actions.keys()
    for name, action in actions.items():
        assert parameters[name]["isOptional"] is not action.required
        assert parameters[name]["helpText"]


def test_template_metadata_regexes_take_what_the_command_takes():
    parameters = {
        p["name"]: p for p in json.loads((DEPLOY / "dataflow/metadata.json").read_text())["parameters"]
    }
    examples = json.loads((DEPLOY / "dataflow/launch.json").read_text())["launchParameter"]["parameters"]
    examples |= {"overwrite": "true", "rounds": "8", "delta": "1e-5", "clip_norm": "2.5"}
    for name, value in examples.items():
        for regex in parameters[name].get("regexes", []):
            assert re.fullmatch(regex, value), (name, value)
    assert not re.fullmatch(parameters["epsilon"]["regexes"][0], "-1")


# --- The template's launcher ---------------------------------------------------------------------

LAUNCHED = (
    "--input=gs://b/in/*.parquet",
    "--output=gs://b/out/{release_id}",
    "--encoder=precomputed",
    "--classes=a,b",
    "--epsilon=1",
    "--delta=1e-5",
    "--private_dir=gs://p/state",
    "--noise_key_file=gs://p/noise.key",
    "--release_id=monthly-{date}",
    "--runner=DataflowRunner",
    "--template_location=gs://b/staging/template_launches/1/job_object",
)


def translate(*more, environ=None):
    launch = load(DEPLOY / "dataflow/launch.py")
    return launch.arguments_for_release([*LAUNCHED, *more], environ or {}, today="2026-11-01")


def test_launcher_translates_to_the_commands_options():
    arguments = translate("--samples_per_class=100", "--overwrite=true", environ={"DPGMM_IMAGE": "r/dpgmm:1"})
    known, beam = release.parser().parse_known_args(arguments)
    assert known.release_id == "monthly-2026-11-01"
    assert known.output == "gs://b/out/monthly-2026-11-01"
    assert known.noise_key_file == "gs://p/noise.key"
    assert (known.samples_per_class, known.overwrite) == (100, True)
    assert sorted(argument.partition("=")[0] for argument in beam) == [
        "--runner",
        "--sdk_container_image",
        "--template_location",
    ]


@pytest.mark.parametrize("value", ["false", ""])
def test_launcher_leaves_flags_out(value):
    assert not [
        a for a in translate(f"--overwrite={value}", "--clip_norm=") if "overwrite" in a or "clip" in a
    ]


def test_launcher_keeps_the_users_image():
    arguments = translate("--sdk_container_image=mine", environ={"DPGMM_IMAGE": "r/dpgmm:1"})
    assert [a for a in arguments if "image" in a] == ["--sdk_container_image=mine"]


@pytest.mark.parametrize(
    ("replaced", "by", "named"),
    [
        ("--noise_key_file=gs://p/noise.key", "--noise_key_file=", "--noise-key-file"),
        ("--release_id=monthly-{date}", "--release_id=", "--release-id"),
        ("--private_dir=gs://p/state", "--private_dir=/tmp/state", "--private-dir"),
        ("--output=gs://b/out/{release_id}", "--output=/tmp/out", "--output"),
    ],
)
def test_launcher_refuses_what_cannot_work(replaced, by, named):
    launch = load(DEPLOY / "dataflow/launch.py")
    with pytest.raises(ConfigError, match=named):
        launch.arguments_for_release([by if a == replaced else a for a in LAUNCHED], {})


# --- Flink's settings ----------------------------------------------------------------------------

UNITS = {"m": 1, "Mi": 1, "g": 1024, "Gi": 1024}


def mebibytes(text):
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", str(text)).groups()
    return int(number) * UNITS[unit]


def test_flink_settings_of_the_measurements(flink):
    assert mebibytes(flink["taskmanager.memory.task.off-heap.size"]) >= 768
    assert flink["taskmanager.network.sort-shuffle.min-buffers"] <= 64
    assert flink["restart-strategy.type"] == "fixed-delay"
    assert not any("savepoint" in key or key.endswith("checkpointing.interval") for key in flink)


def test_taskmanager_memory_adds_up(flink):
    """Flink refuses to start when the parts leave nothing for the heap."""
    process = mebibytes(flink["taskmanager.memory.process.size"])
    overhead = min(max(0.1 * process, 192), 1024)
    total = process - 256 - overhead  # metaspace
    heap = (
        total
        - 2 * 128  # the framework's heap and off-heap
        - mebibytes(flink["taskmanager.memory.task.off-heap.size"])
        - mebibytes(flink["taskmanager.memory.network.max"])
        - flink["taskmanager.memory.managed.fraction"] * total
    )
    assert heap >= 512


def test_limits_are_the_sizes_that_flink_was_told(flink, compose):
    taskmanager = mebibytes(flink["taskmanager.memory.process.size"])
    jobmanager = mebibytes(flink["jobmanager.memory.process.size"])
    limits = containers(kind("Deployment", "flink-taskmanager"))["taskmanager"]["resources"]["limits"]
    assert mebibytes(limits["memory"]) == taskmanager
    limits = containers(kind("Deployment", "flink-jobmanager"))["jobmanager"]["resources"]["limits"]
    assert mebibytes(limits["memory"]) == jobmanager
    assert mebibytes(compose["services"]["taskmanager-1"]["mem_limit"]) == taskmanager
    assert mebibytes(compose["services"]["flink-jobmanager"]["mem_limit"]) == jobmanager


def test_worker_pools_share_their_taskmanagers_network(compose):
    pods_containers = containers(kind("Deployment", "flink-taskmanager"))
    assert pods_containers["worker-pool"]["args"] == ["--worker_pool"]
    taskmanagers = {name for name in compose["services"] if name.startswith("taskmanager")}
    pools = [s for name, s in compose["services"].items() if name.startswith("pool")]
    assert {pool["network_mode"] for pool in pools} == {f"service:{name}" for name in taskmanagers}


def test_settings_that_the_documentation_names_are_set(flink):
    text = (ROOT / "docs/running.md").read_text()
    named = set(
        re.findall(r"`((?:taskmanager|jobmanager|restart-strategy|parallelism|io|web)\.[a-zA-Z.-]+)", text)
    )
    assert len(named) >= 5
    assert named <= flink.keys()


# --- The key -------------------------------------------------------------------------------------


def test_key_is_mounted_where_it_is_read_and_nowhere_else(compose):
    path = dict(
        line.split("=", 1)
        for line in (DEPLOY / "flink/release.env").read_text().splitlines()
        if line and not line.startswith("#")
    )["DPGMM_NOISE_KEY_FILE"]
    folder = os.path.dirname(path)
    job = kind("CronJob", "dpgmm-release")["spec"]["jobTemplate"]
    mounted = {}
    for deployment in (kind("Deployment", "flink-taskmanager"), kind("Deployment", "flink-jobmanager"), job):
        for name, container in containers(deployment).items():
            mounted[name] = [m for m in container.get("volumeMounts", []) if m["name"] == "noise-key"]
    assert {name for name, mounts in mounted.items() if mounts} == {"worker-pool", "driver"}
    assert all(m["mountPath"] == folder and m["readOnly"] for mounts in mounted.values() for m in mounts)
    for name, service in compose["services"].items():
        targets = [secret["target"] for secret in service.get("secrets", [])]
        assert targets == ([path] if name.startswith("pool") or name == "driver" else [])


def test_no_secret_is_in_the_repository():
    assert not [name for name, document in objects() if document["kind"] == "Secret"]
    assert not list(DEPLOY.rglob("*.key"))


def test_worker_and_driver_are_one_user():
    """The private folder is its owner's only."""
    pool = containers(kind("Deployment", "flink-taskmanager"))["worker-pool"]["securityContext"]
    job = kind("CronJob", "dpgmm-release")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pool["runAsUser"] == job["securityContext"]["runAsUser"] == 10001
    assert "ARG RUN_AS=10001" in (DEPLOY / "Dockerfile").read_text()


# --- The schedule's script -----------------------------------------------------------------------


def scheduled(tmp_path, **environment):
    stub = tmp_path / "bin/dpgmm"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    settings = dict(
        line.split("=", 1)
        for line in (DEPLOY / "flink/release.env").read_text().splitlines()
        if line and not line.startswith("#")
    )
    return subprocess.run(
        [DEPLOY / "schedule/release.sh", "--runner=FlinkRunner"],
        env={
            "PATH": f"{stub.parent}:/usr/bin:/bin",
            **settings,
            "DPGMM_RELEASES": str(tmp_path / "releases"),
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"JOB_NAME": "dpgmm-release-29384820"}, "2025-11-14T0300Z"),
        ({"JOB_NAME": "dpgmm-release-by-hand"}, "dpgmm-release-by-hand"),
        ({"DPGMM_RELEASE_ID": "mine", "JOB_NAME": "dpgmm-release-1"}, "mine"),
    ],
)
def test_schedule_derives_the_release_id(tmp_path, environment, expected):
    arguments = scheduled(tmp_path, **environment)
    assert arguments[0] == "release"
    known, beam = release.parser().parse_known_args(arguments[1:])
    assert known.release_id == expected
    assert known.output == str(tmp_path / "releases" / expected)
    assert known.input == "/data/input/*.parquet"
    assert beam == ["--runner=FlinkRunner"]


def test_schedule_leaves_a_finished_release_alone(tmp_path):
    done = tmp_path / "releases/mine"
    done.mkdir(parents=True)
    (done / "manifest.json").write_text("{}")
    assert scheduled(tmp_path, DPGMM_RELEASE_ID="mine") == [f"{done} holds its release already"]


# --- The image -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image():
    return load(DEPLOY / "check_image_steps.py"), (DEPLOY / "Dockerfile").read_text()


def test_image_copies_what_exists_and_what_the_builder_gets(image):
    steps, text = image
    allowed = [
        line[1:].removesuffix("/**")
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    sources = [source for sources, _ in steps.copies(text) for source in sources]
    assert sorted(sources) == sorted(allowed)
    for source in sources:
        assert (ROOT / source).exists(), source


def test_image_installs_with_the_constraints_and_declares_its_arguments(image):
    steps, text = image
    instructions = steps.instructions(text)
    installs = [rest for word, rest in instructions if word == "RUN" and rest.startswith("pip install")]
    assert installs
    assert all("-c constraints.txt" in rest for rest in installs)
    declared = {rest.partition("=")[0] for word, rest in instructions if word == "ARG"}
    used = set(re.findall(r"\$\{?([A-Z_]+)", text))
    assert used <= declared
    for script in DEPLOY.rglob("*.sh"):
        assert set(re.findall(r"--build-arg (\w+)=", script.read_text())) <= declared


def test_image_runs_beam_of_the_constraints_as_an_ordinary_user(image):
    steps, text = image
    instructions = steps.instructions(text)
    version = re.search(r"^apache-beam==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(1)
    assert ("ARG", f"BEAM_VERSION={version}") in instructions
    assert instructions[-1] == ("ENTRYPOINT", '["/opt/apache/beam/boot"]')
    assert ("USER", "${RUN_AS}") in instructions
    python = {
        re.search(r"3\.\d+|3\d+", rest).group().replace(".", "")
        for word, rest in instructions
        if word == "FROM"
    }
    assert python == {"311"}


def test_image_has_the_paths_that_others_name(image, compose):
    _, text = image
    for arguments in driver_options(compose).values():
        jar = next(a.partition("=")[2] for a in arguments if a.startswith("--flink_job_server_jar"))
        assert jar in text
    command = containers(kind("CronJob", "dpgmm-release")["spec"]["jobTemplate"])["driver"]["command"][0]
    assert f"/usr/local/bin/{command}" in text
