"""Signals that come while `tokenyard serve` loads its modules: as pid 1 of a container, and as a Ctrl-C in a terminal."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.patience import PATIENCE, wait_until
from tests.serving import TOKENYARD, kill_tree

COMMAND = [*TOKENYARD, "serve", "--expert-workers", "0", "--grpc-port", "0", "--http-port", "0"]


def start(*prefix: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*prefix, *COMMAND], stderr=subprocess.PIPE, text=True, start_new_session=True)


def namespace() -> tuple[str, ...]:
    """A prefix that makes a command pid 1."""
    prefix = ("unshare", *(() if os.geteuid() == 0 else ("-U", "-r")), "--pid", "--fork", "--mount-proc")
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no pid namespace can be made here")
    return prefix


def blocks_sigterm(pid: int) -> bool:
    """Whether SIGTERM is taken, by the thread that waits for it."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk"))
    return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_pid_1_ends_on_a_sigterm_that_comes_before_torch() -> None:
    process = start(*namespace())
    try:
        wait_until(lambda: psutil.Process(process.pid).children(), "pid 1")
        (first,) = psutil.Process(process.pid).children()
        wait_until(lambda: blocks_sigterm(first.pid), "SIGTERM to be taken")
        assert "libtorch" not in Path(f"/proc/{first.pid}/maps").read_text()
        first.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + signal.SIGTERM
        assert errors == ""
    finally:
        kill_tree(process)


def test_ctrl_c_while_torch_loads_prints_nothing() -> None:
    process = start()
    try:
        wait_until(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text(), "torch")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + signal.SIGINT
        assert errors == ""
    finally:
        kill_tree(process)
