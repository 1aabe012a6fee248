"""Real actors: transformers' tokens over gRPC and HTTP from every topology."""

import json
import random
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.launch import RayCluster
from router_svc.client import Client
from tests import checkpoints
from tests.e2e.conftest import Starter
from tests.topologies import TOPOLOGIES

COUNT = 8
LENGTHS = (1, 19, 150, 260)
FAST = [("hunyuan_v1_moe", "1+2"), ("qwen3_moe", "2+2"), ("mixtral", "colocated2")]
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
    request = urllib.request.Request(
        f"http://127.0.0.1:{cluster.http_port}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["choices"][0]["token_ids"] == wanted[1]


def run(architecture: str, topology: str, start_cluster: Starter, folder: Path) -> None:
    checkpoints.make(architecture, folder)
    with start_cluster(folder, num_redundant_experts=4, **TOPOLOGIES[topology]) as cluster:
        check_tokens(cluster, folder)


@pytest.mark.parametrize(("architecture", "topology"), FAST)
def test_tokens(architecture: str, topology: str, start_cluster: Starter, tmp_path: Path) -> None:
    run(architecture, topology, start_cluster, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "topology"), ALL)
def test_tokens_of_the_other_pairs(architecture: str, topology: str, start_cluster: Starter, tmp_path: Path) -> None:
    run(architecture, topology, start_cluster, tmp_path)
