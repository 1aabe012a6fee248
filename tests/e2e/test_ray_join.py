"""A Ray that is there: joined with its token, answered on, and left as it was, also after a start that failed."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.patience import wait_until
from tests.ray_head import Head, ray_head
from tests.serving import TOKENYARD, end, run, serving


@pytest.mark.slow
def test_a_ray_is_joined_and_left_as_it_was(tmp_path: Path) -> None:
    with ray_head(tmp_path / "home") as head:
        before = head.actors()
        options = ("--ray-address", head.address, "--dtype", "float32")
        with serving(*options, env=head.environment, cwd=tmp_path) as (process, target, _):
            done = run("chat", "--target", target, "--json", "--temperature", "0", text="/think 300 + 411\n")
            assert json.loads(done.stdout)["content"].strip() == "711"
            assert {"AttentionActor", "ServeController"} <= head.actors()
            end(process, signal.SIGTERM)
        wait_until(lambda: head.actors() == before, "the end of all actors of ours")
        failed = start(head, *options)
        wait_until(lambda: {"Supervisor", "ServeController"} <= head.actors(), "a start halfway")
        head.kill("Supervisor")
        _, errors = failed.communicate(timeout=240)
        assert failed.returncode == 1, errors
        assert "waited for the ranks: its process died; logs are in" in errors.splitlines()[-1]
        wait_until(lambda: head.actors() == before, "the end of what a failed start had begun")
        without = start(head, *options, HOME=str(tmp_path))
        _, errors = without.communicate(timeout=240)
        assert without.returncode == 2
        assert "no token for the Ray at" in errors.splitlines()[-1]
        assert head.process.poll() is None, "the Ray that was there is still there"


def start(head: Head, *options: str, **changes: str) -> subprocess.Popen[str]:
    command = [*TOKENYARD, "serve", "--grpc-port", "0", "--http-port", "0", *options]
    environment = head.environment | changes
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
