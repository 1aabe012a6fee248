"""The balancer over threads with real gloo and real transfers: hot experts get copies, answers stay, failures are told."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.balance.policies.base import Policy, Situation
from cluster.balance.policies.tokenyard import TokenyardPolicy
from cluster.events import EventLog
from cluster.mover import MoveLimits, without
from cluster.rebalance import Balancer
from experts.errors import UserError
from experts.placement import Placement
from tests import checkpoints
from tests.cluster.seat_ports import SETTINGS, SeatPort, ports_of, requests
from tests.engines import renamed
from tests.topologies import ThreadCluster, running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("hunyuan_v1_moe", tmp_path_factory.mktemp("rebalance") / "model")


def balancer_of(cluster: ThreadCluster, policy: Policy, events: EventLog) -> tuple[Balancer, list[SeatPort]]:
    ports = ports_of(cluster)
    return Balancer(ports, cluster.plan.placement, policy, SETTINGS, events), ports


@pytest.mark.parametrize("topology", ["1+2", "2+2", "colocated2"])
def test_hot_experts_get_copies_and_answers_stay(topology: str, folder: Path) -> None:
    with running(folder, topology, num_redundant_experts=4) as cluster:
        quiet = {seed: cluster.complete(requests(seed)) for seed in (1, 2)}
        events = EventLog()
        balancer, _ = balancer_of(cluster, TokenyardPolicy(), events)

        async def live() -> None:
            task = asyncio.create_task(balancer.run())
            for seed in (1, 2, 1):
                for turn in range(4):
                    again = renamed(requests(seed), f"-{turn}-{seed}")
                    assert await asyncio.to_thread(cluster.complete, again) == quiet[seed]
                    await asyncio.sleep(0.3)
            task.cancel()

        asyncio.run(live())
        kinds = [event["kind"] for event in events.told()]
        assert "rebalance" in kinds, events.told()
        assert "moved" in kinds
        assert balancer.experts_moved > 0
        assert balancer.state == "ok", balancer.reason
        assert balancer.placement.version > 0
        assert cluster.seats[0].report().version == balancer.placement.version


class Shuffle(Policy):
    """Everything elsewhere: the most that can move."""

    name = "shuffle"

    def plan(self, situation: Situation) -> Placement:
        table = np.roll(situation.current.slot_expert, situation.shape.slots_per_rank + 1, axis=1)
        return Placement(1, situation.current.ranks, situation.current.slots_per_rank, table)


class Raises(Policy):
    """A stranger's mistake."""

    name = "raises"

    def plan(self, situation: Situation) -> Placement:
        raise ZeroDivisionError("by me")


def test_a_dry_run_moves_nothing_and_a_real_one_everything(folder: Path) -> None:
    with running(folder, "1+2", num_redundant_experts=4) as cluster:
        events = EventLog()
        balancer, _ = balancer_of(cluster, Shuffle(), events)

        async def live() -> None:
            with pytest.raises(UserError, match="no loads yet"):
                await balancer.rebalance(True)
            quiet = await asyncio.to_thread(cluster.complete, requests(1))
            dry = await balancer.rebalance(True)
            assert dry.moves > 0
            assert balancer.placement.version == 0
            done = await balancer.rebalance(False)
            assert balancer.experts_moved == done.moves
            assert balancer.placement.slot_expert.tolist() == dry.placement.slot_expert.tolist()
            again = renamed(requests(1), "b")
            assert await asyncio.to_thread(cluster.complete, again) == quiet

        asyncio.run(live())


def test_many_rounds_when_little_may_be_staged(folder: Path) -> None:
    with running(folder, "1+2", num_redundant_experts=4) as cluster:
        events = EventLog()
        settings = replace(SETTINGS, moves=MoveLimits(20_000, staged_bytes=20_000))
        balancer = Balancer(ports_of(cluster), cluster.plan.placement, Shuffle(), settings, events)

        async def live() -> None:
            quiet = await asyncio.to_thread(cluster.complete, requests(1))
            await balancer.rebalance(False)
            assert balancer.placement.version > 5, "one expert a rank and round"
            again = renamed(requests(1), "b")
            assert await asyncio.to_thread(cluster.complete, again) == quiet
            await balancer.look()
            await balancer.rebalance(False)

        asyncio.run(live())
        assert balancer.state == "ok", balancer.reason
        assert balancer.rebalances == 2


def test_a_stuck_transfer_is_told_and_leaves_the_placement(folder: Path) -> None:
    with running(folder, "1+2", num_redundant_experts=4) as cluster:
        events, ports = EventLog(), ports_of(cluster)
        settings = replace(SETTINGS, moves=replace(SETTINGS.moves, stage_seconds=2.0))
        balancer = Balancer(ports, cluster.plan.placement, Shuffle(), settings, events)

        async def live() -> None:
            quiet = await asyncio.to_thread(cluster.complete, requests(1))
            ports[0].hang = True
            await balancer.rebalance(False)
            assert balancer.state == "stuck"
            assert "fetching" in balancer.reason
            assert balancer.placement.version == 0
            assert [e["kind"] for e in events.told()][-2:] == ["balancer", "moved"]
            again = renamed(requests(1), "b")
            assert await asyncio.to_thread(cluster.complete, again) == quiet
            ports[0].hang = False
            await balancer.rebalance(False)
            assert balancer.state == "ok"
            assert balancer.placement.version > 0

        asyncio.run(live())


def test_a_policy_that_raises_leaves_the_placement(folder: Path) -> None:
    with running(folder, "1+2", num_redundant_experts=4) as cluster:
        events = EventLog()
        balancer, _ = balancer_of(cluster, Raises(), events)

        async def live() -> None:
            await asyncio.to_thread(cluster.complete, requests(1))
            task = asyncio.create_task(balancer.run())
            for _ in range(100):
                await asyncio.sleep(0.05)
                if balancer.state == "stuck":
                    break
            task.cancel()

        asyncio.run(live())
        assert "ZeroDivisionError: by me" in balancer.reason
        assert balancer.placement.version == 0
        assert len(events.told()) == 1, "told once, not at every turn"


def test_failed_moves_are_left_out_with_what_depends_on_them() -> None:
    before = Placement(3, 2, 2, np.array([[0, 1, 2, 3]]))
    swap = Placement(4, 2, 2, np.array([[2, 1, 0, 3]]))
    assert without(before, swap, {(0, 0)}).slot_expert.tolist() == [[0, 1, 2, 3]], "2 stays where it is, so 0 does"
    spare = Placement(3, 2, 3, np.array([[0, 1, -1, 2, 3, -1]]))
    both = Placement(4, 2, 3, np.array([[0, 1, 2, 2, 3, 0]]))
    assert without(spare, both, {(0, 2)}).slot_expert.tolist() == [[0, 1, -1, 2, 3, 0]]
