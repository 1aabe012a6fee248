"""Real actors: transformers' tokens over gRPC and HTTP from every topology."""

import http.client
import json
import random
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.serve.launch import RayCluster
from router_svc.client import Client
from router_svc.demo_model.path import checkpoint_path
from router_svc.proto import tokenyard_pb2 as pb
from router_svc.proto import tokenyard_pb2_grpc as rpc
from tests import checkpoints
from tests.e2e.conftest import Starter
from tests.patience import wait_until
from tests.topologies import TOPOLOGIES

COUNT = 8
LENGTHS = (1, 19, 150, 260)
PAGE = "https://chat.example.org"
FAST = [("qwen3_moe", "2+2")]  # 1+2 with the small model, which is Hunyuan's, starts in other files
ALL = [(a, t) for a in checkpoints.ARCHITECTURES for t in TOPOLOGIES if t != "1+0" and (a, t) not in FAST]


def prompts() -> list[list[int]]:
    return [[random.Random(f"{n}/{i}").randrange(1, checkpoints.VOCABULARY) for i in range(n)] for n in LENGTHS]


def check_tokens(cluster: RayCluster, folder: Path) -> None:
    wanted = [checkpoints.reference_greedy(folder, ids, COUNT)[0] for ids in prompts()]
    with Client(f"127.0.0.1:{cluster.grpc_port}") as client, ThreadPoolExecutor(8) as pool:

        def ask(ids: list[int]) -> list[int]:
            return list(client.generate(ids, max_tokens=COUNT, temperature=0.0, ignore_eos=True)[0].token_ids)

        assert list(pool.map(ask, prompts())) == wanted
        status = client.status()
        assert status["state"] == "ready"
        assert [w["state"] for w in status["workers"]] == ["ready"] * len(cluster.plan.seats)
        assert client.placement().slot_expert
    body = {"prompt": prompts()[1], "max_tokens": COUNT, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    with post(cluster, body) as answer:
        assert json.load(answer)["choices"][0]["token_ids"] == wanted[1]


def check_take_over(cluster: RayCluster) -> None:
    """A call through the gRPC door comes again over HTTP, by way of another process: the older one ends."""
    slow = [("grpc.http2.lookahead_bytes", 0), ("grpc.http2.bdp_probe", 0)]  # its reader is held before it could end
    with grpc.insecure_channel(f"127.0.0.1:{cluster.grpc_port}", options=slow) as channel:
        sampling = pb.Sampling(max_tokens=900, temperature=0.0, ignore_eos=True, logprobs=20)
        ids = pb.TokenIds(ids=[5, 6, 7])
        older = rpc.InferenceStub(channel).GenerateStream(
            pb.GenerateRequest(request_id="again", token_ids=ids, sampling=sampling)
        )
        next(older)
        body = {"prompt": [5, 6, 7], "max_tokens": 900, "temperature": 0, "ignore_eos": True, "logprobs": 20}
        with post(cluster, {"request_id": "again", "stream": True, **body}) as answer:
            assert b"choices" in next(line for line in answer if line.startswith(b"data: "))
            with pytest.raises(grpc.RpcError) as ended:
                list(older)
            assert ended.value.code() == grpc.StatusCode.ABORTED
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(cluster, {"request_id": "a\tb", **body})
        assert refused.value.code == 400


def check_edge(cluster: RayCluster) -> None:
    """What one process has of its HTTP server and of the app around the handlers, Serve's proxy and replica have too."""
    connection = http.client.HTTPConnection("127.0.0.1", cluster.http_port, timeout=60)
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    for method, path, headers in (
        ("GET", "/v1/models/", {"x-request-id": "mine", "origin": PAGE}),
        ("OPTIONS", "/v1/completions", {"origin": PAGE, **asks}),
        ("GET", "/metrics", {}),
    ):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        page = answer.read().decode()
        assert answer.status == 200
        ids = answer.headers.get_all("x-request-id") or []
        assert len(ids) == 1
        assert ids[0] == headers.get("x-request-id", ids[0])
        assert answer.headers["access-control-allow-origin"] == headers.get("origin")
    connection.close()
    samples = [s for family in text_string_to_metric_families(page) for s in family.samples]
    memory = {s.labels["process"] for s in samples if s.name == "process_resident_memory_bytes"}
    ranks = {f"rank {seat.rank}" for seat in cluster.plan.seats}
    assert memory == {"http", f"grpc {cluster.grpc_port}", "supervisor", *ranks}
    assert {s.labels["model_name"] for s in samples} == {cluster.plan.name}


def post(cluster: RayCluster, body: dict[str, Any]) -> Any:
    url = f"http://127.0.0.1:{cluster.http_port}/v1/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=60)


def run(architecture: str, topology: str, start_cluster: Starter, folder: Path) -> None:
    checkpoints.make(architecture, folder)
    with start_cluster(folder, num_redundant_experts=4, allowed_origins=PAGE, **TOPOLOGIES[topology]) as cluster:
        check_tokens(cluster, folder)
        check_take_over(cluster)
        check_edge(cluster)


@pytest.mark.parametrize(("architecture", "topology"), FAST)
def test_tokens(architecture: str, topology: str, start_cluster: Starter, tmp_path: Path) -> None:
    run(architecture, topology, start_cluster, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "topology"), ALL)
def test_tokens_of_the_other_pairs(architecture: str, topology: str, start_cluster: Starter, tmp_path: Path) -> None:
    run(architecture, topology, start_cluster, tmp_path)


@pytest.mark.slow
def test_comments_and_refusals_pass_serves_proxy(start_cluster: Starter) -> None:
    """A stream that waits in the queue is kept alive by comments; one that finds the queue full has its own status."""
    body = {"prompt": "Once", "max_tokens": 1800, "ignore_eos": True, "stream": True}
    with start_cluster(checkpoint_path(), expert_workers=2, max_num_seqs=1, max_queue_len=1) as cluster:
        waiting = http.client.HTTPConnection("127.0.0.1", cluster.http_port, timeout=60)
        with post(cluster, body) as running, Client(f"127.0.0.1:{cluster.grpc_port}") as client:
            assert running.readline().startswith(b"id: ")
            waiting.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
            wait_until(lambda: client.status()["requests"]["waiting"] == 1, "a request in the queue")
            with pytest.raises(urllib.error.HTTPError) as refused:
                post(cluster, body)
            assert refused.value.code == 429
            assert int(refused.value.headers["retry-after"]) >= 1
            assert json.load(refused.value)["error"]["code"] == "resource_exhausted"
            answer = waiting.getresponse()
            assert answer.status == 200
            assert answer.readline() == b": waiting for the next token\n"
        assert any(line.startswith(b"data: ") for line in answer), "its turn comes"
        waiting.close()
