"""SIGKILL what stands in front of the ranks: doors and replicas come back by themselves, a lost supervisor ends the server."""

import os
import re
import signal
import urllib.error
import urllib.request

import psutil
import pytest

from router_svc.client import CallError, Client
from router_svc.client.requests import Retries
from router_svc.demo_model.path import checkpoint_path
from tests.e2e.conftest import Starter
from tests.patience import PATIENCE, wait_until
from tests.serving import alive, serving


def process_of(root: int, actor: str) -> psutil.Process:
    """The process of a Ray actor by its class's name, among `root`'s."""
    found = [
        p for p in psutil.Process(root).children(recursive=True) if " ".join(p.cmdline()).startswith(f"ray::{actor}")
    ]
    assert len(found) == 1, (actor, found)
    return found[0]


def healthy(http_port: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def answers(target: str) -> bool:
    try:
        with Client(target, retries=Retries(attempts=1)) as client:
            return client.generate([5, 6], max_tokens=3, ignore_eos=True)[0].usage["completion_tokens"] == 3
    except CallError:
        return False


def test_doors_come_back_and_a_lost_supervisor_ends_the_server() -> None:
    with serving("--dtype", "float32") as (process, target, http_port):
        family = psutil.Process(process.pid).children(recursive=True)
        for actor in ("Door", "ServeReplica", "ProxyActor"):
            process_of(process.pid, actor).kill()
            wait_until(lambda: answers(target) and healthy(http_port), f"a new {actor}", 180)
        with Client(target) as client:
            assert client.status()["state"] == "ready"
        process_of(process.pid, "Supervisor").kill()
        assert process.wait(PATIENCE) == 1
        wait_until(lambda: not alive(family), "the end of the ranks")


@pytest.mark.slow  # the exchange's own time limit
def test_stopped_rank_is_named(start_cluster: Starter) -> None:
    with (
        start_cluster(checkpoint_path(), attention_workers=1, expert_workers=2) as cluster,
        Client(f"127.0.0.1:{cluster.grpc_port}", retries=Retries(attempts=1)) as client,
    ):
        pid = next(w["pid"] for w in client.status()["workers"] if w["rank"] == 1)
        stream = client.generate_stream([5, 6, 7], max_tokens=900, temperature=0.0, ignore_eos=True)
        next(stream)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert client.status()["model"], "a silent rank must not hold up status"
            with pytest.raises(CallError, match=re.escape("rank 1 (expert")) as caught:
                list(stream)
            assert caught.value.code == "UNAVAILABLE"
            assert client.status()["state"] == "degraded"
        finally:
            os.kill(pid, signal.SIGKILL)
