"""The balancer over threads with real gloo and real transfers: hot experts get copies, answers stay, failures are told."""

import asyncio
import itertools
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.balance.policies.base import Policy, Situation
from cluster.balance.policies.registry import load_policy
from cluster.balance.policies.tokenyard import TokenyardPolicy
from cluster.control.mover import MoveLimits, without
from cluster.state.events import EventLog
from experts.errors import UserError
from experts.placement import Placement
from experts.slots.loads import StepLoads
from experts.slots.migrate import Staged
from tests import checkpoints
from tests.cluster.balancers import SETTINGS, balancer_of, hosts_of, requests
from tests.engines import renamed
from tests.patience import PATIENCE
from tests.topologies import running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("hunyuan_v1_moe", tmp_path_factory.mktemp("rebalance") / "model")


@pytest.mark.parametrize(("topology", "spare"), [("1+2", 4), ("1+2", 0), ("2+2", 4), ("colocated2", 4)])
def test_hot_experts_get_copies_or_change_places_and_answers_stay(topology: str, spare: int, folder: Path) -> None:
    with running(folder, topology, num_redundant_experts=spare) as cluster:
        quiet = {seed: cluster.complete(requests(seed)) for seed in (1, 2)}
        events = EventLog()
        balancer = balancer_of(cluster, TokenyardPolicy(), events)

        async def live() -> None:
            task = asyncio.create_task(balancer.run())
            turns = itertools.count()
            while (turn := next(turns)) < 12 or not balancer.experts_moved:
                seed = 1 + turn // 4 % 2
                again = renamed(requests(seed), f"-{turn}-{seed}")
                assert await asyncio.to_thread(cluster.complete, again) == quiet[seed]
                await asyncio.sleep(0.3)
            async with balancer.quiet:  # no move is under way
                task.cancel()

        cluster.call(live())
        kinds = [event["kind"] for event in events.entries()]
        assert "rebalance" in kinds, events.entries()
        assert "moved" in kinds
        assert balancer.experts_moved > 0
        assert balancer.state == "ok", balancer.reason
        assert balancer.placement.version > 0
        assert cluster.workers[0].version == balancer.placement.version


HANGS = """
from cluster.balance.policies.base import Policy
class Hangs(Policy):
    name = "hangs"
    def plan(self, situation):
        while True:
            pass
"""


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
        balancer = balancer_of(cluster, Shuffle(), events)

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

        cluster.call(live())


class Ponders(Shuffle):
    """Thinks, the first time, until it is let go; remembers which placements it was asked about."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.go = threading.Event()

    def plan(self, situation: Situation) -> Placement:
        self.asked.append(situation.current.version)
        self.go.wait(PATIENCE)
        return super().plan(situation)


def test_ranks_are_emptied_while_a_policy_thinks_and_its_plan_is_thrown_away(folder: Path) -> None:
    with running(folder, "1+2", num_redundant_experts=16) as cluster:
        policy = Ponders()
        balancer = balancer_of(cluster, policy, EventLog())

        async def live() -> None:
            quiet = await asyncio.to_thread(cluster.complete, requests(1))
            ordered = asyncio.create_task(balancer.rebalance(False))
            while not policy.asked:
                await asyncio.sleep(0.01)
            async with balancer.quiet:
                await balancer.vacate(1)
            vacated = balancer.placement.version
            policy.go.set()
            await ordered
            assert policy.asked == [0, vacated], "planned again, for what was by then"
            assert balancer.placement.version > vacated
            assert await asyncio.to_thread(cluster.complete, renamed(requests(1), "b")) == quiet

        cluster.call(live())


def test_a_policy_that_never_returns_is_named_and_serving_goes_on(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HANGS)
    events = EventLog()
    with running(folder, "1+2", num_redundant_experts=4) as cluster:
        balancer = balancer_of(cluster, load_policy("mine:Hangs", folder=str(tmp_path), seconds=1), events)

        async def live() -> None:
            quiet = await asyncio.to_thread(cluster.complete, requests(1))
            task = asyncio.create_task(balancer.run())
            for turn in range(600):
                again = renamed(requests(1), f"-{turn}")
                assert await asyncio.to_thread(cluster.complete, again) == quiet
                if balancer.state == "stuck":
                    break
                await asyncio.sleep(0.1)
            task.cancel()

        cluster.call(live())
    assert "'hangs' did not answer within 1 s" in balancer.reason
    assert [event["kind"] for event in events.entries()] == ["balancer"]


def test_an_idle_balancer_asks_nobody(folder: Path) -> None:
    with running(folder, "1+2", num_redundant_experts=4) as cluster:
        balancer = balancer_of(cluster, Shuffle(), EventLog())
        looks: list[int] = []

        async def live() -> None:
            host = hosts_of(cluster)[0]
            asked = host.steps

            async def counted() -> list[StepLoads]:
                looks.append(1)
                return await asked()

            host.steps = counted  # type: ignore[method-assign]
            task = asyncio.create_task(balancer.run())
            await asyncio.sleep(2)
            assert not looks, "no step, no look"
            await asyncio.to_thread(cluster.complete, requests(1))
            while not balancer.counted:  # the first look may come before the other rank ended the step
                await asyncio.sleep(0.01)
            task.cancel()

        cluster.call(live())
        assert looks


def test_many_rounds_when_little_may_be_staged(folder: Path) -> None:
    with running(folder, "1+2", num_redundant_experts=4) as cluster:
        events = EventLog()
        settings = replace(SETTINGS, moves=MoveLimits(20_000, staged_bytes=20_000))
        balancer = balancer_of(cluster, Shuffle(), events, settings)

        async def live() -> None:
            quiet = await asyncio.to_thread(cluster.complete, requests(1))
            await balancer.rebalance(False)
            assert balancer.placement.version > 5, "one expert a rank and round"
            again = renamed(requests(1), "b")
            assert await asyncio.to_thread(cluster.complete, again) == quiet
            await balancer.look()
            await balancer.rebalance(False)

        cluster.call(live())
        assert balancer.state == "ok", balancer.reason
        assert balancer.rebalances == 2


async def hangs(*arguments: object) -> list[Staged]:
    """In place of a transfer."""
    await asyncio.sleep(3600)
    return []


def test_a_stuck_transfer_is_told_and_leaves_the_placement(folder: Path) -> None:
    with running(folder, "1+2", num_redundant_experts=4) as cluster:
        events = EventLog()
        settings = replace(SETTINGS, moves=replace(SETTINGS.moves, stage_seconds=2.0))
        balancer = balancer_of(cluster, Shuffle(), events, settings)

        async def live() -> None:
            quiet = await asyncio.to_thread(cluster.complete, requests(1))
            host = hosts_of(cluster)[0]
            host.stage = hangs  # type: ignore[method-assign]
            await balancer.rebalance(False)
            assert balancer.state == "stuck"
            assert "fetching" in balancer.reason
            assert balancer.placement.version == 0
            assert [e["kind"] for e in events.entries()][-2:] == ["balancer", "moved"]
            again = renamed(requests(1), "b")
            assert await asyncio.to_thread(cluster.complete, again) == quiet
            del host.stage  # type: ignore[method-assign]
            await balancer.rebalance(False)
            assert balancer.state == "ok"
            assert balancer.placement.version > 0

        cluster.call(live())


def test_a_policy_that_raises_leaves_the_placement(folder: Path) -> None:
    with running(folder, "1+2", num_redundant_experts=4) as cluster:
        events = EventLog()
        balancer = balancer_of(cluster, Raises(), events)

        async def live() -> None:
            await asyncio.to_thread(cluster.complete, requests(1))
            task = asyncio.create_task(balancer.run())
            for _ in range(100):
                await asyncio.sleep(0.05)
                if balancer.state == "stuck":
                    break
            task.cancel()

        cluster.call(live())
        assert "ZeroDivisionError: by me" in balancer.reason
        assert balancer.placement.version == 0
        assert len(events.entries()) == 1, "told once, not at every turn"


def test_failed_moves_are_left_out_with_what_depends_on_them() -> None:
    before = Placement(3, 2, 2, np.array([[0, 1, 2, 3]]))
    swap = Placement(4, 2, 2, np.array([[2, 1, 0, 3]]))
    assert without(before, swap, {(0, 0)}).slot_expert.tolist() == [[0, 1, 2, 3]], "2 stays where it is, so 0 does"
    spare = Placement(3, 2, 3, np.array([[0, 1, -1, 2, 3, -1]]))
    both = Placement(4, 2, 3, np.array([[0, 1, 2, 2, 3, 0]]))
    assert without(spare, both, {(0, 2)}).slot_expert.tolist() == [[0, 1, -1, 2, 3, 0]]
