import os

import pytest

from pipelines.cores import usable_cores


@pytest.fixture(autouse=True)
def eight(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))


def tree(folder, own, files):
    """Control groups as the kernel shows them: their mount, and the file that names one's own."""
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(own)
    return str(folder / "cgroup"), str(folder / "own")


TWO = "0::/pod/container\n"
ONE = "11:memory:/pod\n4:cpu,cpuacct:/pod/container\n1:name=systemd:/x\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        (TWO, {"pod/container/cpu.max": "200000 100000\n"}, 2),
        (TWO, {"pod/container/cpu.max": "250000 100000\n"}, 3),
        (TWO, {"pod/container/cpu.max": "10000 100000\n"}, 1),
        (TWO, {"pod/container/cpu.max": "max 100000\n"}, 8),
        (TWO, {"pod/container/cpu.max": "6400000 100000\n"}, 8),
        # The limit of a group around it.
        (TWO, {"pod/container/cpu.max": "max 100000\n", "pod/cpu.max": "300000 100000\n"}, 3),
        # In a container the path may be the host's; its own group is the root there.
        (TWO, {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        (TWO, {"cpu.max": ""}, 8),
        (TWO, {"cpu.max": "many 100000"}, 8),
        (TWO, {"cpu.max": "100000 0"}, 8),
        (
            ONE,
            {
                "cpu,cpuacct/pod/container/cpu.cfs_quota_us": "150000\n",
                "cpu,cpuacct/pod/container/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (ONE, {"cpu/cpu.cfs_quota_us": "500000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 5),
        (ONE, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        (ONE, {"cpu/cpu.cfs_quota_us": "500000\n"}, 8),
        ("", {"cpu.max": "100000 100000\n"}, 8),
        ("nonsense\n", {}, 8),
    ],
)
def test_cores_of_a_control_group(own, files, cores, tmp_path):
    assert usable_cores(*tree(tmp_path, own, files)) == cores


def test_without_control_groups(tmp_path):
    assert usable_cores(str(tmp_path / "none"), str(tmp_path / "neither")) == 8


def test_on_this_machine():
    assert 1 <= usable_cores() <= 8
