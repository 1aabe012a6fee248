"""Dispatch and Combine: one layer's two all-to-alls under way, packed and posted on construction.

What stays on this rank is not sent. Shape letters: T own tokens, N rows received, H hidden, K top-k.
"""

import time
from dataclasses import dataclass, replace

import torch

from experts.exchange.block import BlockForm, Blocks, Stamp, write_stamp
from experts.exchange.guard import GuardedGroup
from experts.exchange.routing import Routing
from experts.exchange.wire import ExpertBatch, Route


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer's dispatch.

    send, receive: by peer, rows there is room for; peers without an entry get nothing
    """

    stamp: Stamp
    routing: Routing
    send: dict[int, int]
    receive: dict[int, int]


class Dispatch:
    """`wait` brings the rows for this rank, in order of members, then of tokens; `counts` says whose they are."""

    def __init__(self, group: GuardedGroup, form: BlockForm, plan: LayerPlan, x: torch.Tensor, route: Route) -> None:
        self.group, self.form, self.plan = group, form, plan
        self.tokens = x.shape[0]
        self.counts = [0] * group.size
        self._blocks = Blocks.allocate(
            group.size,
            {j: form.dispatch_bytes(room) for j, room in plan.send.items()},
            {i: form.dispatch_bytes(room) for i, room in plan.receive.items()},
            x.device,
        )
        self._pack(x, route.weights)
        self._work = group.exchange(self._blocks)
        self._own = self._stays(x, route.weights)  # while the rest travels

    def wait(self) -> ExpertBatch:
        started = time.perf_counter()
        group = self.group
        group.finish(self._work, "dispatch")
        arrived = self._blocks.arrived()
        parts: list[ExpertBatch] = []
        for i in sorted({*self.plan.receive, group.index}):
            part = self._own if i == group.index else self._unpack(arrived[i], i)
            self.counts[i] = part.x.shape[0]
            parts.append(part)
        group.counters.dispatch_seconds += time.perf_counter() - started
        return replace(_joined(parts), rows=tuple(self.counts))

    def combine(self, y: torch.Tensor) -> "Combine":
        started = time.perf_counter()
        combine = Combine(self, y)
        self.group.counters.combine_seconds += time.perf_counter() - started
        return combine

    def _pack(self, x: torch.Tensor, weights: torch.Tensor) -> None:
        routing, blocks = self.plan.routing, self._blocks.to_send()
        for j, room in self.plan.send.items():
            tokens = routing.rows[j]
            write_stamp(blocks[j], self.plan.stamp, len(tokens))
            rows = self.form.dispatch_rows(blocks[j], room, len(tokens))
            index = torch.from_numpy(tokens).to(x.device)
            torch.index_select(x, 0, index, out=rows.x)
            torch.index_select(weights, 0, index, out=rows.weights)
            rows.slots.copy_(torch.from_numpy(routing.local_slots(j)))

    def _stays(self, x: torch.Tensor, weights: torch.Tensor) -> ExpertBatch:
        routing, mine = self.plan.routing, self.group.index
        if mine not in routing.rows:
            none = torch.empty((0, self.form.top_k), dtype=torch.int32, device=x.device)
            return ExpertBatch(x[:0], none, weights[:0])
        index = torch.from_numpy(routing.rows[mine]).to(x.device)
        slots = torch.from_numpy(routing.local_slots(mine)).to(x.device)
        return ExpertBatch(x[index], slots, weights[index])

    def _unpack(self, block: torch.Tensor, source: int) -> ExpertBatch:
        room = self.plan.receive[source]
        rows = self.form.dispatch_rows(block, room, self.group.check(block, source, self.plan.stamp, room))
        return ExpertBatch(rows.x, rows.slots, rows.weights)


class Combine:
    """`wait` brings [T, H] float32. y: [N, H] float32, in the order of the rows that the dispatch brought."""

    def __init__(self, dispatch: Dispatch, y: torch.Tensor) -> None:
        group, form, plan = dispatch.group, dispatch.form, dispatch.plan
        assert y.shape[0] == sum(dispatch.counts), (tuple(y.shape), dispatch.counts)
        self._dispatch = dispatch
        self._blocks = Blocks.allocate(
            group.size,
            {i: form.combine_bytes(dispatch.counts[i]) for i in plan.receive},
            {j: form.combine_bytes(len(plan.routing.rows[j])) for j in plan.send},
            y.device,
        )
        parts, blocks = y.split(dispatch.counts), self._blocks.to_send()
        self._own = parts[group.index]
        for i in plan.receive:
            write_stamp(blocks[i], plan.stamp, dispatch.counts[i])
            form.sums(blocks[i], dispatch.counts[i]).copy_(parts[i])
        self._work = group.exchange(self._blocks)

    def wait(self) -> torch.Tensor:
        started = time.perf_counter()
        dispatch, group = self._dispatch, self._dispatch.group
        plan, form = dispatch.plan, dispatch.form
        group.finish(self._work, "combine")
        device = self._own.device
        sums = torch.zeros((dispatch.tokens, form.hidden), dtype=torch.float32, device=device)
        arrived = self._blocks.arrived()
        for j in plan.routing.members:
            tokens = plan.routing.rows[j]
            if j == group.index:
                part = self._own
            elif j in plan.send:
                count = group.check(arrived[j], j, plan.stamp, len(tokens))
                assert count == len(tokens), (count, len(tokens))
                part = form.sums(arrived[j], count).float()
            else:
                continue
            sums.index_add_(0, torch.from_numpy(tokens).to(device), part)
        group.counters.combine_seconds += time.perf_counter() - started
        return sums


def _joined(parts: list[ExpertBatch]) -> ExpertBatch:
    full = [part for part in parts if part.x.shape[0]]
    if len(full) < 2:
        return full[0] if full else parts[0]
    return ExpertBatch(
        torch.cat([part.x for part in full]),
        torch.cat([part.slots for part in full]),
        torch.cat([part.weights for part in full]),
    )
