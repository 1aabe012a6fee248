"""CollectiveExchange: dispatch and combine over a group's all-to-all, the same code for gloo and NCCL.

Per layer every member calls dispatch and combine once, in the same order. A token travels at most once to each
rank, with all its (slot, weight) pairs there. One vector per token and rank comes back in the activations' dtype
(each rank sums in float32 and rounds once); sources sum in float32, in the order of seats, so that equal inputs
give equal bits. Shape letters: T own tokens, H hidden, K top-k.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from experts.exchange.base import CombineHandle, DispatchHandle, Exchange, ExchangeCounters
from experts.exchange.block import BlockForm, Blocks, Stamp, write_stamp
from experts.exchange.flight import Combine, Dispatch, Plan
from experts.exchange.guard import GuardedGroup
from experts.exchange.routing import Tables
from experts.exchange.sizes import bucket, pads
from experts.exchange.split import SplitPolicy
from experts.exchange.transport import Group
from experts.exchange.wire import Route, StepHeader, StepWish, share_prefill
from experts.membership import Membership
from experts.placement import Placement


@dataclass(frozen=True, slots=True)
class Offer:
    """A placement version that this rank holds complete. switch: what the step thread does before its first use."""

    tables: Tables
    switch: Callable[[], None] | None


class CollectiveExchange(Exchange):
    """One member's end. The group belongs to the exchange from here on: `close` drops it.

    rank: this member's seat; placement: of seats 0 .. R-1, each of which a member holds; form: what rows look like;
    budget: tokens of a whole step over all ranks; policy: of the split. Every method raises RankLost once a member is
    gone, a payload is of another step, or the exchange was closed.
    """

    lockstep = True

    def __init__(
        self,
        group: Group,
        membership: Membership,
        rank: int,
        placement: Placement,
        form: BlockForm,
        budget: int,
        policy: SplitPolicy | None = None,
    ) -> None:
        self.counters = ExchangeCounters()
        self.member, self.size = membership.index(rank), membership.size
        assert self.member == group.index, (self.member, group.index)
        self._group = GuardedGroup(group, membership, self.counters)
        self._form = form
        self._budget = budget
        self._policy = policy or SplitPolicy()
        self._experts_per_layer = placement.experts
        self._lock = threading.Lock()  # of what `offer` leaves for the step thread
        self._offered = {placement.version: Offer(Tables(placement, membership, self._policy), None)}
        self._newest = placement.version
        self._tables = self._offered[placement.version].tables
        members = membership.members
        self._experts = [i for i, member in enumerate(members) if member.holds_experts]
        self._header = StepHeader(
            membership.epoch, -1, placement.version, (0,) * len(members), (0,) * len(members), False
        )
        self._padded = True
        self._sources = sum(member.runs_attention for member in members)

    @property
    def version(self) -> int:
        """The placement version of the step under way, or of the last one."""
        return self._header.version

    def offer(self, placement: Placement, switch: Callable[[], None] | None) -> None:
        """This rank holds `placement`, newer than any before, complete: a step may use it once all members do.

        switch: called by the step thread at the start of the first such step, before anything routes by it; it leads
        here from the version in use now, so whatever was offered since then and never used is passed over. Callable
        from any thread.
        """
        tables = Tables(placement, self._group.membership, self._policy, self._tables)
        with self._lock:
            assert placement.version > self._newest, (placement.version, self._newest)
            self._offered[placement.version] = Offer(tables, switch)
            self._newest = placement.version

    def open_step(self, wish: StepWish) -> StepHeader:
        epoch, step = self._header.epoch, self.counters.steps
        fields = (epoch, step, self._newest, wish.decode, wish.prefill, int(wish.stop))
        rows = self._group.gather(torch.tensor(fields, dtype=torch.int64)).tolist()
        for index, row in enumerate(rows):
            if row[:2] != [epoch, step]:
                raise self._group.lost(f"{self._group.name(index)} is at epoch {row[0]}, step {row[1]}")
        _, _, versions, decode, wishes, stops = zip(*rows, strict=True)
        version = min(versions)
        self._switch_to(version)
        prefill = share_prefill(self._budget, decode, wishes, step)
        tokens = tuple(d + p for d, p in zip(decode, prefill, strict=True))
        form = self._form
        row_bytes = form.dispatch_bytes(1) + form.combine_bytes(1)
        self._padded = pads(tokens, len(self._experts), form.top_k, row_bytes)
        self._header = StepHeader(epoch, step, version, tokens, prefill, any(stops))
        self.counters.steps += 1
        return self._header

    def dispatch(self, layer: int, x: torch.Tensor, route: Route) -> DispatchHandle:
        started = time.perf_counter()
        header = self._header
        assert x.shape[0] <= header.tokens[self.member], f"{x.shape[0]} tokens, granted {header.tokens[self.member]}"
        stamp = Stamp(header.epoch, header.step, layer, header.version)
        ids = route.ids.to("cpu", torch.int16)
        plan = self._padded_plan(stamp, ids) if self._padded else self._exact_plan(stamp, ids)
        handle = Dispatch(self._group, self._form, plan, x, route)
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
        self._group.close()

    def _switch_to(self, version: int) -> None:
        """Bring this rank to the step's placement version."""
        if version == self._header.version:
            return
        with self._lock:
            if version not in self._offered:
                raise self._group.lost(f"placement version {version} is not held here, but {sorted(self._offered)}")
            offer = self._offered[version]
            self._offered = {v: later for v, later in self._offered.items() if v >= version}
        if offer.switch is not None:
            offer.switch()
        self._tables = offer.tables

    def _padded_plan(self, stamp: Stamp, ids: torch.Tensor) -> Plan:
        """Sizes from the header alone; each source splits its own tokens."""
        pairs = sum(self._header.tokens) * self._form.top_k
        few = self._sources > 1 and pairs < self._policy.floor * self._experts_per_layer
        routing = self._tables.route_one(stamp.layer, ids, self.member, whole=few)
        rooms = {i: bucket(count) for i, count in enumerate(self._header.tokens) if count}
        send = {j: rooms[self.member] for j in self._peers(self._experts)} if self.member in rooms else {}
        receive = {i: rooms[i] for i in self._peers(list(rooms))} if self.member in self._experts else {}
        return Plan(stamp, routing, send, receive)

    def _exact_plan(self, stamp: Stamp, ids: torch.Tensor) -> Plan:
        """Everyone's ids first; one split of all tokens gives every size."""
        everyone = self._gather_ids(stamp, ids)
        routing, counts = self._tables.route_all(stamp.layer, everyone, self.member)
        sources = [i for i, count in enumerate(self._header.tokens) if count]
        send = {j: len(routing.rows[j]) for j in self._peers(self._experts)} if self.member in sources else {}
        receive = {i: counts[i] for i in self._peers(sources)} if self.member in self._experts else {}
        return Plan(stamp, routing, send, receive)

    def _gather_ids(self, stamp: Stamp, ids: torch.Tensor) -> dict[int, torch.Tensor]:
        """Everyone's top-k ids [T, K] int16 by member: an all-to-all, since only some members have any."""
        form, group = self._form, self._group
        rooms = {i: count for i, count in enumerate(self._header.tokens) if count}
        mine = form.ids_bytes(rooms.get(self.member, 0))
        send = dict.fromkeys(self._peers(list(range(group.size))), mine) if self.member in rooms else {}
        receive = {i: form.ids_bytes(rooms[i]) for i in self._peers(list(rooms))}
        blocks = Blocks.allocate(group.size, send, receive, group.device)
        for block in blocks.to_send():
            if block.numel():
                write_stamp(block, stamp, ids.shape[0])
                form.ids(block, ids.shape[0]).copy_(ids)
        group.finish(group.exchange(blocks))
        arrived = blocks.arrived()
        everyone = {self.member: ids}
        for i in receive:
            everyone[i] = form.ids(arrived[i], group.check(arrived[i], i, stamp, rooms[i])).cpu()
        return dict(sorted(everyone.items()))

    def _peers(self, members: list[int]) -> list[int]:
        return [member for member in members if member != self.member]
