"""AttentionWorker: a rank that brings tokens: model, KV cache, engine, and the link that ingresses send requests over."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import torch

from experts.checkpoint.reader import CheckpointReader
from experts.exchange.base import Exchange
from experts.layers import ExpertLayers
from experts.threads import in_own_thread
from experts.worker.pause import Pause
from experts.worker.worker import Held, Progress, StepBody, Worker, WorkerOrder
from router_svc.engine.config import EngineConfig
from router_svc.engine.step_loop import Engine
from router_svc.link.server import LinkServer
from router_svc.models.batch import KVCache
from router_svc.models.decoder import CausalModel, build_model
from router_svc.models.spec import ModelSpec
from router_svc.request import Code, EngineRequest, Event, FailedEvent, Message

Deliver = Callable[[list[Event]], None]


@dataclass(frozen=True, kw_only=True)
class AttentionOrder(WorkerOrder):
    """What an attention rank loads beside what every rank does.

    deliver: takes a step's events, from the step thread, and never blocks; None: they go to the ingresses that connect
    """

    model: ModelSpec
    engine: EngineConfig
    deliver: Deliver | None = None

    async def load(self, progress: Progress) -> "AttentionWorker":
        """Read the attention side, and experts if the seat holds any; listen for ingresses."""
        parts = await asyncio.to_thread(in_own_thread, lambda: self._read(progress))
        worker = AttentionWorker(self, *parts)
        if self.deliver is None:
            await worker.listen()
        return worker

    def _read(self, progress: Progress) -> tuple[CausalModel, KVCache, Held | None]:
        """In the order in which memory is filled; blocks."""
        torch.set_num_threads(self.threads)
        done_before = 0

        def note(done: int, total: int) -> None:
            nonlocal done_before
            done_before = total
            progress(done, total)

        model = build_model(self.model, CheckpointReader(self.folder), self.dtype, self.device, note)
        held = self.read_experts(lambda done, total: progress(done_before + done, done_before + total))
        spec, engine = self.model, self.engine
        cache = KVCache.allocate(
            spec.layers, engine.kv_blocks, engine.block_size, spec.kv_heads, spec.head_dim, self.dtype, self.device
        )
        return model, cache, held


class AttentionWorker(Worker):
    """See the module. `post` takes messages from any thread."""

    def __init__(self, order: AttentionOrder, model: CausalModel, cache: KVCache, held: Held | None) -> None:
        super().__init__(order, held)
        self._model, self._cache = model, cache
        self._config = order.engine
        self._deliver: Deliver = order.deliver or _nowhere
        self._engine: Engine | None = None  # before it is in an epoch

    async def listen(self) -> None:
        """Take requests from ingresses, at `link_port`."""
        link = LinkServer(self.post, self.order.secret, self.order.seat.rank)
        self._deliver = link.deliver
        self.link_port = await link.start(self.order.seat.node_ip)

    def body(self, exchange: Exchange, layers: ExpertLayers, planned: bool, pause: Pause | None) -> StepBody:
        self._engine = Engine(self._model, layers, exchange, self._config, self._cache, self._deliver, pause)
        return self._engine

    def post(self, message: Message) -> None:
        """Hand a message to the engine."""
        if self._engine is not None:
            self._engine.post(message)
        elif isinstance(message, EngineRequest):
            text = "the rank has joined no epoch yet"
            self._deliver([FailedEvent(message.request_id, message.attempt, Code.UNAVAILABLE, text, 1.0)])


def _nowhere(events: list[Event]) -> None:
    """Before anybody can send requests."""
