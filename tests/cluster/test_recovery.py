"""A rank with experts dies under load, over hosts of this process and real gloo: no request fails, no token differs."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from experts.background import join_task
from router_svc.request import EngineRequest
from tests import checkpoints
from tests.engines import sampling
from tests.mortal import Mortals
from tests.patience import wait_until
from tests.topologies import ThreadCluster, plan_for


@pytest.fixture(scope="module")
def folder() -> Path:
    return checkpoints.shared("hunyuan_v1_moe")


@contextmanager
def mortal(folder: Path, topology: str, **options: object) -> Iterator[tuple[ThreadCluster, Mortals]]:
    """A started cell whose ranks can be killed; it must serve at the end."""
    mortals = Mortals()
    cluster = ThreadCluster(plan_for(folder, topology, **options), mortals.spawn)
    try:
        cluster.start()
        yield cluster, mortals
        assert cluster.cell.life.state == "ready", cluster.cell.life.reason
    finally:
        cluster.stop()


def requests(name: str, count: int = 6, tokens: int = 60) -> list[EngineRequest]:
    """Greedy and seeded, with penalties, log-probabilities."""
    rng = np.random.default_rng(3)
    out = []
    for i in range(count):
        ids = tuple(rng.integers(1, checkpoints.VOCABULARY, 3 + 17 * i).tolist())
        fields = [
            {}, {"temperature": 0.8, "seed": i}, {"temperature": 0.7, "repetition_penalty": 1.2, "seed": 9}, {"logprobs": 2},
        ][i % 4]  # fmt: skip
        out.append(EngineRequest(f"{name}{i}", ids, sampling(tokens, **fields)))
    return out


def generated(cluster: ThreadCluster) -> int:
    return sum(engine.stats().generated_tokens for engine in cluster.engines)


def kinds(cluster: ThreadCluster) -> list[str]:
    return [event["kind"] for event in cluster.events.entries()]


def serve_through_a_death(cluster: ThreadCluster, mortals: Mortals, rank: int, name: str) -> list[list[int]]:
    """Answers of requests during which a rank is killed."""
    answers: list[list[list[int]]] = []
    begun = generated(cluster)
    asking = threading.Thread(target=lambda: answers.append(cluster.complete(requests(name))))
    asking.start()
    wait_until(lambda: generated(cluster) > begun + 40, "requests run")
    cluster.call(mortals.kill(rank))
    asking.join(120)
    assert answers, (
        f"no answers; {cluster.cell.life.state}: {cluster.cell.life.reason}; {cluster.events.entries()[-6:]}"
    )
    return answers[0]


@pytest.mark.parametrize("topology", ["1+3", "2+2"])
def test_others_go_on_with_their_copies(folder: Path, topology: str) -> None:
    with mortal(folder, topology, num_redundant_experts=16) as (cluster, mortals):
        quiet = cluster.complete(requests("q"))
        assert serve_through_a_death(cluster, mortals, 1, "d") == quiet
        assert "phase 3" not in str(cluster.events.entries()), "nobody waited for a process"
        ranks = set(range(3 if topology == "1+3" else 2))
        wait_until(lambda: "restored" in kinds(cluster), "the seat has a process and its experts again")
        assert cluster.cell.placement.ranks_used == ranks
        assert {seat.rank for seat in cluster.cell.roster.seats if seat.member.role == "expert"} == ranks
        if topology == "1+3":
            assert serve_through_a_death(cluster, mortals, 1, "e") == quiet, "the next process of the seat may die, too"


def test_requests_wait_for_experts_that_only_the_dead_had(folder: Path) -> None:
    with mortal(folder, "1+2") as (cluster, mortals):
        quiet = cluster.complete(requests("q"))
        assert serve_through_a_death(cluster, mortals, 0, "d") == quiet
        assert serve_through_a_death(cluster, mortals, 1, "e") == quiet
        assert kinds(cluster).count("recovered") == 2
        epochs = [event["text"] for event in cluster.events.entries() if event["kind"] == "recovered"]
        assert [text.split()[1] for text in epochs] == ["2", "3"]


def test_a_second_death_while_a_process_loads(folder: Path) -> None:
    with mortal(folder, "1+3") as (cluster, mortals):
        quiet = cluster.complete(requests("q"))
        answers: list[list[list[int]]] = []
        asking = threading.Thread(target=lambda: answers.append(cluster.complete(requests("d"))))
        begun = generated(cluster)
        asking.start()
        wait_until(lambda: generated(cluster) > begun + 40, "requests run")
        cluster.call(mortals.kill(0))
        wait_until(lambda: "phase 3" in cluster.cell.life.reason or "recovered" in kinds(cluster), "phase 3")
        cluster.call(mortals.kill(1))
        asking.join(120)
        assert answers == [quiet], cluster.events.entries()[-8:]


def test_a_second_death_while_the_others_meet(folder: Path) -> None:
    with mortal(folder, "1+3", num_redundant_experts=16) as (cluster, mortals):
        quiet = cluster.complete(requests("q"))
        struck: list[int] = []

        def strike(rank: int, verb: str) -> None:
            if verb == "recover" and not struck:
                struck.append(rank)
                join_task("a second death", mortals.kill(1))

        mortals.on_call = strike
        assert serve_through_a_death(cluster, mortals, 0, "d") == quiet
        assert struck, "nobody was to enter another epoch"
        wait_until(lambda: cluster.cell.placement.ranks_used == {0, 1, 2}, "all are back")


def test_an_idle_cluster_recovers_and_then_answers(folder: Path) -> None:
    with mortal(folder, "1+2", num_redundant_experts=16) as (cluster, mortals):
        quiet = cluster.complete(requests("q"))
        time.sleep(0.2)  # all sleep by now
        cluster.call(mortals.kill(0))
        wait_until(lambda: "recovered" in kinds(cluster), "recovered without a request")
        assert cluster.complete(requests("d")) == quiet


def test_loads_of_a_broken_step_are_counted_once(folder: Path) -> None:
    with mortal(folder, "1+3", num_redundant_experts=16) as (cluster, mortals):
        serve_through_a_death(cluster, mortals, 1, "d")
        chosen = cluster.plan.spec.experts.top_k
        stats = cluster.engines[0].stats()
        survivor = mortals.hosts[0].worker
        assert survivor.held is not None
        assert survivor.joined is not None
        per_layer = survivor.joined.layers.loads.snapshot().sum(dim=1)
        assert int(per_layer.max()) <= chosen * (stats.prompt_tokens + stats.generated_tokens)


def test_a_lost_attention_rank_still_ends_everything(folder: Path) -> None:
    mortals = Mortals()
    cluster = ThreadCluster(plan_for(folder, "1+2"), mortals.spawn)
    try:
        cluster.start()
        cluster.call(mortals.kill(2))
        wait_until(lambda: cluster.cell.life.state == "degraded", "degraded")
        assert "rank 2 (attention" in cluster.cell.life.reason
    finally:
        cluster.stop()
