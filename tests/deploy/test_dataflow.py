"""deploy/dataflow: the template's metadata, its launcher, and the scripts with a gcloud that only listens."""

import json
import os
import re
import subprocess

import pytest

from dpgmm_beam import __version__
from dpgmm_beam.errors import ConfigError
from pipelines import release
from pipelines.options import beam_pipeline_options
from tests.deploy.manifests import DEPLOY, ROOT, load

# --- The metadata --------------------------------------------------------------------------------

NEVER = {"--help", "--version", "--config", "--json", "--quiet"}


def test_template_metadata_is_the_commands_options():
    module = load(DEPLOY / "dataflow/metadata.py")
    written = json.loads((DEPLOY / "dataflow/metadata.json").read_text())
    assert written == module.metadata(), (
        "run: python deploy/dataflow/metadata.py > deploy/dataflow/metadata.json"
    )
    parameters = {parameter["name"].replace("_", "-"): parameter for parameter in written["parameters"]}
    options = release.parser().options()
    actions = {name.removeprefix("--"): action for name, action in options.items() if name not in NEVER}
    assert parameters.keys() == actions.keys()
    for name, action in actions.items():
        assert parameters[name]["isOptional"] is not action.required
        assert parameters[name]["helpText"]
    assert "comma-separated" in parameters["share"]["helpText"]


def test_template_metadata_regexes_take_what_the_command_takes():
    parameters = {
        p["name"]: p for p in json.loads((DEPLOY / "dataflow/metadata.json").read_text())["parameters"]
    }
    examples = json.loads((DEPLOY / "dataflow/launch.json").read_text())["launchParameter"]["parameters"]
    examples |= {"overwrite": "true", "rounds": "8", "delta": "1e-5", "clip_norm": "2.5"}
    examples |= {"share": "means/count=.02,means/sum=.1"}
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
    "--release_id=monthly-{month}",
    "--runner=DataflowRunner",
    "--template_location=gs://b/staging/template_launches/1/job_object",
)


def translate(*more, environ=None, today="2026-11-01"):
    launch = load(DEPLOY / "dataflow/launch.py")
    return launch.arguments_for_release([*LAUNCHED, *more], environ or {}, today=today)


def test_launcher_translates_to_the_commands_options():
    arguments = translate("--samples_per_class=100", "--overwrite=true", environ={"DPGMM_IMAGE": "r/dpgmm:1"})
    known, beam = release.parser().parse_known_args(arguments)
    assert known.release_id == "monthly-2026-11"
    assert known.output == "gs://b/out/monthly-2026-11"
    assert known.noise_key_file == "gs://p/noise.key"
    assert (known.samples_per_class, known.overwrite) == (100, True)
    assert sorted(argument.partition("=")[0] for argument in beam) == [
        "--autoscaling_algorithm",
        "--runner",
        "--sdk_container_image",
        "--template_location",
    ]


def test_the_next_day_is_the_same_release():
    assert translate(today="2026-11-01") == translate(today="2026-11-30")
    assert translate(today="2026-11-30") != translate(today="2026-12-01")
    assert "--release-id=d-2026-11-30" in translate("--release_id=d-{date}", today="2026-11-30")


def test_launcher_splits_shares():
    known, _ = release.parser().parse_known_args(translate("--share=means/count=.02, means/sum=.1,"))
    assert known.share == ["means/count=.02", "means/sum=.1"]
    assert not [argument for argument in translate("--share=") if "share" in argument]


@pytest.mark.parametrize(
    ("given", "algorithm"),
    [
        ((), "NONE"),
        (("--autoscaling_algorithm=NONE",), "NONE"),
        (("--autoscalingAlgorithm=AUTOSCALING_ALGORITHM_NONE",), "NONE"),
        (("--autoscaling_algorithm=AUTOSCALING_ALGORITHM_BASIC",), "THROUGHPUT_BASED"),
        (("--autoscaling_algorithm=THROUGHPUT_BASED",), "THROUGHPUT_BASED"),
    ],
)
def test_launcher_keeps_the_number_of_workers(given, algorithm):
    """However the launch says it, Beam is told in its own words."""
    _, beam = release.parser().parse_known_args(translate(*given))
    assert [a for a in beam if "autoscaling" in a] == [f"--autoscaling_algorithm={algorithm}"]
    assert beam_pipeline_options(beam).get_all_options()["autoscaling_algorithm"] == algorithm


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
        ("--release_id=monthly-{month}", "--release_id=", "--release-id"),
        ("--release_id=monthly-{month}", "--release_id={week}", "--release-id"),
        ("--private_dir=gs://p/state", "--private_dir=/tmp/state", "--private-dir"),
        ("--output=gs://b/out/{release_id}", "--output=/tmp/out", "--output"),
    ],
)
def test_launcher_refuses_what_cannot_work(replaced, by, named):
    launch = load(DEPLOY / "dataflow/launch.py")
    with pytest.raises(ConfigError, match=named):
        launch.arguments_for_release([by if a == replaced else a for a in LAUNCHED], {})


# --- The scripts ---------------------------------------------------------------------------------

NAMES = {"PROJECT": "p", "REGION": "r", "BUCKET": "acme", "WORKER": "w@p", "SCHEDULER": "s@p"}


def script(name, *arguments, path=os.defpath, check=True, **changed):
    return subprocess.run(
        ["sh", DEPLOY / "dataflow" / name, *arguments],
        cwd=ROOT,
        env={**NAMES, "PATH": path, **changed},
        capture_output=True,
        text=True,
        check=check,
    )


def body(*arguments, **changed):
    return json.loads(script("body.sh", *arguments, **changed).stdout)["launchParameter"]


@pytest.fixture
def listening(tmp_path):
    """A PATH on which gcloud, curl and docker write down how they are called."""
    for name, says in (("gcloud", "echo token"), ("curl", "cat"), ("docker", "true")):
        stub = tmp_path / name
        stub.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/{name}.called\n{says}\n')
        stub.chmod(0o755)
    return tmp_path, f"{tmp_path}:{os.defpath}"


def test_launch_is_what_the_api_takes():
    dataflow = pytest.importorskip("google.cloud.dataflow_v1beta3", reason="pip install .[gcp]")
    launched = dataflow.LaunchFlexTemplateParameter.from_json(json.dumps(body()))
    assert launched.environment.num_workers == 10
    assert launched.environment.autoscaling_algorithm == dataflow.AutoscalingAlgorithm(1)


def test_nothing_is_left_to_fill_in():
    for launched in (body(), body("2026-11")):
        assert not re.findall(r"BUCKET|WORKER|VERSION", json.dumps(launched))
        assert launched["containerSpecGcsPath"].endswith(f"-{__version__}.json")
    assert body(VERSION="7.8")["containerSpecGcsPath"] == "gs://acme-templates/dpgmm-release-7.8.json"


def test_a_launch_by_hand_and_a_scheduled_one_differ_in_names_only():
    scheduled, by_hand = body(), body("Try_2.")
    assert scheduled["parameters"].pop("release_id") == "{month}"
    assert by_hand["parameters"].pop("release_id") == "Try_2."
    # What Dataflow takes as a name.
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", by_hand.pop("jobName"))
    assert scheduled.pop("jobName") == "dpgmm-release"
    assert scheduled == by_hand


def test_workers_are_a_fixed_number():
    environment = body()["environment"]
    assert environment["numWorkers"] == environment["maxWorkers"]
    assert environment["autoscalingAlgorithm"] == "AUTOSCALING_ALGORITHM_NONE"


def test_readers_of_releases_share_no_bucket_with_anything_exact():
    launched = body()
    paths = {
        **launched["parameters"],
        **launched["environment"],
        "template": launched["containerSpecGcsPath"],
    }
    buckets = {}
    for name, value in paths.items():
        if str(value).startswith("gs://"):
            buckets.setdefault(value.split("/")[2], set()).add(name)
    assert buckets == {
        "acme-input": {"input", "classes"},
        "acme-private": {"private_dir", "noise_key_file"},
        "acme-temp": {"stagingLocation", "tempLocation"},
        "acme-templates": {"template"},
        "acme-releases": {"output"},
    }


def test_what_is_launched_is_a_release():
    """The API's body, through the launcher, to options that the command and Beam know."""
    launch = load(DEPLOY / "dataflow/launch.py")
    launched = body()
    given = [f"--{name}={value}" for name, value in launched["parameters"].items()]
    arguments = launch.arguments_for_release(
        [*given, "--runner=DataflowRunner", f"--num_workers={launched['environment']['numWorkers']}"],
        {},
        today="2026-11-02",
    )
    known, beam = release.parser().parse_known_args(arguments)
    assert (known.release_id, known.output) == ("2026-11", "gs://acme-releases/2026-11")
    options = beam_pipeline_options(beam).get_all_options()
    assert (options["num_workers"], options["autoscaling_algorithm"]) == (10, "NONE")


def test_a_release_id_that_is_no_name_is_refused():
    done = script("body.sh", 'x","update":"', check=False)
    assert (done.returncode, done.stdout) == (2, "")


def test_run_sends_the_body_and_keeps_the_token_out_of_sight(listening):
    folder, path = listening
    sent = script("run.sh", "2026-11", path=path).stdout
    called = (folder / "curl.called").read_text()
    assert sent == "Authorization: Bearer token\n"
    assert "token" not in called
    assert called.splitlines()[-1].endswith("/projects/p/locations/r/flexTemplates:launch")
    assert json.loads(called[called.index("{") : called.rindex("}") + 1])["launchParameter"] == body(
        "2026-11"
    )


def test_schedule_sends_the_same_words_every_time(listening):
    folder, path = listening
    script("schedule.sh", path=path)
    called = (folder / "gcloud.called").read_text()
    assert json.loads(called[called.index("{") : called.rindex("}") + 1])["launchParameter"] == body()
    assert "--max-retry-attempts\n0\n" in called


def test_build_puts_the_template_where_launches_look(listening):
    folder, path = listening
    script("build.sh", path=path, REPOSITORY="dpgmm")
    assert body()["containerSpecGcsPath"] in (folder / "gcloud.called").read_text().splitlines()
    assert f"r-docker.pkg.dev/p/dpgmm/dpgmm:{__version__}" in (folder / "docker.called").read_text()
