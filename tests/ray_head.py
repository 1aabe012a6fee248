"""A `ray start --head` of somebody else, on loopback, for servers to join."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.patience import PATIENCE, wait_until
from tests.ports import free_port
from tests.serving import START_SECONDS

RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True, slots=True)
class Head:
    """address: HOST:PORT; environment: of a program that joins; process: ends when the head does."""

    address: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    def actors(self) -> set[str]:
        """Classes of the actors that live on this Ray, from its processes' names."""
        return set(self._processes()) - {"IDLE"}

    def kill(self, actor: str) -> None:
        """End an actor's process."""
        self._processes()[actor].kill()

    def _processes(self) -> dict[str, psutil.Process]:
        found = {}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                name = re.match(r"ray::(\w+)", " ".join(process.cmdline()))
                if name:
                    found[name[1]] = process
        return found


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's variables without what changes a start. Kernels stay where they were compiled, whatever HOME is."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("proxy")}
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    own = {name: value for name, value in kept.items() if not name.startswith("RAY_")}
    return own | {"XDG_CACHE_HOME": cache} | changes


@contextmanager
def ray_head(home: Path) -> Iterator[Head]:
    """home: of its user, who has a token there."""
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("ab" * 32)
    environment = clean_environment(HOME=str(home), RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    port, log = free_port(), home / "head.log"
    flags = ["--block", "--include-dashboard", "false", "--num-cpus", "4", "--port", str(port)]
    folder = Path(f"/tmp/ty-head-{port}")  # short, as sockets lie below it
    flags += ["--ray-client-server-port", str(free_port()), "--temp-dir", str(folder)]
    with log.open("wb") as out:
        process = subprocess.Popen([RAY, "start", "--head", *flags], env=environment, stdout=out, stderr=out, cwd=home)
    try:
        wait_until(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None, "ray", START_SECONDS)
        assert process.poll() is None, log.read_text()
        yield Head(f"127.0.0.1:{port}", environment, process)
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait(PATIENCE)
        shutil.rmtree(folder, ignore_errors=True)
