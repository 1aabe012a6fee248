"""Whole cells with ranks as hosts in this process and real gloo between them: production's supervision without Ray."""

import asyncio
import itertools
import queue
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cluster.config import ServeConfig
from cluster.control.cell import Cell
from cluster.control.orders import Orders, Spawn, in_process, local_worker
from cluster.plan import ServePlan, make_plan
from cluster.state.events import EventLog
from experts.worker.worker import Worker, WorkerOrder
from router_svc.engine.step_loop import Engine
from router_svc.request import EngineRequest, Event
from router_svc.worker import AttentionOrder, AttentionWorker, Deliver
from tests.engines import tokens_of
from tests.patience import PATIENCE
from tests.server import cancel_tasks

T = TypeVar("T")
TOPOLOGIES = {
    "1+0": {"attention_workers": 1, "expert_workers": 0},
    "1+2": {"attention_workers": 1, "expert_workers": 2},
    "2+2": {"attention_workers": 2, "expert_workers": 2},
    "colocated2": {"attention_workers": 2, "colocate": True},
}
_OTHERS = {"1+3": {"attention_workers": 1, "expert_workers": 3}}  # not for every test of all topologies


@dataclass(frozen=True)
class ThreadOrders(Orders):
    """A plan's orders, whose events come to `deliver`, and whose steps use one thread."""

    deliver: Deliver

    def attention(self, common: WorkerOrder) -> WorkerOrder:
        return AttentionOrder(**vars(common), model=self.plan.spec, engine=self.plan.engine, deliver=self.deliver)

    def _threads(self, seat: object) -> int:
        return 1


class ThreadCluster:
    """A cell that runs in an event loop of its own. Requests go to the attention ranks in turn."""

    def __init__(self, plan: ServePlan, spawn: Spawn = in_process) -> None:
        self.plan = plan
        self.events = EventLog()
        self._answers: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.cell = self.call(self._make(spawn))

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the cell's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def start(self) -> None:
        """Load, and enter the first epoch."""
        self.call(self.cell.start())

    @property
    def workers(self) -> list[Worker]:
        """Of the epoch's members, in order of ranks."""
        return [local_worker(seat.port) for seat in self.cell.roster.seats]

    @property
    def engines(self) -> list[Engine]:
        """Of the ranks that bring tokens."""
        bodies = [worker.joined.body for worker in self.workers if worker.joined is not None]
        return [body for body in bodies if isinstance(body, Engine)]

    def complete(self, requests: list[EngineRequest]) -> list[list[int]]:
        """Token ids of each request (n = 1), all posted at once."""
        bringers = [worker for worker in self.workers if isinstance(worker, AttentionWorker)]
        for worker, request in zip(itertools.cycle(bringers), requests, strict=False):
            worker.post(request)
        got: dict[str, list[Event]] = {request.request_id: [] for request in requests}
        left = len(requests)
        while left:
            event = self._answers.get(timeout=PATIENCE)
            got[event.request_id].append(event)
            left -= getattr(event, "finish_reason", "failed") is not None
        return [tokens_of(got[request.request_id]) for request in requests]

    def stop(self) -> None:
        """End every loop and drop what `start` made, also where it failed halfway."""
        workers = self.workers if self.cell.life.state != "starting" else []
        try:
            self.call(self.cell.stop())
            if self.cell.life.state == "stopping":
                ended = [worker.end(PATIENCE) for worker in workers]
                assert all(ended), "a step loop did not end"
        finally:
            for worker in workers:
                worker.close()
            self.call(cancel_tasks())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE)

    async def _make(self, spawn: Spawn) -> Cell:
        return Cell(ThreadOrders(self.plan, self._deliver), spawn, self.events, self._changed)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            self._answers.put(event)

    async def _changed(self) -> None:
        """Nobody follows the cell's state here."""


def plan_for(folder: Path, topology: str, **options: object) -> ServePlan:
    """A float32 plan of a topology, not balanced by itself; ports are not checked."""
    fixed = {"dtype": "float32", "max_num_batched_tokens": 192, "enable_eplb": False}
    config = ServeConfig(**{**fixed, **(TOPOLOGIES | _OTHERS)[topology], **options})  # type: ignore[arg-type]
    return make_plan(folder, config, check_ports=False, check_text=False)


@contextmanager
def running(folder: Path, topology: str, **options: object) -> Iterator[ThreadCluster]:
    """A started cell; its loops must end cleanly."""
    cluster = ThreadCluster(plan_for(folder, topology, **options))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
    assert cluster.cell.life.reason == "the server is shutting down", cluster.cell.life.reason
