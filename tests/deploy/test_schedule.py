"""deploy/schedule: release.sh in real shells, with a `dpgmm` that prints its arguments."""

import datetime
import re
import shutil
import subprocess

import pytest

from pipelines import release
from tests.deploy.manifests import DEPLOY, mebibytes, settings

SCRIPT = DEPLOY / "schedule/release.sh"
UNIT = DEPLOY / "schedule/dpgmm-release.service"
# 29384820 minutes after 1970.
SCHEDULED = "dpgmm-release-29384820"


@pytest.fixture
def path(tmp_path):
    """A PATH with a `dpgmm` that prints its arguments, one a line."""
    stub = tmp_path / "bin/dpgmm"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    return f"{stub.parent}:/usr/bin:/bin"


def environment(tmp_path, path, **changed):
    """release.env without its release id, and what a test adds."""
    given = {"PATH": path, **settings(), "DPGMM_RELEASES": str(tmp_path / "releases")}
    del given["DPGMM_RELEASE_ID"]
    return {**given, **changed}


def run(tmp_path, path, shell="sh", **changed):
    return subprocess.run(
        [shell, SCRIPT, "--runner=FlinkRunner"],
        env=environment(tmp_path, path, **changed),
        capture_output=True,
        text=True,
        check=False,
    )


def this_month():
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m")


def release_id(done):
    assert done.returncode == 0, done.stderr
    arguments = done.stdout.splitlines()
    assert arguments[0] == "release"
    known, beam = release.parser().parse_known_args(arguments[1:])
    assert beam == ["--runner=FlinkRunner"]
    assert known.input == settings()["DPGMM_INPUT"]
    assert known.output.endswith(f"/releases/{known.release_id}")
    return known.release_id


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"JOB_NAME": SCHEDULED, "DPGMM_CRONJOB": "dpgmm-release"}, "2025-11-14T0300Z"),
        (
            {"JOB_NAME": SCHEDULED, "DPGMM_CRONJOB": "dpgmm-release", "DPGMM_RELEASE_ID": "{month}"},
            "2025-11",
        ),
        (
            {"JOB_NAME": SCHEDULED, "DPGMM_CRONJOB": "dpgmm-release", "DPGMM_RELEASE_ID": "a-{date}_{month}"},
            "a-2025-11-14_2025-11",
        ),
        # Numbers at the end that are no time: by hand, of another CronJob, too short, too long.
        ({"JOB_NAME": "try-1", "DPGMM_CRONJOB": "dpgmm-release"}, "try-1"),
        ({"JOB_NAME": "test-2026", "DPGMM_CRONJOB": "dpgmm-release"}, "test-2026"),
        ({"JOB_NAME": "29384820", "DPGMM_CRONJOB": "dpgmm-release"}, "29384820"),
        ({"JOB_NAME": "other-29384820", "DPGMM_CRONJOB": "dpgmm-release"}, "other-29384820"),
        ({"JOB_NAME": SCHEDULED}, SCHEDULED),
        ({"JOB_NAME": "dpgmm-release-1", "DPGMM_CRONJOB": "dpgmm-release"}, "dpgmm-release-1"),
        ({"JOB_NAME": SCHEDULED + "0", "DPGMM_CRONJOB": "dpgmm-release"}, SCHEDULED + "0"),
        ({"JOB_NAME": SCHEDULED, "DPGMM_RELEASE_ID": "mine"}, "mine"),
    ],
)
def test_the_release_id_follows_the_occasion(tmp_path, path, shell, changed, expected):
    assert release_id(run(tmp_path, path, shell, **changed)) == expected


def test_a_job_made_by_hand_is_the_release_of_this_month(tmp_path, path):
    before = this_month()
    made = release_id(
        run(
            tmp_path,
            path,
            JOB_NAME="try-1",
            DPGMM_CRONJOB="dpgmm-release",
            DPGMM_RELEASE_ID=settings()["DPGMM_RELEASE_ID"],
        )
    )
    assert made in (before, this_month())


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({}, "DPGMM_RELEASE_ID must be set"),
        ({"DPGMM_RELEASE_ID": "{week}"}, "DPGMM_RELEASE_ID={week}"),
        ({"DPGMM_RELEASE_ID": "a/b"}, "DPGMM_RELEASE_ID=a/b"),
        ({"DPGMM_RELEASE_ID": "a", "DPGMM_EPSILON": ""}, "DPGMM_EPSILON must be set"),
    ],
)
def test_what_can_never_work_ends_with_2_and_one_sentence(tmp_path, path, shell, changed, named):
    done = run(tmp_path, path, shell, **changed)
    assert done.returncode == 2
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


@pytest.mark.parametrize("status", [2, 3])
def test_the_commands_exit_status_is_the_scripts(tmp_path, path, status):
    (tmp_path / "bin/dpgmm").write_text(f"#!/bin/sh\nexit {status}\n")
    assert run(tmp_path, path, DPGMM_RELEASE_ID="mine").returncode == status


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_ledger_and_a_store_of_keys_are_named_where_they_are_set(tmp_path, path, shell):
    ledger = {"DPGMM_LEDGER": "/var/lib/dpgmm/a ledger.sqlite", "DPGMM_DATASET": "photos of 2026"}
    done = run(tmp_path, path, shell, DPGMM_RELEASE_ID="mine", DPGMM_RELEASE_KEY_STORE="/etc/keys", **ledger)
    known, _ = release.parser().parse_known_args(done.stdout.splitlines()[1:])
    assert (known.ledger, known.dataset) == tuple(ledger.values())
    assert (known.release_key_store, known.noise_key_file) == ("/etc/keys", None)
    plain, _ = release.parser().parse_known_args(
        run(tmp_path, path, shell, DPGMM_RELEASE_ID="mine").stdout.splitlines()[1:]
    )
    assert (plain.ledger, plain.dataset, plain.release_key_store) == (None, None, None)
    assert plain.noise_key_file == settings()["DPGMM_NOISE_KEY_FILE"]


def test_a_finished_release_is_left_alone(tmp_path, path):
    done = tmp_path / "releases/mine"
    done.mkdir(parents=True)
    (done / "manifest.json").write_text("{}")
    result = run(tmp_path, path, DPGMM_RELEASE_ID="mine")
    assert (result.returncode, result.stdout) == (0, f"{done} holds its release already\n")


# --- One machine ---------------------------------------------------------------------------------


def unit():
    """The settings of the systemd service; a name that comes twice has its last value."""
    lines = UNIT.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_unit_does_not_repeat_refusals_and_opens_no_network():
    assert unit()["Restart"] == "on-failure"
    assert unit()["RestartPreventExitStatus"] == "2 3"
    assert unit()["IPAddressDeny"] == "any"
    assert mebibytes(unit()["MemoryHigh"]) < mebibytes(unit()["MemoryMax"])
    # A local job's options are the command's own: no worker processes, no ports.
    assert unit()["ExecStart"] == "/opt/dpgmm/deploy/schedule/release.sh"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_knows_every_line(tmp_path):
    for source in (UNIT, UNIT.with_suffix(".timer")):
        text = re.sub(r"^ExecStart=.*", "ExecStart=/bin/true", source.read_text(), flags=re.MULTILINE)
        (tmp_path / source.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "dpgmm" in line]) == (0, [])


@pytest.mark.skipif(not shutil.which("flock"), reason="needs flock")
def test_the_crontabs_line_runs_in_a_shell(tmp_path, path):
    lines = [
        line for line in (DEPLOY / "schedule/crontab").read_text().splitlines() if not line.startswith("#")
    ]
    given = dict(line.split("=", 1) for line in lines[:-1])
    minute, hour, day, month, weekday, user, command = lines[-1].split(maxsplit=6)
    assert (minute, hour, day, month, weekday, user) == ("0", "3", "1", "*", "*", "dpgmm")
    assert "%" not in command
    wanted = environment(tmp_path, path)
    (tmp_path / "release.env").write_text(
        "".join(f"{name}={value}\n" for name, value in wanted.items() if name.startswith("DPGMM_"))
    )
    for there, here in {
        "/etc/dpgmm/release.env": str(tmp_path / "release.env"),
        "/var/lib/dpgmm/lock": str(tmp_path / "lock"),
        "/opt/dpgmm/": f"{DEPLOY.parent}/",
    }.items():
        assert there in command
        command = command.replace(there, here)
    before = this_month()
    done = subprocess.run(
        [given["SHELL"], "-c", command],
        env={**given, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    known, _ = release.parser().parse_known_args(done.stdout.splitlines()[1:])
    assert known.release_id in (before, this_month())


def test_both_schedules_of_one_machine_name_the_month():
    assert "Environment=DPGMM_RELEASE_ID={month}" in UNIT.read_text().splitlines()
    assert "DPGMM_RELEASE_ID={month}" in (DEPLOY / "schedule/crontab").read_text().splitlines()
