"""Limits of made control groups: both versions, namespaces, ancestors."""

import os
from pathlib import Path

import pytest

from experts.machine import control_groups, cores, cpu_quota, free_memory, own_memory

V2 = "31 24 0:27 {root} {at} rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = "33 24 0:29 {root} {at} rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"


def machine(tmp_path: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """A folder that looks like /."""
    proc = tmp_path / "proc/self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts)
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "quota"),
    [
        ("0::/\n", V2.format(root="/", at="/sys/fs/cgroup"), {"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", V2.format(root="/", at="/sys/fs/cgroup"), {"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        (  # an ancestor is tighter than the own group
            "0::/kube/pod/one\n",
            V2.format(root="/", at="/sys/fs/cgroup"),
            {"sys/fs/cgroup/kube/cpu.max": "50000 100000", "sys/fs/cgroup/kube/pod/one/cpu.max": "400000 100000"},
            0.5,
        ),
        (  # a container that sees the machine's names, but only its own part of the tree
            "4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
            V1.format(root="/docker/abc", at="/sys/fs/cgroup/cpu,cpuacct"),
            {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        (
            "4:cpu,cpuacct:/\n",
            V1.format(root="/", at="/sys/fs/cgroup/cpu"),
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            None,
        ),
        (  # a group outside of what is mounted here
            "0::/../../other\n",
            V2.format(root="/", at="/sys\\040fs"),
            {"sys fs/cpu.max": "200000 100000"},
            2.0,
        ),
        ("", "", {}, None),
    ],
)
def test_quota(tmp_path: Path, cgroup: str, mounts: str, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(machine(tmp_path, cgroup, mounts, files)) == quota


@pytest.mark.parametrize(("limit", "expected"), [("10000 100000", 1), ("190000 100000", 1), ("9900000 100000", None)])
def test_cores_are_whole_and_at_least_one(tmp_path: Path, limit: str, expected: int | None) -> None:
    mounts = V2.format(root="/", at="/sys/fs/cgroup")
    root = machine(tmp_path, "0::/\n", mounts, {"sys/fs/cgroup/cpu.max": limit})
    assert cores(root) == min(expected or 99, len(os.sched_getaffinity(0)))


def test_own_group_comes_first(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/a/b\n", V2.format(root="/", at="/sys/fs/cgroup"), {})
    folders = [group.folder for group in control_groups("memory", root)]
    assert folders == [root / "sys/fs/cgroup/a/b", root / "sys/fs/cgroup/a", root / "sys/fs/cgroup"]


V1_MEMORY = V1.replace("cpu,cpuacct", "memory")


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "free"),
    [
        ("", "", {}, 8000 << 10),
        (  # what is kept of files gives way
            "0::/\n",
            V2.format(root="/", at="/cg"),
            {"cg/memory.max": "1000000", "cg/memory.current": "700000",
             "cg/memory.stat": "anon 400000\nactive_file 100000\ninactive_file 150000\nshmem 50000"},
            550_000,
        ),
        ("0::/\n", V2.format(root="/", at="/cg"), {"cg/memory.max": "max", "cg/memory.current": "700000"}, 8000 << 10),
        (  # an ancestor is tighter, and full
            "0::/pod/one\n",
            V2.format(root="/", at="/cg"),
            {"cg/pod/memory.max": "max", "cg/pod/memory.high": "500000", "cg/pod/memory.current": "600000",
             "cg/pod/one/memory.max": "900000", "cg/pod/one/memory.current": "1000"},
            0,
        ),
        (
            "5:memory:/docker/abc\n",
            V1_MEMORY.format(root="/docker/abc", at="/cg/memory"),
            {"cg/memory/memory.limit_in_bytes": "2000000", "cg/memory/memory.usage_in_bytes": "1500000",
             "cg/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 300000\ntotal_active_file 0"},
            800_000,
        ),
        (
            "5:memory:/\n",
            V1_MEMORY.format(root="/", at="/cg/memory"),
            {"cg/memory/memory.limit_in_bytes": "9223372036854771712", "cg/memory/memory.usage_in_bytes": "15"},
            8000 << 10,
        ),
    ],
)  # fmt: skip
def test_free_memory_is_the_least(tmp_path: Path, cgroup: str, mounts: str, files: dict[str, str], free: int) -> None:
    info = {"proc/meminfo": "MemTotal:       16000 kB\nMemAvailable:    8000 kB\nHugePages_Total:       0"}
    found = free_memory(machine(tmp_path, cgroup, mounts, files | info))
    assert found.bytes == free
    assert ("control group" in found.where) == (free != 8000 << 10)


def test_this_machine() -> None:
    assert 1 <= cores() <= len(os.sched_getaffinity(0))
    assert free_memory().bytes > 0
    assert 10 << 20 < own_memory() < 10 << 30
