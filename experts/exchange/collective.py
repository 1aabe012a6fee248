"""CollectiveExchange: dispatch and combine over a group's all-to-all, the same code for gloo and NCCL.

Per layer every member calls dispatch and combine once, in the same order. A token travels at most once to each
rank, with all its (slot, weight) pairs there. One vector per token and rank comes back in the activations' dtype
(each rank sums in float32 and rounds once); sources sum in float32, in the order of seats, so that equal inputs
give equal bits. Shape letters: T own tokens, H hidden, K top-k.
"""

import time

import torch

from experts.epoch.agreement import StepHeader, StepWish
from experts.epoch.membership import EpochRecord, Membership
from experts.exchange.base import DispatchHandle, ExchangeCounters, ExchangeOrder, Meeting
from experts.exchange.block import Blocks, Stamp, write_stamp
from experts.exchange.control import Ring
from experts.exchange.doorbell import Doorbell
from experts.exchange.flight import Dispatch, LayerPlan
from experts.exchange.group import build_group, connect_store
from experts.exchange.group_control import GroupControl
from experts.exchange.guard import GuardedGroup
from experts.exchange.links.control import LinkControl
from experts.exchange.links.group import LinkGroup
from experts.exchange.links.hub import Key
from experts.exchange.sizes import COLLECTIVE_BYTES, bucket, pads
from experts.exchange.stepped import SteppedExchange
from experts.exchange.transport import Group
from experts.exchange.wire import Route


class CollectiveExchange(SteppedExchange[GuardedGroup]):
    """See the module."""

    def __init__(
        self, order: ExchangeOrder, group: GuardedGroup, control: GroupControl | None = None,
        collective_bytes: int = COLLECTIVE_BYTES,
    ) -> None:  # fmt: skip
        """group: of the first epoch
        control: None = nobody rings for this member
        collective_bytes: see `sizes`
        """
        assert group.membership.index(order.rank) == group.index, (order.rank, group.index)
        self._form, self._collective_bytes = order.form, collective_bytes
        self._padded = True
        super().__init__(order, group, control or GroupControl(Doorbell()), group.counters)

    @classmethod
    def join(cls, order: ExchangeOrder, record: EpochRecord, bell: Doorbell, ring: Ring) -> "CollectiveExchange":
        """Meet the members of an epoch and build their group; blocks until all have come. Raises RankLost."""
        group = _meet(order, record, ExchangeCounters(), frozenset())
        if order.hub is None:
            return cls(order, group, GroupControl(bell, ring))
        exchange = cls(order, group, LinkControl(bell))
        order.hub.on_death(exchange._note_death)
        return exchange

    def _note_death(self, key: Key) -> None:
        """A process has died. A collective does not end by itself then, if it is NCCL's."""
        links = self._group.links
        if links is not None and key in links.keys:
            self.control.abort()

    def offer_epoch(self, membership: Membership, group: Group | None) -> None:
        """`prepare`, given this rank's end of the next group; None: it is no member."""
        self._offer_epoch(membership, None if group is None else GuardedGroup(group, membership, self.counters))

    def open_step(self, wish: StepWish) -> StepHeader:
        header, form = super().open_step(wish), self._form
        row_bytes = form.dispatch_bytes(1) + form.combine_bytes(1)
        self._padded = pads(header.tokens, len(self._group.holders), form.top_k, row_bytes, self._collective_bytes)
        return header

    def _build(self, record: EpochRecord, beside: bool) -> GuardedGroup:
        links = self._group.links
        return _meet(self._order, record, self.counters, links.keys if links is not None and beside else frozenset())

    def _own(self, meeting: Meeting) -> GuardedGroup:
        assert isinstance(meeting, GuardedGroup), "made by `meet`"
        return meeting

    def dispatch(self, layer: int, x: torch.Tensor, route: Route) -> DispatchHandle:
        started = time.perf_counter()
        header = self._header
        self._layer = layer
        assert x.shape[0] <= header.tokens[self.member], f"{x.shape[0]} tokens, granted {header.tokens[self.member]}"
        stamp = Stamp(header.epoch, header.step, layer, header.version)
        ids = route.ids.to("cpu", torch.int16)
        plan = self._padded_plan(stamp, ids) if self._padded else self._exact_plan(stamp, ids)
        handle = Dispatch(self._group, self._form, plan, x, route)
        self.counters.layers += 1
        self.counters.dispatch_seconds += time.perf_counter() - started
        return handle

    def _padded_plan(self, stamp: Stamp, ids: torch.Tensor) -> LayerPlan:
        """Sizes from the header alone; each source splits its own tokens."""
        pairs = sum(self._header.tokens) * self._form.top_k
        few = len(self._group.sources) > 1 and pairs < self._tables.policy.floor * self._order.placement.experts
        routing = self._tables.route_one(stamp.layer, ids, self.member, whole=few)
        rooms = {i: bucket(count) for i, count in enumerate(self._header.tokens) if count}
        send = {j: rooms[self.member] for j in self._peers(self._group.holders)} if self.member in rooms else {}
        receive = {i: rooms[i] for i in self._peers(list(rooms))} if self.member in self._group.holders else {}
        return LayerPlan(stamp, routing, send, receive)

    def _exact_plan(self, stamp: Stamp, ids: torch.Tensor) -> LayerPlan:
        """Everyone's ids first; one split of all tokens gives every size."""
        everyone = self._gather_ids(stamp, ids)
        routing, counts = self._tables.route_all(stamp.layer, everyone, self.member)
        sources = [i for i, count in enumerate(self._header.tokens) if count]
        send = {j: len(routing.rows[j]) for j in self._peers(self._group.holders)} if self.member in sources else {}
        receive = {i: counts[i] for i in self._peers(sources)} if self.member in self._group.holders else {}
        return LayerPlan(stamp, routing, send, receive)

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
        group.finish(group.exchange(blocks), "ids")
        arrived = blocks.arrived()
        everyone = {self.member: ids}
        for i in receive:
            everyone[i] = form.ids(arrived[i], group.check(arrived[i], i, stamp, rooms[i])).cpu()
        return dict(sorted(everyone.items()))

    def _peers(self, members: list[int]) -> list[int]:
        return [member for member in members if member != self.member]


def _meet(
    order: ExchangeOrder, record: EpochRecord, counters: ExchangeCounters, running: frozenset[Key]
) -> GuardedGroup:
    """This rank's end of an epoch's group; blocks until all members have come. Raises RankLost.

    running: processes whose links, where the rank has any, carry headers meanwhile
    """
    members, seconds = record.membership, record.timeout
    links = None if order.hub is None else LinkGroup.meet(order.hub, order.rank, record, running)
    try:
        store = connect_store(record.store_host, record.store_port, seconds)
        index = members.index(order.rank)
        group = build_group(
            store, members.epoch, index, members.size, order.device, order.host, seconds, connect=record.connect
        )
    except BaseException:
        if links is not None:
            links.close()
        raise
    return GuardedGroup(group, members, counters, links)
