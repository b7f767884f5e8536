"""How many cores this process may use."""

import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(cgroups: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> int:
    """Cores that this process may use: its affinity, limited by the quota of its control groups.

    A container with two cores' worth of time on a machine of sixty-four has an
    affinity of sixty-four; that many threads would only wait for each other.

    Args:
      cgroups: where the control groups are mounted, of version 2 or 1.
      own: the file that says which of them this process is in.

    Returns:
      The number, a quota rounded up; at least 1.
    """
    cores = float(len(os.sched_getaffinity(0)))
    for quota in _quotas(Path(cgroups), Path(own)):
        cores = min(cores, quota)
    return max(1, -int(-cores // 1))


def _quotas(root: Path, own: Path) -> Iterator[float]:
    for line in _words(own, "\n"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            for group in _groups(root, path):
                yield from _ratio([*_words(group / "cpu.max"), "", ""][:2])
        elif "cpu" in controllers.split(","):
            # Version 1 has a mount for each controller or set of them.
            for mount in {controllers, "cpu"}:
                for group in _groups(root / mount, path):
                    yield from _ratio(
                        [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
                    )


def _groups(root: Path, path: str) -> list[Path]:
    """A group and those around it.  In a container the path may be the host's, and only the root is there."""
    group = root / path.strip("/")
    return (
        [root]
        if group == root
        else [group, *(each for each in group.parents if root in (each, *each.parents))]
    )


def _words(file: Path, separator: str | None = None) -> list[str]:
    try:
        return file.read_text().split(separator)
    except (OSError, UnicodeDecodeError):
        return []


def _ratio(words: list[str]) -> Iterator[float]:
    """A quota over its period, both in microseconds; nothing where there is none ("max", -1)."""
    try:
        quota, period = (int(word) for word in words)
    except ValueError:
        return
    if quota > 0 and period > 0:
        yield quota / period
