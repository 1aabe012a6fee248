"""Real actors and real traffic: a hot expert gets copies, gives them back when the traffic turns, no token changes."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cluster.balance.policies.tokenyard import TokenyardPolicy
from cluster.balance.shape import ClusterShape
from cluster.balance.trace import BOTH, LoadTrace
from cluster.simulate.replay import ReplaySettings, replay
from router_svc.client import Client
from router_svc.demo_model.path import checkpoint_path
from tests.e2e.conftest import Starter
from tests.tasks import TASKS


def traffic(client: Client, task: str, seconds: float) -> list[tuple[str, tuple[int, ...]]]:
    """Questions of one kind from eight clients at once, greedy: (question, tokens)."""
    end = time.monotonic() + seconds

    def one(seed: int) -> list[tuple[str, tuple[int, ...]]]:
        rng, got = random.Random(f"{task}{seed}"), []
        while time.monotonic() < end:
            question = TASKS[task](rng)
            answer = client.chat([{"role": "user", "content": question}], temperature=0.0, max_tokens=48)[0]
            got.append((question, tuple(answer.token_ids)))
        return got

    with ThreadPoolExecutor(8) as pool:
        return [pair for part in pool.map(one, range(8)) for pair in part]


def until(
    client: Client, task: str, seen: Callable[[np.ndarray], bool]
) -> tuple[list[tuple[str, tuple[int, ...]]], np.ndarray]:
    """Traffic of one kind until the replicas are as wished, at most a minute of it: (answers, replicas)."""
    answers: list[tuple[str, tuple[int, ...]]] = []
    for _ in range(20):
        answers += traffic(client, task, 3)
        if seen(replicas(client)):
            break
    return answers, replicas(client)


def replicas(client: Client) -> np.ndarray:
    """[L, E] copies of each expert now."""
    told = client.placement()
    table = np.array(told.slot_expert).reshape(told.layers, -1)
    return np.stack([np.bincount(row[row >= 0], minlength=64) for row in table])


@pytest.mark.slow
def test_copies_follow_the_traffic_and_answers_stay(start_cluster: Starter, tmp_path: Path) -> None:
    trace = tmp_path / "loads.npz"
    options = {
        "attention_workers": 1, "expert_workers": 3, "num_redundant_experts": 16, "eplb_interval": 6, "record_loads": trace,
    }  # fmt: skip
    with start_cluster(checkpoint_path(), **options) as cluster, Client(f"127.0.0.1:{cluster.grpc_port}") as client:
        first = replicas(client)
        answers, added = until(client, "add", lambda now: (now > first).any())
        back, turned = until(client, "reverse", lambda now: (now < added).any())
        answers += back
        status = client.status(events=True)
        assert status["rebalances"] >= 2, status["events"]
        assert status["experts_moved"] >= 2
        assert status["balancer"]["state"] == "ok", status["balancer"]
        kinds = [event["kind"] for event in status["events"]]
        assert {"rebalance", "moved"} <= set(kinds), kinds
        assert status["placement_version"] >= 2
        assert (added > first).any(), "no expert got a copy for additions"
        assert (turned < added).any(), "no copy was given back when the traffic turned"
        assert (turned > added).any(), "no other expert got one"
        check_answers(client, answers)
        client.rebalance(dry_run=True)
    check_trace(trace)


@pytest.mark.slow
def test_without_spare_slots_experts_change_places(start_cluster: Starter) -> None:
    """As `serve` starts by default."""
    with (
        start_cluster(checkpoint_path(), eplb_interval=6) as cluster,
        Client(f"127.0.0.1:{cluster.grpc_port}") as client,
    ):
        before = list(client.placement().slot_expert)
        answers, now = until(client, "add", lambda _: client.status()["experts_moved"] > 0)
        status = client.status(events=True)
        assert status["experts_moved"] >= 2, status["events"]
        assert status["balancer"]["state"] == "ok", status["balancer"]
        assert list(client.placement().slot_expert) != before
        assert (now == 1).all(), "every expert has one slot"
        check_answers(client, answers)


def check_answers(client: Client, answers: list[tuple[str, tuple[int, ...]]]) -> None:
    """The same questions again, one at a time and with nothing moving, give the same tokens."""
    assert len(answers) >= 8
    for question, tokens in random.Random(0).sample(answers, min(len(answers), 16)):
        again = client.chat([{"role": "user", "content": question}], temperature=0.0, max_tokens=48)[0]
        assert tuple(again.token_ids) == tokens, question


def check_trace(path: Path) -> None:
    """What was recorded is a trace: every token's eight experts in every layer; it replays in the simulator."""
    trace = LoadTrace.load(path)
    trace.check_model(4, 64, "here")
    per_layer = trace.loads.sum(axis=2)
    assert (per_layer == per_layer[:, :1]).all()
    assert (per_layer % 8 == 0).all()
    assert trace.source_loads is not None
    assert (trace.source_loads.sum(axis=1) == trace.loads).all()
    assert trace.phase is not None
    assert set(np.unique(trace.phase)) <= {0, 1, BOTH}
    done = replay(trace.loads, ClusterShape(3, 27), TokenyardPolicy(), ReplaySettings())
    assert 0 <= done.excess < 1
