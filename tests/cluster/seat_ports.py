"""Ranks of a thread cluster as the balancer sees them, and requests that heat few experts."""

import asyncio
from collections.abc import Sequence

import numpy as np

from cluster.mover import MoveLimits
from cluster.rebalance import BalancerSettings
from experts.exchange.split import SplitPolicy
from experts.loads import StepLoads
from experts.migrate import Move, Staged
from experts.placement import Placement
from experts.rank import RankSeat
from router_svc.engine.step_loop import Engine
from router_svc.request import EngineRequest
from tests import checkpoints
from tests.engines import sampling
from tests.topologies import ThreadCluster

SETTINGS = BalancerSettings(True, MoveLimits(20_000), least_pairs=64, interval=4, horizon=1e5)


class SeatPort:
    """A seat of this process as the balancer sees a rank."""

    def __init__(self, seat: RankSeat, engine: Engine | None) -> None:
        self._seat, self._engine = seat, engine
        self.rank, self.title, self.holds = seat.order.rank, f"rank {seat.order.rank}", seat.order.holds
        self.runs_attention = engine is not None
        self.host, self.weights_port = "127.0.0.1", seat.report().weights_port
        self.hang = False

    async def stepped(self) -> None:
        while not self._seat.has_steps:
            await asyncio.sleep(0.01)

    async def steps(self) -> list[StepLoads]:
        return self._seat.steps()

    async def stage(self, moves: Sequence[Move], bandwidth: float) -> list[Staged]:
        if self.hang:
            await asyncio.sleep(3600)
        return await asyncio.to_thread(self._seat.stage, moves, bandwidth)

    async def offer(self, placement: Placement, policy: SplitPolicy) -> None:
        await asyncio.to_thread(self._seat.offer, placement, policy)

    async def drop_staged(self) -> None:
        self._seat.drop_staged()

    async def version(self) -> int:
        return self._seat.report().version

    async def nudge(self) -> None:
        assert self._engine is not None
        self._engine.nudge()


def ports_of(cluster: ThreadCluster) -> list[SeatPort]:
    engines = iter(cluster.engines)
    return [
        SeatPort(seat, next(engines) if member.runs_attention else None)
        for seat, member in zip(cluster.seats, cluster.plan.seats, strict=True)
    ]


def requests(seed: int, count: int = 8) -> list[EngineRequest]:
    """Prompts of few different ids, so that few experts are hot."""
    rng = np.random.default_rng(seed)
    some = rng.integers(1, checkpoints.VOCABULARY, 3)
    return [EngineRequest(f"r{seed}-{i}", tuple(rng.choice(some, 60).tolist()), sampling(8)) for i in range(count)]
