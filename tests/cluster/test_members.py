"""Ranks with experts leave and join under a real engine, as threads with real gloo: answers stay."""

import asyncio
import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.balance.policies.tokenyard import TokenyardPolicy
from cluster.events import EventLog
from cluster.rebalance import Balancer
from experts.errors import UserError
from experts.membership import EpochRecord, Membership
from experts.rank import RankSeat
from experts.rank_loop import ExpertRankLoop
from tests import checkpoints
from tests.cluster.seat_ports import SETTINGS, SeatPort, requests
from tests.engines import renamed
from tests.patience import PATIENCE
from tests.topologies import ThreadCluster, running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("hunyuan_v1_moe", tmp_path_factory.mktemp("members") / "model")


class Elastic:
    """A thread cluster with its balancer, whose ranks with experts come and go."""

    def __init__(self, cluster: ThreadCluster) -> None:
        self.cluster = cluster
        self.seats = dict(zip((m.rank for m in cluster.plan.seats), cluster.seats, strict=True))
        self._members = {member.rank: member for member in cluster.plan.seats}
        self._orders = {rank: seat.order for rank, seat in self.seats.items()}
        self._epochs = itertools.count(2)
        self.balancer = Balancer(self._ports(), cluster.plan.placement, TokenyardPolicy(), SETTINGS, EventLog())

    async def release(self, rank: int) -> None:
        async with self.balancer.quiet:
            await self.balancer.vacate(rank)
            staying = {r: seat for r, seat in self.seats.items() if r != rank}
            await self._change(staying, None)

    async def admit(self, rank: int) -> None:
        async with self.balancer.quiet:
            order = replace(self._orders[rank], placement=self.balancer.placement)
            joining = RankSeat(order)
            joining.load(lambda done, total: None)
            await self._change(self.seats | {rank: joining}, joining)

    async def _change(self, after: dict[int, RankSeat], joining: RankSeat | None) -> None:
        epoch = next(self._epochs)
        members = Membership(epoch, tuple(self._members[rank] for rank in sorted(after)))
        record = EpochRecord(members, "127.0.0.1", self.cluster.store.port, PATIENCE, planned=True)
        work: list[Callable[[], object]] = [lambda seat=seat: seat.prepare(record) for seat in self.seats.values()]
        if joining is not None:
            work.append(lambda: joining.join(record))
        await asyncio.gather(*(asyncio.to_thread(one) for one in work))
        if joining is not None:
            self._start(joining)
        self.cluster.seats[:] = (after | self.seats).values()  # whose bells are rung
        while any(seat.exchange is None or seat.exchange.epoch < epoch for seat in after.values()):
            self.cluster.engines[0].nudge()
            await asyncio.sleep(0.01)
        self.seats = after
        self.cluster.seats[:] = after.values()
        await self.balancer.meet(epoch, self._ports())

    def _start(self, seat: RankSeat) -> None:
        assert seat.layers is not None
        assert seat.exchange is not None
        loop = ExpertRankLoop(seat.layers, seat.exchange, seat.bell, self.cluster.lost.append, awaited=True)
        threading.Thread(target=loop.run, daemon=True).start()

    def _ports(self) -> list[SeatPort]:
        engines = iter(self.cluster.engines)
        return [
            SeatPort(seat, next(engines) if self._members[rank].runs_attention else None)
            for rank, seat in sorted(self.seats.items())
        ]


@pytest.mark.parametrize("topology", ["1+2", "2+2"])
def test_a_rank_leaves_and_joins_under_load_and_answers_stay(topology: str, folder: Path) -> None:
    with running(folder, topology, num_redundant_experts=16) as cluster:
        quiet = {seed: cluster.complete(requests(seed)) for seed in (1, 2)}
        elastic = Elastic(cluster)
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
                await elastic.release(1)
                assert elastic.balancer.placement.ranks_used == {0}
                assert elastic.balancer.shape.dead == {1}
                with pytest.raises(UserError, match="slots on 0 live ranks"):
                    await elastic.balancer.vacate(0)
                await asyncio.sleep(0.3)
                await elastic.admit(1)
                await elastic.balancer.look()
                await asyncio.sleep(0.5)
                await elastic.balancer.rebalance(dry_run=False)
                assert elastic.balancer.placement.ranks_used == {0, 1}, "who joined gets experts"

        thread = threading.Thread(target=load)
        thread.start()
        try:
            asyncio.run(live())
        finally:
            done.set()
            thread.join(PATIENCE)
        assert not wrong
        assert next(served) > 5, "answers came all the while"
        epochs = {row.epoch for row in elastic.balancer.counted}
        assert epochs == set(range(1, 8)), "steps of every epoch were counted"
        tokens = [np.array([row.mean for row in elastic.balancer.counted if row.epoch == e]).sum() for e in epochs]
        assert all(tokens)


def test_members_change_while_nobody_has_tokens(folder: Path) -> None:
    with running(folder, "1+2", num_redundant_experts=16) as cluster:
        quiet = cluster.complete(requests(1))
        elastic = Elastic(cluster)

        async def idle() -> None:
            for _ in range(4):
                await asyncio.sleep(0.1)  # all sleep by now
                await asyncio.wait_for(elastic.release(1), PATIENCE)
                await asyncio.sleep(0.1)
                await asyncio.wait_for(elastic.admit(1), PATIENCE)

        asyncio.run(idle())
        assert cluster.complete(renamed(requests(1), "b")) == quiet
