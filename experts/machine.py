"""What this process may use of the machine: the processors it may run on, the free memory, and the
limits of its control groups.

Knows files under / only; who starts how many threads is not known here.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_UNLIMITED = 1 << 60  # bytes; version 1 says "no limit" by a number near the largest


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """One folder of the cgroup tree. version: 1 or 2, which spell their files differently."""

    version: int
    folder: Path

    def read(self, name: str) -> str:
        """Text of the file `name`; empty where there is none or it can't be read."""
        try:
            return (self.folder / name).read_text().strip()
        except OSError:
            return ""


def control_groups(controller: str, root: Path = _ROOT) -> list[ControlGroup]:
    """This process's groups that may limit `controller` (such as "cpu" or "memory"), its own first, then all ancestors
    that can be seen from here. Empty where there are none.

    root: where /proc and the mounts are looked for.
    """
    paths = _paths(_text(root / "proc/self/cgroup"))
    found: list[ControlGroup] = []
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        mount, kind = left.split(), right.split()
        if len(mount) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            version, path = 2, paths.get("")
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            version, path = 1, paths.get(controller)
        else:
            continue
        if path is not None:
            top = root / _unescaped(mount[4]).lstrip("/")
            found += [ControlGroup(version, folder) for folder in _up(top, _unescaped(mount[3]), path)]
    return found


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Processors' worth of time that this process's control groups allow at most; None where they set no limit."""
    quotas = [quota for group in control_groups("cpu", root) if (quota := _quota(group)) is not None]
    return min(quotas, default=None)


def cores(root: Path = _ROOT) -> int:
    """Processors that this process can keep busy: those it may run on, or the whole ones in its CPU quota if fewer; at
    least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """bytes: that this process can still take
    where: whose limit that is
    """

    bytes: int
    where: str


def free_memory(root: Path = _ROOT) -> FreeMemory:
    """The least of what the machine has free and what each of this process's control groups still allows.

    Files that the system only keeps in memory for later count as free, as they are dropped when room is needed.
    """
    found = [FreeMemory(_available(root), "this machine")]
    for group in control_groups("memory", root):
        room = _room(group)
        if room is not None:
            found.append(FreeMemory(room, f"the control group {group.folder}"))
    return min(found, key=lambda one: one.bytes)


def own_memory(root: Path = _ROOT) -> int:
    """Bytes that this process has taken and could not give back."""
    return _kib(root / "proc/self/status", "RssAnon")


def _available(root: Path) -> int:
    return _kib(root / "proc/meminfo", "MemAvailable")


def _kib(path: Path, name: str) -> int:
    """Bytes that a file of KiB says, with a colon after each name."""
    return _numbers(_text(path).replace(":", " "))[name] << 10


def _room(group: ControlGroup) -> int | None:
    """Bytes that a group still allows; None without a limit."""
    names = ("memory.max", "memory.high", "memory.current")
    if group.version == 1:
        names = ("memory.limit_in_bytes", "memory.limit_in_bytes", "memory.usage_in_bytes")
    *limits, used = (group.read(name) for name in names)
    least = min((int(limit) for limit in limits if limit.isdigit()), default=_UNLIMITED)
    if least >= _UNLIMITED or not used.isdigit():
        return None
    stat = _numbers(group.read("memory.stat"))
    prefix = "total_" if group.version == 1 else ""
    kept = sum(stat.get(f"{prefix}{name}_file", 0) for name in ("active", "inactive"))
    return max(0, least - max(0, int(used) - kept))


def _numbers(text: str) -> dict[str, int]:
    """Name and number of each line."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdigit()}


def _quota(group: ControlGroup) -> float | None:
    if group.version == 2:
        quota, _, period = group.read("cpu.max").partition(" ")
    else:
        quota, period = group.read("cpu.cfs_quota_us"), group.read("cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:  # "max", "-1", or no such file
        return None
    return int(quota) / int(period)


def _paths(text: str) -> dict[str, str]:
    """Path of this process per controller, from /proc/self/cgroup; "" is version 2's one tree."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    return paths


def _up(top: Path, mounted: str, path: str) -> list[Path]:
    """Folders from the group `path` up to `top`, where the group `mounted` is seen."""
    inside = Path(path).parts
    hidden = Path(mounted).parts
    if inside[: len(hidden)] != hidden or ".." in inside:  # another namespace's words: only the mount itself is sure
        return [top]
    below = inside[len(hidden) :]
    return [top.joinpath(*below[:depth]) for depth in range(len(below), -1, -1)]


def _unescaped(text: str) -> str:
    """A path of mountinfo with its spaces, which are written in octal there."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
