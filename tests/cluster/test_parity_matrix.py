"""Every architecture on every topology gives transformers' greedy tokens, with replicas where there are ranks for them."""

import random
from pathlib import Path

import pytest

from router_svc.request import EngineRequest
from tests import checkpoints, topologies
from tests.engines import running, sampling

COUNT = 10
LENGTHS = (1, 7, 40, 211, 330)


@pytest.fixture(scope="module", params=sorted(checkpoints.ARCHITECTURES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make(request.param, tmp_path_factory.mktemp("matrix") / request.param)


def prompts() -> list[list[int]]:
    return [[random.Random(f"{n}/{i}").randrange(1, checkpoints.VOCABULARY) for i in range(n)] for n in LENGTHS]


@pytest.mark.parametrize("topology", topologies.TOPOLOGIES)
def test_tokens_are_transformers(folder: Path, topology: str) -> None:
    wanted = []
    for ids in prompts():
        tokens, logits = checkpoints.reference_greedy(folder, ids, COUNT)
        assert checkpoints.smallest_gap(logits) >= 1e-3, "pick another seed: a near-tie decides a token"
        wanted.append(tokens)
    redundant = 0 if topology == "1+0" else 4
    if topology == "1+0":
        with running(folder) as harness:
            requests = [EngineRequest(f"r{i}", tuple(ids), sampling(COUNT)) for i, ids in enumerate(prompts())]
            assert harness.complete(requests) == wanted
        return
    with topologies.running(folder, topology, num_redundant_experts=redundant) as cluster:
        requests = [EngineRequest(f"r{i}", tuple(ids), sampling(COUNT)) for i, ids in enumerate(prompts())]
        assert cluster.complete(requests) == wanted
        again = [EngineRequest(f"s{i}", tuple(ids), sampling(COUNT)) for i, ids in enumerate(prompts())]
        assert cluster.complete(again) == wanted  # after an idle pause, and from the prefix cache
