"""The end of one process: what runs gets the grace period, on gRPC and HTTP alike, and nothing new is taken."""

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from router_svc.client import CallError, Client
from router_svc.client.requests import Retries
from tests.patience import PATIENCE, wait_until
from tests.server import RunningServer, one_process

LONG = {"max_tokens": 2000, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with one_process() as started:
        yield started


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.target, retries=Retries(attempts=1)) as connected:
        yield connected


def test_what_runs_longer_than_the_grace_period_is_refused_in_words(server: RunningServer, client: Client) -> None:
    stream = client.generate_stream([5, 6, 7], **LONG)
    next(stream)
    body = json.dumps({"prompt": [5, 6, 7], "stream": True, **LONG}).encode()
    request = urllib.request.Request(f"{server.url}/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        answer.readline()
        server.call(server.server.stop(0.05))
        last = [line for line in answer.read().decode().splitlines() if line][-1]
    assert "--grace-period" in json.loads(last.removeprefix("data: "))["error"]["message"]
    with pytest.raises(CallError, match=r"ran on for the 0\.05 s that it grants") as caught:
        list(stream)
    assert caught.value.code == "UNAVAILABLE"


def test_new_requests_are_refused_and_the_end_waits_for_none_that_is_over(
    server: RunningServer, client: Client
) -> None:
    stream = client.generate_stream([5, 6, 7], **LONG)
    next(stream)
    ended = threading.Event()

    async def stop() -> None:
        await server.server.stop(10 * PATIENCE)
        ended.set()

    stopping = asyncio.run_coroutine_threadsafe(stop(), server.loop)
    assert server.server.service is not None
    wait_until(lambda: server.server.service.state()[0] == "stopping", "the drain")  # type: ignore[union-attr]
    with pytest.raises(CallError, match="shutting down"):
        client.generate([5], max_tokens=2)
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{server.url}/health", timeout=PATIENCE)
    next(stream)  # is served on meanwhile
    assert not ended.is_set()
    stream.close()  # type: ignore[attr-defined]
    stopping.result(PATIENCE)
