"""The Ray actor around an attention rank (or a rank of both roles): engine, link, and the bells of its peers."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import torch

from experts.background import watch_thread
from experts.checkpoint.reader import CheckpointReader
from experts.membership import EpochRecord
from experts.rank import RankOrder, RankReport
from experts.rank_actor import RingingActor
from experts.threads import in_own_thread
from router_svc.engine.batch import KVCache
from router_svc.engine.config import EngineConfig
from router_svc.engine.step_loop import Engine, EngineStats
from router_svc.link.server import LinkServer
from router_svc.models.decoder import CausalModel, build_model
from router_svc.models.spec import ModelSpec
from router_svc.request import Code, EngineRequest, Event, FailedEvent, Message

log = logging.getLogger(__name__)
_PATIENCE = 15.0  # s; longer than the supervisor takes to find out who hangs


@dataclass(frozen=True, slots=True)
class AttentionOrder:
    """What an attention rank loads beside what every rank does."""

    seat: RankOrder
    spec: ModelSpec
    engine: EngineConfig


class AttentionActor(RingingActor):
    """One attention rank's process. The step loop has a thread of its own; this event loop never blocks."""

    def __init__(self, order: AttentionOrder) -> None:
        super().__init__(order.seat)
        self._order = order
        self._model: CausalModel | None = None
        self._engine: Engine | None = None
        self._cache: KVCache | None = None
        self._link = LinkServer(self._post, order.seat.secret)

    async def load(self) -> int:
        """Read the attention side (and experts, if this rank holds any); the link's port."""
        await asyncio.to_thread(in_own_thread, self._load)
        return await self._link.start(self._order.seat.node_host)

    async def join(self, record: EpochRecord, peers: list[Any]) -> None:
        """Take the seat in an epoch and start the engine. peers: the other ranks' actors, whose bells it rings."""
        layers = await asyncio.to_thread(self._seat.join, record)
        assert self._seat.exchange is not None, "a joined seat has an exchange"
        assert self._model is not None, "a rank loads before it joins"
        assert self._cache is not None, "a rank loads before it joins"
        self._peers = peers
        engine = self._engine = Engine(
            self._model, layers, self._seat.exchange, self._seat.bell, self._order.engine, self._cache,
            self._link.deliver, self._ring,
        )  # fmt: skip

        def ended(what: str) -> None:  # the engine deals with exceptions itself: this is the worst case
            self._seat.leave()
            self._loop.call_soon_threadsafe(self._end, what)
            engine.fail(what)

        watch_thread("step-loop", lambda: self._run(engine), ended, returns=True)

    async def leave(self, reason: str) -> None:
        """End all requests with `reason` and drop the epoch's group."""
        if self._engine is not None:
            self._engine.fail(reason)
        self._seat.leave()
        self._end(reason)

    async def stop(self) -> None:
        """Ask the whole group to end its loops after the next step."""
        if self._engine is not None:
            self._engine.stop()

    async def nudge(self) -> None:
        """Have the group run a step, be it an empty one."""
        if self._engine is not None:
            self._engine.nudge()

    async def report(self) -> tuple[RankReport, EngineStats | None]:
        """Running totals of the rank and of its engine."""
        return self._seat.report(), self._engine.stats() if self._engine is not None else None

    def _load(self) -> None:
        order, seat = self._order, self._order.seat

        def note(done: int, total: int) -> None:
            self._progress = (done, total)

        torch.set_num_threads(seat.threads)
        self._model = build_model(order.spec, CheckpointReader(seat.folder), seat.dtype, seat.device, note)
        before = self._progress[1]
        self._seat.load(lambda done, total: note(before + done, before + total))
        self._cache = KVCache.allocate(
            order.spec.layers, order.engine.kv_blocks, order.engine.block_size, order.spec.kv_heads,
            order.spec.head_dim, seat.dtype, seat.device,
        )  # fmt: skip

    def _post(self, message: Message) -> None:
        if self._engine is not None:
            self._engine.post(message)
        elif isinstance(message, EngineRequest):
            early: list[Event] = [
                FailedEvent(
                    message.request_id, message.attempt, Code.UNAVAILABLE, "the rank has joined no epoch yet", 1.0
                )
            ]
            self._link.deliver(early)

    def _run(self, engine: Engine) -> None:
        engine.run()
        self._loop.call_soon_threadsafe(self._end, engine.lost)
        if engine.lost:  # the supervisor knows who died and says so through `leave`; if it does not, say what was seen
            self._loop.call_soon_threadsafe(self._loop.call_later, _PATIENCE, engine.fail, engine.lost)
