"""SourceWorker: takes an attention rank's seat and sends made tokens through the real exchange, step after step.

It has no model, only a gate that follows given loads; what comes back is checked against all experts' own weights.
"""

import asyncio
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from cluster.simulate.gate import ids_for
from experts.checkpoint.reader import CheckpointReader
from experts.epoch.agreement import StepWish
from experts.errors import RankLost
from experts.exchange.base import Exchange
from experts.exchange.doorbell import Moment
from experts.exchange.wire import Route
from experts.layers import ExpertLayers
from experts.slots.ffn import torch_swiglu
from experts.slots.loader import load_slots
from experts.slots.slots import ExpertSlots
from experts.threads import in_own_thread
from experts.worker.host import WorkerProcess
from experts.worker.pause import Pause
from experts.worker.worker import Held, Progress, StepBody, Worker, WorkerOrder

_CHECKED = 64  # tokens whose sums are compared in every step and layer


@dataclass(frozen=True, kw_only=True)
class SourceOrder(WorkerOrder):
    """tokens: of a step
    loads: int64 [T, L, E], one step after the other, then over again
    """

    tokens: int
    loads: npt.NDArray[np.int64]

    async def load(self, progress: Progress) -> "SourceWorker":
        """Read all experts, to check answers by."""
        everything, held = await asyncio.to_thread(in_own_thread, lambda: self._read(progress))
        return SourceWorker(self, everything, held)

    def _read(self, progress: Progress) -> tuple[ExpertSlots, Held | None]:
        torch.set_num_threads(1)
        everything = ExpertSlots(self.spec, self.spec.experts, self.dtype)
        held = np.tile(np.arange(self.spec.experts, dtype=np.int64), (self.spec.moe_layers, 1))
        load_slots(everything, held, CheckpointReader(self.folder))
        return everything, self.read_experts(progress)


@dataclass(slots=True)
class SourceResults:
    """Of the steps run so far.

    seconds: of each
    versions: placement of each
    started: s, of time.time
    error: largest difference of a sum from what it must be, relative to the largest sum
    """

    seconds: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    started: list[float] = field(default_factory=list)
    error: float = 0.0
    lost: str = ""


class SourceWorker(Worker):
    """A rank that brings tokens."""

    def __init__(self, order: SourceOrder, everything: ExpertSlots, held: Held | None) -> None:
        """everything: one slot for each expert."""
        super().__init__(order, held)
        self.everything, self.source = everything, order

    def body(self, exchange: Exchange, layers: ExpertLayers, planned: bool, pause: Pause | None) -> StepBody:
        self.loop = SourceLoop(self.source, self.everything, layers)
        return self.loop


class SourceProcess(WorkerProcess):
    """`go` has it run steps; everything else is as for an attention rank."""

    @property
    def _loop_of_steps(self) -> "SourceLoop":
        assert isinstance(self.worker, SourceWorker), type(self.worker)
        return self.worker.loop

    async def go(self, steps: int) -> None:
        """Run so many steps more; returns at once."""
        self._loop_of_steps.go(steps)

    async def left(self) -> int:
        """Steps that are still to run."""
        return self._loop_of_steps.left

    async def results(self) -> SourceResults:
        """What was seen so far."""
        return self._loop_of_steps.results


class SourceLoop:
    """The step loop: a StepBody."""

    def __init__(self, order: SourceOrder, everything: ExpertSlots, layers: ExpertLayers) -> None:
        self.lost = ""
        self.left = 0
        self.results = SourceResults()
        self._order, self._all, self._layers = order, everything, layers
        self._wanted = threading.Condition()
        self._empty = self._stopping = False
        self._next: Moment = (layers.exchange.epoch, 0)
        self._at = 0
        generator = torch.Generator().manual_seed(1)
        self._x = torch.randn(order.tokens, order.spec.hidden, generator=generator)
        self._weights = torch.rand(order.tokens, order.spec.top_k, generator=generator)

    def go(self, steps: int) -> None:
        """Run so many steps more."""
        with self._wanted:
            self.left += steps
            self._wanted.notify()

    def nudge(self) -> None:
        """Have the group run a step, be it an empty one."""
        with self._wanted:
            self._empty = True
            self._wanted.notify()

    def stop(self) -> None:
        """End the group's loops after the next step."""
        with self._wanted:
            self._stopping = True
            self._wanted.notify()

    def fail(self, reason: str) -> None:
        """The simulation must not wait for steps that never come."""
        self.results.lost = reason
        self.left = 0

    def stats(self) -> None:
        """Results are asked for by themselves."""

    def run(self) -> None:
        """The step thread's body."""
        try:
            while not self._step():
                pass
        except RankLost as lost:
            self.lost = str(lost)
            self.fail(self.lost)
        self._layers.exchange.close()

    def _step(self) -> bool:
        with self._wanted:
            self._wanted.wait_for(lambda: self.left or self._empty or self._stopping)
            busy, stopping, self._empty = self.left > 0 and not self._stopping, self._stopping, False
        exchange = self._layers.exchange
        routes = self._routes() if busy else []
        exchange.control.ring(self._next)
        began, started = time.time(), time.perf_counter()
        header = exchange.open_step(StepWish(decode=self._order.tokens if busy else 0, stop=stopping))
        self._next = (header.epoch, header.step + 1)
        if header.busy:
            sums = [self._layers(layer, self._x, route) for layer, route in enumerate(routes)]
            seconds = time.perf_counter() - started
            self._layers.end_step(header)
            self._check(routes, sums)
            results = self.results
            results.seconds.append(seconds)
            results.versions.append(header.version)
            results.started.append(began)
            with self._wanted:
                self.left -= 1
        return header.stop

    def _routes(self) -> list[Route]:
        loads = self._order.loads
        counts = loads[self._at % len(loads)]
        rng = np.random.default_rng(self._at)
        self._at += 1
        top_k = self._order.spec.top_k
        ids = (ids_for(row.copy(), self._order.tokens, top_k, rng) for row in counts)
        return [Route(torch.from_numpy(np.ascontiguousarray(one)).int(), self._weights) for one in ids]

    def _check(self, routes: list[Route], sums: list[torch.Tensor]) -> None:
        for layer, (route, got) in enumerate(zip(routes, sums, strict=True)):
            some = slice(0, _CHECKED)
            w13, w2 = self._all.w13[layer], self._all.w2[layer]
            right = torch_swiglu(self._x[some], route.ids[some], route.weights[some], w13, w2)
            error = float((got[some] - right).abs().max() / right.abs().max().clamp_min(1e-9))
            self.results.error = max(self.results.error, error)
