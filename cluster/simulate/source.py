"""SourceActor: takes an attention rank's seat and sends made tokens through the real exchange, step after step.

It has no model, only a gate that follows given loads; what comes back is checked against all experts' own weights.
"""

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cluster.simulate.gate import ids_for
from experts.background import watch_thread
from experts.checkpoint.reader import CheckpointReader
from experts.doorbell import Moment
from experts.errors import RankLost
from experts.exchange.wire import Route, StepWish
from experts.ffn import torch_swiglu
from experts.layers import ExpertLayers
from experts.loader import load_slots
from experts.membership import EpochRecord
from experts.rank import RankOrder, RankReport
from experts.rank_actor import RingingActor
from experts.slots import ExpertSlots

_CHECKED = 64  # tokens whose sums are compared in every step and layer


@dataclass(frozen=True, slots=True)
class SourceOrder:
    """tokens: of a step; loads: int64 [T, L, E], one step after the other, then over again."""

    tokens: int
    loads: npt.NDArray[np.int64]


@dataclass(slots=True)
class SourceResults:
    """Of the steps run so far. seconds: of each; versions: placement of each; started: s, of time.time; error: largest
    difference of a sum from what it must be, relative to the largest sum."""

    seconds: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    started: list[float] = field(default_factory=list)
    error: float = 0.0
    lost: str = ""


class SourceActor(RingingActor):
    """A seat that brings tokens. `go` has it run steps; everything else is as for an attention rank."""

    def __init__(self, order: RankOrder, source: SourceOrder) -> None:
        super().__init__(order)
        self._order, self._source = order, source
        self._layers: ExpertLayers | None = None
        self._results = SourceResults()
        self._wanted = threading.Condition()
        self._left, self._empty, self._stopping = 0, False, False
        self._next: Moment = (0, 0)
        self._at = 0
        generator = torch.Generator().manual_seed(1)
        self._x = torch.randn(source.tokens, order.spec.hidden, generator=generator)
        self._weights = torch.rand(source.tokens, order.spec.top_k, generator=generator)

    async def load(self) -> int:
        """Read all experts, to check answers by."""
        await asyncio.to_thread(self._load)
        return 0

    async def join(self, record: EpochRecord, peers: list[Any]) -> None:
        """Take the seat and wait for `go`."""
        self._peers = peers
        self._layers = await asyncio.to_thread(self._seat.join, record)
        self._next = (record.membership.epoch, 0)
        watch_thread("step-loop", self._run, self._failed, returns=True)

    async def go(self, steps: int) -> None:
        """Run so many steps more; returns at once."""
        with self._wanted:
            self._left += steps
            self._wanted.notify()

    async def left(self) -> int:
        """Steps that are still to run."""
        return self._left

    async def results(self) -> SourceResults:
        """What was seen so far."""
        return self._results

    async def nudge(self) -> None:
        """Have the group run a step, be it an empty one."""
        with self._wanted:
            self._empty = True
            self._wanted.notify()

    async def stop(self) -> None:
        """End the group's loops after the next step."""
        with self._wanted:
            self._stopping = True
            self._wanted.notify()

    async def leave(self, reason: str) -> None:
        """Drop the epoch's group."""
        self._seat.leave()
        self._end(reason)

    async def report(self) -> tuple[RankReport, None]:
        """Running totals."""
        return self._seat.report(), None

    def _load(self) -> None:
        order = self._order
        torch.set_num_threads(1)
        spec = order.spec
        self._all = ExpertSlots(spec, spec.experts, order.dtype)
        held = np.tile(np.arange(spec.experts, dtype=np.int64), (spec.moe_layers, 1))
        load_slots(self._all, held, CheckpointReader(order.folder))
        self._seat.load(lambda done, total: None)

    def _run(self) -> None:
        reason = ""
        try:
            while not self._step():
                pass
        except RankLost as lost:
            reason = str(lost)
            self._results.lost = reason
            self._left = 0
        self._seat.leave()
        self._loop.call_soon_threadsafe(self._end, reason)

    def _failed(self, what: str) -> None:
        """The step thread ended otherwise: its peers and the simulation must not wait for it."""
        self._results.lost = what
        self._left = 0
        self._seat.leave()
        self._loop.call_soon_threadsafe(self._end, what)

    def _step(self) -> bool:
        with self._wanted:
            self._wanted.wait_for(lambda: self._left or self._empty or self._stopping)
            busy, stopping, self._empty = self._left > 0 and not self._stopping, self._stopping, False
        assert self._layers is not None, "a source joins before it runs"
        exchange = self._layers.exchange
        routes = self._routes() if busy else []
        self._ring(self._next)
        began, started = time.time(), time.perf_counter()
        header = exchange.open_step(StepWish(decode=self._source.tokens if busy else 0, stop=stopping))
        self._next = (header.epoch, header.step + 1)
        if header.busy:
            sums = [self._layers(layer, self._x, route) for layer, route in enumerate(routes)]
            seconds = time.perf_counter() - started
            self._layers.end_step(header)
            self._check(routes, sums)
            results = self._results
            results.seconds.append(seconds)
            results.versions.append(header.version)
            results.started.append(began)
            with self._wanted:
                self._left -= 1
        return header.stop

    def _routes(self) -> list[Route]:
        loads = self._source.loads
        counts = loads[self._at % len(loads)]
        rng = np.random.default_rng(self._at)
        self._at += 1
        top_k = self._order.spec.top_k
        ids = (ids_for(row.copy(), self._source.tokens, top_k, rng) for row in counts)
        return [Route(torch.from_numpy(np.ascontiguousarray(one)).int(), self._weights) for one in ids]

    def _check(self, routes: list[Route], sums: list[torch.Tensor]) -> None:
        for layer, (route, got) in enumerate(zip(routes, sums, strict=True)):
            some = slice(0, _CHECKED)
            w13, w2 = self._all.w13[layer], self._all.w2[layer]
            right = torch_swiglu(self._x[some], route.ids[some], route.weights[some], w13, w2)
            error = float((got[some] - right).abs().max() / right.abs().max().clamp_min(1e-9))
            self._results.error = max(self._results.error, error)
