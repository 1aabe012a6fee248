"""Every architecture on every topology gives transformers' greedy tokens, with replicas where there are ranks for them."""

import gc
import random
import threading
import weakref
from pathlib import Path

import pytest
import torch

from router_svc.request import EngineRequest
from tests import checkpoints, topologies
from tests.engines import running, sampling
from tests.patience import wait_until

COUNT = 10
LENGTHS = (1, 7, 40, 211, 330)


@pytest.fixture(scope="module", params=sorted(checkpoints.ARCHITECTURES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make(request.param, tmp_path_factory.mktemp("matrix") / request.param)


def prompts() -> list[list[int]]:
    return [[random.Random(f"{n}/{i}").randrange(1, checkpoints.VOCABULARY) for i in range(n)] for n in LENGTHS]


def test_a_cell_that_ended_leaves_no_thread_and_no_weights() -> None:
    folder, before = checkpoints.shared("mixtral"), set(threading.enumerate())
    with topologies.running(folder, "2+2") as cluster:
        cluster.complete([EngineRequest("r", (1, 2), sampling(2))])
        slots = [weakref.ref(worker.held.slots) for worker in cluster.workers if worker.held]
    assert len(slots) == 2
    del cluster

    def gone() -> bool:
        gc.collect()
        return not any(ref() for ref in slots)

    wait_until(gone, "the slots are let go")
    wait_until(
        lambda: not [t for t in set(threading.enumerate()) - before if t.name in ("weights", "step-loop")], "ended"
    )


@pytest.mark.parametrize("topology", ["2+2", "colocated2"])
def test_layers_that_choose_different_numbers_of_experts(tmp_path: Path, topology: str) -> None:
    """Routes of narrower layers are padded with -1: no rank computes such a pair, and none counts it."""
    chosen, ids = [4, 1, 2], prompts()[2]
    folder = checkpoints.make("hunyuan_v1_moe", tmp_path / "c", seed=5, moe_topk=chosen)
    wanted, logits = checkpoints.reference_greedy(folder, ids, COUNT)
    assert checkpoints.smallest_gap(logits) >= 1e-3, "pick another seed: a near-tie decides a token"
    with topologies.running(folder, topology, num_redundant_experts=4) as cluster:
        assert cluster.complete([EngineRequest("r", tuple(ids), sampling(COUNT))]) == [wanted]
        counted = [k * (len(ids) + COUNT - 1) for k in chosen]

        def totals() -> list[int]:
            found = [w.joined.layers.loads.snapshot() for w in cluster.workers if w.joined and w.held]
            return torch.stack([one.sum(dim=1) for one in found]).sum(dim=0).tolist()

        wait_until(lambda: totals() == counted, "every rank has ended the last step")


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
