"""Clients that crowd, stall, vanish and change their minds: the server refuses, holds and frees, and the others go on."""

import json
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import grpc
import openai
import pytest
import torch
from openai import OpenAI

from cluster.plan import BLOCK_SIZE
from router_svc.client import CallError, Client
from router_svc.client.requests import Retries
from router_svc.demo_model.path import checkpoint_path
from router_svc.models.registry import load_spec
from router_svc.models.spec import kv_bytes_per_token
from router_svc.proto import tokenyard_pb2 as pb
from router_svc.proto import tokenyard_pb2_grpc as rpc
from tests.patience import PATIENCE
from tests.server import RunningServer, one_process

_KILLED = {
    "grpc": """
from router_svc.client import Client
for delta in Client("{target}").generate_stream("Once", max_tokens=2000, ignore_eos=True, n=4):
    print("token", flush=True)
""",
    "http": """
from openai import OpenAI
for chunk in OpenAI(base_url="{url}/v1", api_key="x").completions.create(
    model="demo", prompt="Once", max_tokens=2000, n=4, stream=True, extra_body={{"ignore_eos": True}}
):
    print("token", flush=True)
""",
}


@contextmanager
def full(server: RunningServer) -> Iterator[None]:
    """The one place and the queue of one are taken, by gRPC streams."""
    with Client(server.target, retries=Retries(attempts=1)) as client:
        first = client.generate_stream("Once", max_tokens=1900, ignore_eos=True)
        next(first)
        with grpc.insecure_channel(server.target) as channel:
            sampling = pb.Sampling(max_tokens=5, ignore_eos=True)
            waiting = rpc.InferenceStub(channel).GenerateStream(pb.GenerateRequest(text="Once", sampling=sampling))
            server.until(lambda stats: stats.waiting == 1)
            yield
            first.close()  # type: ignore[attr-defined]
            assert len(list(waiting)) == 5
    server.quiet()


def test_a_full_queue_refuses_with_a_hint_and_the_server_goes_on() -> None:
    with one_process(max_num_seqs=1, max_queue_len=1) as small, Client(small.target, retries=Retries(1)) as client:
        http = OpenAI(base_url=f"{small.url}/v1", api_key="x", max_retries=0)
        for _ in range(2):
            with full(small):
                for call in (client.generate, client.chat):
                    with pytest.raises(CallError) as caught:
                        call("Once")
                    assert caught.value.code == "RESOURCE_EXHAUSTED"
                    assert caught.value.retry_after == 1.0
                    assert "queue is full" in caught.value.message
                with pytest.raises(CallError) as streamed:
                    next(client.generate_stream("Once"))
                assert streamed.value.code == "RESOURCE_EXHAUSTED"
                with pytest.raises(openai.RateLimitError) as limited:
                    http.completions.create(model="demo", prompt="Once", stream=True)
                assert int(limited.value.response.headers["retry-after"]) == 1
                with pytest.raises(openai.BadRequestError, match="found 2 prompts, expected at most 1"):
                    http.completions.create(model="demo", prompt=["Once", "Twice"])
        patient = Client(small.target, retries=Retries(attempts=50, first_wait=0.05))
        with ThreadPoolExecutor(6) as crowd:
            answers = list(crowd.map(lambda _: patient.generate("Once", max_tokens=5, temperature=0.0), range(6)))
        assert len({answer[0].text for answer in answers}) == 1
        small.quiet()


@pytest.mark.parametrize("face", ["grpc", "http"])
def test_a_killed_client_frees_what_it_held(server: RunningServer, face: str) -> None:
    code = _KILLED[face].format(target=server.target, url=server.url)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"token\n"
        process.kill()
    server.quiet()


def test_http_readers_that_stop_are_held_and_others_go_on(server: RunningServer) -> None:
    body = {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True, "n": 8, "logprobs": 20}
    raw, place = json.dumps(body).encode(), urlsplit(server.url)
    wires = []
    for _ in range(2):
        wires.append(socket.socket())
        wires[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wires[-1].connect((place.hostname, place.port))
        wires[-1].sendall(
            f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw
        )
        assert wires[-1].recv(15) == b"HTTP/1.1 200 OK"
    before = server.stats().generated_tokens
    steps = -1
    while steps != server.stats().steps:  # until both are held, nothing else runs
        steps = server.stats().steps
        time.sleep(0.3)
    assert server.stats().generated_tokens - before < 2 * 8 * 1800
    with Client(server.target) as client:
        (answer,) = client.generate("Once", max_tokens=50, ignore_eos=True)
    assert answer.usage["completion_tokens"] == 50
    for wire in wires:
        wire.close()
    server.quiet()


def test_changing_minds_under_pressure_leaves_nothing_behind() -> None:
    """Few blocks: choices are preempted, cancelled and timed out at random, and the rest still draw as when alone."""
    fields: dict[str, Any] = {"max_tokens": 120, "ignore_eos": True, "temperature": 0.9, "seed": 5, "n": 2}
    prompts = [[7 + i, 9, 11] * (5 + i) for i in range(6)]
    with one_process(max_num_seqs=8, max_model_len=256, kv_cache_memory_bytes=_blocks(18)) as small:
        client = Client(small.target, retries=Retries(attempts=1))
        wanted = [[r.token_ids for r in client.generate(ids, **fields)] for ids in prompts]

        def fickle(number: int) -> Counter[str]:
            rng, codes = random.Random(number), Counter[str]()
            for _ in range(6):
                timeout = rng.choice([None, rng.uniform(0.001, 0.3)])
                stop = ["e"] if rng.random() < 0.3 else []
                stream = client.generate_stream(
                    rng.choice(prompts), n=rng.choice([1, 2, 3]), max_tokens=90, stop=stop, timeout=timeout
                )
                try:
                    for _ in zip(stream, range(rng.randrange(1, 50)), strict=False):
                        continue
                    stream.close()  # type: ignore[attr-defined]
                    codes["closed"] += 1
                except CallError as error:
                    codes[error.code] += 1
            return codes

        with ThreadPoolExecutor(12) as crowd:
            minds = [crowd.submit(fickle, number) for number in range(6)]
            steady = [crowd.submit(client.generate, ids, **fields) for ids in prompts]
            codes = sum((mind.result() for mind in minds), Counter[str]())
            assert [[r.token_ids for r in answer.result()] for answer in steady] == wanted
        assert set(codes) <= {"closed", "DEADLINE_EXCEEDED"}
        assert small.stats().preemptions > 0
        small.quiet()


def _blocks(count: int) -> int:
    """Bytes of `count` KV blocks of the small model in float32."""
    return count * BLOCK_SIZE * kv_bytes_per_token(load_spec(checkpoint_path()), torch.float32)


@pytest.mark.slow
def test_who_connects_to_grpc_and_sends_nothing_is_closed(server: RunningServer) -> None:
    host, _, port = server.target.rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as client:
        while client.recv(4096):  # the server's own first frame
            continue
