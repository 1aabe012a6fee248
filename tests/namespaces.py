"""A command under what a pod gives it, made of Linux namespaces and a memory cgroup. Needs root.

It is pid 1, runs as a user id that nobody knows and without capabilities, sees a root that can't be written but for a
fresh /tmp, a small /dev/shm, no compiler, and a network of its own that holds the loopback and the pod's address.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.patience import PATIENCE, wait_until
from tests.serving import kill_tree

NEW = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
ADDRESS = "10.244.0.2"
COMPILERS = ("cc", "gcc", "clang", "c99")


@dataclass(frozen=True)
class Limits:
    """user: of the process, as its group; shm and memory in bytes; visible: files it must be able to read."""

    user: int
    shm: int
    memory: int
    visible: tuple[Path, ...]


@dataclass(frozen=True)
class Pod:
    """A command that runs in namespaces of its own."""

    process: "subprocess.Popen[str]"
    log: Path
    cgroup: Path

    @property
    def init(self) -> psutil.Process:
        """Its pid 1, as seen from here."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    @property
    def text(self) -> str:
        """What it wrote."""
        return self.log.read_text(errors="replace")

    def fetch(self, path: str, port: int, body: object = None) -> str | None:
        """An HTTP answer of the pod's address, as a kubelet asks; None unless it is 200."""
        code = (
            "import sys, urllib.request as u; r = u.Request(sys.argv[1], sys.argv[2].encode() or None, "
            "{'content-type': 'application/json'}); print(u.build_opener(u.ProxyHandler({})).open(r, timeout=60).read().decode())"
        )
        words = [f"http://{ADDRESS}:{port}{path}", "" if body is None else json.dumps(body)]
        inside = ["nsenter", f"--net=/proc/{self.init.pid}/ns/net", sys.executable, "-c", code, *words]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=2 * PATIENCE)
        return done.stdout if done.returncode == 0 else None

    def mapped(self) -> set[Path]:
        """Files that any of its processes has mapped into memory."""
        found = set()
        for process in (self.init, *self.init.children(recursive=True)):
            try:
                found |= {Path(entry.path) for entry in process.memory_maps()}
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def memory_peak(self) -> int:
        """Bytes, of all its processes and of /dev/shm."""
        names = ("memory.peak", "memory.max_usage_in_bytes")
        return int(next(path for name in names if (path := self.cgroup / name).exists()).read_text())


def skip_unless_possible() -> None:
    """Skip the test with a reason where namespaces and cgroups can't be made."""
    for name in ("unshare", "nsenter", "setpriv", "ip"):
        if shutil.which(name) is None:
            pytest.skip(f"no command {name} here")
    if os.geteuid() != 0:
        pytest.skip("a foreign user id and mounts need root")
    done = subprocess.run([*NEW, "mount", "--make-rprivate", "/"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"namespaces are forbidden here: {done.stderr.strip()}")


@contextmanager
def pod(command: list[str], env: dict[str, str], limits: Limits, folder: Path) -> Iterator[Pod]:
    """Run `command` so. folder: for its notes and, unseen by it, for what it writes to /tmp."""
    skip_unless_possible()
    script = folder / "set-up.sh"
    script.write_text(_set_up(limits, folder))
    log, group = folder / "notes", _cgroup(limits.memory)
    become = [
        "setpriv", f"--reuid={limits.user}", f"--regid={limits.user}", "--clear-groups", "--no-new-privs",
        "--inh-caps=-all", "--bounding-set=-all", "--",
    ]  # fmt: skip
    join = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]
    words = [*join, *NEW, "sh", str(script), *become, "env", "-i", *(f"{k}={v}" for k, v in env.items()), *command]
    try:
        with log.open("w") as out:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True, cwd="/")
        try:
            wait_until(lambda: process.poll() is not None or psutil.Process(process.pid).children(), "pid 1")
            yield Pod(process, log, group)
        finally:
            kill_tree(process)
    finally:
        wait_until(lambda: not group.exists() or _removed(group), "the end of the pod's processes")


def _set_up(limits: Limits, folder: Path) -> str:
    """Shell commands that build the pod's view of the files, then run the rest of the command line."""
    lines = ["set -e", "mount --make-rprivate /", "ip link set lo up", f"ip address add {ADDRESS}/32 dev lo"]
    covered: dict[Path, list[Path]] = {Path("/tmp"): []}
    for path in limits.visible:
        closed = next((p for p in reversed(path.parents) if p == Path("/tmp") or not p.stat().st_mode & 0o001), None)
        if closed is not None:  # a folder that others may not enter is shown empty but for what is needed
            covered.setdefault(closed, []).append(path)
    for number, (closed, paths) in enumerate(covered.items()):
        view = folder / f"view{number}"
        mode = "1777" if closed == Path("/tmp") else "755"
        lines += [f"mkdir '{view}'", f"mount -t tmpfs -o mode={mode} pod '{view}'"]
        for path in paths:
            inside = view / path.relative_to(closed)
            lines += [f"mkdir -p '{inside}'", f"mount --rbind '{path}' '{inside}'"]
    views = [f"mount --rbind '{folder}/view{number}' '{closed}'" for number, closed in enumerate(covered)]
    lines += [*views[1:], views[0]]  # /tmp, which is the first, may hold the other views
    for name in COMPILERS:
        if (found := shutil.which(name)) is not None:
            lines.append(f"mount --bind /dev/null '{Path(found).resolve()}'")
    lines += [
        f"mount -t tmpfs -o size={limits.shm},mode=1777 pod /dev/shm", "mount -o remount,bind,ro /",
        "cd /", 'exec "$@"', "",
    ]  # fmt: skip
    return "\n".join(lines)


def _cgroup(memory: int) -> Path:
    """A new memory cgroup, v1 or v2, below this process's. Skips the test where none can be made."""
    groups = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    version1 = "memory" in groups
    base = Path("/sys/fs/cgroup/memory" if version1 else "/sys/fs/cgroup")
    own = base / groups.get("memory", groups.get("", "/")).strip("/")
    group = (own if own.exists() else base) / f"tokenyard-pod-{time.monotonic_ns()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if version1 else "memory.max")).write_text(str(memory))
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no memory cgroup can be made here: {error}")
    return group


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True
