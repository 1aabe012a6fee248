"""CollectiveExchange: dispatch and combine over a group's all-to-all, the same code for gloo and NCCL.

Per layer every member calls dispatch and combine once, in the same order. A token travels at most once to each
rank, with all its (slot, weight) pairs there; what stays on this rank is not sent. One vector per token and rank
comes back in the activations' dtype (each rank sums in float32 and rounds once); sources sum in float32, in the
order of seats, so that equal inputs give equal bits. Shape letters: T own tokens, N rows received, H hidden, K top-k.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from experts.errors import RankLost
from experts.exchange.base import CombineHandle, DispatchHandle, Exchange, ExchangeCounters
from experts.exchange.routing import Routing, Tables
from experts.exchange.section import SectionLayout, Stamp, read_stamp, write_stamp
from experts.exchange.sizes import Mode, choose_mode
from experts.exchange.transport import Group, Pending
from experts.exchange.wire import ExpertBatch, Route, StepHeader, StepWish, share_prefill
from experts.membership import Membership
from experts.placement import Placement
from experts.spec import ExpertsSpec

_HEADER_FIELDS = 6  # epoch, step, version, decode, prefill, stop


@dataclass(frozen=True, slots=True)
class Sections:
    """One all-to-all's buffers: a section for each member, some of no bytes."""

    sent: torch.Tensor
    received: torch.Tensor
    send_bytes: list[int]
    receive_bytes: list[int]

    @classmethod
    def allocate(cls, send_bytes: list[int], receive_bytes: list[int], device: torch.device) -> "Sections":
        """Fresh buffers; nothing is set."""
        sent = torch.empty(sum(send_bytes), dtype=torch.uint8, device=device)
        received = torch.empty(sum(receive_bytes), dtype=torch.uint8, device=device)
        return cls(sent, received, send_bytes, receive_bytes)

    def to_send(self) -> Sequence[torch.Tensor]:
        """Per member, the bytes that it will get."""
        return self.sent.split(self.send_bytes)

    def arrived(self) -> Sequence[torch.Tensor]:
        """Per member, the bytes that it sent."""
        return self.received.split(self.receive_bytes)


class CollectiveExchange(Exchange):
    """One member's end. The group belongs to the exchange from here on: `close` drops it.

    placement covers seats 0 .. R-1; every seat that it names holds a member. dtype: of activations. budget: tokens of
    a whole step over all ranks. Every method raises RankLost once a member is gone, a payload is of another step, or
    the exchange was closed.
    """

    lockstep = True

    def __init__(
        self,
        group: Group,
        membership: Membership,
        placement: Placement,
        spec: ExpertsSpec,
        dtype: torch.dtype,
        budget: int,
    ) -> None:
        self.counters = ExchangeCounters()
        self.member = group.index
        self.membership = membership
        self.layout = SectionLayout(spec.hidden, spec.top_k, dtype)
        self._group = group
        self._budget = budget
        self._tables = {placement.version: Tables(placement, membership)}
        self._expert_ranks = sum(member.holds_experts for member in membership.members)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._header = StepHeader(membership.epoch, -1, placement.version, (0,) * group.size, (0,) * group.size, False)
        self._mode = Mode.PADDED

    @property
    def holds_experts(self) -> bool:
        """Whether tokens may be sent here."""
        return self.membership.members[self.member].holds_experts

    def open_step(self, wish: StepWish) -> StepHeader:
        step = self._header.step + 1
        fields = (self.membership.epoch, step, wish.version, wish.decode, wish.prefill, int(wish.stop))
        mine = torch.tensor(fields, dtype=torch.int64, device=self._group.device)
        out = torch.empty(_HEADER_FIELDS * self._group.size, dtype=torch.int64, device=self._group.device)
        self.finish(self.start(lambda: self._group.all_gather(out, mine)))
        rows = out.view(-1, _HEADER_FIELDS).tolist()
        for index, row in enumerate(rows):
            if row[:2] != [self.membership.epoch, step]:
                raise self.lost(f"{self.name(index)} opened epoch {row[0]}, step {row[1]}")
        decode, wishes = tuple(row[3] for row in rows), tuple(row[4] for row in rows)
        prefill = share_prefill(self._budget, decode, wishes, step)
        tokens = tuple(d + p for d, p in zip(decode, prefill, strict=True))
        version = min(row[2] for row in rows)
        self._header = StepHeader(self.membership.epoch, step, version, tokens, prefill, any(row[5] for row in rows))
        if version not in self._tables:
            raise self.lost(f"placement version {version} is not one of those held: {sorted(self._tables)}")
        self._mode = choose_mode(tokens, self._expert_ranks, self.layout.top_k, self.layout.dispatch_bytes(1))
        self.counters.steps += 1
        return self._header

    def dispatch(self, layer: int, x: torch.Tensor, route: Route) -> DispatchHandle:
        started = time.perf_counter()
        tokens, mine = self._header.tokens, self.member
        assert x.shape[0] <= tokens[mine], f"{x.shape[0]} tokens, the step's header granted {tokens[mine]}"
        stamp = Stamp(self._header.epoch, self._header.step, layer, self._header.version)
        tables = self._tables[stamp.version]
        ids = route.ids.to("cpu", torch.int16)
        if self._mode is Mode.EXACT:
            everyone = self._gather_ids(stamp, ids)
            routing, counts = tables.route_all(layer, everyone, mine)
        else:
            routing, counts = tables.route_one(layer, ids, mine), None
        handle = Dispatch(self, stamp, x, route, routing, counts)
        self.counters.layers += 1
        self.counters.dispatch_seconds += time.perf_counter() - started
        return handle

    def combine(self, handle: DispatchHandle, y: torch.Tensor) -> CombineHandle:
        assert isinstance(handle, Dispatch), type(handle)
        started = time.perf_counter()
        combine = Combine(handle, y)
        self.counters.combine_seconds += time.perf_counter() - started
        return combine

    def close(self) -> None:
        with self._lock:
            self._closed.set()
        self._group.close()

    def sources(self) -> list[int]:
        """Members that bring tokens in this step."""
        return [i for i, count in enumerate(self._header.tokens) if count]

    def room(self, source: int) -> int:
        """Most rows that a member sends any rank in this step."""
        return self._header.tokens[source]

    def name(self, index: int) -> str:
        """A member, as an operator knows it."""
        member = self.membership.members[index]
        return f"rank {member.rank} ({member.role}, {member.node_ip}, pid {member.pid})"

    def lost(self, detail: str) -> RankLost:
        """What is raised when this exchange can't go on."""
        return RankLost(self.membership.epoch, self._header.step, detail)

    def start(self, operation: Callable[[], Pending]) -> Pending:
        """Begin an operation of the group; whatever breaks becomes RankLost."""
        try:
            return operation()
        except RuntimeError as error:
            raise self._broken(error) from error

    def finish(self, work: Pending) -> None:
        """Wait for an operation; what it brought counts only if the exchange was not closed meanwhile."""
        try:
            work.wait()
        except RuntimeError as error:
            raise self._broken(error) from error
        with self._lock:
            if self._closed.is_set():
                raise self.lost("the exchange was closed")

    def exchange(self, sections: Sections) -> Pending:
        """Begin the all-to-all of a layer."""
        self.counters.collectives += 1
        self.counters.bytes_sent += sections.sent.numel()
        return self.start(
            lambda: self._group.all_to_all(
                sections.received, sections.sent, sections.receive_bytes, sections.send_bytes
            )
        )

    def check(self, section: torch.Tensor, source: int, stamp: Stamp, room: int) -> int:
        """Rows in a section that arrived. Raises RankLost for one of another step or of more rows than agreed."""
        found, count = read_stamp(section)
        if found != stamp:
            raise self.lost(f"{self.name(source)} sent {found}, expected {stamp}")
        if not 0 <= count <= room:
            raise self.lost(f"{self.name(source)} sent {count} rows in {stamp}, there was room for {room}")
        return count

    def _gather_ids(self, stamp: Stamp, ids: torch.Tensor) -> dict[int, torch.Tensor]:
        """Everyone's top-k ids [T, K] int16 by member. An all-to-all, since only some members have any."""
        layout, sources = self.layout, self.sources()
        size, mine = self._group.size, self.member
        own_bytes = layout.ids_bytes(self.room(mine)) if mine in sources else 0
        sections = Sections.allocate(
            [own_bytes if j != mine else 0 for j in range(size)],
            [layout.ids_bytes(self.room(i)) if i in sources and i != mine else 0 for i in range(size)],
            self._group.device,
        )
        for section in sections.to_send():
            if section.numel():
                write_stamp(section, stamp, ids.shape[0])
                layout.ids(section, ids.shape[0]).copy_(ids)
        self.finish(self.exchange(sections))
        arrived = sections.arrived()
        everyone = {
            i: layout.ids(arrived[i], self.check(arrived[i], i, stamp, self.room(i))) for i in sources if i != mine
        }
        everyone[mine] = ids
        return {i: everyone[i].cpu() for i in sorted(everyone)}

    def _broken(self, error: Exception) -> RankLost:
        if self._closed.is_set():
            return self.lost("the exchange was closed")
        culprit = self._group.culprit(error)
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        return self.lost(first_line if culprit is None else f"lost {self.name(culprit)}: {first_line}")


class Dispatch:
    """A dispatch under way: packed and posted on construction, so that it travels before anyone waits."""

    def __init__(
        self,
        exchange: CollectiveExchange,
        stamp: Stamp,
        x: torch.Tensor,
        route: Route,
        routing: Routing,
        counts: list[int] | None,
    ) -> None:
        self.exchange = exchange
        self.stamp = stamp
        self.routing = routing
        self.tokens = x.shape[0]
        self._x, self._weights = x, route.weights
        self._exact = counts is not None
        size, mine = len(exchange.membership.members), exchange.member
        layout = exchange.layout
        sources = exchange.sources()
        self._send_room = [0] * size
        self._receive_room = [0] * size
        if mine in sources:
            for j in routing.ranks:
                self._send_room[j] = len(routing.rows[j]) if self._exact else exchange.room(mine)
        if exchange.holds_experts:
            for i in sources:
                self._receive_room[i] = counts[i] if counts is not None else exchange.room(i)
        send_to = set(routing.ranks) - {mine} if mine in sources else set()
        self.receive_from = [i for i in sources if i != mine] if exchange.holds_experts else []
        self.send_to = sorted(send_to)
        self._sections = Sections.allocate(
            [layout.dispatch_bytes(self._send_room[j]) if j in send_to else 0 for j in range(size)],
            [layout.dispatch_bytes(self._receive_room[i]) if i in self.receive_from else 0 for i in range(size)],
            x.device,
        )
        self._pack()
        self._work = exchange.exchange(self._sections)
        self.counts = [0] * size  # rows per source, once `wait` returned

    def wait(self) -> ExpertBatch:
        started = time.perf_counter()
        exchange, layout = self.exchange, self.exchange.layout
        exchange.finish(self._work)
        arrived = self._sections.arrived()
        parts: list[ExpertBatch] = []
        for i in sorted([*self.receive_from, exchange.member]):
            if i == exchange.member:
                part = self._own()
            else:
                room = self._receive_room[i]
                count = exchange.check(arrived[i], i, self.stamp, room)
                rows = layout.dispatch_rows(arrived[i], room, count)
                part = ExpertBatch(rows.x, rows.slots, rows.weights)
            self.counts[i] = part.x.shape[0]
            if part.x.shape[0]:
                parts.append(part)
        exchange.counters.dispatch_seconds += time.perf_counter() - started
        return parts[0] if len(parts) == 1 else _concatenated(parts, self._own())

    def _pack(self) -> None:
        layout = self.exchange.layout
        sections = self._sections.to_send()
        for j in self.send_to:
            tokens = self.routing.rows[j]
            write_stamp(sections[j], self.stamp, len(tokens))
            rows = layout.dispatch_rows(sections[j], self._send_room[j], len(tokens))
            index = torch.from_numpy(tokens).to(self._x.device)
            torch.index_select(self._x, 0, index, out=rows.x)
            torch.index_select(self._weights, 0, index, out=rows.weights)
            rows.slots.copy_(torch.from_numpy(self.routing.local_slots(j)))

    def _own(self) -> ExpertBatch:
        """The rows that stay on this rank."""
        mine = self.exchange.member
        if mine not in self.routing.rows:
            return ExpertBatch(
                self._x[:0],
                torch.empty((0, self.exchange.layout.top_k), dtype=torch.int32, device=self._x.device),
                self._weights[:0],
            )
        index = torch.from_numpy(self.routing.rows[mine]).to(self._x.device)
        slots = torch.from_numpy(self.routing.local_slots(mine)).to(self._x.device)
        return ExpertBatch(self._x[index], slots, self._weights[index])


class Combine:
    """A combine under way. y: [N, H] float32 in the order of the dispatch's batch: by source, then by token."""

    def __init__(self, dispatch: Dispatch, y: torch.Tensor) -> None:
        exchange, layout, mine = dispatch.exchange, dispatch.exchange.layout, dispatch.exchange.member
        size = len(exchange.membership.members)
        assert y.shape[0] == sum(dispatch.counts), (tuple(y.shape), dispatch.counts)
        self._dispatch = dispatch
        self._own: torch.Tensor | None = None
        receive = [
            layout.combine_bytes(len(dispatch.routing.rows[j])) if j in dispatch.send_to else 0 for j in range(size)
        ]
        send = [layout.combine_bytes(dispatch.counts[i]) if i in dispatch.receive_from else 0 for i in range(size)]
        self._sections = Sections.allocate(send, receive, y.device)
        sections = self._sections.to_send()
        for i, part in enumerate(y.split(dispatch.counts)):
            if i == mine:
                self._own = part
            elif i in dispatch.receive_from:
                write_stamp(sections[i], dispatch.stamp, part.shape[0])
                layout.sums(sections[i], part.shape[0]).copy_(part)
        self._work = exchange.exchange(self._sections)

    def wait(self) -> torch.Tensor:
        started = time.perf_counter()
        dispatch, exchange = self._dispatch, self._dispatch.exchange
        exchange.finish(self._work)
        device = self._sections.received.device
        sums = torch.zeros((dispatch.tokens, exchange.layout.hidden), dtype=torch.float32, device=device)
        arrived = self._sections.arrived()
        for j in dispatch.routing.ranks:
            tokens = dispatch.routing.rows[j]
            if j == exchange.member:
                part = self._own
            elif j in dispatch.send_to:
                count = exchange.check(arrived[j], j, dispatch.stamp, len(tokens))
                part = exchange.layout.sums(arrived[j], count).float()
            else:
                continue
            if part is not None and len(tokens):
                sums.index_add_(0, torch.from_numpy(tokens).to(device), part)
        exchange.counters.combine_seconds += time.perf_counter() - started
        return sums


def _concatenated(parts: list[ExpertBatch], none: ExpertBatch) -> ExpertBatch:
    if not parts:
        return none
    return ExpertBatch(
        torch.cat([part.x for part in parts]),
        torch.cat([part.slots for part in parts]),
        torch.cat([part.weights for part in parts]),
    )
