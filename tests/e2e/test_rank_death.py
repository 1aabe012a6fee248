"""SIGKILL a rank under load: the others go on without one that holds experts; without one that brings tokens, requests end
with UNAVAILABLE that names it, and the server stays up and refuses."""

import json
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router_svc.client import CallError, Client
from router_svc.client.requests import Retries
from tests import checkpoints
from tests.e2e.conftest import Starter
from tests.patience import PATIENCE, wait_until


def stream_of(client: Client, tokens: int) -> Iterator[list[int]]:
    """New ids of a greedy stream, part by part."""
    for delta in client.generate_stream([5, 6, 7], max_tokens=tokens, temperature=0.0, ignore_eos=True):
        yield delta.token_ids


def test_killed_expert_rank(start_cluster: Starter, tmp_path: Path) -> None:
    """Its experts were there alone: streams of both kinds of clients wait for a new process and go on as they would have."""
    folder = checkpoints.make("qwen2_moe", tmp_path)
    with start_cluster(folder, attention_workers=1, expert_workers=2) as cluster:
        target = f"127.0.0.1:{cluster.grpc_port}"
        with Client(target, retries=Retries(attempts=1)) as client:
            wanted = [token for part in stream_of(client, 150) for token in part]
            spoken = _over_http(cluster.http_port)
            victim = next(w for w in client.status()["workers"] if w["role"] == "expert")
            stream = stream_of(client, 150)
            got = [token for _ in range(5) for token in next(stream)]
            heard: list[str] = []
            listening = threading.Thread(target=lambda: heard.append(_over_http(cluster.http_port)))
            listening.start()
            os.kill(victim["pid"], signal.SIGSTOP)
            _check_dump(client, victim)
            os.kill(victim["pid"], signal.SIGKILL)
            wait_until(lambda: client.status()["state"] != "ready", "the status of a dead rank")
            assert f"rank {victim['rank']} (expert" in client.status()["reason"]
            with grpc.insecure_channel(target) as channel:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                assert answer.status == health_pb2.HealthCheckResponse.SERVING, "requests are taken, and wait"
            late = client.generate([5, 6, 7], max_tokens=150, temperature=0.0, ignore_eos=True)
            assert list(late[0].token_ids) == wanted
            assert got + [token for part in stream for token in part] == wanted
            listening.join(PATIENCE)
            assert heard == [spoken]
            status = client.status(events=True)
        assert status["state"] == "ready"
        workers = {w["rank"]: w for w in status["workers"]}
        assert workers[victim["rank"]]["pid"] != victim["pid"]
        assert {w["state"] for w in workers.values()} == {"ready"}
        kinds = [event["kind"] for event in status["events"]]
        assert kinds.count("recovered") == 1


def _over_http(port: int) -> str:
    """The text of a stream, as an OpenAI client asks for it."""
    body = {"prompt": [5, 6, 7], "max_tokens": 150, "temperature": 0, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    text = ""
    with urllib.request.urlopen(request, timeout=PATIENCE) as stream:
        for line in stream:
            if line.startswith(b"data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
    return text


@pytest.mark.slow
def test_killed_attention_rank(start_cluster: Starter, tmp_path: Path) -> None:
    folder = checkpoints.make("qwen2_moe", tmp_path)
    with start_cluster(folder, attention_workers=1, expert_workers=2) as cluster:
        target = f"127.0.0.1:{cluster.grpc_port}"
        with Client(target, retries=Retries(attempts=1)) as client:
            victim = next(w for w in client.status()["workers"] if w["role"] == "attention")
            stream = stream_of(client, 900)
            next(stream)
            os.kill(victim["pid"], signal.SIGKILL)
            with pytest.raises(CallError) as caught:
                for _ in stream:
                    pass
            assert caught.value.code == "UNAVAILABLE"
            assert f"rank {victim['rank']}" in caught.value.message
            wait_until(lambda: client.status()["state"] != "ready", "the status of a dead rank")
            with pytest.raises(CallError) as refused:
                client.generate([5], max_tokens=2)
            assert refused.value.code == "UNAVAILABLE"
            assert f"rank {victim['rank']}" in refused.value.message
            assert "start it again (tokenyard serve); logs are in" in refused.value.message
            assert refused.value.retry_after is None
            status = client.status()
        assert status["state"] == "degraded"
        assert status["requests"] == {"running": 0, "waiting": 0}, "nothing runs any more"
        assert [w["state"] for w in status["workers"] if w["rank"] == victim["rank"]] == ["dead"]
        with pytest.raises(urllib.error.HTTPError) as unhealthy:
            urllib.request.urlopen(f"http://127.0.0.1:{cluster.http_port}/health", timeout=PATIENCE)
        assert unhealthy.value.code == 503
        assert unhealthy.value.headers["retry-after"] is None, "nothing here comes back by itself"
        with grpc.insecure_channel(target) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


def _check_dump(client: Client, stopped: dict[str, Any]) -> None:
    """The stopped rank is in the page though it says nothing, and the others say that they wait for it."""
    name = f"rank {stopped['rank']} ({stopped['role']})"

    def blamed() -> bool:
        return any(one.moment and name in one.moment.peers for one in client.dump())

    wait_until(blamed, "ranks wait for the stopped one")
    found = {one.name: one for one in client.dump()}
    assert sorted(found) == ["gRPC door 0", "rank 0 (expert)", "rank 1 (expert)", "rank 2 (attention)", "supervisor"]
    silent = found.pop(name)
    assert (silent.pid, silent.threads) == (stopped["pid"], ())
    assert silent.trouble == "does not answer within 2 s; its process: stopped"
    assert all(one.threads and not one.trouble for one in found.values())
    waiting = next(one for one in found.values() if one.moment and name in one.moment.peers)
    assert any(thread.name == "step-loop" for thread in waiting.threads)
