"""Ranks with experts leave and join under a real engine, as hosts of one process with real gloo: answers stay."""

import asyncio
import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

from cluster.balance.policies.tokenyard import TokenyardPolicy
from cluster.state.events import EventLog
from experts.errors import UserError
from tests import checkpoints
from tests.cluster.balancers import balancer_of, requests
from tests.engines import renamed
from tests.patience import PATIENCE
from tests.topologies import running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("hunyuan_v1_moe", tmp_path_factory.mktemp("members") / "model")


@pytest.mark.parametrize("topology", ["1+2", "2+2"])
def test_a_rank_leaves_and_joins_under_load_and_answers_stay(topology: str, folder: Path) -> None:
    with running(folder, topology, num_redundant_experts=16) as cluster:
        quiet = {seed: cluster.complete(requests(seed)) for seed in (1, 2)}
        cell, balancer = cluster.cell, balancer_of(cluster, TokenyardPolicy(), EventLog())
        done = threading.Event()
        wrong: list[object] = []
        served = itertools.count()

        def load() -> None:
            while not done.is_set():
                turn = next(served)
                seed = 1 + turn % 2
                got = cluster.complete(renamed(requests(seed), f"-{turn}"))
                if got != quiet[seed]:
                    wrong.append((turn, got))

        async def live() -> None:
            for _ in range(3):
                await cell.release(1)
                assert balancer.placement.ranks_used == {0}
                assert balancer.shape.dead == {1}
                with pytest.raises(UserError, match="slots on 0 live ranks"):
                    await balancer.vacate(0)
                await asyncio.sleep(0.3)
                await cell.admit(1)
                await balancer.look()
                await asyncio.sleep(0.5)
                await balancer.rebalance(dry_run=False)
                assert balancer.placement.ranks_used == {0, 1}, "who joined gets experts"

        thread = threading.Thread(target=load)
        thread.start()
        try:
            cluster.call(live())
        finally:
            done.set()
            thread.join(PATIENCE)
        assert not wrong
        assert next(served) > 5, "answers came all the while"
        epochs = {row.epoch for row in balancer.counted}
        assert epochs == set(range(1, 8)), "steps of every epoch were counted"
        tokens = [np.array([row.mean for row in balancer.counted if row.epoch == e]).sum() for e in epochs]
        assert all(tokens)


def test_members_change_while_nobody_has_tokens(folder: Path) -> None:
    with running(folder, "1+2", num_redundant_experts=16) as cluster:
        quiet, cell = cluster.complete(requests(1)), cluster.cell

        async def idle() -> None:
            for _ in range(4):
                await asyncio.sleep(0.1)  # all sleep by now
                await asyncio.wait_for(cell.release(1), PATIENCE)
                await asyncio.sleep(0.1)
                await asyncio.wait_for(cell.admit(1), PATIENCE)

        cluster.call(idle())
        assert cluster.complete(renamed(requests(1), "b")) == quiet
